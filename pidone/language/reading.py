"""Reads YAML strictly, to plain values with their positions.

It uses the parser events of ruamel.yaml and not its round-trip objects: events have the exact end of every token, cost
a quarter, and let duplicate keys, aliases and depth be checked before anything is built. Scalars are read by the
YAML 1.2 core schema; those that kubectl's YAML 1.1 reads differently are findings.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pidone.language.findings import Finding, Source, Span, shown
from pidone.language.syntax import HIDDEN, explain, hidden, quoted_otherwise

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 40  # the language needs 9
MAX_VALUES = 50_000  # of one document; an alias counts as many as its anchor
MAX_ALIASES = 100  # of one document
MAX_DOCUMENTS = 2_000  # of one file
MAX_FINDINGS = 500  # of one document; a file with more is probably not meant as YAML

# Ends of a line or of a document for some readers of YAML and not for others.
_ENDS = (
    (  # the parser itself treats them both ways
        re.compile("[\x85\u2028\u2029]"),
        "{} ends a line for YAML 1.1 and not for YAML 1.2; remove it, or write it as an escape in double quotes",
    ),
    (
        re.compile(r"^---(?![ \t]*(?:#.*)?\r?$).*", re.MULTILINE),
        "kubectl takes no line that begins with --- and goes on; begin a new line after it",
    ),
    (
        re.compile(r"^\.\.\.(?=\s)(?!\s*(?:---|\Z))", re.MULTILINE),
        "kubectl does not read what follows {}; begin a new document with ---",
    ),
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONFLICT = re.compile(r"^(?:<{7}|>{7}) .*", re.MULTILINE)

# The core schema of YAML 1.2, and the words that other readers read differently.
_CONSTANT = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DOUBTFUL = (
    (re.compile(r"(?i)y|n|yes|no|on|off"), "kubectl reads {} as true or false, YAML 1.2 as text"),
    (
        re.compile(r"[-+]?0[0-9]+"),
        "kubectl reads {} in base 8, YAML 1.2 in base 10; write it without the 0, or",
    ),
    (
        re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"),
        "YAML 1.1 reads {} in base 60, YAML 1.2 as text; write a number in base 10, or",
    ),
    (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"),
        "YAML 1.1 reads {} as a time, YAML 1.2 as text",
    ),
    (
        re.compile(r"[-+]?0[oO][0-7]+"),
        "kubectl reads {} in base 8, and other readers as text; write a number in base 10, or",
    ),
    (
        re.compile(r"[-+]?0[bB][01]+"),
        "kubectl reads {} in base 2, YAML 1.2 as text; write a number in base 10, or",
    ),
    (
        re.compile(r"[-+]0[xX][0-9a-fA-F]+|0X[0-9a-fA-F]+"),
        "kubectl reads {} in base 16, YAML 1.2 as text; write a number in base 10, or",
    ),
    (re.compile(r"=|<<"), "YAML 1.1 has a meaning of its own for {}"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), "JSON has no number {}"),
    (re.compile(r"[-+]?[0-9.]{19,}|0x[0-9a-fA-F]{16,}|.*[0-9.][eE][-+]?[0-9]{3,}"), "{} is no usable number"),
)
_GROUPED = re.compile(
    r"[-+]?(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)"
)


COMPLEX_KEY = "complex-key"  # kubectl accepts no document of a file with one
_ESCAPED_SLASH = re.compile(r"(?<!\\)(\\\\)*(?P<slash>\\/)")
_OBJECT = {"apiVersion", "kind", "metadata", "spec"}
_SECOND_OBJECT = 3  # of these keys twice in a document are a second object


@dataclass(slots=True)
class Node:
    """A value with its position, and the nodes of the values in it."""

    span: Span
    value: Any = None  # plain: dict, list, str, int, float, bool, None
    keys: dict[str, Span] = field(default_factory=dict)
    members: dict[str, "Node"] = field(default_factory=dict)
    items: list["Node"] = field(default_factory=list)
    size: int = 1  # values in it, itself included


@dataclass(slots=True)
class Document:
    """One document of a file. ``findings`` are about its YAML, and count only if it is an object of pidone."""

    root: Node
    source: Source
    findings: list[Finding] = field(default_factory=list)
    unclear: bool = False  # apiVersion, kind or items is there twice: other readers may read the other one

    @property
    def full(self) -> bool:
        return len(self.findings) >= MAX_FINDINGS

    def say(self, span: Span, message: str, rule: str) -> None:
        if not self.full or rule == "kind":  # this rule decides whether the others count
            self.findings.append(self.source.finding(span, message, rule))

    def span(self, path: Sequence[str | int]) -> Span:
        """Return the position of the value at ``path``, or of the nearest value around it that exists."""
        return self._node(path).span

    def key(self, path: Sequence[str | int]) -> Span:
        """Return the position of the key of the value at ``path``; of the item itself in a list."""
        if path and isinstance(path[-1], str):
            around = self._node(path[:-1])
            return around.keys.get(path[-1], around.span)
        return self.span(path)

    def written(self, path: Sequence[str | int]) -> str:
        """Return the characters of a number as in the file: 1.10 is not 1.1. Empty for other values."""
        node = self._node(path)
        line = self.source.lines[node.span.line - 1]
        text = line[node.span.column - 1 :][: node.span.width]
        is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        return text if is_number and len(text) <= 60 and _plain(text)[0] == node.value else ""

    def _node(self, path: Sequence[str | int]) -> Node:
        node = self.root
        for step in path:
            if isinstance(step, str) and step in node.members:
                node = node.members[step]
            elif isinstance(step, int) and step < len(node.items):
                node = node.items[step]
            else:
                break
        return node


class Stop(Exception):
    """The file is read no further; ``said`` is the finding."""

    def __init__(self, span: Span, message: str, rule: str) -> None:
        self.said = (span, message, rule)


def read(text: str, file: str) -> tuple[list[Document], list[Finding]]:
    """Return the documents of a file, and the findings about the file as YAML. Never raises for bad input.

    After a syntax error the documents before it are returned.
    """
    # as kubectl decides it, for which text after a byte order mark is YAML (GuessJSONStream in k8s.io/apimachinery)
    is_json = text.lstrip().startswith("{")
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if len(text) > MAX_CHARACTERS:
        message = "the file is larger than 1 MiB; split it"
        return [], [Source.of("", file).finding(Span(1, 1), message, "too-large")]
    source = Source.of(text, file)
    documents: list[Document] = []
    try:
        for document in Builder(text, source, is_json=is_json).documents():
            if len(documents) == MAX_DOCUMENTS:
                raise Stop(document.root.span, f"more than {MAX_DOCUMENTS} documents; split it", "too-large")
            documents.append(document)  # one by one: those before an error are kept
    except Stop as stop:
        return documents, [source.finding(*stop.said)]
    if not documents:
        return [], [
            source.finding(Span(1, 1), "the file is empty; expected TaskSets or TaskBindings", "empty")
        ]
    return documents, []


class Builder:
    """Builds nodes from parser events, with a stack of its own: too much depth is a finding, not a RecursionError."""

    def __init__(self, text: str, source: Source, *, is_json: bool = False) -> None:
        self._text = text
        self._source = source
        self._is_json = is_json
        self._ends = deque[tuple[int, int, str]](
            sorted(
                (match.start(), match.end(), message)
                for pattern, message in _ENDS
                for match in pattern.finditer(text)
            )
        )
        self._fresh(Node(Span(1, 1)))

    def _fresh(self, root: Node) -> None:
        self._document = Document(root, self._source)
        self._open: list[tuple[Node, str | None]] = []  # the collections being read, each with its anchor
        self._key: list[tuple[str, Span] | None] = []  # for each of them, the key whose value comes next
        self._anchors: dict[str, Node] = {}
        self._aliases = 0
        self._twice: list[tuple[str, Span, int]] = []  # the repeated keys of the document itself
        self._flow = 0  # the number of brackets around the present event

    def documents(self) -> Iterator[Document]:
        from ruamel.yaml import events

        for event in self._events():
            match event:
                case events.DocumentStartEvent():
                    self._fresh(Node(self._span(event)))
                case events.DocumentEndEvent():
                    self._say_twice()
                    self._say_ends(event.end_mark.index)
                    yield self._document
                case events.MappingStartEvent() | events.SequenceStartEvent():
                    self._begin(event, {} if isinstance(event, events.MappingStartEvent) else [])
                case events.MappingEndEvent() | events.SequenceEndEvent():
                    self._end()
                case events.ScalarEvent():
                    self._scalar(event)
                case events.AliasEvent():
                    self._alias(event)

    def _events(self) -> Iterator[Any]:
        from ruamel.yaml.error import MarkedYAMLError
        from ruamel.yaml.reader import ReaderError

        from pidone.language.yaml_events import Seen, events

        seen = Seen()
        try:
            yield from events(self._text, seen)
        except MarkedYAMLError as error:
            conflict = _CONFLICT.search(self._text)
            if conflict:
                message = "a conflict of a merge is left here; keep one of its sides"
                raise Stop(self._source.span(*conflict.span()), message, "yaml-syntax") from error
            start, problem = explain(error, self._text, seen.quoted, seen.plain)
            if self._ends and self._ends[0][0] < start:
                raise Stop(*self._doubtful_end()) from error
            raise Stop(self._source.span(start), problem, "yaml-syntax") from error
        except ReaderError as error:
            name = f"U+{ord(self._text[error.position]):04X}"
            message = f"{name} stands here, a character that YAML does not take; remove it"
            raise Stop(self._source.span(error.position), message, "yaml-syntax") from error
        except (ValueError, IndexError, AttributeError, TypeError, AssertionError, RecursionError) as error:
            # ruamel fails on a few inputs, such as a %YAML directive without a number
            raise Stop(Span(1, 1), "the file is not YAML", "yaml-syntax") from error

    def _span(self, event: Any) -> Span:
        return self._source.span(event.start_mark.index, event.end_mark.index)

    def _say_ends(self, before: int) -> None:
        """Report the values with doubtful ends before this position."""
        while self._ends and self._ends[0][0] < before:
            self._document.say(*self._doubtful_end())

    def _doubtful_end(self) -> tuple[Span, str, str]:
        start, end, message = self._ends.popleft()
        text = self._text[start:end]
        name = f"U+{ord(text):04X}" if len(text) == 1 else text
        return self._source.span(start, end), message.format(name), "ambiguous-scalar"

    def _begin(self, event: Any, value: Any) -> None:
        node = Node(self._span(event), value)
        self._tag(event)
        if len(self._open) == MAX_DEPTH:
            raise Stop(node.span, f"nested more than {MAX_DEPTH} deep", "too-deep")
        self._open.append((node, event.anchor))
        self._key.append(None)
        self._flow = self._flow + 1 if event.flow_style else 0

    def _end(self) -> None:
        node, anchor = self._open.pop()
        self._flow = max(0, self._flow - 1)
        self._key.pop()
        self._put(node, anchor)

    def _scalar(self, event: Any) -> None:
        node = Node(self._span(event), event.value)
        self._tag(event)
        if event.style is None:
            text = self._seen(event)
            node.value, wrong = _plain(text)
            if self._flow and ("?" in event.value or event.value.startswith(":")):
                wrong = 'between brackets kubectl reads no text with "?" in it or ":" before it; quote it'
            if wrong:
                self._document.say(node.span, wrong, "ambiguous-scalar")
        elif event.style == '"' and (half := _SURROGATE.search(event.value)):
            text = f"\\u{ord(half.group()):04x}"
            message = (
                f"{text} is half of a character, which kubectl does not read; write the character itself"
            )
            self._document.say(node.span, message, "ambiguous-scalar")
            node.value = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", event.value)
        elif event.style == '"' and not self._is_json and "/" in event.value:
            self._refuse_escaped_slash(event)
        elif event.style in "|>":
            node.span = self._source.span(event.start_mark.index)
        self._put(node, event.anchor)

    def _refuse_escaped_slash(self, event: Any) -> None:
        """Raise ``Stop`` at an escape that only JSON and YAML 1.2 have: kubectl's reader of YAML ends there."""
        escaped = _ESCAPED_SLASH.search(self._text, event.start_mark.index, event.end_mark.index)
        if escaped:
            message = 'kubectl does not read "\\/" in YAML; write "/"'
            raise Stop(self._source.span(*escaped.span("slash")), message, "yaml-syntax")

    def _seen(self, event: Any) -> str:
        """Return an unquoted text without typographic quotation marks and hidden characters, and report them."""
        text: str = event.value
        match = HIDDEN.search(text)
        is_key = bool(self._open) and isinstance(self._open[-1][0].value, dict) and self._key[-1] is None
        seen = HIDDEN.sub("", text)
        if wrong := quoted_otherwise(text):
            self._document.say(self._span(event), wrong, "character")
            return text[1:-1]
        if match is None or not (is_key or " " not in text or seen == text.strip(match[0])):
            return text
        start = self._text.find(match[0], event.start_mark.index, event.end_mark.index)
        span = self._source.span(start, start + 1) if start >= 0 else self._span(event)
        self._document.say(span, hidden(match[0]), "character")
        return HIDDEN.sub(lambda hit: " " if hit[0].isspace() else "", text).strip()

    def _alias(self, event: Any) -> None:
        span = self._span(event)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise Stop(span, f"more than {MAX_ALIASES} aliases; write the values out", "too-many-aliases")
        node = self._anchors.get(event.anchor)
        if node is None:  # also one around the alias itself: its anchor counts once it is complete
            text = shown(f"*{event.anchor}")
            message = f"no anchor &{event.anchor:.60} stands before this alias; for the text {text} quote it"
            raise Stop(span, message, "unknown-anchor")
        self._put(node, None)

    def _tag(self, event: Any) -> None:
        if event.tag is not None:
            self._document.say(
                self._span(event), "tags have no meaning here; to have text, quote it", "yaml-tag"
            )

    def _put(self, node: Node, anchor: str | None) -> None:
        """Add a finished node to its place: the document, a list, or a key or value of a mapping."""
        if anchor:
            self._anchors[anchor] = node
        if not self._open:
            self._document.root = node
            return
        around, key = self._open[-1][0], self._key[-1]
        around.size += node.size
        if around.size > MAX_VALUES:
            raise Stop(node.span, f"more than {MAX_VALUES} values in a document; split it", "too-large")
        if isinstance(around.value, list):
            around.items.append(node)
            around.value.append(node.value)
        elif key is None:
            self._key[-1] = (self._name(node), node.span)
        else:
            self._key[-1] = None
            self._pair(around, key, node)

    def _name(self, node: Node) -> str:
        if node.value == "<<":
            message = "kubectl merges what follows, and YAML 1.2 has no merge key; write the fields out"
            self._document.say(node.span, message, "merge-key")
        if isinstance(node.value, dict):  # {{ }}
            message = (
                "templates are not filled in here; give the value, or a reference such as $(params.name)"
            )
            self._document.say(self._open[-1][0].span, message, COMPLEX_KEY)
        elif isinstance(node.value, list):
            self._document.say(node.span, "a key is text; quote it", COMPLEX_KEY)
        elif not isinstance(node.value, str):
            self._document.say(node.span, "a key is text; quote it", "key")
        return str(node.value) if not isinstance(node.value, dict | list) else ""

    def _pair(self, around: Node, key: tuple[str, Span], node: Node) -> None:
        name, span = key
        if name in around.keys:
            self._document.unclear |= len(self._open) == 1 and name in {"apiVersion", "kind", "items"}
            first_line = around.keys[name].line
            if len(self._open) == 1 and name in _OBJECT and len(self._twice) < MAX_FINDINGS:
                self._twice.append((name, span, first_line))
            else:
                self._say_duplicate(name, span, first_line)
            return
        around.keys[name] = span
        around.members[name] = node
        around.value[name] = node.value

    def _say_duplicate(self, name: str, span: Span, line: int) -> None:
        message = f"{shown(name)} is there already, on line {line}; remove one"
        self._document.say(span, message, "duplicate-key")

    def _say_twice(self) -> None:
        """Report the repeated keys of the document: where a second object begins, or each of them if they are few."""
        own: set[str] = set()
        for index, (name, span, line) in enumerate(self._twice):
            if len({repeated for repeated, _, _ in self._twice}) < _SECOND_OBJECT:
                self._say_duplicate(name, span, line)
                continue
            if index == 0 or name in own:
                own = set()
                message = f'a second object begins here, with {shown(name)}; put a line "---" before it'
                self._document.say(span, message, "duplicate-key")
            own.add(name)


def _plain(text: str) -> tuple[Any, str]:
    """Return the value of an unquoted scalar by YAML 1.2, and the problem with it; empty if none."""
    for pattern, wrong in _DOUBTFUL:
        if pattern.fullmatch(text):
            return text, f"{wrong.format(text)}{' ' if wrong.endswith(', or') else '; '}quote it"
    if "_" in text and _GROUPED.fullmatch(text.replace("_", "")):
        number = text.replace("_", "")
        return text, f"kubectl reads {text} as {number}, YAML 1.2 as text; write {number}, or quote it"
    if _INTEGER.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10), ""
    if _FLOAT.fullmatch(text):
        return float(text), ""
    return _CONSTANT.get(text, text), ""
