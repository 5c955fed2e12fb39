"""Which tasks of a set a pod has at all: ``podSelector`` of each, and what becomes of those that refer to others.

A task that is left out takes with it what cannot be without it, and holds nothing up:

- an edge in ``needs`` or ``while`` to it is dropped: there is nothing to wait for;
- an event of it in ``runOn`` is dropped, and a task that nothing else would ever start is left out itself;
- a field that names it is dropped where it may be missing (``follow``), and takes its own task with it where it
  may not (``heartbeat.of``); a list of tasks gets shorter; once empty it is dropped where a name could stand instead
  (``follow``), and takes its task with it elsewhere (``report.of``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pidone.language.schemas import Shape, task_shape
from pidone.language.selector import Selector, matches

Task = Mapping[str, Any]
_GONE = object()  # instead of a value that names a task that is gone
_WHOLE_TASK = object()  # instead of a value without which its task is not wanted


def pruned(tasks: Sequence[Task], labels: Mapping[str, str]) -> list[Task]:
    """The tasks of a pod with these labels. Tasks that nothing was dropped from are the objects that were given."""
    kept = [task for task in tasks if matches(Selector.of(task.get("podSelector", {})), labels)]
    gone = {task["name"] for task in tasks} - {task["name"] for task in kept}
    while gone:
        left = [(task, _without(task, task_shape(), gone)) for task in kept]
        gone = {task["name"] for task, rest in left if rest is _WHOLE_TASK}
        kept = [rest for _, rest in left if rest is not _WHOLE_TASK]
    return kept


def _without(value: Any, shape: Shape, gone: set[str]) -> Any:
    """``value`` without what refers to tasks that are gone."""
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
