"""What is no YAML, or looks like it and means something else: one finding, in the line of the mistake."""

import pytest

from pidone.language.checking import check_text
from pidone.language.reading import read

HEAD = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: web}\nspec:\n  tasks:\n"
TASKS = (
    "    - name: ready\n      probe: {tcpSocket: {port: 8080}}\n"
    "    - name: hello\n      needs: [ready]\n      exec: {command: [/opt/pidone/x]}\n"
)
GOOD = HEAD + TASKS
HELLO, NEEDS, READY = "    - name: hello", "      needs", "name: ready"


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


CASES: dict[str, tuple[str, int, str]] = {
    # characters that are not what they look like
    "no-break space as indentation": (replaced(NEEDS, "\u00a0\u00a0    needs"), 9, "U+00A0 (no-break space)"),
    "no-break space after a colon": (replaced("needs: ", "needs:\u00a0"), 9, "U+00A0 (no-break space)"),
    "no-break space after a dash": (replaced("- name: hello", "-\u00a0name: hello"), 8, "U+00A0 (no-break"),
    "no-break space at the end": (replaced(READY, f"{READY}\u00a0"), 6, "U+00A0 (no-break space)"),
    "no-break space alone": (replaced("spec:", "\u00a0\nspec:"), 4, "U+00A0 (no-break space)"),
    "narrow no-break space": (replaced("needs: ", "needs:\u202f"), 9, "U+202F (narrow no-break space)"),
    "ideographic space": (replaced("needs: ", "needs:\u3000"), 9, "U+3000 (ideographic space)"),
    "zero width space in a name": (replaced(READY, "name: re\u200bady"), 6, "U+200B (zero width space)"),
    "zero width space before a key": (replaced(NEEDS, "      \u200bneeds"), 9, "U+200B (zero width space)"),
    "word joiner in a list": (replaced("[ready]", "[\u2060ready]"), 9, "U+2060 (word joiner)"),
    "byte order mark in the middle": (
        replaced("kind", "\ufeffkind"),
        2,
        "U+FEFF (zero width no-break space)",
    ),
    "soft hyphen": (replaced(READY, "name: rea\u00addy"), 6, "U+00AD (soft hyphen)"),
    "right-to-left override": (replaced(READY, "name: \u202eready"), 6, "U+202E (right-to-left override)"),
    "en dash for a dash": (replaced("- name: hello", "\u2013 name: hello"), 8, "U+2013 (en dash)"),
    "bullet for a dash": (replaced("- name: hello", "\u2022 name: hello"), 8, "U+2022 (bullet)"),
    "fullwidth colon": (
        replaced("needs: ", "needs\uff1a "),
        9,
        'U+FF1A (fullwidth colon) is no sign of YAML; write ":"',
    ),
    "typographic quotation marks": (
        replaced(READY, "name: \u201cready\u201d"),
        6,
        "U+201C (left double quotation mark)",
    ),
    "no-break space in quotation marks": (
        replaced("name: web", 'name: "web\u00a0"'),
        3,
        '"web<U+00A0>" is not a name',
    ),
    # quotation marks
    "not closed": (replaced(READY, "name: 'ready"), 6, "not closed"),
    "not closed, with others below": (
        replaced(READY, 'name: "ready').replace("hello", '"hello"'),
        6,
        "closed in line 8 only",
    ),
    "not closed, 17 lines": (
        replaced(READY, "name: 'ready")
        + "    - name: a\n      exec: {command: [/x]}\n" * 6
        + "    - name: 'b'\n",
        *(6, "closed in line 23 only"),
    ),
    "not closed, with another document": (
        f"{replaced(READY, chr(39).join(('name: ', 'ready')))}---\n{GOOD}",
        6,
        "not closed",
    ),
    "not closed in a list": (replaced("[ready]", '["ready]'), 9, "not closed"),
    # documents
    "no separator": (
        GOOD + GOOD.replace("web", "other"),
        11,
        'a second object begins here, with "apiVersion"',
    ),
    "no separator, kind first": (
        GOOD + "kind: TaskBinding\napiVersion: pidone.dev/v1alpha1\nmetadata: {name: b}\nspec: {}\n",
        *(11, 'a second object begins here, with "kind"; put a line "---" before it'),
    ),
    "a separator of two": (f"{GOOD}--\n{GOOD.replace('web', 'b')}", 11, 'a new document begins with "---"'),
    "an indented separator": (
        f"{GOOD} ---\n{GOOD.replace('web', 'b')}",
        11,
        'a new document begins with "---"',
    ),
    "Kind": (replaced("kind:", "Kind:"), 2, 'unknown field "Kind"; did you mean "kind"?'),
    "KIND and Metadata": (
        replaced("kind:", "KIND:").replace("metadata", "Metadata"),
        2,
        'did you mean "kind"?',
    ),
    "kindd": (replaced("kind:", "kindd:"), 2, 'did you mean "kind"?'),
    "api_version": (replaced("apiVersion:", "api_version:"), 1, 'did you mean "apiVersion"?'),
    # what is left over from where it was copied
    "a template around a task": (
        replaced(HELLO, f"    {{{{- if .Values.x }}}}\n{HELLO}") + "    {{- end }}\n",
        8,
        "templates",
    ),
    "a template around all": (
        f"{{{{- if .Values.x }}}}\n{GOOD}{{{{- end }}}}\n",
        1,
        "templates are not filled in here",
    ),
    "a template for a field": (
        replaced("      needs: [ready]", "      {{- toYaml .Values.x | nindent 6 }}"),
        9,
        "templates",
    ),
    "a template's comment": (f"{{{{/* x */}}}}\n{GOOD}", 1, "templates are not filled in here"),
    "a template's value": (replaced("[ready]", '{{ include "x" . }}'), 9, "templates are not filled in here"),
    "a template of Jinja": (
        replaced(HELLO, f"    {{% if x %}}\n{HELLO}"),
        8,
        "templates are not filled in here",
    ),
    "a fence": (f"```yaml\n{GOOD}```\n", 1, "this fence is of Markdown; remove it"),
    "the end of a fence": (f"{GOOD}```\n", 11, "this fence is of Markdown; remove it"),
    "a fence of tildes": (f"~~~yaml\n{GOOD}~~~\n", 1, "this fence is of Markdown; remove it"),
    "a command": (f"cat <<EOF\n{GOOD}EOF\n", 1, "this line is of a shell; remove it"),
    "a prompt": (f"$ cat x.yaml\n{GOOD}", 1, "this line is of a shell; remove it"),
    "a line of a diff": (replaced(NEEDS, "+     needs"), 9, "this + is of a diff; remove it"),
    "the number of a line": (replaced(NEEDS, "12       needs"), 9, "this number of a line was copied too"),
    "a comment of another language": (replaced(NEEDS, f"      // x\n{NEEDS}"), 9, "begin it with #"),
    # a colon or a comma that is missing
    "no colon": (replaced("needs: [ready]", "needs [ready]"), 9, 'this line has no ": "'),
    "no colon after a name": (replaced(READY, "name ready"), 6, 'this line has no ": "'),
    "no colon above a block": (replaced("  tasks:", "  tasks"), 5, 'this line has no ": "'),
    "an equals sign": (replaced(READY, "name=ready"), 6, 'this line has no ": "'),
    "no comma in JSON": (
        '{"kind": "TaskSet",\n"metadata": {"name": "x"}\n"spec": {}}',
        2,
        'a "," is missing after this',
    ),
    # a list that is none
    "words with a comma": (replaced("[ready]", "ready, hello"), 9, "write [ready, hello]"),
    "words with a semicolon": (replaced("[ready]", "ready; hello"), 9, "write [ready, hello]"),
    "words with and": (replaced("[ready]", "ready and hello"), 9, "write [ready, hello]"),
    "a quoted list": (replaced("[ready]", "'[ready, hello]'"), 9, "write [ready, hello]"),
    "a command in one text": (
        replaced("[/opt/pidone/x]", "/opt/pidone/x --all"),
        10,
        "write [/opt/pidone/x, --all]",
    ),
}


def test_the_file_that_is_damaged_is_good() -> None:
    assert not check_text(GOOD, "x.yaml").all


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_finding_in_its_line(name: str) -> None:
    text, line, message = CASES[name]
    (finding,) = check_text(text, "x.yaml").all
    assert finding.line == line
    assert message in finding.message


@pytest.mark.parametrize(
    "text",
    [
        replaced("[/opt/pidone/x]", "[/opt/pidone/x, 'a // b', \"```\", '{{ x }}'.]".replace("'.]", "']")),
        replaced(NEEDS, f"      # it's a\u00a0comment \u2013 with signs\n{NEEDS}"),
        replaced("[/opt/pidone/x]", "[/opt/pidone/x, |-\n    x\n  ]".replace("|-\n    x\n  ", "caf\u00e9")),
        replaced("name: web", "name: web, annotations: {note: 'a\n   b'}"),
    ],
)
def test_what_is_no_mistake_is_none(text: str) -> None:
    assert not check_text(text, "x.yaml").findings


@pytest.mark.parametrize("remedy", ["[ready, hello]", "[ready]"])
def test_the_remedy_for_a_list_works(remedy: str) -> None:
    assert not any(one.rule == "type" for one in check_text(replaced("[ready]", remedy), "x.yaml").all)


def test_a_slash_is_escaped_in_json_alone() -> None:
    """What kubectl takes for JSON begins with a brace, and not with a byte order mark."""
    text = '{"apiVersion": "pidone.dev/v1alpha1", "path": "\\/health"}'
    assert read(text, "x.json")[0][0].root.value["path"] == "/health"
    for yaml in ("# JSON\n" + text, "\N{ZERO WIDTH NO-BREAK SPACE}" + text):
        assert [finding.rule for finding in read(yaml, "x.yaml")[1]] == ["yaml-syntax"]
