"""Whether a regular expression may be used on what a pod's author chose.

Python's matcher tries every way in which a text can be taken apart, and for a repeat in a repeat, as in
``(a+)+$``, there may be more ways than seconds until the end of the world. A repeat of something of varying
length is taken only where it is plain that each text has one way: one end of it is marked by characters that the
rest cannot have, as in ``(-[a-z]+)*``. That refuses a few patterns that would do, and none that people need.
"""

import re
from collections.abc import Iterable, Sequence
from re import _constants, _parser  # type: ignore[attr-defined] # private, and what re.compile itself uses
from typing import Any

_REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT}
_CATEGORIES = {
    _constants.CATEGORY_DIGIT: r"\d",
    _constants.CATEGORY_NOT_DIGIT: r"\D",
    _constants.CATEGORY_SPACE: r"\s",
    _constants.CATEGORY_NOT_SPACE: r"\S",
    _constants.CATEGORY_WORD: r"\w",
    _constants.CATEGORY_NOT_WORD: r"\W",
}
_ALPHABET = frozenset(map(chr, range(128))) | {"\u00e9", "\u4e2d"}  # two for all that are not ASCII


def wrong_pattern(pattern: str) -> str:
    """Why ``pattern`` is refused, as a message; empty where it is not."""
    try:
        re.compile(pattern)
        tree = list(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression: {error}"
    if _ambiguous(tree):
        return "this may take for ever on some texts, for a repeat in it is repeated; repeat each part once"
    return ""


def _ambiguous(tree: Iterable[Any]) -> bool:
    for operator, argument in tree:
        if operator in _REPEATS and argument[1] > 1 and not _one_way(_flat(argument[2])):
            return True
        if any(_ambiguous(part) for part in _parts(operator, argument)):
            return True
    return False


def _one_way(body: Sequence[Any]) -> bool:
    """Whether a text of several ``body`` in a row can be taken apart in one way only."""
    least, most = _width(body)
    if least == most and not any(operator is _constants.BRANCH for operator, _ in body):
        return True
    if len(body) == 1 or least == 0:
        return least == most == 1
    first, last = body[:1], body[-1:]
    return any(
        _width(mark)[0] > 0
        and not _characters(mark) & _characters(rest)
        and (_width(mark)[1] == 1 or _width(rest)[0] > 0)
        for mark, rest in ((first, body[1:]), (last, body[:-1]))
    )


def _flat(tree: Iterable[Any]) -> list[Any]:
    """Groups around the whole are no parts of their own."""
    flat = list(tree)
    while len(flat) == 1 and flat[0][0] is _constants.SUBPATTERN:
        flat = list(flat[0][1][3])
    return flat


def _width(tree: Iterable[Any]) -> tuple[int, int]:
    part = _parser.SubPattern(_parser.State(), list(tree))
    least, most = part.getwidth()
    return int(least), int(most)


def _parts(operator: Any, argument: Any) -> list[list[Any]]:
    """The trees in one node."""
    if operator in _REPEATS:
        return [list(argument[2])]
    if operator is _constants.SUBPATTERN:
        return [list(argument[3])]
    if operator is _constants.BRANCH:
        return [list(branch) for branch in argument[1]]
    if operator in {_constants.ASSERT, _constants.ASSERT_NOT}:
        return [list(argument[1])]
    if operator is _constants.ATOMIC_GROUP:
        return [list(argument)]
    if operator is _constants.GROUPREF_EXISTS:
        return [list(part) for part in argument[1:] if part is not None]
    return []


def _characters(tree: Iterable[Any]) -> frozenset[str]:
    """All characters that may stand in a text of ``tree``."""
    found: frozenset[str] = frozenset()
    for operator, argument in tree:
        parts = _parts(operator, argument)
        if parts:
            found = found.union(*map(_characters, parts))
        elif operator is _constants.IN:
            found |= _in(argument)
        elif operator is _constants.LITERAL:
            found |= {chr(argument)} & _ALPHABET or _ALPHABET - frozenset(map(chr, range(128)))
        elif operator is not _constants.AT:
            found |= _ALPHABET
    return found


def _in(items: Iterable[Any]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    negated = False
    for operator, argument in items:
        if operator is _constants.NEGATE:
            negated = True
        elif operator is _constants.LITERAL:
            found |= {chr(argument)}
        elif operator is _constants.RANGE:
            found |= frozenset(one for one in _ALPHABET if argument[0] <= ord(one) <= argument[1])
        else:
            category = re.compile(_CATEGORIES[argument])
            found |= frozenset(one for one in _ALPHABET if category.match(one))
    return _ALPHABET - found if negated else found
