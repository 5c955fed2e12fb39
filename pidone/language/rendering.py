"""TaskSets and a pod to a plan's tasks: values resolved, durations in seconds, defaults filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

from pidone.errors import LanguageError
from pidone.language import duration
from pidone.language.findings import shown, suggestion
from pidone.language.model import TaskSet
from pidone.language.params import value_of
from pidone.language.schemas import MISSING, Action, Shape, action_of, task_shape
from pidone.language.substitution import POD, substitute, written


def render(
    task_sets: Sequence[TaskSet], arguments: Mapping[str, object], pod: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The plan's ``tasks``, in the order of the sets and of their files.

    ``arguments`` are the values the binding gives; ``pod`` is a core/v1 Pod object. Raises ``LanguageError``
    where a param has no fitting value, an argument belongs to no param, or two sets have a task of one name.
    """
    _check_arguments(task_sets, arguments)
    tasks: list[dict[str, Any]] = []
    origin: dict[str, str] = {}
    for task_set in task_sets:
        for task in task_set.tasks:
            there = origin.setdefault(task["name"], task_set.name)
            if there != task_set.name:
                raise LanguageError(
                    f'TaskSets "{there}" and "{task_set.name}" both have a task "{task["name"]}"; rename one'
                )
        try:
            tasks += _tasks(task_set, arguments, pod)
        except LanguageError as error:
            raise LanguageError(f'TaskSet "{task_set.name}": {error}') from error
    return tasks


def _check_arguments(task_sets: Sequence[TaskSet], arguments: Mapping[str, object]) -> None:
    declared = {param.name for task_set in task_sets for param in task_set.params}
    for name in arguments:
        if name not in declared:
            sets = ", ".join(f'"{task_set.name}"' for task_set in task_sets)
            meant = suggestion(name, sorted(declared))
            raise LanguageError(f'param "{name}" is declared in none of the TaskSets {sets}{meant}')


def _tasks(
    task_set: TaskSet, arguments: Mapping[str, object], pod: Mapping[str, Any]
) -> list[dict[str, Any]]:
    table = _pod_facts(pod)
    for param in task_set.params:
        table[f"params.{param.name}"] = value_of(param, arguments, pod)
    found = {task["name"]: action_of(task) for task in task_set.tasks}
    return [_task(task, found, table) for task in task_set.tasks]


def _task(
    task: Mapping[str, Any], actions: Mapping[str, Action | None], table: Mapping[str, Any]
) -> dict[str, Any]:
    action = actions[task["name"]]
    if action is None:
        raise LanguageError(f'task "{task["name"]}" has not exactly one action')
    try:
        rendered = _value({**action.defaults, **task}, task_shape(), table, "")
    except LanguageError as error:
        raise LanguageError(f'task "{task["name"]}": {error}') from error
    if "needs" in rendered:
        rendered["needs"] = [_edge(edge, actions) for edge in rendered["needs"]]
    plan: dict[str, Any] = rendered
    return plan


def _edge(edge: str, actions: Mapping[str, Action | None]) -> str:
    name, dot, _ = edge.partition(".")
    action = actions.get(name)
    return edge if dot or action is None else f"{name}.{action.ready}"


def _pod_facts(pod: Mapping[str, Any]) -> dict[str, Any]:
    """``pod.*``; a fact that the pod does not have yet is left out, and missed only where it is used."""
    facts = {name: (pod.get(part) or {}).get(key) for name, (part, key) in POD.items()}
    facts["pod.namespace"] = facts["pod.namespace"] or "default"  # as kubectl apply does with a manifest
    return {name: value for name, value in facts.items() if value}


def _value(value: Any, shape: Shape, table: Mapping[str, Any], path: str) -> Any:
    """``value`` as the plan has it; the shape says what stands at its position."""
    if shape.type == "object":
        return _object(value, shape, table, path)
    if shape.type == "array" and shape.items is not None:
        return [_value(item, shape.items, table, f"{path}[{index}]") for index, item in enumerate(value)]
    if shape.type == "literal":
        return value
    result = value
    if isinstance(value, str) and "$(" in value:
        try:
            result = substitute(value, table)
            if shape.type == "string":  # a string is asked for here, whatever the param's type
                result = written(result)
        except LanguageError as error:
            raise LanguageError(f"{path}: {error}") from error
        if not shape.literal.is_valid(result):
            wrong = f"is not {shape.what}; {shape.write}" if shape.what else "does not fit here"
            raise LanguageError(f"{path}: {shown(result)} {wrong}")
    return _seconds(result, shape, path) if shape.type == "duration" else result


def _object(value: Mapping[str, Any], shape: Shape, table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """In the schema's order, which is the same in every process."""
    rendered = {}
    for name, inner in shape.properties.items():
        given = value.get(name, inner.default)
        if given is not MISSING and not inner.unused:
            rendered[name] = _value(given, inner, table, f"{path}.{name}" if path else name)
    if shape.values is not None:
        for name, given in value.items():
            rendered[name] = _value(given, shape.values, table, f"{path}.{name}")
    return rendered


def _seconds(value: Any, shape: Shape, path: str) -> int | float:
    seconds = duration.seconds(value)
    if seconds is None:
        raise LanguageError(f"{path}: {shown(value)} is not a duration; write it like 10s, 5m or 1h30m")
    wrong = out_of_range(seconds, shape)
    if wrong:
        raise LanguageError(f"{path}: {shown(value)} {wrong}")
    return seconds


def out_of_range(seconds: float, shape: Shape) -> str:
    """Why a duration does not fit its position; empty where it fits."""
    if shape.least is not None and seconds < shape.least:
        return f"is too short; the least is {duration.text(shape.least)}"
    if shape.most is not None and seconds > shape.most:
        return f"is too long; the most is {duration.text(shape.most)}"
    return ""
