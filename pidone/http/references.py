"""URLs as the kubelet's prober reads and writes them: Go's net/url, as far as a probe's path and a redirect need it.

All texts here are UTF-8 bytes as latin-1, one character for each byte, since Go works on bytes.
"""

import re
import socket
from dataclasses import dataclass, replace
from urllib.parse import quote_from_bytes, unquote_to_bytes

_PATH_SAFE = "$&+,/:;=@"  # of net/url's encodePath, besides letters, digits and "-_.~"
_FRAGMENT_SAFE = "!()*$&+,/:;=?@"
_USER_SAFE = "$&+,;="
_VALID_PATH = re.compile(r"[-\w.~!$&'()*+,;=:@\[\]%/]*", re.ASCII)
_VALID_FRAGMENT = re.compile(r"[-\w.~!$&'()*+,;=:@\[\]%/?]*", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][-A-Za-z0-9+.]*):")
_HOST = re.compile(r"(?:[-\w.~!$&'()*+,;=:<>\"\]\x80-\xff]|%25|%[89A-Fa-f][0-9A-Fa-f])*", re.ASCII)
_USER = re.compile(r"[-\w.~:!$&'()*+,;=%@]*", re.ASCII)
_PORT = re.compile(r"(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A URL in parts. Path and fragment are escaped; ``query`` is None without "?"."""

    scheme: str = ""
    user: str | None = None  # escaped
    host: str = ""  # with port and brackets
    path: str = ""
    query: str | None = None
    fragment: str = ""
    opaque: str = ""

    @property
    def name(self) -> str:
        """The host without port and brackets."""
        return self.host[1:].partition("]")[0] if self.host[:1] == "[" else self.host.partition(":")[0]

    @property
    def port(self) -> int:
        number = self.host.rpartition("]")[2].partition(":")[2]
        if number:
            return int(number[-9:])
        return 443 if self.scheme == "https" else 80

    @property
    def target(self) -> str:
        """The target of the request for this URL."""
        return (self.path or "/") + ("" if self.query is None else f"?{self.query}")

    def printable(self) -> str:
        """The URL for messages, without user and password."""
        return self.without_user().encode("latin-1").decode("utf-8", "replace")

    def without_user(self) -> str:
        """The URL as a Referer has it."""
        slash = "/" if self.path and self.path[0] != "/" else ""
        query = "" if self.query is None else f"?{self.query}"
        fragment = f"#{self.fragment}" if self.fragment else ""
        return f"{self.scheme}://{self.host}{slash}{self.path}{query}{fragment}"


def as_bytes(text: str) -> str:
    """Return the text's bytes in UTF-8, one character each."""
    return text.encode("utf-8", "replace").decode("latin-1")


def of_path(scheme: str, host: str, path: str) -> Reference:
    """Return the URL of a probe: pkg/probe/http/request.go, formatURL. Raises ``ValueError`` if it has no host."""
    try:
        parts = parse(path)
    except ValueError:
        parts = Reference(path=_escaped(path, _PATH_SAFE))
    if parts.opaque or not _is_host(host, scheme):
        raise ValueError("no host")
    slash = "/" if parts.path and parts.path[0] != "/" else ""
    return replace(parts, scheme=scheme, host=host, path=slash + parts.path)


def parse(text: str) -> Reference:
    """Read a URL or a relative reference. Raises ``ValueError``."""
    text, _, fragment = text.partition("#")
    if _CONTROL.search(text):
        raise ValueError("a control character")
    scheme = ""
    if found := _SCHEME.match(text):
        scheme, text = found[1].lower(), text[found.end() :]
    elif text[:1] == ":":
        raise ValueError("no scheme before the colon")
    rest, mark, query = text.partition("?")
    parts = Reference(
        scheme=scheme,
        query=query if mark else None,
        fragment=_normal(fragment, _VALID_FRAGMENT, _FRAGMENT_SAFE),
    )
    if rest[:1] != "/":
        if scheme:
            return replace(parts, opaque=rest)
        if ":" in rest.partition("/")[0]:
            raise ValueError("a colon in the first segment")
    if rest[:2] == "//" and (scheme or rest[:3] != "///"):
        authority, slash, path = rest[2:].partition("/")
        user, at, host = authority.rpartition("@")
        if not _is_host(host, scheme) or not _USER.fullmatch(user) or _BAD_ESCAPE.search(user):
            raise ValueError("no host or user")
        parts, rest = replace(parts, user=user if at else None, host=host), slash + path
    return replace(parts, path=_normal(rest, _VALID_PATH, _PATH_SAFE))


def resolve(base: Reference, text: str) -> Reference:
    """Return the URL that ``text`` means beside ``base`` (RFC 3986, 5.2). Raises ``ValueError``."""
    parts = parse(text)
    if parts.scheme or parts.host or parts.user is not None:
        return replace(parts, scheme=parts.scheme or base.scheme, path=_without_dots(parts.path))
    if not parts.path and parts.query is None:
        parts = replace(parts, query=base.query, fragment=parts.fragment or base.fragment)
    path = parts.path
    if path[:1] != "/":
        path = base.path[: base.path.rfind("/") + 1] + path if path else base.path
    return replace(parts, scheme=base.scheme, host=base.host, user=base.user, path=_without_dots(path))


def _without_dots(path: str) -> str:
    if not path:
        return ""
    kept: list[str] = []
    segments = path.removeprefix("/").split("/") if path[0] == "/" else path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _normal(text: str, valid: re.Pattern[str], safe: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ValueError("% without two digits")
    return (
        text
        if valid.fullmatch(text)
        else _escaped(unquote_to_bytes(text.encode("latin-1")).decode("latin-1"), safe)
    )


def _escaped(text: str, safe: str) -> str:
    return quote_from_bytes(text.encode("latin-1"), safe)


def _is_host(text: str, scheme: str) -> bool:
    if text[:1] == "[":
        name, _, port = text[1:].rpartition("]")
        try:
            socket.inet_pton(socket.AF_INET6, name.partition("%25")[0])
        except OSError:
            return False
        return bool(_PORT.fullmatch(port))
    colon = text.find(":") if scheme in {"http", "https"} else text.rfind(":")
    return bool(_HOST.fullmatch(text) and (colon < 0 or _PORT.fullmatch(text[colon:])))
