"""Reads the settings of process 1 from the environment variables of an image, a sidecar or a desk."""

from collections.abc import Mapping
from dataclasses import dataclass

from pidone import actions
from pidone.errors import Refused
from pidone.pid1 import stages
from pidone.protocol import IN_CLUSTER

LINGER_SECONDS = 5.0  # between the last task and doze: people often change several labels one after the other
# Next to the metrics' 19100, below the ephemeral ports of Linux (32768), and not assigned by IANA.
STATUS_PORT = 19101


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings. The comment of each field names its variable. In a cluster the defaults suffice."""

    repos: tuple[str, ...] = (IN_CLUSTER,)  # PIDONE_REPO: URLs, tried in order, separated by commas
    pod_ip: str | None = None  # PIDONE_POD_IP: connect from this address and listen on it only
    linger: float = LINGER_SECONDS  # PIDONE_LINGER: seconds without tasks before the pod dozes
    programs: str = actions.PROGRAMS  # PIDONE_PROGRAMS: the folder whose programs tasks may run; "/" is all
    status: str = (
        ""  # PIDONE_STATUS_PORT: the address of /status, /drain and /maintenance; see ``status_address``
    )
    token: str = ""  # PIDONE_TOKEN: a file with a token that identifies the pod to an https repo
    secrets: str = ""  # PIDONE_SECRETS: the folder whose files plans may read; empty is none
    maintenance: bool = (
        False  # PIDONE_MAINTENANCE: 1 if POST /maintenance was in effect in the program before this one
    )
    after: str = ""  # PIDONE_LAST_WORDS: why the program before this one failed

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        repos = tuple(url.strip() for url in environ.get("PIDONE_REPO", "").split(",") if url.strip())
        linger = environ.get("PIDONE_LINGER", "")
        return cls(
            repos or (IN_CLUSTER,),
            pod_ip=environ.get("PIDONE_POD_IP") or None,
            linger=max(1.0, float(linger)) if linger.isdecimal() else LINGER_SECONDS,
            programs=environ.get("PIDONE_PROGRAMS") or actions.PROGRAMS,
            status=environ.get("PIDONE_STATUS_PORT", ""),
            token=environ.get("PIDONE_TOKEN", ""),
            secrets=environ.get("PIDONE_SECRETS", ""),
            maintenance=environ.get(stages.MAINTENANCE.decode()) == "1",
            after=environ.get(stages.WORDS.decode(), ""),
        )

    def status_address(self) -> tuple[str | None, int]:
        """Return the host to listen on (None: all addresses) and the port (0: do not listen).

        ``PORT`` is a loopback port for the pod's own containers. ``*:PORT`` is a port of the pod's address, for the
        kubelet; every client that can connect to it can drain the pod. Raises ``Refused`` for anything else.
        """
        host, _, port = self.status.rpartition(":")
        number = int(port) if port.isdecimal() else STATUS_PORT if not self.status else -1
        if host not in {"", "*"} or not 0 <= number < 65536:
            raise Refused(f'PIDONE_STATUS_PORT: expected PORT, *:PORT or 0, not "{self.status}"')
        if host:
            return self.pod_ip, number
        # PIDONE_POD_IP may be a loopback address: several pods on one machine, in demo and tests
        return self.pod_ip if (self.pod_ip or "").startswith("127.") else "127.0.0.1", number
