"""The settings of process 1, from the environment of an image, a sidecar or a desk."""

from collections.abc import Mapping
from dataclasses import dataclass

from pidone import actions
from pidone.errors import Refused
from pidone.pid1 import stages
from pidone.protocol import IN_CLUSTER

LINGER_SECONDS = 5.0  # without a task before the pod dozes: labels are often changed one after the other
# Beside the metrics' 19100, below the ports that kernels give to clients, and assigned to nothing by IANA.
STATUS_PORT = 19101


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment sets, by the variable named beside each field. In a cluster every one has a default."""

    repos: tuple[str, ...] = (IN_CLUSTER,)  # PIDONE_REPO: URLs, tried in order, separated by commas
    pod_ip: str | None = None  # PIDONE_POD_IP: connect from and listen on this address alone
    linger: float = LINGER_SECONDS  # PIDONE_LINGER
    programs: str = actions.PROGRAMS  # PIDONE_PROGRAMS: the folder whose programs tasks may run; "/" is all
    status: str = ""  # PIDONE_STATUS_PORT: where /status and /drain are; see ``status_address``
    token: str = ""  # PIDONE_TOKEN: a file with the token that tells the repo by https which pod asks
    after: str = ""  # PIDONE_LAST_WORDS: why the program before this one ended

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        repos = tuple(url.strip() for url in environ.get("PIDONE_REPO", IN_CLUSTER).split(",") if url.strip())
        linger = environ.get("PIDONE_LINGER", "")
        return cls(
            repos,
            pod_ip=environ.get("PIDONE_POD_IP") or None,
            linger=max(1.0, float(linger)) if linger.isdecimal() else LINGER_SECONDS,
            programs=environ.get("PIDONE_PROGRAMS") or actions.PROGRAMS,
            status=environ.get("PIDONE_STATUS_PORT", ""),
            token=environ.get("PIDONE_TOKEN", ""),
            after=environ.get(stages.WORDS.decode(), ""),
        )

    def status_address(self) -> tuple[str | None, int]:
        """The host (None: all) and the port to listen on; port 0: on none.

        A number is a port for the pod's own containers. ``*:PORT`` is on the pod's address, for the kubelet:
        whoever reaches it there can take the pod out of service. Raises ``Refused`` for anything else.
        """
        host, _, port = self.status.rpartition(":")
        number = int(port) if port.isdecimal() else STATUS_PORT if not self.status else -1
        if host not in {"", "*"} or not 0 <= number < 65536:
            raise Refused(f'PIDONE_STATUS_PORT: expected PORT, *:PORT or 0, not "{self.status}"')
        if host:
            return self.pod_ip, number
        # several pods on one machine, each at a loopback address of its own
        return self.pod_ip if (self.pod_ip or "").startswith("127.") else "127.0.0.1", number
