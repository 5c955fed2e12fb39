"""Encodes and decodes bundles in the wire format, version 1.

    {"format": 1, "digest": "sha256-...", "phase": "Running",
     "pod": {"name", "namespace", "uid", "ip", "nodeName", "restartPolicy"},
     "containers": {"app": {"id": "containerd://...", "started": true}}, "maintenance": true,
     "tasks": [{"name": "ready", "needs": ["other.state"], "while": ["other.state"],
                "runOn": ["other.state", "pod.terminating"], "every": 10, "timeout": 5, "stopTimeout": 2,
                "restartPolicy": "Always", "backoff": {"initial": 1, "max": 300, "factor": 2, "jitter": 1},
                "backoffLimit": 3, "secrets": {"salt": "...", "values": ["..."], "files": {MARK: PATH}},
                "<action>": {...}}, ...]}

``digest`` is that of ``tasks``. A task has exactly one key that names an action, and the action's module decodes its
value. ``secrets`` are values that the pod must not tell (``pidone.plan.mask``), and files from which it reads such
values itself (``pidone.pod.secret_files``). ``containers`` are all containers of the pod's spec. Without
``restartPolicy`` or ``containers`` these facts are unknown. ``maintenance`` is left out if it is false. It is not a
part of the plan, so it is no change of the digest.

Pods may be months older than the controller. A pod refuses fields of its tasks that it does not know, by name. It
ignores unknown fields of the envelope.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pidone.errors import Refused
from pidone.pacing import Backoff
from pidone.plan.digest import digest, is_digest
from pidone.plan.fields import Fields, kind
from pidone.plan.model import EVENTS, SECRETS, TASK_BACKOFF, Bundle, Container, Edge, Phase, Plan, Pod, Task
from pidone.plan.strict_json import check_names, loads

FORMAT = 1
MEDIA_TYPE = "application/vnd.pidone.bundle.v1+json"
MAX_TASKS = 1000

Fill = Callable[[list[Any]], list[Any]]
MAX_NAME_WIDTH = 253  # characters of a task's name; the language allows 63

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
    SECRETS,
}


def encode_bundle(
    tasks: list[dict[str, Any]],
    *,
    phase: Phase,
    pod: Pod,
    containers: Mapping[str, Container] = MappingProxyType({}),
    maintenance: bool = False,
) -> dict[str, Any]:
    """Return the bundle with these rendered tasks, for ``decode_bundle``. Unknown facts are left out."""
    facts = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "ip": pod.ip, "nodeName": pod.node}
    if pod.restart_policy:
        facts["restartPolicy"] = pod.restart_policy
    envelope = {"format": FORMAT, "digest": digest(tasks), "phase": phase.value, "pod": facts, "tasks": tasks}
    if containers:
        envelope["containers"] = {
            name: {"id": container.id, "started": container.started} for name, container in containers.items()
        }
    if maintenance:
        envelope["maintenance"] = True
    return envelope


def as_they_are(tasks: list[Any]) -> list[Any]:
    """Return the tasks of a plan that names no files with values."""
    return tasks


def decode_bundle(data: bytes, actions: Iterable[str], fill: Fill = as_they_are) -> Bundle:
    """Decode the body of a bundle. Raises ``Refused`` with the place, the value and what was expected.

    ``fill`` returns the tasks with the values of files. The digest of the plan is that of the tasks without them.
    """
    try:
        check_names(data)
        value = loads(data)
    except ValueError as error:
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
    claimed_digest = envelope.text("digest")
    if phase == Phase.TERMINATING:
        # The end needs no plan, and a pod that cannot decode this one must end too. The digest is not compared, so its
        # form is: it goes back to the repo with each report.
        return Bundle(Phase.TERMINATING, pod, Plan(claimed_digest if is_digest(claimed_digest) else "", ()))

    try:
        plan = decode_plan(value.get("tasks"), actions, fill)
    except RecursionError as error:
        raise Refused("bundle.tasks: nested too deeply") from error
    if claimed_digest != plan.digest:
        raise Refused(
            f"bundle.digest: the tasks have {plan.digest}, not {claimed_digest}: the bundle was damaged"
        )
    # no ``envelope.done()``: a newer controller may add facts to the envelope
    containers = {
        name: Container(id=container.text("id", ""), started=container.flag("started"))
        for name, container in envelope.members("containers").items()
    }
    maintenance = "maintenance" in envelope and envelope.flag("maintenance")
    return Bundle(Phase.RUNNING, pod, plan, containers, maintenance)


def decode_plan(tasks: object, actions: Iterable[str], fill: Fill = as_they_are) -> Plan:
    """Decode rendered tasks; ``actions`` are the names of the actions of this program. Raises ``Refused``."""
    if not isinstance(tasks, list):
        raise Refused(f"tasks: expected a list, not {kind(tasks)}")
    if len(tasks) > MAX_TASKS:
        raise Refused(f"tasks: at most {MAX_TASKS}, not {len(tasks)}")
    names = frozenset(actions)
    decoded = tuple(_task(item, f"tasks[{index}]", names) for index, item in enumerate(fill(tasks)))
    _check_graph(decoded)
    return Plan(digest(tasks), decoded)


def _task(value: object, path: str, actions: frozenset[str]) -> Task:
    fields = Fields(value, path)
    assert isinstance(value, dict)
    name = fields.text("name")
    if len(name) > MAX_NAME_WIDTH:
        raise Refused(f"{path}.name: a name has at most {MAX_NAME_WIDTH} characters, not {len(name)}")
    path = fields.path = f'task "{name}"'
    keys = [key for key in value if key not in _COMMON and not key.startswith("x-")]
    if len(keys) != 1 or keys[0] not in actions:
        quoted = ", ".join(f'"{key}"' for key in keys) or "none"
        raise Refused(f"{path}: expected one of {', '.join(sorted(actions))}, not {quoted}")
    action = keys[0]
    fields.object(action)  # its fields are decoded by the action's module

    backoff = TASK_BACKOFF
    if "backoff" in fields:
        given = fields.object("backoff")
        backoff = Backoff(
            initial=given.seconds("initial", backoff.initial, least=0.1),
            maximum=given.seconds("max", backoff.maximum, least=1),
            factor=given.seconds("factor", backoff.factor, least=1, most=10),
            jitter=given.seconds("jitter", backoff.jitter, most=1),
        )
        given.done()

    if SECRETS in fields:
        secrets = fields.object(SECRETS)
        secrets.texts("values")
        secrets.text("salt")
        secrets.done()

    restart = fields.text("restartPolicy", "Always")
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
        confidential=SECRETS in value,
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
    """Raise ``Refused`` unless names are unique, all edges lead to tasks, and ``needs`` and ``while`` have no cycle."""
    by_name: dict[str, Task] = {}
    for task in tasks:
        if by_name.setdefault(task.name, task) is not task:
            raise Refused(f'task "{task.name}" is there twice')
    for task in tasks:
        _check_edges(task, by_name)
    # ``runOn`` is left out: a task may run again on an event that its own run causes.
    cycle = find_cycle({task.name: [edge.task for edge in task.gates] for task in tasks})
    if cycle:
        raise Refused(f"these tasks wait for each other: {' -> '.join(cycle)}")


def _check_edges(task: Task, names: Collection[str]) -> None:
    for edge in task.needs:
        if edge.task not in names:
            raise Refused(f'task "{task.name}" needs "{edge.task}", which is not in the plan')
    for edge in task.while_:
        if edge.task not in names:
            raise Refused(f'task "{task.name}" runs while "{edge}", and "{edge.task}" is not in the plan')
    for edge in task.run_on:
        if edge.task not in names and str(edge) not in EVENTS:
            raise Refused(
                f'task "{task.name}" runs on "{edge}", and "{edge.task}" is not in the plan; '
                f"events of the pod are {', '.join(sorted(EVENTS))}"
            )


def find_cycle(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one cycle, with its first name again at the end, or []. Names that are not in ``needs`` are ignored."""
    finished: set[str] = set()
    for start in needs:
        if start in finished:
            continue
        trail = {
            start: iter(needs[start])
        }  # a stack of its own, because a plan may be deeper than Python's stack
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
