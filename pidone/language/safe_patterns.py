"""Regular expressions of params, matched in linear time whatever the author of the pattern or of the text writes.

Python's own matcher tries every way to take a text apart, and there may be more ways than seconds in a year. RE2's
binding for Python has no wheel for every version of Python that pidone runs on.

A pattern becomes an automaton with a position for each character that it takes. A set of positions is an integer with
a bit for each. MAX_SIZE limits the time for one character of a text.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from pidone.language.pattern_syntax import Characters, Choice, Node, Parts, PatternError, Place, Repeat, parse

MAX_SIZE = 1000  # of one automaton, in instructions
MAX_TEXT = 4096  # characters of a text that is matched
_MAX_STEPS = 1000  # steps of one automaton that are remembered
_MAX_FOURS = 2000  # the same of four positions each
_MAX_PATTERNS = 64  # automata that are remembered: at most 1 MB each


def wrong_pattern(pattern: str) -> str:
    """Return why ``pattern`` is refused, as a message; empty if it is not."""
    try:
        _automaton(pattern)
    except PatternError as error:
        return str(error)
    return ""


def matches(pattern: str, text: str) -> bool:
    """True if a part of ``text`` matches. Raises ``PatternError`` if the pattern is refused."""
    return _automaton(pattern).search(text)


def size(pattern: str) -> int:
    """Return how many instructions the automaton has, of MAX_SIZE; 0 for a pattern that is refused."""
    try:
        return len(_automaton(pattern).program)
    except PatternError:
        return 0


_Jump = tuple[int, ...]  # goes on at each of these instructions
_Program = list[Characters | Place | _Jump]


def _length(node: Node) -> int:
    """Return how many instructions ``_write`` appends for a node."""
    match node:
        case Parts():
            return sum(map(_length, node.parts))
        case Choice():
            return 1 + sum(_length(part) + 1 for part in node.parts)
        case Repeat(most=None):
            return _length(node.part) * node.least + 1 if node.least else _length(node.part) + 2
        case Repeat():
            return _length(node.part) * (node.most or 0) + (node.most or 0) - node.least
        case _:
            return 1


def _write(node: Node, program: _Program) -> None:
    """Append the instructions of a node. The next instruction follows each of them, except a jump."""
    match node:
        case Parts():
            for part in node.parts:
                _write(part, program)
        case Choice():
            _write_choice(node, program)
        case Repeat():
            _write_repeat(node, program)
        case _:
            program.append(node)


def _write_choice(node: Choice, program: _Program) -> None:
    start = len(program)
    program.append(())
    begins, ends = [], []
    for part in node.parts:
        begins.append(len(program))
        _write(part, program)
        ends.append(len(program))
        program.append(())
    program[start] = tuple(begins)
    for end in ends:
        program[end] = (len(program),)


def _write_repeat(node: Repeat, program: _Program) -> None:
    start = len(program)
    for _ in range(node.least):
        start = len(program)
        _write(node.part, program)
    if node.most is None and node.least:
        program.append((start, len(program) + 1))
    elif node.most is None:
        program.append(())
        _write(node.part, program)
        program.append((start,))
        program[start] = (start + 1, len(program))
    else:
        splits = []
        for _ in range(node.most - node.least):
            splits.append(len(program))
            program.append(())
            _write(node.part, program)
        for split in splits:
            program[split] = (split + 1, len(program))


# Matching: what stands before and after a place in a text decides whether ``^``, ``$`` and ``\\b`` hold there.
_EDGE, _LINE_END, _WORD_CHARACTER, _OTHER = range(4)


def _holds(place: str, before: int, after: int) -> bool:
    match place:
        case "start":
            return before == _EDGE
        case "end":
            return after == _EDGE
        case "line":
            return before in {_EDGE, _LINE_END}
        case "line end":
            return after in {_EDGE, _LINE_END}
        case _:
            is_edge = (before == _WORD_CHARACTER) != (after == _WORD_CHARACTER)
            return is_edge == (place == "edge of a word")


@dataclass(slots=True)
class _Automaton:
    """A program with a cache of its states. Position N is its Nth instruction that takes a character."""

    program: _Program
    positions: list[int] = field(default_factory=list)  # indices of instructions
    bits: dict[int, int] = field(default_factory=dict)  # the bit of each of these instructions
    literals: dict[int, int] = field(
        default_factory=dict
    )  # code point: bits of the positions that take this one
    classes: dict[Characters, int] = field(default_factory=dict)  # the same of all others
    kinds: bool = False  # whether letters and ends of lines differ from other characters
    matched: int = 0  # the bit of the end of the program
    steps: dict[tuple[int, int, str], tuple[int, int]] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    following: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    starts: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, instruction in enumerate(self.program):
            if isinstance(instruction, Characters):
                bit = self.bits[index] = 1 << len(self.positions)
                self.positions.append(index)
                (low, high) = instruction.ranges[0] if instruction.ranges else (0, 1)
                if (
                    low == high
                    and len(instruction.ranges) == 1
                    and not instruction.negated | instruction.folded
                ):
                    self.literals[low] = self.literals.get(low, 0) | bit
                else:
                    self.classes[instruction] = self.classes.get(instruction, 0) | bit
            elif isinstance(instruction, Place):
                self.kinds |= instruction.name not in {"start", "end"}
        self.matched = 1 << len(self.positions)

    def search(self, text: str) -> bool:
        """True if a part of ``text`` matches."""
        state, before = 0, _EDGE
        for character in text:
            key = (state, before, character)
            step = self.steps.get(key)
            if step is None:
                step = self._step(state, before, character)
                if len(self.steps) < _MAX_STEPS:
                    self.steps[key] = step
            state, before = step
            if state < 0:
                return True
        return bool(self._reached(state, before, _EDGE) & self.matched)

    def _step(self, state: int, before: int, character: str) -> tuple[int, int]:
        """Return the positions that take ``character`` after those of ``state``, -1 for a match, and its kind."""
        after = self._kind(character)
        reached = self._reached(state, before, after)
        return (-1 if reached & self.matched else reached & self._mask(character)), after

    def _kind(self, character: str) -> int:
        if not self.kinds:
            return _OTHER
        if character == "\n":
            return _LINE_END
        is_word = character.isascii() and (character.isalnum() or character == "_")
        return _WORD_CHARACTER if is_word else _OTHER

    def _mask(self, character: str) -> int:
        """Return the positions that take ``character``."""
        mask = self.masks.get(character)
        if mask is None:
            mask = self.literals.get(ord(character), 0)
            for characters, bits in self.classes.items():
                if characters.has(character):
                    mask |= bits
            if len(self.masks) < _MAX_STEPS:
                self.masks[character] = mask
        return mask

    def _reached(self, state: int, before: int, after: int) -> int:
        """Return the positions that may be next after those of ``state``, or at the begin of a match.

        Each four positions are looked up at once.
        """
        reached = self.starts.get((before, after))
        if reached is None:
            reached = self.starts[before, after] = self._closure(0, before, after)
        for index, byte in enumerate(state.to_bytes((state.bit_length() + 7) // 8, "little")):
            if byte & 15:
                reached |= self._four(2 * index, byte & 15, before, after)
            if byte >> 4:
                reached |= self._four(2 * index + 1, byte >> 4, before, after)
        return reached

    def _four(self, index: int, four: int, before: int, after: int) -> int:
        key = (index, four, before, after)
        reached = self.following.get(key)
        if reached is None:
            reached = 0
            for offset in range(4):
                if four >> offset & 1:
                    single = (index, 1 << offset, before, after)
                    if single not in self.following:
                        position = self.positions[4 * index + offset]
                        self.following[single] = self._closure(position + 1, before, after)
                    reached |= self.following[single]
            if len(self.following) < _MAX_FOURS:
                self.following[key] = reached
        return reached

    def _closure(self, start: int, before: int, after: int) -> int:
        """Return the positions that an instruction leads to without taking a character."""
        reached, waiting, seen = 0, [start], {start}
        while waiting:
            index = waiting.pop()
            if index == len(self.program):
                reached |= self.matched
                continue
            instruction = self.program[index]
            if isinstance(instruction, Characters):
                reached |= self.bits[index]
                continue
            nexts = instruction if isinstance(instruction, tuple) else (index + 1,)
            if isinstance(instruction, Place) and not _holds(instruction.name, before, after):
                continue
            new = [one for one in nexts if one not in seen]
            seen.update(new)
            waiting += new
        return reached


@lru_cache(maxsize=_MAX_PATTERNS)
def _automaton(pattern: str) -> _Automaton:
    """Raises ``PatternError``."""
    node = parse(pattern)
    if _length(node) > MAX_SIZE:
        raise PatternError(0, f"written out, the pattern has more than {MAX_SIZE} parts; repeat less")
    program: _Program = []
    _write(node, program)
    return _Automaton(program)
