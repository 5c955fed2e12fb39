"""pidone, tini and dumb-init as process 1: the same jobs, with the options that each has for them."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PIDONE = Path(__file__).parents[2] / "build/pidone"


@dataclass(frozen=True)
class Peer:
    """One of the programs. A job that it has no option for is not in ``jobs``."""

    name: str
    program: str
    jobs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def argv(self, job: str, *command: str, program: str = "") -> list[str]:
        return [program or self.program, *self.jobs[job], *command]


TINI: dict[str, tuple[str, ...]] = {
    "plain": ("--",),
    "group": ("-g", "--"),
    "child": ("--",),
    "143 is 0": ("-e", "143", "--"),
    "two codes are 0": ("-e", "3", "-e143", "--"),
    "warns": ("-w", "--"),
    "says": ("-v", "--"),
    "subreaper": ("-s", "--"),
    "ends with its parent": ("-p", "SIGTERM", "-s", "--"),
    "flags together": ("-gsw", "--"),
}
DUMB_INIT: dict[str, tuple[str, ...]] = {
    "plain": ("--",),
    "without dashes": (),
    "group": ("--",),
    "child": ("-c", "--"),
    "15 becomes 3": ("-r", "15:3", "--"),
    "long": ("--rewrite", "15:3", "--rewrite=10:12", "--single-child", "--verbose", "--"),
    "15 is dropped": ("-r", "15:0", "--"),
    "says": ("-v", "--"),
}
# pidone has the options of both. Of their two defaults for the group it has tini's.
BOTH = TINI | DUMB_INIT | {"without dashes": ("-s",), "group": TINI["group"]}
PEERS = [
    Peer("pidone", str(PIDONE), BOTH),
    Peer("tini", shutil.which("tini") or "", TINI),
    Peer("dumb-init", shutil.which("dumb-init") or "", DUMB_INIT),
]


def missing(peer: Peer) -> str:
    """Why a program cannot run here, with the remedy; "" if it can."""
    if peer.name == "pidone":
        return "" if PIDONE.exists() else "pidone is not built: make doze"
    return "" if peer.program else f"needs {peer.name}: apt-get install {peer.name}"


def doing(*jobs: str) -> list[object]:
    """Parameters: each program that has an option for a job, and the job."""
    return [
        pytest.param(
            peer,
            job,
            id=f"{peer.name}-{job}",
            marks=[pytest.mark.skipif(bool(missing(peer)), reason=missing(peer) or "it is there")],
        )
        for job in jobs
        for peer in PEERS
        if job in peer.jobs
    ]
