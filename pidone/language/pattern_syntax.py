r"""The syntax of RE2, as in Go, to trees.

There are no backreferences and nothing that looks ahead or behind. ``$`` is the end of the text, and ``\d``, ``\s`` and
``\w`` are ASCII. Go also takes ``\p``, ``\Q`` and ``(?i)`` with characters outside of ASCII, which are refused here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_REPEAT = 1000  # of RE2
_MAX_DEPTH = 50  # of groups in groups

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Characters:
    """One character: in one of the ranges, or with ``negated`` in none."""

    ranges: tuple[Range, ...]
    negated: bool = False
    folded: bool = False  # capitals and small letters are the same

    def has(self, character: str) -> bool:
        forms = _forms(character) if self.folded else (ord(character),)
        return any(low <= form <= high for form in forms for low, high in self.ranges) != self.negated


@dataclass(frozen=True, slots=True)
class Place:
    """Takes no character: a place such as the start of the text, named as in ``_escape`` and ``_one``."""

    name: str


@dataclass(frozen=True, slots=True)
class Parts:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: "Node"
    least: int
    most: int | None


Node = Characters | Place | Parts | Choice | Repeat

_NEWLINE = ((10, 10),)
_DIGIT, _SPACE = ((48, 57),), ((9, 10), (12, 13), (32, 32))
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_CLASSES = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
_NAMED: dict[str, tuple[Range, ...]] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_ESCAPES = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_FOLDED = {"\u017f": "s", "\u212a": "k"}  # the only others that are the same as a letter of ASCII


class PatternError(Exception):
    """The pattern is refused; the text says why and where."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"{why}, at character {at + 1} of the pattern")


def _forms(character: str) -> tuple[int, ...]:
    """Return the code points that are the same letter as ``character``, itself included."""
    low = _FOLDED.get(character, character)
    return (ord(character), ord(low.lower()), ord(low.upper())) if low.isascii() else (ord(character),)


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False  # i
    lines: bool = False  # m
    newline: bool = False  # s


class _Parser:
    """One pattern; ``at`` is the character that is read next."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.depth = 0
        self.names: set[str] = set()

    def parse(self) -> Node:
        node = self._choice(_Flags())
        if self.at < len(self.text):
            raise PatternError(self.at, 'this ")" closes no "("')
        return node

    def _peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def _choice(self, flags: _Flags) -> Node:
        """``a|b|c``, up to the end of the group."""
        branches: list[Node] = []
        while True:
            parts: list[Node] = []
            while self._peek() not in {"", "|", ")"}:
                if self._peek(2) == "(?" and (changed := self._flags(flags)) is not None:
                    flags = changed
                    continue
                parts.append(self._repeated(flags))
            branches.append(Parts(tuple(parts)))
            if self._peek() != "|":
                return branches[0] if len(branches) == 1 else Choice(tuple(branches))
            self.at += 1

    def _repeated(self, flags: _Flags) -> Node:
        start = self.at
        if self._repeat() is not None:
            raise PatternError(start, f'nothing stands before this "{self.text[start]}" that it could repeat')
        self.at = start
        node = self._one(flags)
        after = self.at
        bounds = self._repeat()
        if bounds is None:
            return node
        if self._peek() == "?":  # which of several matches is found makes no difference
            self.at += 1
        at = self.at
        if self._repeat() is not None:
            raise PatternError(after, f'a repeat is repeated: "{self.text[after : self.at]}"')
        self.at = at
        return Repeat(node, *bounds)

    def _repeat(self) -> tuple[int, int | None] | None:
        """Read ``*``, ``+``, ``?`` or ``{2,5}``; without one read nothing and return None."""
        start, first = self.at, self._peek()
        if first and first in "*+?":
            self.at += 1
            return int(first == "+"), 1 if first == "?" else None
        if first != "{":
            return None
        end = self.text.find("}", start)
        least, comma, most = self.text[start + 1 : max(end, start)].partition(",")
        if not _number(least) or (most and not _number(most)):
            return None  # which makes it text
        self.at = end + 1
        bounds = int(least[:5]), int(most[:5]) if most else None if comma else int(least[:5])
        if max(bounds[0], bounds[1] or 0) > MAX_REPEAT:
            raise PatternError(start, f"a repeat is at most {{{MAX_REPEAT}}}")
        if bounds[1] is not None and bounds[0] > bounds[1]:
            raise PatternError(start, f'"{self.text[start : end + 1]}" ends before it begins')
        return bounds

    def _one(self, flags: _Flags) -> Node:
        start, character = self.at, self._peek()
        if character == "(":
            return self._group(flags)
        if character == "[":
            return self._class(flags)
        if character == "\\":
            return self._escape(flags)
        self.at += 1
        if character == ".":
            return Characters(() if flags.newline else _NEWLINE, negated=True)
        if character in "^$":
            names = {"^": "line", "$": "line end"} if flags.lines else {"^": "start", "$": "end"}
            return Place(names[character])
        return self._literal(start, character, flags)

    def _literal(self, start: int, character: str, flags: _Flags) -> Characters:
        code = ord(character)
        self._check_fold(start, ((code, code),), flags)
        return Characters(((code, code),), folded=flags.fold)

    def _check_fold(self, start: int, ranges: Sequence[Range], flags: _Flags) -> None:
        if flags.fold and any(high > 127 for _, high in ranges):
            raise PatternError(start, "after (?i) only characters of ASCII may stand")

    def _group(self, flags: _Flags) -> Node:
        start = self.at
        self.at += 1
        if self._peek() == "?":
            self.at += 1
            flags = self._head(start, flags)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise PatternError(start, f"groups are nested more than {_MAX_DEPTH} deep")
        node = self._choice(flags)
        self.depth -= 1
        if self._peek() != ")":
            raise PatternError(start, 'this "(" is not closed')
        self.at += 1
        return node

    def _head(self, start: int, flags: _Flags) -> _Flags:
        """Read what stands between ``(?`` and the content of a group."""
        for head, why in (
            ("=", "looks ahead"),
            ("!", "looks ahead"),
            ("<=", "looks behind"),
            ("<!", "looks behind"),
            ("P=", "refers back"),
            (">", "is an atomic group"),
            ("(", "is a condition"),
            ("P>", "calls a group"),
            ("#", "is a comment"),
        ):
            if self._peek(len(head)) == head:
                raise PatternError(start, f'"(?{head}" {why}, which no pattern of RE2 does')
        for head in ("P<", "<"):
            if self._peek(len(head)) == head:
                end = self.text.find(">", self.at)
                name = self.text[self.at + len(head) : max(end, 0)]
                if not name.replace("_", "a").isalnum() or not name.isascii():
                    raise PatternError(start, "a name of a group is made of letters, digits and _")
                if name in self.names:
                    raise PatternError(start, f'two groups are called "{name}"')
                self.names.add(name)
                self.at = end + 1
                return flags
        changed = self._changed(start, flags)
        if self._peek() != ":":
            raise PatternError(start, "this group is not closed")
        self.at += 1
        return changed

    def _flags(self, flags: _Flags) -> _Flags | None:
        """Read ``(?i)``, which counts up to the end of the group around it; None where something else stands."""
        start = self.at
        self.at += 2
        word = self.text[self.at : max(self.text.find(")", self.at), self.at)]
        if word and set(word) <= set("imsU-"):
            flags = self._changed(start, flags)
            self.at += 1
            return flags
        self.at = start
        return None

    def _changed(self, start: int, flags: _Flags) -> _Flags:
        """Read the letters of ``(?i)`` and ``(?s-i:``."""
        values = {"i": flags.fold, "m": flags.lines, "s": flags.newline, "U": False}
        value, empty = True, False
        while self._peek() not in {"", ":", ")"}:
            letter = self._peek()
            if letter == "-" and value:
                value, empty = False, True
            elif letter in values:
                values[letter], empty = value, False
            else:
                raise PatternError(start, f'"(?{letter}" is not known')
            self.at += 1
        if empty:
            raise PatternError(start, '"-" takes back no flag')
        return _Flags(values["i"], values["m"], values["s"])

    def _escape(self, flags: _Flags) -> Node:
        start = self.at
        letter = self.text[start + 1 : start + 2]
        places = {"A": "start", "z": "end", "b": "edge of a word", "B": "no edge of a word"}
        if letter in places and letter:
            self.at += 2
            return Place(places[letter])
        if letter.lower() in _CLASSES and letter:
            self.at += 2
            return Characters(_CLASSES[letter.lower()], letter.isupper(), flags.fold)
        return self._literal(start, chr(self._escaped()), flags)

    def _escaped(self) -> int:
        """Read an escaped character."""
        start = self.at
        letter = self.text[start + 1 : start + 2]
        self.at += 2
        if letter in _ESCAPES and letter:
            return _ESCAPES[letter]
        if letter == "x":
            return self._hexadecimal(start)
        if letter and letter in "01234567":
            digits = self.text[start + 1 : start + 4]
            digits = digits[: len(digits) - len(digits.lstrip("01234567"))]
            if letter == "0" or len(digits) > 1:
                self.at = start + 1 + len(digits)
                return int(digits, 8)
        if letter.isascii() and letter.isprintable() and not letter.isalnum() and letter:
            return ord(letter)
        why = f'"\\{letter}" is not known'
        if not letter:
            why = "a backslash stands at the end"
        elif letter in "123456789":
            why = f'"\\{letter}" refers back to a group, which no pattern of RE2 does'
        elif letter == "Z":
            why = '"\\Z" is Python\'s; write "\\z" or "$"'
        raise PatternError(start, why)

    def _hexadecimal(self, start: int) -> int:
        if self._peek() == "{":
            end = self.text.find("}", self.at)
            digits = self.text[self.at + 1 : max(end, 0)]
            self.at = end + 1
        else:
            digits = self._peek(2)
            self.at += 2
            digits = digits if len(digits) == 2 else ""
        if not digits or len(digits) > 8 or set(digits) - set("0123456789abcdefABCDEF"):
            raise PatternError(start, r'write a code point as "\x{20AC}" or "\x7F"')
        if int(digits, 16) > 0x10FFFF:
            raise PatternError(start, "there is no such code point")
        return int(digits, 16)

    def _class(self, flags: _Flags) -> Node:
        """``[^a-z0-9]``; a ``]`` at its beginning is text."""
        start = self.at
        self.at += 1
        negated = self._peek() == "^"
        self.at += negated
        ranges: list[Range] = []
        first = True
        while first or self._peek() != "]":
            if not self._peek():
                raise PatternError(start, 'this "[" is not closed')
            ranges += self._item()
            first = False
        self.at += 1
        self._check_fold(start, ranges, flags)
        return Characters(tuple(ranges), negated, flags.fold)

    def _item(self) -> Sequence[Range]:
        start = self.at
        if self._peek(2) == "[:" and (end := self.text.find(":]", start + 2)) >= 0:
            name = self.text[start + 2 : end]
            if name.removeprefix("^") not in _NAMED:
                raise PatternError(start, f'"[:{name:.20}:]" is not known')
            self.at = end + 2
            ranges = _NAMED[name.removeprefix("^")]
            return _complement(ranges) if name.startswith("^") else ranges
        letter = self.text[start + 1 : start + 2]
        if self._peek() == "\\" and letter.lower() in _CLASSES and letter:
            self.at += 2
            ranges = _CLASSES[letter.lower()]
            return _complement(ranges) if letter.isupper() else ranges
        low = self._character()
        if self._peek() != "-" or self._peek(2) == "-]" or self._peek(2) == "-":
            return ((low, low),)
        self.at += 1
        high = self._character()
        if high < low:
            raise PatternError(start, f'the range "{self.text[start : self.at]}" ends before it begins')
        return ((low, high),)

    def _character(self) -> int:
        if self._peek() == "\\":
            return self._escaped()
        self.at += 1
        return ord(self.text[self.at - 1])


def _number(text: str) -> bool:
    """True for a number as RE2 writes it: without a 0 before it."""
    return text.isascii() and text.isdecimal() and (text == "0" or not text.startswith("0"))


def _complement(ranges: Sequence[Range]) -> list[Range]:
    edges = [-1, *(edge for low, high in sorted(ranges) for edge in (low, high)), 0x110000]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(low + 1, high - 1) for low, high in pairs if low + 1 < high]


def parse(pattern: str) -> Node:
    """Return the tree of a pattern. Raises ``PatternError``."""
    return _Parser(pattern).parse()
