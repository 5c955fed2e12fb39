"""The wire format of a bundle, version 1: media type, decoding, encoding.

    {"format": 1, "digest": "sha256-...", "phase": "Running",
     "pod": {"name", "namespace", "uid", "ip", "nodeName", "restartPolicy"},
     "containers": {"app": {"id": "containerd://...", "started": true}},
     "tasks": [{"name": "ready", "needs": ["other.state"], "while": ["other.state"],
                "runOn": ["other.state", "pod.terminating"], "every": 10, "timeout": 5, "stopTimeout": 2,
                "restartPolicy": "Always", "backoff": {"initial": 1, "max": 300, "factor": 2, "jitter": 1},
                "backoffLimit": 3, "<action>": {...}}, ...]}

``digest`` is over ``tasks``. A task has exactly one key that names an action; its value belongs to that
action's module. Where ``restartPolicy`` or ``containers`` are missing nobody knows them; ``containers`` are all
of the pod's spec, each with whether it has ever run. Pods are older than controllers by months: what a pod does
not know of its tasks it refuses, by name.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pidone.errors import Refused
from pidone.pacing import Backoff
from pidone.plan.digest import digest
from pidone.plan.fields import Fields, kind
from pidone.plan.model import EVENTS, Bundle, Container, Edge, Phase, Plan, Pod, Task

FORMAT = 1
MEDIA_TYPE = "application/vnd.pidone.bundle.v1+json"
MAX_TASKS = 1000

_COMMON = {
    "name",
    "needs",
    "while",
    "runOn",
    "every",
    "timeout",
    "stopTimeout",
    "restartPolicy",
    "backoff",
    "backoffLimit",
}


def encode_bundle(
    tasks: list[dict[str, Any]],
    *,
    phase: Phase,
    pod: Pod,
    containers: Mapping[str, Container] = MappingProxyType({}),
) -> dict[str, Any]:
    """The envelope around rendered tasks; what ``decode_bundle`` reads. What is not known is left out."""
    facts = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "ip": pod.ip, "nodeName": pod.node}
    if pod.restart_policy:
        facts["restartPolicy"] = pod.restart_policy
    envelope = {"format": FORMAT, "digest": digest(tasks), "phase": phase.value, "pod": facts, "tasks": tasks}
    if containers:
        envelope["containers"] = {
            name: {"id": container.id, "started": container.started} for name, container in containers.items()
        }
    return envelope


def decode_bundle(data: bytes, actions: Iterable[str]) -> Bundle:
    """Read a bundle as the repo sent it. Raises ``Refused`` with the place and what was expected there."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the bundle is not JSON: {error}") from error
    envelope = Fields(value, "bundle")
    version = envelope.integer("format", least=1, most=1 << 30)
    if version != FORMAT:
        raise Refused(f"bundle.format: this pidone reads format {FORMAT}, not {version}")
    phase = envelope.text("phase")
    facts = envelope.object("pod")
    pod = Pod(
        name=facts.text("name"),
        namespace=facts.text("namespace"),
        uid=facts.text("uid"),
        ip=facts.text("ip"),
        node=facts.text("nodeName", ""),
        restart_policy=facts.text("restartPolicy", ""),
    )
    said = envelope.text("digest")
    if phase == Phase.TERMINATING:
        # The end starts nothing, so it needs no plan, and a pod that cannot read this one must end all the same.
        return Bundle(Phase.TERMINATING, pod, Plan(said, ()))
    plan = decode_plan(value.get("tasks"), actions)
    if said != plan.digest:
        raise Refused(f"bundle.digest: the tasks have {plan.digest}, not {said}: damaged on the way")
    # A newer controller may put more facts around the tasks; only what is to be done must be understood whole.
    containers = {
        name: Container(id=container.text("id", ""), started=container.flag("started"))
        for name, container in envelope.members("containers").items()
    }
    return Bundle(Phase.RUNNING, pod, plan, containers)


def decode_plan(tasks: object, actions: Iterable[str]) -> Plan:
    """Read rendered tasks; ``actions`` are the names of the actions this program has."""
    if not isinstance(tasks, list):
        raise Refused(f"tasks: expected a list, not {kind(tasks)}")
    if len(tasks) > MAX_TASKS:
        raise Refused(f"tasks: at most {MAX_TASKS}, not {len(tasks)}")
    known = frozenset(actions)
    decoded = tuple(_task(item, f"tasks[{index}]", known) for index, item in enumerate(tasks))
    _check_graph(decoded)
    return Plan(digest(tasks), decoded)


def _task(value: object, path: str, actions: frozenset[str]) -> Task:
    fields = Fields(value, path)
    assert isinstance(value, dict)
    name = fields.text("name")
    path = fields.path = f'task "{name}"'
    found = [key for key in value if key not in _COMMON and not key.startswith("x-")]
    if len(found) != 1 or found[0] not in actions:
        shown = ", ".join(f'"{key}"' for key in found) or "none"
        raise Refused(f"{path}: expected one of {', '.join(sorted(actions))}, not {shown}")
    action = found[0]
    fields.object(action)  # an object, whose inside belongs to the action
    backoff = Backoff()
    if "backoff" in fields:
        given = fields.object("backoff")
        backoff = Backoff(
            initial=given.seconds("initial", backoff.initial, least=0.1),
            maximum=given.seconds("max", backoff.maximum, least=1),
            factor=given.seconds("factor", backoff.factor, least=1, most=10),
            jitter=given.seconds("jitter", backoff.jitter, most=1),
        )
        given.done()
    restart = fields.text("restartPolicy", "OnFailure" if action == "exec" else "Always")
    if restart not in {"Always", "OnFailure", "Never"}:
        raise Refused(f'{path}.restartPolicy: expected Always, OnFailure or Never, not "{restart}"')
    task = Task(
        name=name,
        action=action,
        config=value[action],
        digest=digest(value),
        needs=_edges(fields, "needs"),
        while_=_edges(fields, "while"),
        run_on=_edges(fields, "runOn"),
        every=fields.seconds("every", None, least=0.1),
        timeout=fields.seconds("timeout", None, least=0.1),
        stop_timeout=fields.seconds("stopTimeout", 2.0, most=3600),
        restart=restart,
        backoff=backoff,
        backoff_limit=fields.integer("backoffLimit", None, least=0, most=1_000_000),
    )
    fields.done()
    return task


def _edges(fields: Fields, name: str) -> tuple[Edge, ...]:
    edges = []
    for text in fields.texts(name):
        task, dot, state = text.partition(".")
        if not (task and dot and state):
            raise Refused(f'{fields.path}.{name}: expected "task.state", not "{text}"')
        edges.append(Edge(task, state))
    return tuple(edges)


def _check_graph(tasks: tuple[Task, ...]) -> None:
    """Names are unique, every edge leads to a task, and nothing waits for itself."""
    by_name: dict[str, Task] = {}
    for task in tasks:
        if by_name.setdefault(task.name, task) is not task:
            raise Refused(f'task "{task.name}" is there twice')
    for task in tasks:
        _check_edges(task, by_name)
    # A while that waits for its own task is as closed a door as such a need. An event that a task causes by
    # its own run is not: it runs again, and again.
    cycle = find_cycle({task.name: [edge.task for edge in task.gates] for task in tasks})
    if cycle:
        raise Refused(f"these tasks wait for each other: {' -> '.join(cycle)}")


def _check_edges(task: Task, known: Collection[str]) -> None:
    for edge in task.needs:
        if edge.task not in known:
            raise Refused(f'task "{task.name}" needs "{edge.task}", which is not in the plan')
    for edge in task.while_:
        if edge.task not in known:
            raise Refused(f'task "{task.name}" runs while "{edge}", and "{edge.task}" is not in the plan')
    for edge in task.run_on:
        if edge.task not in known and str(edge) not in EVENTS:
            raise Refused(
                f'task "{task.name}" runs on "{edge}", and "{edge.task}" is not in the plan; '
                f"events of the pod are {', '.join(sorted(EVENTS))}"
            )


def find_cycle(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """One cycle, its first name repeated at the end, or nothing. Names not in ``needs`` are passed over."""
    finished: set[str] = set()
    for start in needs:
        if start in finished:
            continue
        trail = {start: iter(needs[start])}  # a stack of ours: a plan may be deeper than Python's
        while trail:
            name = next(reversed(trail))
            following = next(trail[name], None)
            if following is None:
                finished.add(name)
                del trail[name]
            elif following in trail:
                names = list(trail)
                return [*names[names.index(following) :], following]
            elif following in needs and following not in finished:
                trail[following] = iter(needs[following])
    return []
