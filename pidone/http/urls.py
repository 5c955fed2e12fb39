"""Encodes path segments of URLs, and brings URLs of the same server into one form."""

import socket
from urllib.parse import SplitResult, quote, unquote, urlsplit

_PORTS = {"http": 80, "https": 443}


def segment(value: str) -> str:
    """Return the value as one segment of a path, percent-encoded.

    Raises ``ValueError`` for a value that some server or proxy would read as another path: a dot segment in any
    encoding (in the URL standard ``%2e%2e`` is one), a separator, which many decode before routing, or a control
    character.
    """
    text = unquote(value)
    if _dots(text) or not text.strip() or any(mark in text for mark in "/\\"):
        raise ValueError(f'"{value}" cannot be a segment of a path')
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError(f"{value!r} has a control character")
    return quote(value, safe="")


def has_dot_segments(path: str) -> bool:
    """True if ``.`` or ``..`` is a segment of the path, in any encoding."""
    return any(map(_dots, unquote(path).replace("\\", "/").split("/")))


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port (RFC 6454), normalised. Raises ``ValueError`` for a URL without a host."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("a URL without a host")
    return parts.scheme, _host(parts.hostname), parts.port or _PORTS.get(parts.scheme, 0)


def canonical(url: str, namespace: str = "") -> str:
    """Return the normal form of a URL, equal for all URLs of the same path on the same server.

    It has no user, query and fragment, and ends in a slash.

    In a pod of ``namespace``, ``http://web``, ``http://web.NAMESPACE`` and ``http://web.NAMESPACE.svc.cluster.local``
    are the same Service. Names are not looked up. Raises ``ValueError`` as ``origin`` does.
    """
    scheme, host, port = origin(url)
    parts = [quote(unquote(part), safe="") for part in urlsplit(url).path.split("/") if part]
    return f"{scheme}://{authority(_service(host, namespace), port)}/" + "".join(f"{part}/" for part in parts)


def with_namespace(server: str, namespace: str) -> str:
    """Return a URL or ``host:port`` for callers outside of ``namespace``, whose DNS does not resolve ``http://web``."""
    try:
        parts = _split(server)
        host = parts.hostname or ""
    except ValueError:
        return server
    if not host or not _is_short(host):
        return server
    user, at, rest = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{user}{at}{host}.{namespace}.svc{rest[len(host) :]}").geturl()
    return url if parts.scheme else url.removeprefix("//")


def is_loopback(server: str) -> bool:
    """True if a URL or ``host:port`` names the caller itself: localhost, or an address such as 127.1, 0 or ::1."""
    try:
        host = (_split(server).hostname or "").rstrip(".")
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        address = (
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
            if ":" in host
            else socket.inet_aton(host)
        )
    except (OSError, ValueError):
        return False
    if address in {bytes(15) + b"\x01", bytes(16)}:
        return True
    last = address[-4:] if len(address) == 4 or address[:12] == bytes(10) + b"\xff\xff" else b""
    return last[:1] == b"\x7f" or last == bytes(4)


def authority(host: str, port: int | str) -> str:
    """Return ``host:port`` for URLs, headers and messages; an IPv6 address gets brackets (RFC 3986, 3.2.2)."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Return the host for a URL: an IPv6 address in brackets, anything else unchanged."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _split(server: str) -> SplitResult:
    return urlsplit(server if "://" in server else f"//{server}")


def _dots(text: str) -> bool:
    # some servers do not count the text after ";" to the segment
    return text.partition(";")[0].strip() in {".", ".."}


def _service(host: str, namespace: str) -> str:
    """Return SERVICE.NAMESPACE if the cluster's DNS resolves the host to a Service, else the host."""
    if namespace and _is_short(host):
        return f"{host}.{namespace}"
    labels = host.split(".")
    return ".".join(labels[:2]) if len(labels) > 2 and labels[2] == "svc" else host


def _is_short(host: str) -> bool:
    """True for a name of one label, which the cluster's DNS looks up in the namespace of the calling pod."""
    return "." not in host and ":" not in host and host != "localhost"


def _host(name: str) -> str:
    if ":" in name:
        try:
            return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, name))
        except OSError:
            return name.lower()
    return name.lower().rstrip(".")
