"""Finds faults in sets of well-formed tasks: clashes, leases that end too early, limits without effect.

Only tasks in which the schema found nothing are looked at. A reference to a param counts as the param's default
where it has one: what does not work by default is a mistake; of what is not known nothing is said.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pidone.actions import PROGRAMS
from pidone.http.urls import canonical
from pidone.language import duration, literals
from pidone.language.findings import Source, Span, shown
from pidone.language.model import TaskSet
from pidone.language.reading import Document, Node
from pidone.language.rule_texts import WARNINGS
from pidone.language.safe_patterns import wrong_pattern
from pidone.language.schemas import (
    MISSING,
    Action,
    Registry,
    Shape,
    action_of,
    registries,
    scalars,
    task_shape,
)
from pidone.language.substitution import references, written

Path = tuple[str | int, ...]
Said = Iterator[tuple[Span, str, str]]  # where, what, and the rule

_LINE = re.compile(r" on line [0-9]+")
_OWN_HOSTS = {"127.0.0.1", "::1", "localhost", "$(pod.ip)"}
TERMINATING = "pod.terminating"
END_SECONDS = 8  # ``pidone.pod.program.TEARDOWN_SECONDS``; a test holds them together
FAREWELL_SECONDS = 4  # half of ``pidone.pod.program.TEARDOWN_SECONDS``; a test holds them together
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
_BESIDE = {"completed": {"succeeded", "failed"}}  # states that hold at once; "started" does beside all


def lint_task_set(document: Document, sound: Callable[[Path], bool]) -> None:
    """``sound(path)`` says whether the schema found nothing at or below a path."""
    spec = document.root.value.get("spec")
    if isinstance(spec, dict):
        whole = _Set.of(document, spec, sound)
        errors = {(one.line, one.column) for one in document.findings if not one.is_warning}
        for rule in _RULES:
            for span, message, name in rule(whole):
                if document.full:
                    return
                if name not in WARNINGS or (span.line, span.column) not in errors:
                    document.say(span, message, name)


def clashes(task_set: TaskSet) -> list[tuple[int, str, str]]:
    """Return the clashes between tasks of a set that use the same port or the same instance.

    Each is the place of one of the two tasks in the set, the message and the rule.
    """
    spec = {
        "params": [{"name": param.name, "default": param.default} for param in task_set.params],
        "tasks": list(task_set.tasks),
    }
    places = [Node(Span(index + 1, 1)) for index in range(len(task_set.tasks))]
    tasks = Node(Span(1, 1), members={"tasks": Node(Span(1, 1), items=places)})
    document = Document(Node(Span(1, 1), members={"spec": tasks}), Source.of("", task_set.name))
    whole = _Set.of(document, spec, lambda _: True)
    found = [said for rule in (_ports, _instances) for said in rule(whole)]
    return [(span.line - 1, _LINE.sub("", message), rule) for span, message, rule in found]


def misfit(tasks: Iterable[Mapping[str, Any]], name: str, value: Any) -> str:
    """Return why a value of a param cannot stand where a task has nothing but the reference; empty if it can."""
    for task in tasks:
        for text, shape in scalars(task, task_shape()):
            if text != f"$(params.{name})" or shape.literal is None:
                continue
            given = written(value) if shape.type == "string" else value
            if not shape.literal.is_valid(given):
                what = f"{shape.what} as" if shape.what else "what"
                return f'is not {what} task "{task["name"]}" needs{" it" if shape.what else ""}; {shape.write}'.rstrip(
                    "; "
                )
            if isinstance(given, str) and (wrong := literals.problem(shape.holds, given)):
                return f'does not fit task "{task["name"]}": {wrong}'
    return ""


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    path: Path
    value: Mapping[str, Any]
    action: Action
    document: Document

    @property
    def line(self) -> int:
        return self.document.span((*self.path, "name")).line

    def has(self, *path: str | int) -> bool:
        return self._find(path) is not MISSING

    def get(self, *path: str | int) -> Any:
        """Return the value in the file, else the default; None if there is neither."""
        value = self._find(path)
        if value is MISSING:
            value = self.action.defaults.get(str(path[0]), MISSING) if len(path) == 1 else MISSING
        if value is MISSING:
            value = _default(task_shape(), path)
        return None if value is MISSING else value

    def span(self, *path: str | int) -> Span:
        """Return the position of the value in the file, else of the key of the action: a task is many lines."""
        return self.document.span((*self.path, *path)) if self.has(*path) else self.key(self.action.name)

    def key(self, *path: str | int) -> Span:
        return self.document.key((*self.path, *path))

    def edges(self, *keys: str) -> Iterator[tuple[str, Path, str]]:
        """The key, the place and the text of each edge."""
        for key in keys:
            for index, edge in enumerate(self.value.get(key, ())):
                yield key, (*self.path, key, index), edge

    def _find(self, path: Path) -> Any:
        value: Any = self.value
        for step in path:
            known = range(len(value)) if isinstance(value, list) else value
            if not isinstance(known, Mapping | range) or step not in known:
                return MISSING
            value = value[step]
        return value


def _default(shape: Shape, path: Path) -> Any:
    for step in path:
        below = shape.items if isinstance(step, int) else shape.properties.get(step)
        if below is None:
            return MISSING
        shape = below
    return shape.default


@dataclass(frozen=True, slots=True)
class _Set:
    document: Document
    spec: Mapping[str, Any]
    tasks: Mapping[str, _Task]
    params: Mapping[str, tuple[Path, Mapping[str, Any]]]

    @classmethod
    def of(cls, document: Document, spec: Mapping[str, Any], sound: Callable[[Path], bool]) -> "_Set":
        tasks: dict[str, _Task] = {}
        for path, task in _named(spec, "tasks", sound):
            action = action_of(task)
            if action is not None and task.get("override") != "merge":  # which is but a part of a task
                tasks.setdefault(task["name"], _Task(task["name"], path, task, action, document))
        params = {param["name"]: (path, param) for path, param in _named(spec, "params", sound)}
        return cls(document, spec, tasks, params)

    @property
    def extended(self) -> bool:
        """True if the set may have tasks that are not in this file."""
        return bool(self.spec.get("extends"))

    @property
    def right(self) -> bool:
        """True if the set has no errors. With errors no advice is given."""
        return not any(not one.is_warning for one in self.document.findings)

    def edges(self, task: _Task, *keys: str) -> Iterator[tuple[str, str, Span]]:
        """Return the task, the state and the position of each edge that lets ``task`` start (needs) and run (while)."""
        for _, path, edge in task.edges(*keys):
            name, _, state = edge.partition(".")
            if name in self.tasks:
                yield name, state or self.tasks[name].action.ready, self.document.span(path)

    def of_action(self, *names: str) -> Iterator[_Task]:
        return (task for task in self.tasks.values() if task.action.name in names)

    def settled(self, value: Any) -> Any:
        """Return ``value``, or for a reference the default of its param; None if only a pod has the value."""
        if not isinstance(value, str) or "$(" not in value:
            return value
        found = references(value)
        if len(found) != 1 or found[0].text != value or not found[0].name.startswith("params."):
            return None
        _, param = self.params.get(found[0].name.removeprefix("params."), ((), {}))
        default = param.get("default")
        return None if default is MISSING else default

    def known(self, value: Any) -> Any:
        """Return a key that is equal for two values that are equal in every pod, or by default."""
        settled = self.settled(value)
        return value if settled is None else settled

    def seconds(self, value: Any) -> float | None:
        return duration.seconds(self.settled(value))

    def shown(self, value: Any) -> str:
        """A value for a message: for a reference also what it is by default."""
        known = self.settled(value)
        return f"{value}" if known is None or known == value else f"{value} ({known} by default)"


def _named(
    spec: Mapping[str, Any], key: str, sound: Callable[[Path], bool]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The objects of a list in which the schema found nothing; all of them have a name."""
    items = spec.get(key)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        path: Path = ("spec", key, index)
        if isinstance(item, dict) and sound(path):
            yield path, item


# Each rule is a function of a set. What it says is the fact first and the remedy last.


def _ports(tasks: _Set) -> Said:
    listening = [task for task in tasks.tasks.values() if task.action.listens]
    asking = _probes_by_port(tasks)
    leading: dict[Any, list[tuple[_Registration, Any]]] = {}
    for registration in _registrations(tasks):
        given = registration.get(registration.registry.port)
        if given is not None:
            leading.setdefault(tasks.known(given), []).append((registration, given))
    first: dict[Any, list[_Task]] = {}
    for other in listening:
        port = other.get(other.action.name, other.action.listens)
        same = first.setdefault(tasks.known(port), [])
        clashing = next((one for one in same if _together(one, other)), None)
        same.append(other)
        if clashing is not None:
            message = (
                f'"{clashing.name}" on line {clashing.line} listens on port {tasks.shown(port)} already; '
                f'give "{other.name}" another one'
            )
            yield other.span(other.action.name, other.action.listens), message, "port-clash"
    for one in listening:
        port = one.get(one.action.name, one.action.listens)
        remedy = f'give "{one.name}" on line {one.line} another port'
        for probe, handler, asked in asking.get(tasks.known(port), ()):
            if _together(one, probe):
                message = (
                    f"port {tasks.shown(asked)} is where pidone itself serves {one.action.name}, "
                    f"so this would not ask the application; {remedy}"
                )
                yield probe.span("probe", handler, "port"), message, "port-clash"
        for registration, given in leading.get(tasks.known(port), ()):
            if _together(one, registration.task):
                message = (
                    f"port {tasks.shown(given)} is where pidone itself serves {one.action.name}, "
                    f"and callers are led there; {remedy}"
                )
                yield registration.span(registration.registry.port), message, "registered-metrics"


def _probes_by_port(tasks: _Set) -> dict[Any, list[tuple[_Task, str, Any]]]:
    """The probes of the pod itself, each with its handler and the port as it is written."""
    found: dict[Any, list[tuple[_Task, str, Any]]] = {}
    for probe in tasks.of_action("probe"):
        for handler in _HANDLERS:
            asked = probe.get("probe", handler, "port") if probe.has("probe", handler) else None
            if asked is not None and probe.get("probe", handler, "host") in {None, *_OWN_HOSTS}:
                found.setdefault(tasks.known(asked), []).append((probe, handler, asked))
    return found


def _together(one: _Task, other: _Task) -> bool:
    """True if two tasks are certainly in the same pods. Different selectors are not compared."""
    return bool(one.value.get("podSelector") == other.value.get("podSelector"))


@dataclass(frozen=True, slots=True)
class _Registration:
    """One target of a register task."""

    task: _Task
    registry: Registry
    path: Path  # of the registry's fields in the task

    def get(self, field: str) -> Any:
        """Return a field of the registry; None if the registry has no such field."""
        return self.task.get(*self.path, field) if field else None

    @property
    def address(self) -> Any:
        """The list of addresses, of the target or else of the task."""
        return self.task.get(*self.path[:-1], "address") or self.task.get("register", "address")

    def has(self, field: str) -> bool:
        return self.task.has(*self.path, field)

    def span(self, field: str) -> Span:
        return self.task.span(*self.path, field)


def _registrations(tasks: _Set) -> Iterator[_Registration]:
    """Yield each target of each register task."""
    for task in tasks.of_action("register"):
        several = task.get("register", "to") or ()
        for above in (("register",), *(("register", "to", number) for number in range(len(several)))):
            for registry in registries().values():
                path: Path = (*above, registry.name)
                if task.has(*path):
                    yield _Registration(task, registry, path)


def _forms(tasks: _Set) -> Said:
    """Fields of a registration that go with the value of another one, such as the layout of a key."""
    for registration in _registrations(tasks):
        task, registry, path = registration.task, registration.registry, registration.path
        for field, forms in registry.forms.items():
            value = registration.get(field)
            form = forms.get("" if value is None else str(value))
            if form is None:
                continue
            what = f"{registry.name} without {field}" if value is None else f"{field} {value}"
            for name in form.needs:
                if not registration.has(name):
                    yield task.key(*path), f'{what} needs "{name}"', "missing-field"
            others = {name for other in forms.values() for name in (*other.needs, *other.takes)}
            for name in sorted(others - {*form.needs, *form.takes}):
                if registration.has(name):
                    message = f'{what} has no "{name}"; remove it'
                    yield task.key(*path, name), message, "unknown-field"


def _leases(tasks: _Set) -> Said:
    beats: dict[str, list[_Task]] = {}
    for beat in tasks.of_action("heartbeat"):
        beats.setdefault(str(beat.get("heartbeat", "of")), []).append(beat)
    for registration in _registrations(tasks):
        lease = registration.get(registration.registry.lease)
        if lease is None:
            continue
        own = beats.get(registration.task.name, [])
        yield from _announced(tasks, registration, lease, renews_itself=not own)
        for beat in own:
            yield from _lease(tasks, registration.task, beat, lease)


def _announced(tasks: _Set, registration: _Registration, lease: Any, *, renews_itself: bool) -> Said:
    """The interval of renewals that is announced to the registry, if it has such a field.

    Without a heartbeat task it is also the interval at which the registration renews itself.
    """
    registry = registration.registry
    if not registry.renewal:
        return
    renewal = registration.get(registry.renewal)
    interval, length = tasks.seconds(renewal), tasks.seconds(lease)
    if interval is not None and length is not None and interval >= length:
        name = registry.lease if registration.has(registry.lease) else registry.renewal
        message = (
            f"{registry.lease} is {tasks.shown(lease)}, and {registry.renewal} is {tasks.shown(renewal)}: the lease "
            f"ends before it is renewed; give {registry.renewal} a third of {registry.lease}"
        )
        yield registration.span(name), message, "lease"
    elif interval is not None and length is not None and interval * 2 >= length and renews_itself:
        name = registry.renewal if registration.has(registry.renewal) else registry.lease
        message = (
            f"{registry.lease} is {tasks.shown(lease)}, and {registry.renewal} is {tasks.shown(renewal)}: one renewal "
            f"that fails takes the pod out; give {registry.renewal} a third of {registry.lease}"
        )
        yield registration.span(name), message, "short-lease"


def _lease(tasks: _Set, task: _Task, beat: _Task, lease: Any) -> Said:
    every = beat.get("every")
    period, length = tasks.seconds(every), tasks.seconds(lease)
    third = f", such as {duration.text(max(1, length // 3))}" if length is not None else ""
    comes = f"the heartbeat comes every {tasks.shown(every)}"
    if every == lease or (period is not None and length is not None and period >= length):
        message = (
            f'{comes}, and the lease of "{task.name}" ends after {tasks.shown(lease)}: '
            f"the registry drops the pod in between; give every a part of it{third}"
        )
        yield beat.span("every"), message, "lease"
    elif period is not None and length is not None and period * 2 >= length:
        message = (
            f'{comes}, and the lease of "{task.name}" ends after {tasks.shown(lease)}: '
            f"one that is lost takes the pod out; give every a third of it{third}"
        )
        yield beat.span("every"), message, "short-lease"


def _stopping(tasks: _Set) -> Said:
    for task in tasks.of_action("register"):
        if not task.has("stopTimeout"):
            message = (
                f'deregistering "{task.name}" may take {task.get("stopTimeout")} at the end of the pod, '
                "the default; write how long it may take, as in stopTimeout: 5s"
            )
            yield task.key("register"), message, "stop-timeout"
        elif tasks.seconds(task.get("stopTimeout")) == 0:
            message = (
                f'with 0s "{task.name}" is never deregistered, and the instance stays; give it some seconds'
            )
            yield task.span("stopTimeout"), message, "stop-timeout"


def _drains(tasks: _Set) -> Said:
    """The drain comes after the deregistration, and both share the time for undoing the task."""
    for task in tasks.of_action("register"):
        drain, limit = task.get("register", "drain"), task.get("stopTimeout")
        length, most = tasks.seconds(drain), tasks.seconds(limit)
        if length is None or not length:
            continue
        if length > END_SECONDS - 1:
            message = (
                f"the end of a pod takes {END_SECONDS:g}s at most, and a drain of {tasks.shown(drain)} would be cut; "
                f"give drain at most {END_SECONDS - 2:g}s"
            )
            yield task.span("register", "drain"), message, "drain"
        elif most is not None and most < length + 1:
            message = (
                f"the deregistration and a drain of {tasks.shown(drain)} share a stopTimeout of {tasks.shown(limit)}; "
                f"give stopTimeout at least {duration.text(min(length + 2, END_SECONDS))}"
            )
            yield task.span("register", "drain"), message, "drain"


def _leaving(tasks: _Set) -> Said:
    """Farewells have half of the remaining time at the end of a pod, and tasks are undone after them."""
    waiting = next((task.name for task in tasks.of_action("register")), "")
    then = f', and the deregistration of "{waiting}" waits for it' if waiting else ""
    for task in tasks.tasks.values():
        if list(task.value.get("runOn", ())) != [TERMINATING]:
            continue
        for key in ("timeout", "stopTimeout"):
            limit = tasks.seconds(task.get(key)) if task.has(key) else None
            if limit is not None and limit > FAREWELL_SECONDS:
                message = (
                    f"a task that runs on {TERMINATING} is cut after {FAREWELL_SECONDS:g}s{then}; "
                    f"give {key} at most {FAREWELL_SECONDS:g}s"
                )
                yield task.span(key), message, "farewell"
        for other in tasks.tasks.values():
            for key, path, edge in other.edges("needs", "while"):
                if edge.partition(".")[0] == task.name and TERMINATING not in other.value.get("runOn", ()):
                    never = "start" if key == "needs" else "run"
                    message = (
                        f'"{task.name}" runs only when the pod ends, so "{other.name}" would never {never}; '
                        f"remove it from {key}"
                    )
                    yield tasks.document.span(path), message, "contradiction"


def _reports(tasks: _Set) -> Said:
    for task in tasks.of_action("report"):
        if tasks.settled(task.get("report", "onChange")) is False and task.get("every") is None:
            message = (
                f'"{task.name}" reports neither changes nor periodically; add every, or set onChange: true'
            )
            yield task.span("report", "onChange"), message, "no-effect"


def _unused_fields(tasks: _Set) -> Said:
    for task in tasks.tasks.values():
        if task.has("backoffLimit") and task.get("restartPolicy") == "Never":
            message = "with restartPolicy: Never nothing is retried; remove backoffLimit"
            yield task.key("backoffLimit"), message, "no-effect"
        if task.has("probe", "container") and not task.has("probe", "from"):
            ports = [
                task.get("probe", handler, "port") for handler in _HANDLERS if task.has("probe", handler)
            ]
            if all(isinstance(port, int) for port in ports):
                message = "container tells whose probe or named port is meant, and this probe has neither; remove it"
                yield task.key("probe", "container"), message, "no-effect"


def _follows(tasks: _Set) -> Said:
    """A registration that is paused by ``while`` keeps its status in the registry."""
    for task in tasks.of_action("register"):
        probes = {
            edge.partition(".")[0]
            for _, _, edge in task.edges("while")
            if edge.partition(".")[0] in tasks.tasks
            and tasks.tasks[edge.partition(".")[0]].action.name == "probe"
        }
        follows = [task.get("register", "follow")]
        several = task.get("register", "to") or ()
        follows += [task.get("register", "to", number, "follow") for number in range(len(several))]
        followed = {
            name for given in follows for name in ([given] if isinstance(given, str) else given or ())
        }
        if missing := sorted(probes - followed):
            wanted = ", ".join(sorted(probes | followed))
            message = (
                f'while pauses "{task.name}" and its heartbeats, and the registry keeps the status UP until the lease '
                f"ends; to be DOWN while {' or '.join(missing)} is not healthy, write follow: [{wanted}]"
            )
            yield task.key("while"), message, "follow"


def _early_heartbeats(tasks: _Set) -> Said:
    registrations = {task.name for task in tasks.of_action("register")}
    for beat in tasks.of_action("heartbeat"):
        of = beat.get("heartbeat", "of")
        if of in registrations and of not in {name for name, _, _ in tasks.edges(beat, "needs", "while")}:
            message = f'"{beat.name}" fails until "{of}" has registered; add needs: [{of}]'
            yield beat.key("heartbeat"), message, "early-heartbeat"


def _instances(tasks: _Set) -> Said:
    """Two tasks that agree in all fields that identify an instance in their registry have the same instance.

    URLs agree if they have a server in common, in whatever spelling.
    """
    first: dict[str, list[tuple[_Registration, frozenset[str]]]] = {}
    for other in _registrations(tasks):
        values = [other.get(field) for field in other.registry.instance]
        places = frozenset(place for value in values for place in _places(value))
        # By default the address of some instances is a part of what identifies them.
        names = [other.address, *(value for value in values if not _places(value))]
        same = first.setdefault(f"{other.registry.name} {names}", [])
        one = next(
            (
                registration
                for registration, known in same
                if (known == places or known & places) and _together(registration.task, other.task)
            ),
            None,
        )
        same.append((other, places))
        if one is not None:
            line = other.task.document.key((*one.task.path, *one.path)).line
            first_one = f'"{one.task.name}" on line {one.task.line}'
            if one.task is other.task:
                first_one = f"{one.registry.name} on line {line}"
            message = (
                f'"{other.task.name}" keeps the same instance as {first_one}, and they would '
                f"overwrite each other; remove one, or give each a different {other.registry.instance[-1]}"
            )
            yield other.task.key(*other.path), message, "instance-clash"


def _places(value: object) -> list[str]:
    """Return the servers in a field, each in one spelling; empty if it has no URLs."""
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        return []
    places = []
    for url in value.split(","):
        try:
            places.append(canonical(url.strip()))
        except ValueError:
            places.append(url)
    return places


def _periods(tasks: _Set) -> Said:
    for task in tasks.tasks.values():
        every, timeout = task.get("every"), task.get("timeout")
        period, limit = tasks.seconds(every), tasks.seconds(timeout)
        if task.action.lasting:
            name = task.action.name
            if every is not None:
                message = f"a {name} task is one run that lasts until the pod ends; remove every"
                yield task.key("every"), message, "no-effect"
            if limit is not None:
                message = f"a {name} task is one run that lasts, and this would end it after {timeout}; remove timeout"
                yield task.key("timeout"), message, "timeout"
            continue
        if period is not None and period < 1:
            message = (
                f"a task starts at most once a second, so {tasks.shown(every)} is not kept; give 1s or more"
            )
            yield task.span("every"), message, "period"
        if period is not None and limit is not None and limit > period:
            message = (
                f"a run may take {tasks.shown(timeout)}, longer than the {tasks.shown(every)} from one to the "
                f"next, and would skip some; give timeout at most {duration.text(period)}"
            )
            yield task.span("timeout"), message, "timeout"


def _probes(tasks: _Set) -> Said:
    for task in tasks.of_action("probe"):
        if not any(task.has("probe", handler) for handler in (*_HANDLERS, "exec")):
            continue  # the pod's own probe, with its own numbers
        period, timeout = task.get("probe", "periodSeconds"), task.get("probe", "timeoutSeconds")
        known = tasks.settled(period), tasks.settled(timeout)
        if all(isinstance(one, int) and one for one in known) and known[1] > known[0]:
            message = (
                f"a try may take {tasks.shown(timeout)} s, and the next is due after {tasks.shown(period)} s; "
                f"give timeoutSeconds at most {known[0]}, or a longer periodSeconds"
            )
            yield task.span("probe", "timeoutSeconds"), message, "timeout"
        for handler in _HANDLERS:
            host = task.get("probe", handler, "host") if task.has("probe", handler, "host") else None
            if host is not None and "$(" not in host and host not in _OWN_HOSTS:
                message = (
                    f'"{host}" is not this pod, and every pod would ask it; '
                    "leave host out to ask the pod's own application"
                )
                yield task.span("probe", handler, "host"), message, "probe-host"
        if task.has("probe", "exec"):
            message = (
                f"this starts a program every {tasks.shown(period)} s in every pod; "
                "where the application has a port, httpGet, tcpSocket or grpc cost less"
            )
            yield task.key("probe", "exec"), message, "probe-exec"


def _defaults(tasks: _Set) -> Said:
    if not tasks.right:
        return
    for name, (path, param) in tasks.params.items():
        wrong = (
            misfit((task.value for task in tasks.tasks.values()), name, param["default"])
            if "default" in param
            else ""
        )
        if not wrong and isinstance(param.get("default"), str):
            yield from _url_ends(tasks, name, path, param["default"])
        if wrong:
            message = f'the default of "{name}", {shown(param["default"])}, {wrong}'
            yield tasks.document.span((*path, "default")), message, "param-type"


def _url_ends(tasks: _Set, name: str, path: Path, default: str) -> Said:
    for task in tasks.tasks.values():
        for text, shape in scalars(task.value, task_shape()):
            if text == f"$(params.{name})" and (message := literals.excess(shape.without, default)):
                yield tasks.document.span((*path, "default")), message, "url-end"


def _programs(tasks: _Set) -> Said:
    if not tasks.right:
        return
    for task in tasks.tasks.values():
        for path in (("exec", "command"), ("probe", "exec", "command")):
            program = (task.get(*path) or [""])[0] if task.has(*path) else ""
            if program.startswith("/") and not program.startswith(f"{PROGRAMS}/"):
                message = (
                    f"{shown(program)} is not in {PROGRAMS}, the folder whose programs a pod runs; put it there, "
                    "or set PIDONE_PROGRAMS where pidone is started"
                )
                yield tasks.document.span((*task.path, *path, 0)), message, "program"


def _repeated(tasks: _Set) -> Said:
    for task in tasks.tasks.values():
        for path, fold in ((("exec", "env"), str), (("probe", "httpGet", "httpHeaders"), str.lower)):
            lines: dict[str, int] = {}
            for index, item in enumerate(task.get(*path) or () if task.has(*path) else ()):
                span = tasks.document.span((*task.path, *path, index, "name"))
                name = fold(item["name"])
                if name in lines:
                    message = f'"{item["name"]}" is there already, on line {lines[name]}; remove one'
                    yield span, message, "repeated-name"
                lines.setdefault(name, span.line)


def _backoffs(tasks: _Set) -> Said:
    for task in tasks.tasks.values():
        initial, most = task.get("backoff", "initial"), task.get("backoff", "max")
        first, last = tasks.seconds(initial), tasks.seconds(most)
        if task.has("backoff") and first is not None and last is not None and first > last:
            message = (
                f"the first wait, {tasks.shown(initial)}, is longer than the longest, {tasks.shown(most)}, "
                "and is cut to it; give initial at most max"
            )
            yield task.span("backoff", "initial"), message, "backoff"


def _contradictions(tasks: _Set) -> Said:
    for task in tasks.tasks.values():
        yield from _own_states(tasks, task)
        for key, never in (("needs", "start"), ("while", "run")):
            states: dict[str, list[str]] = {}
            for name, second, span in tasks.edges(task, key):
                before = states.setdefault(name, [])
                for state in before:
                    if not _at_once(state, second):
                        message = (
                            f'"{name}" is never {state} and {second} at once, so "{task.name}" would never {never}; '
                            "keep one of the two"
                        )
                        yield span, message, "contradiction"
                before.append(second)


def _own_states(tasks: _Set, task: _Task) -> Said:
    for _, path, edge in task.edges("runOn"):
        if edge.partition(".")[0] == task.name:
            message = (
                f'each run of "{task.name}" would be followed by another; remove it from runOn, or use every'
            )
            yield tasks.document.span(path), message, "loop"
    for key, _, edge in task.edges("runOn"):
        if task.action.lasting:
            message = (
                f"a {task.action.name} task is one run that lasts, and no event starts another; "
                f"remove runOn, or write while: [{edge}]"
            )
            yield task.key(key), message, "no-effect"
            return


def _at_once(one: str, other: str) -> bool:
    return (
        one == other
        or "started" in {one, other}
        or one in _BESIDE.get(other, ())
        or other in _BESIDE.get(one, ())
    )


def _params(tasks: _Set) -> Said:
    used = {reference.name for text in _texts(tasks.spec.get("tasks")) for reference in references(text)}
    for name, (path, param) in tasks.params.items():
        if f"params.{name}" not in used and tasks.right and not tasks.extended:
            message = f"no task has $(params.{name}); use it, or remove the param"
            yield tasks.document.span((*path, "name")), message, "unused-param"
        pattern = param.get("pattern", "")
        if (
            pattern
            and not wrong_pattern(pattern)
            and not pattern.startswith("^")
            and not pattern.endswith("$")
        ):
            message = (
                f"this takes every text that has a fitting part somewhere; anchor it: {shown(f'^{pattern}$')}"
            )
            yield tasks.document.span((*path, "pattern")), message, "pattern-anchors"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


_RULES: Sequence[Callable[[_Set], Said]] = (
    _ports,
    _forms,
    _leases,
    _stopping,
    _drains,
    _early_heartbeats,
    _instances,
    _periods,
    _probes,
    _backoffs,
    _contradictions,
    _params,
    _defaults,
    _programs,
    _repeated,
    _leaving,
    _reports,
    _unused_fields,
    _follows,
)
