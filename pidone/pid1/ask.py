"""The first stage of Python in a pod: asks the repo whether this pod has tasks.

It runs as a child of ``doze`` for some milliseconds. It imports built-in modules only, because most pods have no
tasks and each of them pays for these imports at its start. The request is ``GET /v1/doorbell``:

    303  the pod has tasks: doze becomes the engine
    200  the pod has none: this stage passes the open connection to doze as the doorbell

The doorbell carries no content, so doze needs no TLS and no parser.
"""

import _signal
import _socket
import posix

from pidone.pid1.claims import claims
from pidone.pid1.stages import WORDS
from pidone.protocol import DOORBELL_PATH, IN_CLUSTER, LAST_WORDS_HEADER, MAX_RETRY_AFTER_SECONDS

TIMEOUT_SECONDS = 3.0  # for connecting to one repo, and for each part of its answer
LIMIT_SECONDS = 20  # for the whole stage: a resolver that hangs must not hold it

DOZE_DESCRIPTOR = 3  # the socket to doze
PLAN, NO_ANSWER = 3, 4  # exit codes: doze becomes the engine; doze asks again after a growing delay


def main() -> int:
    """Return the exit code for doze: 0 (it got the doorbell or a delay), ``PLAN`` or ``NO_ANSWER``."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # doze has blocked all signals; this child may be ended
    _signal.alarm(LIMIT_SECONDS)
    pause = 0.0
    for host, port in repos():
        try:
            bell = _connect(host, port)
            head = _ask(bell, host, port)
        except OSError:
            continue
        match head[9:12]:
            case b"303":
                return PLAN
            case b"200":
                answer_doze(0.0, bell.fileno())
                return 0
        pause = max(pause, _retry_after(head))
    if not pause:
        return NO_ANSWER
    answer_doze(pause * (1 + 0.25 * int.from_bytes(posix.urandom(1)) / 255))
    return 0


def answer_doze(pause: float, *bell: int) -> None:
    """Send doze the seconds until the next request (0: wait for the doorbell alone), and the doorbell's descriptor."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, number.to_bytes(4, "little")) for number in bell]
    _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, DOZE_DESCRIPTOR).sendmsg(
        [b"%d" % (pause * 1000)], rights
    )


def repos() -> list[tuple[str, int]]:
    """Return host and port of each http URL in PIDONE_DOORBELL, else in PIDONE_REPO.

    A repo with https gets its doorbell by PIDONE_DOORBELL. It carries no content, so it needs no TLS.
    """
    urls = posix.environ.get(b"PIDONE_DOORBELL") or posix.environ.get(b"PIDONE_REPO", IN_CLUSTER.encode())
    addresses = []
    for url in urls.decode("utf-8", "replace").split(","):
        scheme, _, rest = url.strip().partition("://")
        authority = rest.partition("/")[0].rpartition("@")[2]
        host, _, port = authority.rpartition(":")
        if not port.isdigit():
            host, port = authority, "80"
        if scheme == "http":
            addresses.append((host.strip("[]"), int(port)))
    return addresses


def _connect(host: str, port: int) -> "_socket.socket":
    """Connect to the first address that accepts: in a dual-stack cluster one family may have no route.

    Raises the ``OSError`` of the last address.
    """
    error = OSError("no address")
    # as bytes: for a str Python loads the IDNA codec, and with it re and enum
    for family, kind, protocol, _, address in _socket.getaddrinfo(
        host.encode(), port, 0, _socket.SOCK_STREAM
    ):
        bell = _socket.socket(family, kind, protocol)
        try:
            bell.settimeout(TIMEOUT_SECONDS)
            source = posix.environ.get(b"PIDONE_POD_IP")
            if source:
                bell.bind((source.decode(), 0))
            bell.connect(address)
        except OSError as failed:
            bell.close()
            error = failed
            continue
        bell.setsockopt(
            _socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1
        )  # finds a peer that died without FIN or RST
        bell.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 120)
        return bell
    raise error


def _ask(bell: "_socket.socket", host: str, port: int) -> bytes:
    """Send the request and return the head of the answer. Bytes after the head are rings, so they are not read."""
    # as pidone.http.urls.authority, whose module would load urllib and re
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"GET {DOORBELL_PATH} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in claims().items()]
    words = posix.environ.get(WORDS, b"")
    if words:
        lines.append(
            f"{LAST_WORDS_HEADER}: " + "".join(chr(byte) if 32 <= byte < 127 else " " for byte in words)
        )
    bell.send("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: 200 system calls, and no buffer to pass to doze
        byte = bell.recv(1)
        if not byte or len(head) > 4096:
            raise OSError("not an answer")
        head += byte
    return head


def _retry_after(head: bytes) -> float:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"retry-after" and value.strip().isdigit():
            return min(MAX_RETRY_AFTER_SECONDS, int(value))
    return 1.0
