"""What is wrong with a text that is no YAML, and where: where a person would look, and not where a parser gave up.

A quotation mark that is not closed, a character that looks like a blank, or a line of a template is often noticed many
lines later.
"""

import re
from collections.abc import Iterator
from typing import Any
from unicodedata import name

# Characters that cannot be seen, or look like a blank or like a sign of YAML.
HIDDEN = re.compile(
    "[\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u202a-\u202f\u205f-\u2064\u2066-\u2069\u3000\ufeff]"
)
_SIGNS = {
    **dict.fromkeys("\uff1a\ufe55\ua789\u2236", ":"),
    **dict.fromkeys("\uff0c\u3001\ufe50", ","),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d\ufe63\u2022\u00b7", "-"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\uff02", '"'),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\uff07\u00b4", "'"),
    **{sign: chr(ord(sign) - 0xFEE0) for sign in "\uff3b\uff3d\uff5b\uff5d\uff5c\uff1e\uff03\uff0a\uff06"},
}
_MARKS = {'"', "'"}
_SIGN = re.compile(f"[{''.join(_SIGNS)}]")

# Lines that are left over from where a file was copied.
_TEMPLATE = (
    "templates are not filled in here: render the file first, as helm template does, or remove the line"
)
_LEFT = (
    (r"[ \t]*(?:```|~~~)", "this fence is of Markdown; remove it"),
    (r"[ \t]*(?:\{\{.*|\{%.*|.*[^'\"{]\{\{-.*|[^:#'\"]*\{\{/\*.*)", _TEMPLATE),
    (r"(?:<{7}|>{7}|={7})(?: |$)", "a conflict of a merge is left here; keep one of its sides"),
    (r"(?:diff --git |index [0-9a-f]{7}|@@ |\+\+\+ |--- [ab]/)", "this line is of a diff; remove it"),
    (r"\+(?=[ \t]|[A-Za-z]+:)", "this + is of a diff; remove it"),
    (r"(?:\$|#!|>) ?\S|(?:cat|kubectl|echo|tee|helm) .*|EOF$", "this line is of a shell; remove it"),
    (r"[ \t]*(?://|/\*|\*/|<!--|-->)", "this is no comment in YAML; begin it with #"),
    (r"[ \t]*[0-9]{1,5}[:|]?[ \t]+(?=[-A-Za-z#])", "this number of a line was copied too; remove it"),
    (r"--[ \t]*$|-{4,}[ \t]*$|[ \t]+---[ \t]*$", 'a new document begins with "---", at the begin of a line'),
)
_LEFT_OVER = [(re.compile(pattern), message) for pattern, message in _LEFT]


def explain(error: Any, text: str, quoted: tuple[int, int] | None, plain: int | None) -> tuple[int, str]:
    """Return the position of the probable cause, in characters, and the fault.

    ``error`` is ruamel.yaml's. ``quoted`` are the begin and the end of the last quoted text of several lines before
    it, and ``plain`` is the begin of the last text without quotation marks.
    """
    mark = error.problem_mark or error.context_mark
    at = min(mark.index, len(text)) if mark is not None else 0
    ends = "end of stream" in str(error.problem) or "document separator" in str(error.problem)
    if ends and error.context_mark is not None and "quoted scalar" in str(error.context):
        return error.context_mark.index, "this quotation mark is not closed"
    if quoted is not None and "\n" not in text[quoted[1] : at].replace("\r", "\n"):
        line = text.count("\n", 0, quoted[1]) + 1
        return quoted[0], f"this quotation mark is closed in line {line} only; close it here"
    for begin, before in _lines_before(text, at):
        left = _left_over(begin, before)
        if left is not None:
            return left
    if plain is not None and "mapping values are not allowed" in str(error.problem):
        begin, end = text.rfind("\n", 0, plain) + 1, text.find("\n", plain)
        if plain < end < at and ":" not in text[begin:end]:
            return plain, 'this line has no ": "; is it a key without a value?'
    if text.lstrip().startswith("{") and "expected ',' or" in str(error.problem):  # JSON
        return len(text[:at].rstrip()) - 1, 'a "," is missing after this'
    return _in_our_words(error, text)


def called(character: str) -> str:
    """Return the name of a character: ``U+00A0 (no-break space)``."""
    return f"U+{ord(character):04X} ({name(character, 'without a name').lower()})"


def hidden(character: str) -> str:
    """Return the fault of one of the characters of ``HIDDEN``."""
    if character.isspace():
        return f"{called(character)} stands here, which looks like a blank; write a blank"
    return f"{called(character)} stands here, which cannot be seen; remove it"


def quoted_otherwise(text: str) -> str:
    """Return the fault of a text in quotation marks that YAML does not have; empty for other texts."""
    if len(text) > 1 and _SIGNS.get(text[0]) in _MARKS and _SIGNS.get(text[-1]) in _MARKS:
        return f"{called(text[0])} is no quotation mark of YAML; write {_SIGNS[text[0]]}"
    return ""


def _lines_before(text: str, at: int) -> Iterator[tuple[int, str]]:
    """Yield the line of a place and the two before it that are not empty, each with where it begins."""
    found = 0
    end = text.find("\n", at)
    end = end if end >= 0 else len(text)
    while found < 3 and end >= 0:
        begin = text.rfind("\n", 0, end) + 1
        if text[begin:end].strip(" \t\r"):
            found += 1
            yield begin, text[begin:end].rstrip("\r")
        end = begin - 1


def _left_over(begin: int, line: str) -> tuple[int, str] | None:
    """Return the position and the message for a line of another format, or with a misleading character."""
    for pattern, message in _LEFT_OVER:
        if pattern.match(line):
            return begin + len(line) - len(line.lstrip(" \t")), message
    code = _without_quotes(line)
    if found := HIDDEN.search(code):
        return begin + found.start(), hidden(found[0])
    if found := _SIGN.search(code):
        return begin + found.start(), f'{called(found[0])} is no sign of YAML; write "{_SIGNS[found[0]]}"'
    return None


def _without_quotes(line: str) -> str:
    """Return a line with blanks instead of its comment and its quoted texts."""
    return _QUOTED.sub(lambda found: " " * len(found[0]), line)


_QUOTED = re.compile(r"""(?<!\S)#.*|(?<![^\s\[{,:])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')""")


def _in_our_words(error: Any, text: str) -> tuple[int, str]:
    """Return the position of a parser's error, in characters, and its message, reworded where that is plainer."""
    mark, problem = error.problem_mark, str(error.problem)
    start = _open_bracket(error, text)
    if start >= 0:
        return start, f'this "{text[start]}" is not closed'
    if error.context_mark is not None and "end of stream" in problem:
        mark, problem = error.context_mark, "this quotation mark is not closed"
    elif "'\\t'" in problem:
        problem = "a tab stands here; YAML is indented with spaces"
    elif "expected <block end>" in problem:
        problem = "this does not belong to what stands above; is the indentation right?"
    elif "mapping values are not allowed" in problem and ":" not in _line_before(text, mark):
        problem = (
            'this line is read as going on from the one above, which has a value; is a ": " missing there?'
        )
    elif "mapping values are not allowed" in problem:
        problem = 'a second ": " in one line; quote the value, or begin a new line'
    elif "could not find expected ':'" in problem and error.context_mark is not None:
        mark, problem = error.context_mark, 'this line has no ": "; is it a key without a value?'
    elif "unknown escape character" in problem:
        problem = f"\\{problem[-2]} is no escape; write \\\\ for the backslash itself, or use single quotation marks"
    elif found := re.fullmatch(r"expected ',' or '([]}])', but got .*", problem):
        problem = f'a "," or "{found.group(1)}" is missing before this'
    elif "cannot start any token" in problem:
        problem = (
            f"{problem.removeprefix('found character ').split()[0]} cannot begin a value; quote the value"
        )
    mark = mark or error.context_mark
    return (mark.index if mark is not None else 0), problem


def _line_before(text: str, mark: Any) -> str:
    """The line of a mark, up to it."""
    return text[text.rfind("\n", 0, mark.index) + 1 : mark.index]


def _open_bracket(error: Any, text: str) -> int:
    """Where the bracket stands that an error in another line, or at the end, is about; -1 where there is none."""
    around, mark = error.context_mark, error.problem_mark
    if around is None or "flow" not in str(error.context):
        return -1
    if mark is not None and mark.line == around.line and "stream end" not in str(error.problem):
        return -1
    if text[around.index : around.index + 1] in {"[", "{"}:
        return int(around.index)
    return max(text.rfind("[", 0, around.index), text.rfind("{", 0, around.index))
