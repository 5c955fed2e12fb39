"""Parts of URLs: path segments made of values, and which URLs mean the same server."""

import socket
from urllib.parse import quote, unquote, urlsplit

_PORTS = {"http": 80, "https": 443}


def segment(value: str) -> str:
    """The value as one segment of a path, percent-encoded.

    Raises ``ValueError`` for what some server or proxy would take for another path: a dot segment, which no
    encoding disarms (to the URL standard ``%2e%2e`` is one), a separator, which many decode before they route, or a
    control character.
    """
    text = unquote(value)
    if _dots(text) or not text.strip() or any(mark in text for mark in "/\\"):
        raise ValueError(f'"{value}" cannot be a segment of a path')
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError(f"{value!r} has a control character")
    return quote(value, safe="")


def has_dot_segments(path: str) -> bool:
    """Whether ``.`` or ``..`` stands in the path, in whatever way it is written."""
    return any(map(_dots, unquote(path).replace("\\", "/").split("/")))


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454), each in one spelling. Raises ``ValueError`` for a URL that has none."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("a URL without a host")
    return parts.scheme, _host(parts.hostname), parts.port or _PORTS.get(parts.scheme, 0)


def canonical(url: str, namespace: str = "") -> str:
    """One spelling for all URLs that mean the same prefix of the same server, without user, query and fragment.

    In a pod of ``namespace``, ``http://web``, ``http://web.NAMESPACE`` and ``http://web.NAMESPACE.svc.cluster.local``
    are the same Service. Names are not looked up. Raises ``ValueError`` as ``origin`` does.
    """
    scheme, host, port = origin(url)
    parts = [quote(unquote(part), safe="") for part in urlsplit(url).path.split("/") if part]
    return f"{scheme}://{authority(_service(host, namespace), port)}/" + "".join(f"{part}/" for part in parts)


def with_namespace(url: str, namespace: str) -> str:
    """The URL for callers outside of ``namespace``, to whose pods ``http://web`` is ``http://web.NAMESPACE.svc``."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return url
    if not host or not _is_short(host):
        return url
    user, at, rest = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}{host}.{namespace}.svc{rest[len(host) :]}").geturl()


def authority(host: str, port: int | str) -> str:
    """Return ``host:port`` for URLs, headers and messages; an IPv6 address stands in brackets (RFC 3986, 3.2.2)."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Return the host as it stands in a URL: an IPv6 address in brackets, anything else unchanged."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _dots(text: str) -> bool:
    # to some servers what follows ";" is no part of the segment
    return text.partition(";")[0].strip() in {".", ".."}


def _service(host: str, namespace: str) -> str:
    """The host as SERVICE.NAMESPACE where that is what the cluster's DNS makes of it."""
    if namespace and _is_short(host):
        return f"{host}.{namespace}"
    labels = host.split(".")
    return ".".join(labels[:2]) if len(labels) > 2 and labels[2] == "svc" else host


def _is_short(host: str) -> bool:
    """Whether this is a name of one label, which the cluster's DNS looks up in the namespace of the pod that asks."""
    return "." not in host and ":" not in host and host != "localhost"


def _host(name: str) -> str:
    if ":" in name:
        try:
            return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, name))
        except OSError:
            return name.lower()
    return name.lower().rstrip(".")
