"""Checks files: the findings of each, or its objects if there are none.

The schema finds what does not fit, and one function for each of its keywords writes the message. ``semantics``,
``lint`` and ``leftovers`` find what a schema cannot, and ``across`` compares the objects of all files. All mistakes of
a file are found in one run, in the file's order, each once.
"""

import re
from bisect import bisect_right
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

from pidone.language.across import PASSED_OVER, Placed, check_across
from pidone.language.extends import ANY, Sets
from pidone.language.findings import Finding, Source, ordered, shown, suggestion
from pidone.language.leftovers import warn_of_leftovers
from pidone.language.lint import lint_task_set
from pidone.language.model import TaskBinding, TaskSet, object_of
from pidone.language.reading import COMPLEX_KEY, MAX_DOCUMENTS, Document, Node, read
from pidone.language.schemas import API_VERSION, KINDS, action_aliases, validator
from pidone.language.semantics import Path, check_labels, check_task_binding, check_task_set

_JOINTS = re.compile(r"[,;|&+]+|\band\b")  # between words that are to be a list
_WORD = re.compile(r"-*[A-Za-z0-9/$(][-A-Za-z0-9._/=:()$]*")
_NO_JOINTS = str.maketrans("", "", "-_ ")
_HEADS = ("apiVersion", "kind")
MAX_FINDINGS = 1000  # of a file, after which the rest of it is not checked
_GROUP = API_VERSION.partition("/")[0]
_DOUBTS = {"ambiguous-scalar", COMPLEX_KEY, "key", "merge-key", "yaml-tag"}
_LOUDER = {  # rules before which others keep quiet in the same place; before a doubt all but a louder one do
    "unknown-field": {COMPLEX_KEY, "key", "merge-key", "yaml-tag"},
    "ambiguous-scalar": {"merge-key", "unknown-field"},
    **dict.fromkeys((COMPLEX_KEY, "key", "merge-key", "yaml-tag"), frozenset[str]()),
}
_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


# What is called otherwise where people come from: compose, GitHub Actions, Argo, Tekton, systemd, Kubernetes.
_ELSEWHERE = {
    **dict.fromkeys(("dependsOn", "depends_on", "depends", "after", "runAfter", "requires"), "needs"),
    **dict.fromkeys(("if", "when", "unless"), "while"),
    **dict.fromkeys(("on", "trigger", "triggers"), "runOn"),
    **dict.fromkeys(("interval", "schedule", "cron", "period"), "every"),
    **dict.fromkeys(("retries", "retry", "attempts"), "backoffLimit"),
    **dict.fromkeys(("timeoutSeconds", "deadline"), "timeout"),
    **dict.fromkeys(("selector", "nodeSelector"), "podSelector"),
    **dict.fromkeys(("steps", "jobs"), "tasks"),
    **dict.fromkeys(("parameters", "inputs", "vars", "values"), "params"),
    "args": "command",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a file: its objects, or findings and no objects.

    ``warnings`` are about what works and is rarely intended; objects with warnings alone are used.
    """

    findings: tuple[Finding, ...] = ()
    objects: tuple[TaskSet | TaskBinding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    passed_over: tuple[Finding, ...] = ()  # what was not checked, each with the reason

    @property
    def all(self) -> tuple[Finding, ...]:
        return ordered((*self.findings, *self.warnings))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file that was read as YAML: its documents, and the findings so far."""

    documents: tuple[Document, ...] = ()
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, text: str, file: str) -> "Parsed":
        documents, findings = read(text, file)
        listed = list(islice(_listed(documents), MAX_DOCUMENTS + 1))
        if len(listed) > MAX_DOCUMENTS:
            last = listed.pop()
            message = f"more than {MAX_DOCUMENTS} objects; split it"
            findings.append(last.source.finding(last.root.span, message, "too-large"))
        return cls(tuple(listed), tuple(findings))


def parse_bytes(data: bytes, file: str) -> Parsed:
    """Read a file: UTF-8, or UTF-16 with a byte order mark, as kubectl does. ``file`` is only its name in findings."""
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"
    try:
        return Parsed.of(data.decode(encoding), file)
    except UnicodeDecodeError as error:
        mark = int(data.startswith(BOM_UTF8))  # one character, which is in no column
        source = Source.of(data.decode(encoding, errors="replace")[mark:], file)
        span = source.span(len(data[: error.start].decode(encoding)) - mark)
        message = f"this is not {encoding.upper()}; save the file as UTF-8"
        return Parsed((), (source.finding(span, message, "encoding"),))


def check_bytes(data: bytes, file: str) -> Checked:
    """Check one file alone: sets that it extends or binds may be in other files. Never raises for bad input."""
    return check_files([parse_bytes(data, file)])[0]


def check_text(text: str, file: str) -> Checked:
    """``check_bytes`` for text."""
    return check_files([Parsed.of(text, file)])[0]


def check_files(files: Sequence[Parsed]) -> list[Checked]:
    """Check each file, and all of them against each other."""
    sets = extended_sets(files)
    examined = [_examined(parsed, sets) for parsed in files]
    passed = check_across([placed for one in examined for placed in one.placed()])
    return [one.checked(passed) for one in examined]


def extended_sets(files: Iterable[Parsed]) -> Sets:
    """Return the sets of these files without errors of the schema, if one of them extends another; else none.

    The sets that extend are among them, since a name that is nearly the name of one is a mistake.
    """
    values = [
        document.root.value
        for file in files
        for document in file.documents
        if isinstance(document.root.value, dict) and document.root.value.get("kind") in KINDS
    ]
    if not any(isinstance(one.get("spec"), dict) and "extends" in one["spec"] for one in values):
        return Sets()
    return Sets.of(
        TaskSet.of(one)
        for one in values
        if one["kind"].endswith("TaskSet") and validator(one["kind"]).is_valid(one)
    )


def check_parsed(parsed: Parsed, sets: Sets) -> Checked:
    """Check every object of a file that is one of ours, without comparing objects. ``sets`` can be extended."""
    return _examined(parsed, sets).checked(())


@dataclass(frozen=True, slots=True)
class _Examined:
    """A file whose documents were checked one by one."""

    file: str
    documents: tuple[tuple[Document, str], ...]  # of our kinds, each with its kind
    findings: tuple[Finding, ...]  # outside of these documents
    passed: tuple[Finding, ...]

    def placed(self) -> Iterator[Placed]:
        for document, kind in self.documents:
            value, broken = document.root.value, any(not one.is_warning for one in document.findings)
            metadata = value.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            if isinstance(name, str):
                namespace = metadata.get("namespace") or ANY
                key = (kind.startswith("Cluster"), namespace if isinstance(namespace, str) else ANY, name)
                yield Placed(key, kind, document, None if broken else object_of(value))

    def checked(self, passed: Iterable[Finding]) -> Checked:
        findings = list(self.findings)
        for document, _ in self.documents:
            findings += _without_echoes(document.findings)
        warnings = ordered(one for one in findings if one.is_warning)
        mistakes = ordered(one for one in findings if not one.is_warning)
        over = ordered((*self.passed, *(one for one in passed if one.file == self.file)))
        if mistakes:
            return Checked(mistakes, (), warnings, over)
        return Checked(
            (), tuple(object_of(document.root.value) for document, _ in self.documents), warnings, over
        )


def _examined(parsed: Parsed, sets: Sets) -> _Examined:
    findings, passed, fatal = list(parsed.findings), list[Finding](), list[Finding]()
    first: dict[tuple[str, str, str], Document] = {}
    ours = []
    total = 0
    for document in parsed.documents:
        if total > MAX_FINDINGS:
            message = f"more than {MAX_FINDINGS} findings before this; what follows was not checked"
            findings.append(document.source.finding(document.root.span, message, "too-large"))
            break
        kind = _kind(document)
        if kind is None:
            rules = {"kind", "duplicate-key"} if document.unclear else {"kind"}
            found = [one for one in document.findings if one.rule in rules]
            findings += found
            fatal += [one for one in document.findings if one.rule == COMPLEX_KEY]
            passed += [] if found else _foreign(document)
            continue
        _check_document(document, kind, sets)
        _check_once(document, kind, first)
        total += len(document.findings)
        ours.append((document, kind))
    findings += fatal if ours else []  # a template of Helm without an object of ours is not for kubectl
    file = parsed.documents[0].source.file if parsed.documents else ""
    return _Examined(file, tuple(ours), tuple(findings), tuple(passed))


def _foreign(document: Document) -> Iterator[Finding]:
    """Report why a document was not checked. An empty document is not reported."""
    value = document.root.value
    if isinstance(value, dict) and "cases" not in value:  # which ``pidone test`` reads
        kind, version = value.get("kind"), value.get("apiVersion")
        known = isinstance(kind, str) and isinstance(version, str)
        what = f"a {kind} of {version}" if known else "a document without apiVersion and kind"
        span = document.key(("kind",)) if known else document.span(())
        yield document.source.finding(span, f"{what} is no object of pidone", PASSED_OVER)


def _listed(documents: Iterable[Document]) -> Iterator[Document]:
    """Return the documents; instead of a List, as kubectl get prints it, its items."""
    for document in documents:
        value = document.root.value
        is_list = isinstance(value, dict) and value.get("kind") == "List"
        items = document.root.members.get("items") if is_list else None
        if items is None or document.unclear:
            yield document
        if items is not None:
            yield from _items(items.items, document)


def _items(items: Sequence[Node], document: Document) -> Iterator[Document]:
    """The items of a List, each with the findings about its YAML; the first one has those about the List itself."""
    starts = [(item.span.line, item.span.column) for item in items]
    findings: list[list[Finding]] = [[] for _ in items]
    for finding in document.findings if items else ():
        findings[max(0, bisect_right(starts, (finding.line, finding.column)) - 1)].append(finding)
    for item, its in zip(items, findings, strict=True):
        yield Document(item, document.source, its)


def _kind(document: Document) -> str | None:
    """Return the kind of pidone that a document has; None for other and unknown kinds."""
    value = document.root.value
    if value is None:
        return None
    if not isinstance(value, dict):
        document.say(document.root.span, "expected an object with apiVersion and kind", "kind")
        return None
    version, kind = value.get("apiVersion"), value.get("kind")
    group = str(version).partition("/")[0]
    if kind in KINDS and (version is None or group == _GROUP):
        return str(kind)
    expected = ", ".join(KINDS[:-1]) + f" or {KINDS[-1]}"
    heads = _misspelt_heads(value)
    if heads and (group == _GROUP or _is_ours(kind) or "spec" in value or len(heads) > 1):
        key, meant = heads[0]
        message = f'unknown field {shown(key)}; did you mean "{meant}"?'
        document.say(document.key((key,)), message, "kind")
    elif group == _GROUP and kind is None:
        document.say(document.span(()), f'"kind" is missing; expected {expected}', "kind")
    elif group == _GROUP:
        meant = suggestion(kind if isinstance(kind, str) else "", KINDS)
        message = f"unknown kind {shown(kind)}{meant}"
        document.say(document.span(("kind",)), message, "kind")
    elif _is_ours(kind) and _is_no_other(version):
        message = f'unknown apiVersion {shown(version)} of a {kind}; write "{API_VERSION}"'
        document.say(document.span(("apiVersion",)), message, "kind")
    elif version is None and kind is None and "spec" in value:
        # what does not say what it is may be anything, such as a chart's values, unless it looks like ours
        message = f'"apiVersion" and "kind" are missing; expected {API_VERSION} and {expected}'
        document.say(document.span(()), message, "kind")
    return None


def _misspelt_heads(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the misspelt keys of ``apiVersion`` and ``kind``, each with its right spelling."""
    missing = {name.lower(): name for name in _HEADS if name not in value}
    found = []
    for key in islice(value, 100):
        folded = key.lower().translate(_NO_JOINTS)[:100]
        if key not in _HEADS and (close := get_close_matches(folded, missing, n=1, cutoff=0.75)):
            found.append((key, missing[close[0]]))
    return found


def _is_ours(kind: object) -> bool:
    return isinstance(kind, str) and kind.lower() in {known.lower() for known in KINDS}


def _is_no_other(version: object) -> bool:
    """True if an apiVersion is of no other product: it has no group, one of Kubernetes, or nearly ours."""
    group, slash, _ = str(version).partition("/")
    foreign = slash and "." in group and not group.endswith(".k8s.io")
    return not foreign or "did you mean" in suggestion(group, [_GROUP])


def check_schema(document: Document, kind: str) -> list[Path]:
    """Add a finding for each value that does not fit the schema of ``kind``. Return their paths."""
    broken: list[Path] = []
    for error in validator(kind).iter_errors(document.root.value):
        if document.full:
            break
        path = tuple(error.absolute_path)
        broken.append(path)
        _MESSAGES.get(error.validator, _other)(document, path, error)
    return broken


def _check_document(document: Document, kind: str, sets: Sets) -> None:
    broken = check_schema(document, kind)
    if document.full:
        return
    if kind.endswith("TaskSet"):
        sound = _sound(broken)
        check_task_set(document, sound, sets)
        lint_task_set(document, sound)
    else:
        check_task_binding(document)
    check_labels(document)
    warn_of_leftovers(document)


def _sound(broken: Sequence[Path]) -> Callable[[Path], bool]:
    """Return a function that is true for a path without an error at or below it."""
    above = {path[:length] for path in broken for length in range(len(path) + 1)}
    return lambda path: path not in above


def _check_once(document: Document, kind: str, first: dict[tuple[str, str, str], Document]) -> None:
    metadata = document.root.value.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return
    there = first.setdefault((kind, str(metadata.get("namespace", "default")), metadata["name"]), document)
    if there is not document:
        line = there.span(("metadata", "name")).line
        message = f'a {kind} "{metadata["name"]}" is there already, on line {line}; rename one'
        document.say(document.span(("metadata", "name")), message, "duplicate-object")


def _without_echoes(findings: list[Finding]) -> list[Finding]:
    """Return the findings without those that follow from another one at the same place.

    An ambiguous scalar may have a wrong type only because of how it was read. If a key is unknown, it does not matter
    how it is written.
    """
    at: dict[tuple[int, int], set[str]] = {}
    for one in findings:
        at.setdefault((one.line, one.column), set()).add(one.rule)
    return [
        one
        for one in findings
        if not any(rule in _LOUDER.get(one.rule, _DOUBTS) for rule in at[one.line, one.column])
    ]


# One function for each keyword of JSON Schema: where to point, and what to say. ``error`` is a
# jsonschema ValidationError; its own message is never shown, for it may hold the whole instance.


def _additional_properties(document: Document, path: Path, error: Any) -> None:
    known = error.schema.get("properties", {})
    for key in error.instance:
        if key not in known and not document.full:
            if path == ("metadata",) and key == "namespace":
                message = f"a {document.root.value['kind']} is in no namespace; remove it"
                document.say(document.key((*path, key)), message, "unknown-field")
                continue
            name = _ELSEWHERE.get(key) or action_aliases().get(key)
            if name in known:
                message = f'unknown field "{key}"; here it is called "{name}"'
                document.say(document.key((*path, key)), message, "unknown-field")
                continue
            where = f" in {path[-1]}" if path and isinstance(path[-1], str) else ""
            message = (
                f"unknown field {shown(key)}{where if not _meant(key, known) else ''}{suggestion(key, known)}"
            )
            document.say(document.key((*path, key)), message, "unknown-field")


def _meant(key: str, known: Mapping[str, Any]) -> bool:
    return "did you mean" in suggestion(key, known)


def _required(document: Document, path: Path, error: Any) -> None:
    """Name each missing field once; jsonschema has an error of its own for each, all with the same list."""
    known = error.schema.get("properties", {})
    misspelt = " ".join(suggestion(key, known) for key in error.instance if key not in known)
    for name in error.validator_value:
        if name not in error.instance and f'did you mean "{name}"' not in misspelt:
            inside = f" in {path[-1]}" if path and isinstance(path[-1], str) else ""
            document.say(document.key(path), f'"{name}" is missing{inside}', "missing-field")


def _type(document: Document, path: Path, error: Any) -> None:
    if "x-pidone-value" in error.schema:
        _value(document, path, error)
        return
    wanted = error.validator_value
    names = [_TYPES[name] for name in ([wanted] if isinstance(wanted, str) else wanted) if name != "null"]
    expected = ", ".join(names)
    name = f'"{path[-1]}"' if path and isinstance(path[-1], str) else "this"
    if error.instance is None and isinstance(path[-1] if path else None, str):
        document.say(document.key(path), f"{name} has no value; expected {expected}", "type")
        return
    remedy = ""
    if wanted == "boolean" and error.instance in ("true", "false"):
        remedy = "; remove the quotation marks"
    elif "string" in wanted and not isinstance(error.instance, dict | list):
        remedy = "; quote it"
    elif wanted == "array" and isinstance(error.instance, str):
        remedy = _as_list(error.instance, error.schema)
    elif wanted == "array" and "name" in error.schema.get("items", {}).get("properties", {}):
        remedy = '; begin each item with "- name:"'
    key, span = document.key(path), document.span(path)
    # a block that is of another kind is wrong from the line of its key on
    span = key if isinstance(error.instance, dict | list) and key.line < span.line else span
    found = document.written(path) or shown(error.instance)
    document.say(span, f"expected {expected}, not {found}{remedy}", "type")


def _as_list(text: str, part: Mapping[str, Any]) -> str:
    """Return how a text that stands for a list is written as one; empty if that is not clear."""
    if len(text) > 100:
        return ""
    items = [
        item.strip("\"'") for item in _JOINTS.sub(" ", text.strip().strip("[](){}")).split() if item != "-"
    ]
    fits = validator("TaskSet").evolve(schema=part).is_valid(items)
    if not items or not fits or not all(map(_WORD.fullmatch, items)):
        return ""
    return f"; write [{', '.join(items)}]"


def _value(document: Document, path: Path, error: Any) -> None:
    """Write the message for a scalar that the schema names: a port, a duration, the name of a task."""
    value = error.schema["x-pidone-value"]
    if isinstance(error.instance, str) and "$(" in error.instance and value["type"] == "literal":
        _tainted(document, path)
    elif error.instance is None:
        message = f'"{path[-1]}" has no value; {value["write"]}'
        document.say(document.key(path), message, value["rule"])
    else:
        write = _written(error.instance, value["type"]) or value["write"]
        message = f"{shown(error.instance)} is not {value['what']}; {write}"
        document.say(document.span(path), message, value["rule"])


def _written(instance: Any, wanted: str) -> str:
    """Return how a value that is nearly right is written; empty for others."""
    if wanted == "string" and not isinstance(instance, str | dict | list):
        return "quote it"
    if wanted == "boolean" and instance in ("true", "false"):
        return "remove the quotation marks"
    if isinstance(instance, str) and instance.isdecimal():
        return f"write {instance} without quotation marks"
    if isinstance(instance, str) and ("${" in instance or "{{" in instance):
        return "a reference is written $(params.<name>)"
    return ""


def _tainted(document: Document, path: Path) -> None:
    name = next((step for step in reversed(path) if isinstance(step, str)), "it")
    message = f'"{name}" must be literal; a reference cannot stand here'
    document.say(document.span(path), message, "tainted")


def _enum(document: Document, path: Path, error: Any) -> None:
    if isinstance(error.instance, str) and "$(" in error.instance:
        _tainted(document, path)
        return
    options = [str(option) for option in error.validator_value]
    if not isinstance(error.instance, str):
        here = f'"{path[-1]}"' if path and isinstance(path[-1], str) else "this"
        what = (
            f"{here} has no value" if error.instance is None else f"{shown(error.instance)} is not known here"
        )
        where = document.key(path) if error.instance is None else document.span(path)
        document.say(where, f"{what}; expected one of {', '.join(options)}", "enum")
        return
    message = f"{shown(error.instance)} is not known here{suggestion(str(error.instance), options)}"
    document.say(document.span(path), message, "enum")


def _const(document: Document, path: Path, error: Any) -> None:
    message = f'unknown {path[-1]} {shown(error.instance)}; expected "{error.validator_value}"'
    document.say(document.span(path), message, "kind")


def _choice(document: Document, path: Path, error: Any) -> None:
    """``oneOf``: exactly one of these keys."""
    options = [branch["required"][0] for branch in error.validator_value if "required" in branch]
    found = [name for name in error.instance if name in options]
    what = error.schema["x-pidone-choice"]
    named = error.instance.get("name")
    task = f'{"task " if what == "action" else ""}"{named}"' if isinstance(named, str) else str(path[-1])
    if isinstance(path[-1], int) and not isinstance(named, str):
        task = f"this item of {path[-2]}"
    if found:
        once = "; a task does one thing" if what == "action" else f"; it takes one {what}"
        number = "two" if len(found) == 2 else len(found)
        message = f"{task} has {number} {_plural(what)}, {' and '.join(found)}{once}"
        document.say(document.key((*path, found[1])), message, f"two-{_plural(what)}")
    elif not any(
        _meant(key, dict.fromkeys(options)) for key in error.instance if key not in error.schema["properties"]
    ):
        nothing = "does nothing" if what == "action" else f"has no {what}"
        where = document.key(path) if what != "action" else document.span(path)
        document.say(where, f"{task} {nothing}; add one of {', '.join(options)}", f"no-{what}")


def _plural(what: str) -> str:
    return what.removesuffix("y") + "ies" if what.endswith("y") else what + "s"


def _range(document: Document, path: Path, error: Any) -> None:
    if "x-pidone-value" in error.schema:
        _value(document, path, error)
        return
    least, most = error.schema.get("minimum"), error.schema.get("maximum")
    expected = (
        f"{least} to {most}"
        if None not in {least, most}
        else f"at least {least}"
        if most is None
        else f"at most {most}"
    )
    document.say(document.span(path), f"expected {expected}, not {error.instance}", "range")


def _length(document: Document, path: Path, error: Any) -> None:
    if "x-pidone-value" in error.schema:
        _value(document, path, error)
        return
    limit, what = error.validator_value, {"s": "items", "h": "characters"}[error.validator[-1]]
    if error.validator.endswith("Properties"):
        what = "fields"
    name = f'"{path[-1]}"' if path and isinstance(path[-1], str) else "this"
    if not error.instance:
        document.say(document.key(path), f"{name} is empty; give at least {_counted(limit, what)}", "length")
        return
    some = "at least" if error.validator.startswith("min") else "at most"
    message = f"expected {some} {_counted(limit, what)}, not {len(error.instance)}"
    document.say(
        document.key(path) if isinstance(error.instance, list) else document.span(path), message, "length"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what if number != 1 else what.removesuffix('s')}"


def _unique(document: Document, path: Path, error: Any) -> None:
    seen: list[Any] = []
    for index, item in enumerate(error.instance):
        if item in seen:
            document.say(
                document.span((*path, index)), f"{shown(item)} is there twice; remove one", "duplicate-item"
            )
        seen.append(item)


def _other(document: Document, path: Path, error: Any) -> None:
    if "x-pidone-value" in error.schema:
        _value(document, path, error)
    else:
        document.say(document.span(path), f"does not fit the schema ({error.validator})", "schema")


_MESSAGES: Mapping[str, Callable[[Document, Path, Any], None]] = {
    "additionalProperties": _additional_properties,
    "required": _required,
    "type": _type,
    "enum": _enum,
    "const": _const,
    "oneOf": _choice,
    "anyOf": _value,
    "minimum": _range,
    "maximum": _range,
    "minItems": _length,
    "maxItems": _length,
    "minLength": _length,
    "maxLength": _length,
    "maxProperties": _length,
    "uniqueItems": _unique,
}
