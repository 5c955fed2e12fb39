"""The first stage of Python in a pod: is there a plan for this pod?

A child of ``doze`` for some milliseconds. Only built-in modules: most pods have no tasks, and what this stage
imports is what each of them pays at its start. The question is ``GET /v1/doorbell``: 303 says that there are
tasks, and doze becomes the engine; 200 says that there are none, and the connection stays open and goes to
doze as the doorbell. It carries no content, so doze needs no TLS and no parser.
"""

import _signal
import _socket
import posix

from pidone.pid1.claims import claims
from pidone.pid1.stages import WORDS
from pidone.protocol import DOORBELL_PATH, IN_CLUSTER, LAST_WORDS_HEADER, MAX_RETRY_AFTER_SECONDS

TIMEOUT = 3.0  # seconds for connecting to one repo, and as much for each part of its answer
LIMIT = 20  # seconds for all of it: a resolver that hangs must not hold the stage

ANSWER = 3  # the descriptor on which doze listens
PLAN, NOBODY = 3, 4  # exit codes: doze becomes the engine, or asks again later and later


def main() -> int:
    """The exit code for doze, which has got the doorbell, or the time to ask again, on ``ANSWER``."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # all were blocked: this is a child that may be ended
    _signal.alarm(LIMIT)
    pause = 0.0
    for host, port in repos():
        try:
            bell = _connect(host, port)
            head = _ask(bell, host)
        except OSError:
            continue
        match head[9:12]:
            case b"303":
                return PLAN
            case b"200":
                tell(0.0, bell.fileno())
                return 0
        pause = max(pause, _retry_after(head))
    if not pause:
        return NOBODY
    tell(pause * (1 + 0.25 * int.from_bytes(posix.urandom(1)) / 255))
    return 0


def tell(pause: float, *bell: int) -> None:
    """Give doze the seconds after which to ask again (0: the bell alone counts), and the bell."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, number.to_bytes(4, "little")) for number in bell]
    _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, ANSWER).sendmsg(
        [b"%d" % (pause * 1000)], rights
    )


def repos() -> list[tuple[str, int]]:
    """Host and port of each repo that has a doorbell, or of PIDONE_DOORBELL: no content, so no TLS is needed."""
    said = posix.environ.get(b"PIDONE_DOORBELL") or posix.environ.get(b"PIDONE_REPO", IN_CLUSTER.encode())
    found = []
    for url in said.decode("utf-8", "replace").split(","):
        scheme, _, rest = url.strip().partition("://")
        authority = rest.partition("/")[0].rpartition("@")[2]
        host, _, port = authority.rpartition(":")
        if not port.isdigit():
            host, port = authority, "80"
        if scheme == "http":
            found.append((host.strip("[]"), int(port)))
    return found


def _connect(host: str, port: int) -> "_socket.socket":
    """To the first address of the name that takes it, as in a cluster of two families where one has no route."""
    error = OSError("no address")
    # as bytes: a str would load the IDNA codec, and re and enum with it
    for family, kind, protocol, _, address in _socket.getaddrinfo(
        host.encode(), port, 0, _socket.SOCK_STREAM
    ):
        bell = _socket.socket(family, kind, protocol)
        try:
            bell.settimeout(TIMEOUT)
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
        )  # a peer that died without a word is gone
        bell.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, 120)
        return bell
    raise error


def _ask(bell: "_socket.socket", host: str) -> bytes:
    """The head of the answer, to its last byte and not beyond: what comes after it is the bell."""
    lines = [f"GET {DOORBELL_PATH} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in claims().items()]
    words = posix.environ.get(WORDS, b"")
    if words:
        lines.append(
            f"{LAST_WORDS_HEADER}: " + "".join(chr(byte) if 32 <= byte < 127 else " " for byte in words)
        )
    bell.send("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: 200 system calls once, and no buffer to hand over
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
