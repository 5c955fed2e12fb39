"""Renders TaskSets for a pod to the tasks of its plan: references replaced, durations in seconds, with defaults."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pidone.errors import LanguageError
from pidone.language import duration
from pidone.language.containers import container_at, own_ports, port_number, probe_of, without_zeros
from pidone.language.findings import shown, suggestion
from pidone.language.idling import with_pod
from pidone.language.model import TaskSet
from pidone.language.params import value_of
from pidone.language.pods import place, pod_facts, pod_field, shown_pod
from pidone.language.pruning import pruned
from pidone.language.schemas import MISSING, Action, Shape, action_of, task_shape
from pidone.language.secrets import NO_SECRETS, FileReference, SecretError, Secrets, Unknown
from pidone.language.substitution import POD, references, substitute, written
from pidone.plan.mask import Mask, values_of
from pidone.plan.model import SECRETS, VALUE_FILES

MAX_CHARACTERS = 1 << 20  # of all texts of one pod's plan, four times what a bundle may have


def render(
    task_sets: Sequence[TaskSet],
    arguments: Mapping[str, object],
    pod: Mapping[str, Any],
    secrets: Secrets = NO_SECRETS,
) -> list[dict[str, Any]]:
    """Return the ``tasks`` of the plan, in the order of the sets and of their files.

    ``arguments`` are the params of the binding; ``pod`` is a core/v1 Pod object. The sets are flattened, and a task
    that two of them inherit is rendered once. Raises ``LanguageError`` if a param has no fitting value, an argument
    belongs to no param, or two sets have different tasks of one name; ``SecretError`` if a Secret is missing.
    """
    _check_arguments(task_sets, arguments)
    room = _Room()
    tasks: dict[str, dict[str, Any]] = {}
    origin: dict[str, tuple[TaskSet, Mapping[str, Any]]] = {}
    for task_set in task_sets:
        for task in task_set.tasks:
            first, first_task = origin.setdefault(task["name"], (task_set, task))
            if first_task is not task:
                raise LanguageError(
                    f'{first.title} and {task_set.title} both have a task "{task["name"]}"; rename one'
                )
        try:
            rendered = _tasks(task_set, arguments, pod, room, secrets)
        except SecretError as error:
            raise SecretError(f"{task_set.title}: {error}", pending=error.pending) from error
        except LanguageError as error:
            raise LanguageError(f"{task_set.title}: {error}") from error
        for rendered_task in rendered:
            name = rendered_task["name"]
            if tasks.setdefault(name, rendered_task) != rendered_task:
                first, _ = origin[name]
                raise LanguageError(
                    f'{first.title} and {task_set.title} make different tasks of the "{name}" that both '
                    "extend; give the same defaults to its params"
                )
    return list(tasks.values())


def _check_arguments(task_sets: Sequence[TaskSet], arguments: Mapping[str, object]) -> None:
    declared = {param.name for task_set in task_sets for param in task_set.params}
    for name in arguments:
        if name not in declared:
            sets = ", ".join(f'"{task_set.name}"' for task_set in task_sets)
            meant = suggestion(name, sorted(declared))
            raise LanguageError(f'param "{name}" is declared in none of the TaskSets {sets}{meant}')


def _tasks(
    task_set: TaskSet,
    arguments: Mapping[str, object],
    pod: Mapping[str, Any],
    room: "_Room",
    secrets: Secrets,
) -> list[dict[str, Any]]:
    tasks = pruned(task_set.tasks, (pod.get("metadata") or {}).get("labels") or {})
    table = _facts(pod)
    wanted = {name for task in tasks for name in _referred(task)}
    for param in task_set.params:
        # A param that no task of this pod refers to needs no value; the binding's value for it is checked anyway.
        if f"params.{param.name}" in wanted or param.name in arguments:
            table[f"params.{param.name}"] = value_of(param, arguments, pod, secrets)
    confidential = {f"params.{param.name}" for param in task_set.params if param.confidential}
    actions = {task["name"]: action_of(task) for task in tasks}
    setting = _Setting(table, pod, room, frozenset(confidential & table.keys()), secrets)
    return [_task(task, actions, setting) for task in tasks]


def _task(
    task: Mapping[str, Any],
    actions: Mapping[str, Action | None],
    setting: "_Setting",
) -> dict[str, Any]:
    action = actions[task["name"]]
    if action is None:
        raise LanguageError(f'task "{task["name"]}" has not exactly one action')
    values = sorted(setting.secret_values(task))
    files = setting.files(task)
    try:
        given = {**action.defaults, **task}
        if action.name == "probe":
            given["probe"] = _whole_probe(task["probe"], setting.pod)
        rendered = _object(given, task_shape(), setting, "")
        if action.name == "probe":
            _number_ports(rendered["probe"], given["probe"].get("container", ""), setting.pod)
        if action.name == "idle":
            rendered["idle"] = with_pod(rendered["idle"], setting.pod)
        if action.listens:
            _check_port(
                rendered[action.name].get(action.listens), f"{action.name}.{action.listens}", setting.pod
            )
    except LanguageError as error:
        if values or files:
            hidden = values_of([{**task, SECRETS: {"values": [*values, *files]}}])
            raise SecretError(f'task "{task["name"]}": {Mask(hidden)(str(error))}') from None
        raise LanguageError(f'task "{task["name"]}": {error}') from error
    if values or files:
        salt = setting.secrets.salt(pod_facts(setting.pod).namespace, values) if values else ""
        rendered[SECRETS] = {"salt": salt, "values": values} | ({VALUE_FILES: files} if files else {})
    for name, shape in task_shape().properties.items():
        if shape.edges and name in rendered:
            rendered[name] = [_edge(edge, actions) for edge in rendered[name]]
    return rendered


def _edge(edge: str, actions: Mapping[str, Action | None]) -> str:
    name, dot, _ = edge.partition(".")
    action = actions.get(name)
    return edge if dot or action is None else f"{name}.{action.ready}"


def _facts(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``pod.*``, without those that the pod does not have yet: only references to them fail."""
    facts = {name: pod_field(path, pod) for name, path in POD.items()}
    facts["pod.ports"] = ",".join(map(str, own_ports(pod)))
    return {name: value for name, value in facts.items() if value}


def _referred(value: Any) -> Iterator[str]:
    """Yield the names of all references in a task."""
    if isinstance(value, str):
        yield from (reference.name for reference in references(value))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _referred(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _referred(inner)


def _whole_probe(probe: Mapping[str, Any], pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probe with a handler: with ``from`` that probe of the pod, overridden by the fields of the task."""
    if "from" not in probe:
        return without_zeros(probe)
    try:
        own, container = probe_of(pod, probe["from"], probe.get("container", ""))
    except LanguageError as error:
        raise LanguageError(f"probe.from: {error}") from error
    given = {name: value for name, value in without_zeros(probe).items() if name != "from"}
    return {**_as_pod_text(own), **given, "container": container}


class _PodText(str):
    """A text of the Pod object. It is valid as it is, and contains no references."""

    __slots__ = ()


def _as_pod_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_pod_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_pod_text(inner) for inner in value]
    return _PodText(value) if isinstance(value, str) else value


def _number_ports(probe: dict[str, Any], container: str, pod: Mapping[str, Any]) -> None:
    for handler in ("httpGet", "tcpSocket"):
        port = probe.get(handler, {}).get("port")
        if isinstance(port, str) and not isinstance(port, Unknown):
            try:
                probe[handler]["port"] = port_number(pod, port, container)
            except LanguageError as error:
                raise LanguageError(f"probe.{handler}.port: {error}") from error


def _check_port(port: Any, field: str, pod: Mapping[str, Any]) -> None:
    """Raise ``LanguageError`` if process 1 would take the port of a container."""
    container = container_at(pod, port)
    if container is not None:
        raise LanguageError(
            f'{field}: container "{container}" of {shown_pod(pod)} declares port {port}; give {field} another one'
        )


@dataclass(slots=True)
class _Room:
    """The characters that a plan has left for its texts: a param may occur ten thousand times in one text."""

    left: int = MAX_CHARACTERS

    def take(self, value: Any) -> None:
        self.left -= len(value) if isinstance(value, str) else 1
        if self.left < 0:
            raise LanguageError(
                f"the values make a plan of more than {MAX_CHARACTERS} characters; give shorter ones"
            )


@dataclass(frozen=True, slots=True)
class _Setting:
    """The inputs of rendering that are the same for all tasks of a set."""

    table: Mapping[str, Any]  # params.* and pod.*
    pod: Mapping[str, Any]
    room: _Room
    confidential: frozenset[str]  # names in the table
    secrets: Secrets

    def secret_values(self, task: Mapping[str, Any]) -> set[str]:
        """Return the values in a task that nobody may read."""
        return {written(value) for value in self._confidential(task) if not isinstance(value, FileReference)}

    def files(self, task: Mapping[str, Any]) -> dict[str, str]:
        """Return the files of a task that the pod reads, by the marks that stand for their contents."""
        marks = [value for value in self._confidential(task) if isinstance(value, FileReference)]
        return {str(mark): mark.path for mark in sorted(marks)}

    def _confidential(self, task: Mapping[str, Any]) -> list[Any]:
        names = self.confidential.intersection(_referred(task)) if self.confidential else ()
        return [self.table[name] for name in names]

    def is_unknown(self, text: str) -> bool:
        """True if a reference in the text has a value that is not known here."""
        return any(isinstance(self.table.get(one.name), Unknown) for one in references(text))


def _value(value: Any, shape: Shape, setting: _Setting, path: str) -> Any:
    """Return the value for the plan, by the shape of its position."""
    if shape.type == "object":
        return _object(value, shape, setting, path)
    if shape.type == "array" and shape.items is not None:
        return [_value(item, shape.items, setting, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, _PodText):
        return str(value)
    if shape.type == "literal":
        return value
    result = value
    if isinstance(value, str) and "$(" in value:
        try:
            result = substitute(value, setting.table, setting.room.left)
            if shape.type == "string":  # a string is needed here, also for a param of another type
                result = written(result)
        except LanguageError as error:
            raise LanguageError(f"{path}: {error}") from error
        if not shape.literal.is_valid(result) and not setting.is_unknown(value):
            wrong = f"is not {shape.what}; {shape.write}" if shape.what else "does not fit here"
            raise LanguageError(f"{path}: {shown(result)} {wrong}")
    setting.room.take(result)
    return _seconds(result, shape, path) if shape.type == "duration" else result


def _object(value: Mapping[str, Any], shape: Shape, setting: _Setting, path: str) -> dict[str, Any]:
    """Render an object, with its fields in the order of the schema, which is the same in every process."""
    rendered = {}
    for name, inner in shape.properties.items():
        given = value.get(name, inner.default)
        below = f"{path}.{name}" if path else name
        if given is MISSING or inner.unused:
            continue
        if name == "valueFrom":
            rendered["value"] = _from_field(given["fieldRef"]["fieldPath"], setting.pod, path)
        else:
            rendered[name] = _value(given, inner, setting, below)
    if shape.values is not None:
        for name, given in value.items():
            rendered[name] = _value(given, shape.values, setting, f"{path}.{name}")
    return rendered


def _from_field(field_path: str, pod: Mapping[str, Any], path: str) -> str:
    """Return a field of the pod as in a container's env: a missing label or annotation is empty."""
    value = pod_field(field_path, pod)
    if value is None and not field_path.endswith("']"):
        raise LanguageError(f"{path}: the pod has no {place(field_path)} yet")
    if value and "\0" in value:
        raise LanguageError(f"{path}: the pod's {place(field_path)} holds a zero byte")
    return value or ""


def _seconds(value: Any, shape: Shape, path: str) -> int | float:
    seconds = duration.seconds(value)
    if seconds is None:
        raise LanguageError(f"{path}: {shown(value)} is not a duration; write it like 10s, 5m or 1h30m")
    wrong = out_of_range(seconds, shape)
    if wrong:
        raise LanguageError(f"{path}: {shown(value)} {wrong}")
    return seconds


def out_of_range(seconds: float, shape: Shape) -> str:
    """Return why a duration does not fit its position; empty if it fits."""
    if shape.least is not None and seconds < shape.least:
        return f"is too short; the least is {duration.text(shape.least)}"
    if shape.most is not None and seconds > shape.most:
        return f"is too long; the most is {duration.text(shape.most)}"
    return ""
