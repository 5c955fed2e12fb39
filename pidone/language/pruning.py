"""The tasks of a set that a pod has: those whose ``podSelector`` selects it, without references to the others.

A task that is left out delays no other task, and takes tasks with it that cannot work without it:

- an edge in ``needs`` or ``while`` to it is dropped: there is nothing to wait for;
- an event of it in ``runOn`` is dropped, and a task that nothing else would ever start is left out itself;
- a field that names it is dropped where it may be missing (``follow``), and takes its own task with it where it
  may not (``heartbeat.of``); a list of tasks gets shorter; once empty it is dropped where a name could stand instead
  (``follow``), and takes its task with it elsewhere (``report.of``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pidone.language.schemas import Shape, task_shape
from pidone.language.selector import Selector, matches

Task = Mapping[str, Any]
_GONE = object()  # instead of a value that names a task that is gone
_WHOLE_TASK = object()  # instead of a value without which its task is not wanted


def pruned(tasks: Sequence[Task], labels: Mapping[str, str]) -> list[Task]:
    """Return the tasks of a pod with these labels. Tasks without changes are the same objects as before."""
    kept = [task for task in tasks if matches(Selector.of(task.get("podSelector", {})), labels)]
    gone = {task["name"] for task in tasks} - {task["name"] for task in kept}
    if not gone:
        return kept
    gone = _all_gone(kept, gone)
    left = (_without(task, task_shape(), gone) for task in kept if task["name"] not in gone)
    return [task for task in left if task is not _WHOLE_TASK]


def _all_gone(tasks: Sequence[Task], gone: set[str]) -> set[str]:
    """Return the names of all tasks that are removed with those of ``gone``. Each reference is read once."""
    groups = [(task["name"], group) for task in tasks for group in _groups(task, task_shape(), top=True)]
    users: dict[str, list[int]] = {}
    for number, (_, group) in enumerate(groups):
        for name in group:
            users.setdefault(name, []).append(number)
    left = [len(group) for _, group in groups]
    found, waiting = set(gone), list(gone)
    while waiting:
        for number in users.get(waiting.pop(), ()):
            left[number] -= 1
            name = groups[number][0]
            if not left[number] and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _groups(value: Any, shape: Shape, *, top: bool = False) -> Iterator[set[str]]:
    """Yield sets of names. A task is removed too if all names of one set are removed."""
    if isinstance(value, list) and shape.items is not None:
        # where a name may stand instead of the list, as in follow, an empty list is dropped
        if shape.items.task and value and not shape.task:
            yield {item for item in value if isinstance(item, str)}
        for item in value:
            yield from _groups(item, shape.items)
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        below = shape.properties.get(name)
        if below is None:
            continue
        if below.task and name in shape.required and isinstance(inner, str):
            yield {inner}
        elif top and name == "runOn" and inner and "every" not in value:
            yield {edge.partition(".")[0] for edge in inner}
        else:
            yield from _groups(inner, below)


def _without(value: Any, shape: Shape, gone: set[str]) -> Any:
    """Return ``value`` without references to tasks that are gone."""
    if isinstance(value, str) and shape.task:
        return _GONE if value in gone else value
    if isinstance(value, list) and shape.edges:
        return [edge for edge in value if edge.partition(".")[0] not in gone]
    if isinstance(value, list) and shape.items is not None:
        items = [_without(item, shape.items, gone) for item in value]
        there = [item for item in items if item is not _GONE]
        if items and not there:
            return _GONE if shape.task else _WHOLE_TASK
        return _same(value, there)
    if not isinstance(value, Mapping):
        return value
    rest: dict[str, Any] = {}
    for name, inner in value.items():
        below = shape.properties.get(name)
        left = inner if below is None else _without(inner, below, gone)
        if left is _WHOLE_TASK or (left is _GONE and name in shape.required):
            return _WHOLE_TASK
        if left is not _GONE:
            rest[name] = left
    if shape is task_shape() and value.get("runOn") and not rest["runOn"]:
        if "every" not in value:
            return _WHOLE_TASK  # without its events it would run once, at the start
        del rest["runOn"]
    return _same(value, rest)


def _same(before: Any, after: Any) -> Any:
    return before if before == after else after
