"""Checks what a schema cannot: edges, states, cycles, params, selectors, and where a reference must not stand.

Every function takes documents that may be wrong in other ways too: what is not of the expected form was found
by the schema already, and is passed over here, so that all mistakes of a file come in one run.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pidone.language import duration, literals
from pidone.language.extends import Flat, Sets, flat
from pidone.language.findings import Source, Span, shown, suggestion
from pidone.language.leftovers import is_unfinished
from pidone.language.model import Param, TaskSet
from pidone.language.params import mismatch
from pidone.language.reading import Document, Node
from pidone.language.rendering import out_of_range
from pidone.language.safe_patterns import wrong_pattern
from pidone.language.schemas import ANY_ACTION, MISSING, Action, Shape, action_of, task_shape
from pidone.language.substitution import POD, Reference, references
from pidone.plan.format import find_cycle
from pidone.plan.variables import objection

Path = tuple[str | int, ...]
_PARAMS: Path = ("spec", "params")
_TASKS: Path = ("spec", "tasks")
EVENTS = {
    "pod": ("terminating", "containersStarted"),
    "signal": ("SIGHUP",),
}  # what runOn takes beside states
_VERBS = {"needs": "needs", "while": "runs while", "runOn": "runs on"}
_MAX_CYCLES = 20  # of one set that are said: each costs a walk along all edges
_WAITING = ("needs", "while")  # what may not lead around in a circle
_SHELLS = {"ash", "bash", "busybox", "dash", "ksh", "sh", "zsh"}
_OPERATORS = {"&", "&&", "|", "||", ";", ">", ">>", "<", "<<", "2>", "2>&1", ">/dev/null", "2>/dev/null"}
_BACKTICKS = re.compile("`[^`]+`")
_CONSTRAINTS = {"pattern": "string", "maxLength": "string", "minimum": "integer", "maximum": "integer"}


def check_task_set(document: Document, sound: Callable[[Path], bool], sets: Sets) -> None:
    """``sound(path)`` says whether the schema found nothing at or below a path; ``sets`` are those there are."""
    spec = document.root.value.get("spec")
    if not isinstance(spec, dict):
        return
    before = len(document.findings)
    params, tasks = _named(spec, "params"), _named(spec, "tasks")
    types = _check_params(document, params, sound)
    heir = _heir(document.root.value, sound, sets)
    found = flat(heir, sets)
    if sound(()):
        _say_problems(document, found, sets)
    inherited = _Inherited(
        actions={task["name"]: action_of(task) for task in found.task_set.tasks},
        params={param.name: param.type for param in found.task_set.params},
        open_ended=bool(found.missing or found.problems),
    )
    _Tasks(document, tasks, types, sound, inherited).check()
    if heir.extends and not inherited.open_ended and len(document.findings) == before:
        bases = (sets.base(name, heir) for name in heir.extends)
        known = {one for base in bases if base is not None for one in _inherited_inconsistencies(base, sets)}
        for message, rule in inconsistencies(found.task_set):
            if (message, rule) not in known:
                disabled = (place for place, name in enumerate(heir.disable) if f'"{name}"' in message)
                place = next(disabled, None)
                span = document.key(("spec", "extends"))
                span = span if place is None else document.span(("spec", "disable", place))
                document.say(span, f"with all that is extended, {message}", rule)


def _heir(value: Mapping[str, Any], sound: Callable[[Path], bool], sets: Sets) -> TaskSet:
    """Return the set of a document. Of a document with errors only the fields for inheritance are read."""
    metadata = value.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if not sound(()):
        extends = value["spec"].get("extends")
        return TaskSet(
            name=str(metadata.get("name")),
            namespace=str(metadata.get("namespace", "")),
            extends=tuple(one for one in extends if isinstance(one, str))
            if isinstance(extends, list)
            else (),
            cluster=value.get("kind") == "ClusterTaskSet",
        )
    made = TaskSet.of(value)
    there = sets.by_key.get((made.cluster, made.namespace, made.name))
    return there if there == made else made


def _say_problems(document: Document, found: Flat, sets: Sets) -> None:
    for owner, index in found.missing:
        # What is extended may be elsewhere, as in the cluster; what is nearly a name of ours is a mistake.
        name = owner.extends[index]
        meant = suggestion(name, sets.names(owner))
        if owner.key == found.task_set.key and "did you mean" in meant:
            span = document.span(("spec", "extends", index))
            document.say(span, f'there is no set "{name}"{meant}', "unknown-set")
    for problem in found.problems:
        if problem.owner.key == found.task_set.key:
            document.say(document.span(("spec", *problem.path)), problem.message, problem.rule)


def _inherited_inconsistencies(base: TaskSet, sets: Sets) -> list[tuple[str, str]]:
    """``inconsistencies`` of a set with all that it extends; found once, however many sets extend it."""
    task_set, known = flat(base, sets).task_set, sets.memo.inconsistencies
    if id(task_set) not in known:
        known[id(task_set)] = inconsistencies(task_set)
    return known[id(task_set)]


def inconsistencies(task_set: TaskSet) -> list[tuple[str, str]]:
    """Return the findings about edges, names and references of a flattened set: messages with their rules."""
    document = Document(Node(Span(1, 1)), Source.of("", task_set.name))
    types = {param.name: param.type for param in task_set.params}
    tasks = dict(enumerate(map(dict, task_set.tasks)))
    _Tasks(document, tasks, types, lambda _: True, _Inherited()).check()
    return [(finding.message, finding.rule) for finding in document.findings]


def check_task_binding(document: Document) -> None:
    spec = document.root.value.get("spec")
    if not isinstance(spec, dict):
        return
    check_selector(document, spec.get("podSelector"), ("spec", "podSelector"))
    selector = spec.get("podSelector")
    if isinstance(selector, dict) and not any(selector.values()):
        message = (
            "an empty podSelector selects every pod, and the policy of an installation denies it; name labels, or "
            "write matchExpressions: [{key: pidone.dev/ignore, operator: DoesNotExist}]"
        )
        document.say(document.key(("spec", "podSelector")), message, "every-pod")
    given = spec.get("params")
    for name, value in given.items() if isinstance(given, dict) else ():
        if isinstance(value, str) and references(value):
            document.say(document.span(("spec", "params", name)), _NO_REFERENCE, "reference")


def check_labels(document: Document) -> None:
    """Check the keys of the labels and annotations of an object, and the values of its labels."""
    metadata = document.root.value.get("metadata")
    for part in ("labels", "annotations") if isinstance(metadata, dict) else ():
        values = metadata.get(part)
        for key, value in values.items() if isinstance(values, dict) else ():
            path = ("metadata", part, key)
            if wrong := literals.label_key(key):
                document.say(document.key(path), wrong, "label")
            elif part == "labels" and isinstance(value, str) and (wrong := literals.label_value(value)):
                document.say(document.span(path), wrong, "label")


def check_selector(document: Document, selector: object, path: Path) -> None:
    """Check the keys of a label selector, and whether any labels can fit all of it."""
    if not isinstance(selector, dict):
        return
    labels, expressions = selector.get("matchLabels"), selector.get("matchExpressions")
    labels = labels if isinstance(labels, dict) else {}
    for key in labels:
        if "$(" in key:
            continue  # said as a reference in a key
        if wrong := literals.label_key(key):
            document.say(document.key((*path, "matchLabels", key)), wrong, "label")
    wanted: dict[str, set[str] | None] = {
        key: {value} for key, value in labels.items() if isinstance(value, str)
    }  # the values that each label can have; None: it must be there, with any value
    banned: dict[str, set[str] | None] = {}  # None: the label must not be there
    for index, expression in enumerate(expressions if isinstance(expressions, list) else ()):
        here = (*path, "matchExpressions", index)
        if isinstance(expression, dict) and _check_expression(document, expression, here):
            _check_satisfiable(document, expression, here, wanted, banned)


def _check_expression(document: Document, expression: Mapping[str, Any], path: Path) -> bool:
    """True if an expression alone is valid."""
    key, operator, values = expression.get("key"), expression.get("operator"), expression.get("values")
    if operator in ("In", "NotIn") and not values:
        place = (
            document.key((*path, "values")) if "values" in expression else document.span((*path, "operator"))
        )
        document.say(place, f"{operator} needs values", "selector")
        return False
    if operator in ("Exists", "DoesNotExist") and values:
        message = f"{operator} takes no values; remove them"
        document.say(document.key((*path, "values")), message, "selector")
        return False
    if not isinstance(key, str) or not isinstance(values or [], list):
        return False
    span = document.span((*path, "key"))
    said = any((one.line, one.column) == (span.line, span.column) for one in document.findings)
    if not said and (wrong := literals.label_key(key)):
        document.say(span, wrong, "label")
        return False
    return not said and operator in ("In", "NotIn", "Exists", "DoesNotExist")


def _check_satisfiable(
    document: Document,
    expression: Mapping[str, Any],
    path: Path,
    wanted: dict[str, set[str] | None],
    banned: dict[str, set[str] | None],
) -> None:
    """Report an expression that contradicts those before it."""
    key, operator = expression["key"], expression["operator"]
    values = {value for value in expression.get("values") or () if isinstance(value, str)}
    if operator == "In":
        before = wanted.get(key)
        wanted[key] = values if before is None else values & before
    elif operator == "Exists":
        wanted.setdefault(key, None)
    elif operator == "NotIn":
        before = banned.get(key, set())
        banned[key] = None if before is None else before | values
    else:
        banned[key] = None
    if key not in wanted:
        return
    possible, forbidden = wanted[key], banned.get(key, set())
    if forbidden is None or (possible is not None and not possible - forbidden):
        message = f'no pod can have such a label "{key}": this contradicts what is selected before; keep one of the two'
        document.say(document.span(path), message, "selector")
        del wanted[key]


_NO_REFERENCE = "a param's value is taken as it stands; a reference has no meaning in it"


def _named(spec: Mapping[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Return the objects of a list that have a name, by their index."""
    items = spec.get(key)
    return {
        index: item
        for index, item in enumerate(items if isinstance(items, list) else ())
        if isinstance(item, dict) and isinstance(item.get("name"), str)
    }


def _check_unique(document: Document, what: str, around: Path, items: Mapping[int, dict[str, Any]]) -> None:
    first: dict[str, Span] = {}
    for index, item in items.items():
        span = document.span((*around, index, "name"))
        there = first.setdefault(item["name"], span)
        if there is not span:
            message = f'a {what} "{item["name"]}" is there already, on line {there.line}; rename one'
            document.say(span, message, f"duplicate-{what}")


def _check_params(
    document: Document, params: Mapping[int, dict[str, Any]], sound: Callable[[Path], bool]
) -> dict[str, str]:
    """Check the declared params, and return their types by name."""
    _check_unique(document, "param", _PARAMS, params)
    for index, value in params.items():
        if sound((*_PARAMS, index)):
            _check_param(document, (*_PARAMS, index), value)
    types = {value["name"]: value.get("type", "string") for value in params.values()}
    return {name: type_ if isinstance(type_, str) else "" for name, type_ in types.items()}


def _check_param(document: Document, path: Path, value: Mapping[str, Any]) -> None:
    param = Param.of(value)
    for name, of in _CONSTRAINTS.items():
        if name in value and param.type != of:
            if value.get("type") and not mismatch(Param(param.name, of), param.default):
                message = (
                    f'"{name}" and the default of "{param.name}" are those of type {of}; write type: {of}'
                )
                document.say(document.span((*path, "type")), message, "param-constraint")
                return
            message = f'"{name}" is for params of type {of}; "{param.name}" is of type {param.type}'
            document.say(document.key((*path, name)), message, "param-constraint")
            return
    if _check_source(document, path, param):
        return
    if param.minimum is not None and param.maximum is not None and param.minimum > param.maximum:
        document.say(document.span((*path, "minimum")), "minimum is greater than maximum", "param-constraint")
        return
    wrong = wrong_pattern(param.pattern)
    if wrong:
        document.say(document.span((*path, "pattern")), wrong, "pattern")
        return
    for index, allowed in enumerate(param.enum):
        wrong = mismatch(Param(param.name, param.type), allowed)
        if wrong:
            document.say(document.span((*path, "enum", index)), f"{shown(allowed)} {wrong}", "param-type")
            return
    if param.default is MISSING:
        return
    wrong = mismatch(param, param.default)
    if isinstance(param.default, str) and references(param.default):
        document.say(document.span((*path, "default")), _NO_REFERENCE, "reference")
    elif wrong:
        message = f'the default of "{param.name}", {shown(param.default)}, {wrong}'
        document.say(document.span((*path, "default")), message, "param-type")


def _check_source(document: Document, path: Path, param: Param) -> bool:
    """Check a param from a Secret or a file. True if there is a finding."""
    if param.confidential and param.type not in {"string", "integer"}:
        message = (
            f'a value of a Secret or a file is a string or an integer; "{param.name}" is of type {param.type}'
        )
        document.say(document.span((*path, "type")), message, "param-constraint")
        return True
    if param.optional and param.default is MISSING:
        message = (
            f'"{param.name}" has no value where its Secret is missing; give it a default, or remove optional'
        )
        place = (*path, "valueFrom", "secretKeyRef", "optional")
        document.say(document.span(place), message, "param-constraint")
        return True
    return False


@dataclass(frozen=True, slots=True)
class _Inherited:
    """The tasks and params that a set inherits."""

    actions: Mapping[str, Action | None] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)  # types
    open_ended: bool = False  # there may be more


class _Tasks:
    """The tasks of one set."""

    def __init__(
        self,
        document: Document,
        tasks: Mapping[int, dict[str, Any]],
        params: Mapping[str, str],
        sound: Callable[[Path], bool],
        inherited: _Inherited,
    ) -> None:
        self._sound = sound
        self._document = document
        self._tasks = tasks
        self._params = {**inherited.params, **params}
        self._open_ended = inherited.open_ended
        own = {
            task["name"]: action_of(task) or inherited.actions.get(task["name"]) for task in tasks.values()
        }
        self._actions: dict[str, Action | None] = {**inherited.actions, **own}

    def check(self) -> None:
        _check_unique(self._document, "task", _TASKS, self._tasks)
        for index, task in self._tasks.items():
            if task["name"] in EVENTS:
                message = f'no task can be called "{task["name"]}": it is where events such as '
                message += f"{task['name']}.{EVENTS[task['name']][0]} come from; rename it"
                self._say((*_TASKS, index, "name"), message, "reserved-name")
        for index, task in self._tasks.items():
            check_selector(self._document, task.get("podSelector"), (*_TASKS, index, "podSelector"))
            for path, value, shape in _positions(task, task_shape(), (*_TASKS, index)):
                if self._document.full:
                    return
                self._check_position(task["name"], path, value, shape)
        self._check_cycles()

    def _say(self, path: Path, message: str, rule: str) -> None:
        self._document.say(self._document.span(path), message, rule)

    def _check_position(self, task: str, path: Path, value: Any, shape: Shape) -> None:
        if shape.edges and isinstance(value, list):
            for index, edge in enumerate(value):
                if self._document.full:
                    return
                if isinstance(edge, str) and self._sound((*path, index)):
                    self._check_edge(task, (*path, index), edge)
        elif shape.program and isinstance(value, list) and value:
            self._check_program((*path, 0), value[0])
            self._check_arguments(path, value)
        elif shape.values is not None and isinstance(value, dict):
            self._check_keys(path, value, shape)
        elif isinstance(value, str):
            self._check_text(path, value, shape)
            self._check_literal(path, value, shape)

    def _check_keys(self, path: Path, value: Mapping[str, Any], shape: Shape) -> None:
        first: dict[str, str] = {}
        for key in value:
            span = self._document.key((*path, key))
            if "$(" in key:
                message = "a key must be literal; a reference can stand in the value"
                self._document.say(span, message, "tainted-key")
            elif shape.keys == "header":
                if wrong := literals.header_name(key):
                    self._document.say(span, wrong, "header")
                elif first.setdefault(key.lower(), key) != key:
                    message = f'the header "{first[key.lower()]}" is there already; remove one'
                    self._document.say(span, message, "repeated-name")
            elif wrong := literals.problem(shape.keys, key):
                self._document.say(span, wrong, "map-key")

    def _check_literal(self, path: Path, value: str, shape: Shape) -> None:
        """Check the literal parts of a text against the protocol."""
        if not self._sound(path) or is_unfinished(value):
            return
        if wrong := literals.problem(shape.holds, value):
            self._say(path, wrong, "header" if shape.holds == "header" else shape.rule)
        elif message := literals.excess(shape.without, value):
            self._say(path, message, "url-end")

    def _check_text(self, path: Path, value: str, shape: Shape) -> None:
        if shape.task and "$(" not in value:
            self._check_task_name(path, value, shape.task)
        elif shape.takes_references and "$(" in value:
            for reference in references(value):
                if self._document.full:
                    return
                self._check_reference(path, value, reference, shape)
        elif shape.environment:
            if wrong := objection(value):
                self._say(path, wrong, "variable")
        elif shape.type == "duration":
            seconds = duration.seconds(value)
            wrong = out_of_range(seconds, shape) if seconds is not None else ""
            if wrong:
                self._say(path, f"{shown(value)} {wrong}", "duration")

    def _check_edge(self, task: str, path: Path, edge: str) -> None:
        name, dot, state = edge.partition(".")
        key = str(path[-2])
        if name in EVENTS:
            self._check_event(key, path, edge)
            return
        if name not in self._actions:
            if self._open_ended:
                return
            meant = suggestion(name, (other for other in self._actions if other != task))
            message = f'task "{task}" {_VERBS[key]} "{name}", which is not in this TaskSet{meant}'
            self._say(path, message, "unknown-task")
            return
        action = self._actions[name]
        if dot and action is not None and state not in action.states:
            can = ", ".join(action.states)
            message = f'"{name}" is a {action.name} task and is never "{state}"; it can be {can}'
            self._say(path, message, "unknown-state")

    def _check_event(self, key: str, path: Path, edge: str) -> None:
        source, _, event = edge.partition(".")
        known = [f"{source}.{one}" for one in EVENTS[source]]
        if event not in EVENTS[source]:
            self._say(path, f'there is no event "{edge}"{suggestion(edge, known)}', "unknown-event")
        elif key != "runOn":
            self._say(path, f'"{edge}" happens and does not last; it can stand in runOn', "event")

    def _check_task_name(self, path: Path, name: str, action: str) -> None:
        """Check a field that names a task with a given action, such as ``follow`` and ``of``."""
        field = next(step for step in reversed(path) if isinstance(step, str))
        fitting = [other for other, is_a in self._actions.items() if is_a is not None and is_a.name == action]
        if name not in self._actions:
            if self._open_ended:
                return
            message = f'{field}: "{name}" is not in this TaskSet'
            self._say(path, message + suggestion(name, fitting or self._actions), "unknown-task")
            return
        is_a = self._actions[name]
        if is_a is not None and action not in {is_a.name, ANY_ACTION}:
            such = f", such as {', '.join(fitting)}" if fitting else ""
            message = f'"{name}" is a {is_a.name} task; {field} takes a {action} task{such}'
            self._say(path, message, "task-kind")

    def _check_program(self, path: Path, program: object) -> None:
        if isinstance(program, str) and "$(" in program:
            self._say(
                path, "command[0] must be a literal path; a pod must not choose what runs", "tainted-command"
            )
        elif isinstance(program, str) and not program.startswith("/"):
            message = f"{shown(program)} is not an absolute path; there is no PATH and no shell"
            self._say(path, message, "command")
        elif isinstance(program, str) and posixpath.normpath(program) != program:
            message = f"{shown(program)} is refused by every pod; write {posixpath.normpath(program)}"
            self._say(path, message, "command")
        elif isinstance(program, str) and any(character.isspace() for character in program):
            words = ", ".join(program.split())
            message = (
                f"{shown(program)} is one name, with a blank in it; there is no shell, so write [{words}]"
            )
            self._say(path, message, "shell")

    def _check_arguments(self, path: Path, command: Sequence[object]) -> None:
        """Warn of syntax that only a shell understands."""
        if posixpath.basename(str(command[0])) in _SHELLS:
            return
        for index, argument in enumerate(command[1:], start=1):
            if isinstance(argument, str) and (
                argument in _OPERATORS or argument.startswith("~/") or _BACKTICKS.search(argument)
            ):
                message = f"{shown(argument)} reaches the program as it is, for there is no shell; remove it"
                self._say((*path, index), message, "shell")

    def _check_reference(self, path: Path, value: str, reference: Reference, shape: Shape) -> None:
        if path[-2:] == ("command", 0):
            return  # said by _check_program
        span = self._reference_span(path, reference)
        kind, _, name = reference.name.partition(".")
        if not reference.name:
            message = 'a reference is written $(params.<name>); for the text "$(" itself write "$$("'
            self._document.say(span, message, "reference")
        elif kind == "params":
            if name in self._params:
                self._check_type(span, value, reference, shape, self._params[name])
            elif not self._open_ended:
                message = f"{reference.text} is not a declared param" + suggestion(name, self._params)
                self._document.say(span, message, "unknown-param")
        elif reference.name in POD:
            self._check_type(span, value, reference, shape, "string")
        else:
            known = suggestion(reference.name, [*POD, "params.<name>"])
            known += " For" if known.endswith("?") else "; for"
            message = f"{reference.text} is not known{known} the text itself write ${reference.text}"
            self._document.say(span, message, "unknown-reference")

    def _check_type(self, span: Span, value: str, reference: Reference, shape: Shape, given: str) -> None:
        """Check the type of a reference. A text takes every type; elsewhere the reference is the whole scalar."""
        fitting = {"port": {"integer", "string"}}.get(shape.type, {shape.type})
        if not given or given in fitting or shape.type == "string" or value != reference.text:
            return
        remedy = f"; give the param type: {shape.type}" if reference.name.startswith("params.") else ""
        message = f"{reference.text} is of type {given}, and {shape.what} stands here{remedy}"
        self._document.say(span, message, "param-type")

    def _reference_span(self, path: Path, reference: Reference) -> Span:
        """Return where the reference stands; the span of its scalar if that is not in one line as it is read."""
        span = self._document.span(path)
        line = self._document.source.lines[span.line - 1]
        at = line.find(reference.text, span.column - 1)
        return Span(span.line, at + 1, len(reference.text)) if at >= 0 else span

    def _check_cycles(self) -> None:
        """The first cycles, each once: the edge that closes one is taken out before the next is looked for."""
        needs: dict[str, list[str]] = {}
        where: dict[tuple[str, str], Path] = {}
        for index, task in self._tasks.items():
            targets = needs.setdefault(task["name"], [])
            for key in _WAITING:
                edges = task.get(key)
                for place, edge in enumerate(edges if isinstance(edges, list) else ()):
                    if isinstance(edge, str):
                        target = edge.partition(".")[0]
                        targets.append(target)
                        where.setdefault((task["name"], target), (*_TASKS, index, key, place))
        order = list(needs)
        for _ in range(_MAX_CYCLES):
            cycle = [] if self._document.full else find_cycle(needs)
            if not cycle:
                return
            first = min(range(len(cycle) - 1), key=lambda at: order.index(cycle[at]))
            turned = [*cycle[first:-1], *cycle[:first], cycle[first]]
            message = f"these tasks wait for each other: {' -> '.join(turned)}"
            self._say(where[turned[0], turned[1]], message, "cycle")
            needs[turned[-2]] = [target for target in needs[turned[-2]] if target != turned[-1]]


def _positions(value: Any, shape: Shape, path: Sequence[str | int]) -> Iterator[tuple[Path, Any, Shape]]:
    """Yield the path, the value and the shape of every part of a task that the schema knows."""
    path = tuple(path)
    yield path, value, shape
    if isinstance(value, dict):
        for key, inner in value.items():
            below = shape.properties.get(key, shape.values)
            if below is not None:
                yield from _positions(inner, below, (*path, key))
    elif isinstance(value, list) and shape.items is not None:
        for index, inner in enumerate(value):
            yield from _positions(inner, shape.items, (*path, index))
