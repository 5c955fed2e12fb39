"""URLs as the kubelet's prober reads and writes them: Go's net/url, as far as a probe's path and a redirect need it.

All texts here are UTF-8 bytes as latin-1, one character for each byte, since Go works on bytes.
"""

import socket
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

_DIGITS = "0123456789"
_HEX = f"{_DIGITS}abcdefABCDEF"
_UNRESERVED = f"{_DIGITS}ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.~"
_NOT_ASCII = "".join(map(chr, range(128, 256)))
_PATH_SAFE = "$&+,/:;=@"  # which net/url does not escape in a path, besides _UNRESERVED
_FRAGMENT_SAFE = "!()*$&+,/:;=?@"
# Characters of valid parts. A text has no others if strip() leaves nothing: a regular expression would cost 20 KiB.
_PATH = f"{_UNRESERVED}!$&'()*+,;=:@[]%/"
_FRAGMENT = f"{_PATH}?"
_USER = f"{_UNRESERVED}:!$&'()*+,;=%@"
_HOST = f"{_UNRESERVED}!$&'()*+,;=:<>\"]{_NOT_ASCII}"
_SCHEME = f"{_UNRESERVED}+".translate({ord("_"): None, ord("~"): None})


class Reference(NamedTuple):
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
    return parts._replace(scheme=scheme, host=host, path=slash + parts.path)


def parse(text: str) -> Reference:
    """Read a URL or a relative reference. Raises ``ValueError``."""
    text, _, fragment = text.partition("#")
    if is_control_in(text):
        raise ValueError("a control character")
    scheme, colon, rest = text.partition(":")
    if not scheme and colon:
        raise ValueError("no scheme before the colon")
    if colon and "A" <= scheme[0].upper() <= "Z" and not scheme.strip(_SCHEME):
        scheme, text = scheme.lower(), rest
    else:
        scheme = ""
    rest, mark, query = text.partition("?")
    parts = Reference(
        scheme=scheme,
        query=query if mark else None,
        fragment=_normal(fragment, _FRAGMENT, _FRAGMENT_SAFE),
    )
    if rest[:1] != "/":
        if scheme:
            return parts._replace(opaque=rest)
        if ":" in rest.partition("/")[0]:
            raise ValueError("a colon in the first segment")
    if rest[:2] == "//" and (scheme or rest[:3] != "///"):
        authority, slash, path = rest[2:].partition("/")
        user, at, host = authority.rpartition("@")
        if not _is_host(host, scheme) or user.strip(_USER) or not _escapes_are_valid(user):
            raise ValueError("no host or user")
        parts, rest = parts._replace(user=user if at else None, host=host), slash + path
    return parts._replace(path=_normal(rest, _PATH, _PATH_SAFE))


def resolve(base: Reference, text: str) -> Reference:
    """Return the URL of the reference ``text`` relative to ``base`` (RFC 3986, 5.2). Raises ``ValueError``."""
    parts = parse(text)
    if parts.scheme or parts.host or parts.user is not None:
        return parts._replace(scheme=parts.scheme or base.scheme, path=_without_dots(parts.path))
    if not parts.path and parts.query is None:
        parts = parts._replace(query=base.query, fragment=parts.fragment or base.fragment)
    path = parts.path
    if path[:1] != "/":
        path = base.path[: base.path.rfind("/") + 1] + path if path else base.path
    return parts._replace(scheme=base.scheme, host=base.host, user=base.user, path=_without_dots(path))


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


def is_control_in(text: str) -> bool:
    """True for a control character of ASCII."""
    return any(character < " " or character == "\x7f" for character in text)


def _normal(text: str, valid: str, safe: str) -> str:
    """Return the text as it is if all its characters are valid, else unescaped and escaped. Raises ``ValueError``."""
    if not _escapes_are_valid(text):
        raise ValueError("% without two digits")
    if not text.strip(valid):
        return text
    return _escaped(unquote_to_bytes(text.encode("latin-1")).decode("latin-1"), safe)


def _escaped(text: str, safe: str) -> str:
    return quote_from_bytes(text.encode("latin-1"), safe)


def _escapes_are_valid(text: str) -> bool:
    return all(len(part) > 1 and not part[:2].strip(_HEX) for part in text.split("%")[1:])


def _is_host(text: str, scheme: str) -> bool:
    if text[:1] == "[":
        name, _, port = text[1:].rpartition("]")
        try:
            socket.inet_pton(socket.AF_INET6, name.partition("%25")[0])
        except OSError:
            return False
        return _is_port(port)
    colon = text.find(":") if scheme in {"http", "https"} else text.rfind(":")
    first, *escapes = text.split("%")
    # only "%" itself and bytes that are not ASCII may be escaped
    valid = all(part[:2] == "25" or part[:1] in set("89ABCDEFabcdef") for part in escapes)
    characters = "".join([first, *(part[2:] for part in escapes)])
    return (
        valid
        and _escapes_are_valid(text)
        and not characters.strip(_HOST)
        and (colon < 0 or _is_port(text[colon:]))
    )


def _is_port(text: str) -> bool:
    """True for a colon and digits, or nothing."""
    return not text or (text[0] == ":" and not text[1:].strip(_DIGITS))
