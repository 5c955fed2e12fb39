"""Warns of text that is left over from elsewhere: placeholders, typographic signs and secrets, in every field of text.

A value is taken as it stands, so ``${APP}``, ``{{ .Values.app }}`` or “web” reaches the application and the registry.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from unicodedata import category, name

from pidone.language.findings import Span, shown
from pidone.language.reading import Document, Node

Path = tuple[str | int, ...]

_EXAMPLE = "looks like an example that was not filled in"
_REFERENCE = "a reference is written $(params.<name>)"
# No pattern repeats without a bound, since the controller reads what everybody may write.
_PLACEHOLDERS = (
    (r"\$\{\{.{0,100}?\}\}", "is an expression of GitHub Actions, which nothing replaces here"),
    (r"\{\{.{0,100}?\}\}|\{%.{0,100}?%\}", "is an expression of a template, which nothing replaces here"),
    (r"#\{[^{}]{1,100}\}#?", "is a placeholder, which nothing replaces here"),
    (r"\$\{(?:params|pod)\.[^{}]{0,100}\}", f"is taken as it stands; {_REFERENCE}"),
    (
        r"\$\{(?!params\.|pod\.)[^{}]{0,100}\}|(?<!\$)\$(?:[A-Za-z_][A-Za-z0-9_]{0,100}|[0-9@*#?])",
        f"is a variable of a shell, which nothing replaces here; {_REFERENCE}",
    ),
    (
        r"%(?![0-9A-Fa-f]{2}[^%]{0,100}%[0-9A-Fa-f]{2})[A-Za-z_][A-Za-z0-9_.-]{1,100}%",
        f"is a variable of Windows, which nothing replaces here; {_REFERENCE}",
    ),
    (
        r"@[A-Za-z][A-Za-z0-9_.-]{1,100}@|\b__[A-Z][A-Z0-9_]{0,100}__\b",
        "is a placeholder, which nothing replaces here",
    ),
    (r"<[A-Za-z][^<>=]{0,100}>", _EXAMPLE),
    (r"\b(?:TODO|FIXME|TBD|XXX+)\b", _EXAMPLE),
    (r"(?i)\b(?:change|replace|fill)[-_]?(?:me|this|in)\b", _EXAMPLE),
    (
        r"(?i)\byour[-_.](?:app|name|service|host|server|domain|url|token|password|zone|region)\b",
        _EXAMPLE,
    ),
)
_COMPILED = [(re.compile(pattern), message) for pattern, message in _PLACEHOLDERS]
_LONGEST = 4096  # characters of a text that are looked at
_CREDENTIALS = re.compile(r"\b[a-z]{2,20}://[^/\s:@$]{0,100}:(?P<secret>[^/\s@]{1,100})@")
_SECRET_NAME = re.compile(r"(?i)authorization|cookie|passw(?:or)?d|secret|token|api[-_]?key|credential")
_FILE_NAME = re.compile(r"(?i:[-_](?:file|path|dir|name|url)$)|[a-z](?:File|Path|Dir|Name|Url)$")
# A param or a field is a secret if its name ends so: ``tokenPeriod`` is none.
_SECRET_FIELD = re.compile(
    r"(?i)(?:authorization|cookie|passw(?:or)?d|secret|token|api[-_]?key|credentials?)$"
)
_REMEDY = "pass it as a param with valueFrom: {secretKeyRef: {name, key}}"
_UNCHECKED = {"description", "pattern"}  # of a param: for people, and a language of its own
_QUOTES = (
    "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}"
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{SINGLE LOW-9 QUOTATION MARK}"
    "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
)


def warn_of_leftovers(document: Document) -> None:
    """Add warnings to a document, except where it has findings already."""
    spec = document.root.members.get("spec")
    if spec is None:
        return
    said = {(one.line, one.column) for one in document.findings}
    for path, node in _texts(spec, ("spec",)):
        if (node.span.line, node.span.column) not in said:
            for text, message, rule in leftovers(node.value, named=_name(document, path)):
                place = _place(document, node, text)
                if place is not None or rule != "typography":  # what is written as an escape is meant
                    document.say(place or node.span, message, rule)


def leftovers(text: str, *, named: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the words, the message and the rule for each leftover in a text. ``named`` is the header or variable."""
    text, taken = text[:_LONGEST], 0
    for start, end, message in sorted(
        (found.start(), found.end(), message)
        for pattern, message in _COMPILED
        for found in pattern.finditer(text)
    ):
        if start >= taken:
            yield text[start:end], f"{shown(text[start:end])} {message}", "placeholder"
            taken = end
    for character in text:
        if wrong := _typographic(character):
            yield character, wrong, "typography"
            break
    if found := _CREDENTIALS.search(text):
        if "$(" not in found["secret"] and not taken:
            message = (
                f"a password stands in this URL, and everybody who may read this object can read it; {_REMEDY}, "
                "as in http://user:$(params.password)@host"
            )
            yield found["secret"], message, "secret"
    elif text and "$(" not in text and not taken and _is_secret(named, text):
        message = (
            f'"{named}" looks like a secret, and everybody who may read this object can read it; {_REMEDY}'
        )
        yield text, message, "secret"


def is_unfinished(text: str) -> bool:
    """True if a text has a placeholder or a typographic sign, so that its final value is not known."""
    return any(rule != "secret" for _, _, rule in leftovers(text))


def _is_secret(named: str, text: str) -> bool:
    """True if the header or variable is named like a secret, and the text is not the path of a file."""
    return bool(_SECRET_NAME.search(named)) and not text.startswith("/") and not _FILE_NAME.search(named)


def _typographic(character: str) -> str:
    """Return the fault of a character that looks like another one or is invisible; empty if there is none."""
    if character.isascii():
        return ""
    called = f"U+{ord(character):04X} ({name(character, 'without a name').lower()})"
    if character in _QUOTES:
        return f"{called} is a part of the value and no quotation mark of YAML; write \" or '"
    if "\N{FULLWIDTH EXCLAMATION MARK}" <= character <= "\N{FULLWIDTH TILDE}":
        return f'{called} stands here; write "{chr(ord(character) - 0xFEE0)}"'
    if category(character) in {"Cf", "Zs", "Zl", "Zp"}:
        return f"{called} stands here and cannot be seen; remove it"
    if category(character) == "Pd":
        return f'{called} stands here; write "-"'
    return ""


def _texts(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    if isinstance(node.value, str):
        yield path, node
    for key, member in node.members.items():
        if key in node.keys:
            yield path, Node(node.keys[key], key)
        if not (path[:-1] == ("spec", "params") and key in _UNCHECKED):
            yield from _texts(member, (*path, key))
    for index, item in enumerate(node.items):
        yield from _texts(item, (*path, index))


def _name(document: Document, path: Path) -> str:
    """Return the name of the header, variable, param or field that a value belongs to; empty if it belongs to none."""
    if len(path) < 2 or path[-1] == "name":
        return ""
    if path[:2] == ("spec", "params") and len(path) == 3 and isinstance(path[2], str):
        return _field(path[2])  # of a binding
    around: Any = document.root.value
    for step in path[:-1]:
        around = around[step]
    if isinstance(around, Mapping):
        if path[-1] == "value" and isinstance(around.get("name"), str):
            return str(around["name"])
        if path[-2] == "headers":
            return str(path[-1])
        if path[:2] == ("spec", "params") and path[-1] == "default":
            return _field(str(around.get("name")))
        if path[:2] == ("spec", "tasks") and "podSelector" not in path:
            return _field(str(path[-1]))
    return ""


def _field(name: str) -> str:
    """Return the name of a param or a field if it is one of a secret, else an empty text."""
    return name if _SECRET_FIELD.search(name) else ""


def _place(document: Document, node: Node, text: str) -> Span | None:
    """Return the position of a part of a scalar; None if its text in the file differs from its value."""
    first = node.span.line
    lines = document.source.lines
    for number in range(first, min(len(lines), first + node.value.count("\n") + 2) + 1):
        column = lines[number - 1].find(text, node.span.column - 1 if number == first else 0)
        if column >= 0:
            return Span(number, column + 1, len(text))
    return None
