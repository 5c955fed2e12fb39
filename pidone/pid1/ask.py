"""The first stage of Python in a pod: asks the repo whether this pod has tasks.

It runs as a child of ``doze`` for some milliseconds. It imports built-in modules only, because most pods have no
tasks and each of them pays for these imports at its start. The request is ``GET /v1/doorbell``:

    303  the pod has tasks: doze becomes the engine
    200  the pod has none: this stage passes the open connection to doze as the doorbell

The doorbell carries no content, so doze needs no TLS and no parser. If no repo answers, doze gets the places where it
knocks until one does. Each result except 303 is a line on the error output, so that a person who starts pidone on a
desk sees why no task runs.
"""

import _signal
import _socket
import posix

from pidone.pid1.claims import claims
from pidone.pid1.stages import WORDS
from pidone.protocol import (
    DOORBELL_PATH,
    IN_CLUSTER,
    LAST_WORDS_HEADER,
    MAX_RETRY_AFTER_SECONDS,
    REPO_HEADER,
)

TIMEOUT_SECONDS = 3.0  # for connecting to one repo, and for each read of its answer
LIMIT_SECONDS = 20  # for the whole stage, because a resolver may hang
# The longest Retry-After of an answer without the repo's header, which a proxy may have sent.
PROXY_RETRY_MAX_SECONDS = 60.0

DOZE_DESCRIPTOR = 3  # the socket to doze
# Exit codes: doze becomes the engine; doze knocks, or asks again after a growing delay; doze does nothing any more.
PLAN, NO_ANSWER, NO_REPO = 3, 4, 5
MAX_PLACES_BYTES = 2000  # of what doze reads
TOO_LARGE = {b"400", b"413", b"431"}  # what servers answer to a head that is larger than they accept


def main() -> int:
    """Return the exit code for doze: 0 (it got the doorbell or a delay), ``PLAN``, ``NO_ANSWER`` or ``NO_REPO``."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # doze has blocked all signals; this child may be ended
    _signal.alarm(LIMIT_SECONDS)
    addresses = repos()
    if not addresses:
        return _without_http()

    pauses, places = [], []
    for host, port in addresses:
        head, bell, error = _answer(host, port)
        repo = f"http://{host}:{port}"
        match head[9:12]:
            case b"303":
                return PLAN
            case b"200" if bell is not None:
                _log("waiting", repo=repo, reason="this pod has no tasks; the repo says when it has")
                answer_doze(0.0, bell=bell.fileno())
                return 0
        pause = _retry_after(head)
        if pause:
            pauses.append(pause)
        else:
            places.append((host, str(port), _request(host, port)))
        error = error or _printable(head.partition(b"\r\n")[0])
        _log("repo-away", repo=repo, error=error, retry="within 60 s of its start")
    if not places:
        answer_doze(min(pauses) * (1 + 0.25 * int.from_bytes(posix.urandom(1)) / 255))
        return 0
    answer_doze(0.0, tuple(places))
    return NO_ANSWER


def answer_doze(
    pause: float, places: tuple[tuple[str, str, str], ...] = (), *, bell: int | None = None
) -> None:
    """Send doze the seconds until the next request, the places to knock at, or the doorbell's descriptor.

    A place is host, port and request. As many are sent as doze reads.
    """
    message = b"%d\0" % (pause * 1000)
    for place in places:
        text = "".join(f"{part}\0" for part in place).encode()
        if len(message) + len(text) <= MAX_PLACES_BYTES:
            message += text
    rights = [] if bell is None else [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, bell.to_bytes(4, "little"))]
    try:
        doze = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, DOZE_DESCRIPTOR)
        doze.sendmsg([message], rights)
        doze.close()
    except OSError:
        pass  # a person has started this stage without doze


def repos() -> list[tuple[str, int]]:
    """Return host and port of each http URL in PIDONE_DOORBELL, else in PIDONE_REPO.

    A repo with https gets its doorbell by PIDONE_DOORBELL. It carries no content, so it needs no TLS.
    """
    addresses = []
    for url in (_variable(b"PIDONE_DOORBELL") or _repo_urls()).split(","):
        scheme, _, rest = url.strip().partition("://")
        authority = rest.partition("/")[0].rpartition("@")[2]
        host, _, port = authority.rpartition(":")
        if not (port.isascii() and port.isdecimal()):
            host, port = authority, "80"
        if scheme.lower() == "http" and host and len(port) < 6 and 0 < int(port) < 65536:
            addresses.append((host.strip("[]"), int(port)))
    return addresses


def _repo_urls() -> str:
    return _variable(b"PIDONE_REPO") or IN_CLUSTER


def _variable(name: bytes) -> str:
    return posix.environ.get(name, b"").decode("utf-8", "replace").strip()


def _without_http() -> int:
    """Return ``PLAN`` for an https repo, which the engine polls; else ``NO_REPO``, with a line in the log."""
    urls = _repo_urls()
    if any(url.strip().lower().startswith("https://") for url in urls.split(",")):
        return PLAN
    shown = _printable(urls.rpartition("@")[2].encode())[:100]
    _log(
        "nothing-to-do",
        repo=shown,
        error="PIDONE_REPO has no http:// or https:// URL with a host, so this pod never gets tasks",
        remedy=f"set PIDONE_REPO to the URL of the repo, as {IN_CLUSTER}, and start pidone again",
    )
    return NO_REPO


def _log(event: str, **fields: str) -> None:
    """Write a line like those of ``pidone.journal``, which imports more than this stage may."""
    pairs = (f'{name}="{value}"' if " " in value else f"{name}={value}" for name, value in fields.items())
    try:
        posix.write(2, f"event={event} {' '.join(pairs)}\n".encode())
    except OSError:
        pass  # closed or full


def _printable(text: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else "?" for byte in text)


def _answer(host: str, port: int) -> "tuple[bytes, _socket.socket | None, str]":
    """Ask one repo. Return the head of its answer (empty: none), the connection, and the reason if it has no answer."""
    words = posix.environ.get(WORDS, b"")
    for last_words in dict.fromkeys((words, b"")):
        bell = None
        try:
            bell = _connect(host, port)
            head = _ask(bell, _request(host, port, last_words))
        except (OSError, ValueError, OverflowError) as failed:
            error = failed.strerror if isinstance(failed, OSError) and failed.strerror else str(failed)
            if bell is None:
                return b"", None, error
            head = b""
        if head[9:12] == b"200":
            return head, bell, ""
        bell.close()
        if head and head[9:12] not in TOO_LARGE:
            break  # otherwise once more without the last words, which must not keep the pod from its plan
    return head, None, "" if head else error


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


def _request(host: str, port: int, last_words: bytes = b"") -> str:
    # as pidone.http.urls.authority, whose module would load urllib and re
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"GET {DOORBELL_PATH} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in claims().items()]
    if last_words:
        text = "".join(chr(byte) if 32 <= byte < 127 else " " for byte in last_words)
        lines.append(f"{LAST_WORDS_HEADER}: {text}")
    return "\r\n".join([*lines, "", ""])


def _ask(bell: "_socket.socket", request: str) -> bytes:
    """Send the request and return the head of the answer. Bytes after the head are rings, so they are not read."""
    bell.send(request.encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: 200 system calls, and no buffer to pass to doze
        byte = bell.recv(1)
        if not byte or len(head) > 4096 or (len(head) > 12 and not head.startswith(b"HTTP/1.")):
            raise OSError("not an answer")
        head += byte
    return head


def _retry_after(head: bytes) -> float:
    """Return the seconds of Retry-After; 1 for an answer of the repo without it, and 0 for any other answer."""
    lines = head.lower().split(b"\r\n")
    of_repo = any(line.startswith(REPO_HEADER.encode() + b":") for line in lines)
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"retry-after" and value.strip().isdigit():
            return min(MAX_RETRY_AFTER_SECONDS if of_repo else PROXY_RETRY_MAX_SECONDS, max(1, int(value)))
    return 1.0 if of_repo else 0.0
