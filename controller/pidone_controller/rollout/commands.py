"""``pidone-controller rollout``: history, undo, status and resume, for people, as kubectl has them for Deployments.

Everything is done with the rights of whoever asks, by the kubeconfig: the controller itself is not asked.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import trio

from pidone.errors import PidoneError
from pidone.language.model import TaskSet
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import Config, kubeconfig, load
from pidone_controller.kubernetes.errors import Conflict, Forbidden
from pidone_controller.kubernetes.reflector import Reflector
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_BINDINGS,
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.objects import revisions
from pidone_controller.objects.revisions import LABEL, History, Revision
from pidone_controller.objects.written import CAUSE, PIN, RESUME, Written, check, read
from pidone_controller.rollout.step import (
    Objects,
    Phase,
    Recorded,
    RolloutError,
    State,
    resolve,
    short,
    written_time,
)

SETS = (TASK_SETS, CLUSTER_TASK_SETS)
BINDINGS = (TASK_BINDINGS, CLUSTER_TASK_BINDINGS)
NONE = "<none>"
UNSEEN = "no controller has looked at it yet"

Say = Callable[[str], None]


class CommandError(PidoneError):
    """What was asked for cannot be done; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a command is about."""

    resource: Resource
    name: str
    namespace: str  # "" of the cluster's
    home: str  # the controller's namespace, where the versions of the cluster's sets are

    def __str__(self) -> str:
        return f"{self.resource.kind.lower()}/{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """The command line."""

    verb: str  # history | undo | status | resume
    target: str  # KIND/NAME
    namespace: str = ""
    file: str = ""  # a kubeconfig
    context: str = ""
    home: str = "pidone-system"
    revision: int = 0
    timeout: float = 0.0  # seconds


def run(request: Request, say: Say = print) -> int:
    """Exit codes: 0 done, or complete; 1 not, and why is on stderr."""
    try:
        config = _config(request)
        target = parse(request.target, request.namespace or config.namespace, request.home)
        trio.run(_run, config, request, target, say, strict_exception_groups=True)
    except PidoneError as error:
        print(f"pidone-controller: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _config(request: Request) -> Config:
    if request.file:
        return kubeconfig([Path(request.file)], context=request.context)
    return load(context=request.context)


async def _run(config: Config, request: Request, target: Target, say: Say) -> None:
    async with connect(config) as client:
        match request.verb:
            case "history":
                await history(client, target, request.revision, say)
            case "undo":
                await undo(client, target, request.revision, say)
            case "resume":
                await resume(client, target, say)
            case _:
                with trio.move_on_after(request.timeout or float("inf")):
                    return await status(client, target, say)
                raise CommandError(f"{target} is not complete after {request.timeout:g} seconds")
    return None


def parse(text: str, namespace: str, home: str) -> Target:
    """``KIND/NAME``, the kind in any way that kubectl takes it. Raises ``CommandError``."""
    kind, slash, name = text.partition("/")
    kind = kind.lower().removesuffix(f".{TASK_SETS.group}")
    for resource in (*SETS, *BINDINGS):
        if kind in {resource.kind.lower(), resource.plural} and slash and name and "/" not in name:
            return Target(resource, name, namespace if resource.namespaced else "", home)
    raise CommandError(
        f'"{text}" is no set and no binding; write taskset/NAME, clustertaskset/NAME, taskbinding/NAME or '
        "clustertaskbinding/NAME"
    )


# What was


async def history(client: Client, target: Target, number: int, say: Say) -> None:
    """The versions of a set, or with a ``number`` the one that has it. Raises ``CommandError`` and ``ApiError``."""
    present, kept = await _versions(client, target)
    if number:
        chosen = _numbered(kept, number, target)
        say(f"{target} with revision #{number}")
        say(f"digest: {chosen.digest}")
        say(f"cause: {chosen.cause or NONE}")
        say(_yaml({"spec": chosen.spec}))
        return
    say(f"{target}")
    rows = [("REVISION", "DIGEST", "CREATED", "CHANGE-CAUSE")]
    for one in kept:
        mark = " (present)" if one.digest == present.digest else ""
        rows.append((str(one.number), short(one.digest), one.created, f"{one.cause or NONE}{mark}"))
    for line in _columns(rows):
        say(line)
    if not any(one.digest == present.digest for one in kept):
        why = (
            f"it has mistakes: {present.findings[0]}" if present.findings else "no controller has seen it yet"
        )
        say(f"What is there now, {short(present.digest)}, is not kept: {why}")


async def undo(client: Client, target: Target, number: int, say: Say) -> None:
    """Write an older spec back to a set: that of revision ``number``, or 0 for the one before the present.

    Raises ``CommandError``, and ``ApiError``; nobody's change in between is overwritten.
    """
    _, kept = await _versions(client, target)
    value = await client.get(target.resource, target.name, target.namespace)
    present = read(target.resource.kind, value)
    if number:
        chosen = _numbered(kept, number, target)
    else:
        others = [one for one in kept if one.digest != present.digest]
        if not others:
            raise CommandError(f"{target} has no version before the present one to go back to")
        chosen = others[-1]
    if chosen.digest == present.digest:
        say(f"{target} skipped: it is what revision {chosen.number} has already")
        return
    _, findings, _ = check(target.resource.kind, target.namespace, target.name, chosen.spec)
    if findings:
        raise CommandError(
            f"revision {chosen.number} of {target} has mistakes today, and was left: {findings[0]}"
        )
    metadata = value["metadata"]
    annotations = {key: text for key, text in (metadata.get("annotations") or {}).items() if key != CAUSE}
    if chosen.cause:
        annotations[CAUSE] = chosen.cause
    try:
        await client.replace(
            target.resource,
            {**value, "metadata": {**metadata, "annotations": annotations}, "spec": chosen.spec},
        )
    except Conflict as error:
        raise CommandError(f"{target} was changed by somebody else meanwhile; look, and try again") from error
    say(f"{target} rolled back to revision {chosen.number}, {short(chosen.digest)}")


async def _versions(client: Client, target: Target) -> tuple[Written, list[Revision]]:
    """A set, and its revisions, the oldest first."""
    if target.resource not in SETS:
        raise CommandError(
            f"{target} is a binding; versions are kept of sets: taskset/NAME or clustertaskset/NAME"
        )
    value = await client.get(target.resource, target.name, target.namespace)
    present = read(target.resource.kind, value)
    found = await client.list(
        CONTROLLER_REVISIONS,
        namespace=target.namespace or target.home,
        label_selector=f"{LABEL}={target.name}",
    )
    made = [revisions.read(one, target.home) for one in found]
    mine = [one for one in made if one is not None and one.key == present.key and one.owner == present.uid]
    return present, sorted(mine, key=lambda one: one.number)


def _numbered(kept: Sequence[Revision], number: int, target: Target) -> Revision:
    for one in kept:
        if one.number == number:
            return one
    there = ", ".join(str(one.number) for one in kept) or "none"
    raise CommandError(f"{target} has no revision {number}; there are: {there}")


# What is under way


async def status(client: Client, target: Target, say: Say) -> None:
    """Wait until a binding, or every one that reaches a set, brings what is written there.

    Raises ``CommandError`` where one is halted, or never will; and ``ApiError``.
    """
    await client.get(target.resource, target.name, target.namespace)  # that it is not there is told at once
    objects = Objects(target.home, lambda: changed.set())  # noqa: PLW0108 - whichever event it is by then
    changed = trio.Event()
    reflectors: list[Reflector[Any]] = []
    whole = True
    for resource in (*SETS, *BINDINGS, CONTROLLER_REVISIONS):
        if resource is CLUSTER_TASK_BINDINGS and target.namespace:
            continue  # they bring sets of the cluster alone
        namespace = target.namespace if resource.namespaced else ""
        selector = revisions.SELECTOR if resource is CONTROLLER_REVISIONS else ""
        # A reflector waits until it may read; who may not is told so at once.
        try:
            await client.page(resource, namespace=namespace, label_selector=selector)
        except Forbidden:
            if resource is not CLUSTER_TASK_SETS or not target.namespace:
                raise
            whole = False  # who may read a namespace need not be allowed to read what is the cluster's
            continue
        store = objects.sinks[resource]
        reflectors.append(
            Reflector(
                client,
                resource,
                store.project,
                store,
                namespace=namespace,
                label_selector=selector,
                log=_quiet,
            )
        )
    problem: CommandError | None = None
    async with trio.open_nursery() as nursery:
        for reflector in reflectors:
            nursery.start_soon(reflector.run)
        for reflector in reflectors:
            await reflector.synced.wait()
        said = ""
        while True:
            changed = trio.Event()
            try:
                waiting = "; ".join(waits_for(target, objects, whole=whole))
            except CommandError as error:
                problem = error  # raised outside: a nursery would wrap it
                break
            if not waiting:
                break
            if waiting != said:
                say(f"Waiting for {waiting}")
                said = waiting
            await changed.wait()
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    say(f"{target} is complete")


def _quiet(event: str, **values: object) -> None:
    """What a reflector logs: it goes on by itself, and whoever waits here wants one answer."""


def waits_for(target: Target, objects: Objects, *, whole: bool = True) -> list[str]:
    """What is not complete yet, each with how far it is. Raises ``CommandError`` where waiting is of no use.

    ``whole`` is whether all sets are known, and not those of a namespace alone.
    """
    found = objects.history()
    if target.resource in SETS:
        written = next((one for one in objects.sets if _is(one, target)), None)
        if written is not None and written.findings:
            raise CommandError(
                f"{target} has mistakes, and nothing of it is brought to any pod: {written.findings[0]}"
            )
    else:
        written = next((one for one in objects.bindings if _is(one, target)), None)
    if written is None:
        raise CommandError(f"{target} is not there any more")
    texts = []
    for binding in objects.bindings if target.resource in SETS else [written]:
        named = binding.binding is not None and target.name in binding.binding.task_sets
        if not whole and State.of(binding.rollout) is None:
            texts += [f"{binding}: {UNSEEN}"] if named or binding is written else []
            continue
        try:
            wanted = objects.wanted(binding, found) if whole else _wanted(binding, found)
        except RolloutError as error:
            if binding is written or (named and target.resource in SETS):
                raise CommandError(f"{binding}: {error}") from error
            continue
        reached = [key for key, _ in wanted.keys(binding.namespace)]
        if binding is not written and written.key not in reached:
            continue
        moving, halted = objects.progress(binding, wanted)
        if halted:
            again = f"pidone-controller rollout resume {binding.kind.lower()}/{binding.name}"
            raise CommandError(f"{binding} is halted: {halted}. Change it, undo it, or {again}")
        if not moving and _recorded(binding) != wanted:
            moving = UNSEEN
        texts += [f"{binding}: {moving}"] if moving else []
    return texts


def _is(written: Written, target: Target) -> bool:
    where = target.resource.kind, target.namespace, target.name
    return (written.kind, written.namespace, written.name) == where


def _wanted(written: Written, found: History) -> Recorded:
    """What a binding should come to, as far as that is seen from its namespace.

    The sets of the cluster are as the controller wrote them down. Raises ``RolloutError``.
    """
    state, binding = State.of(written.rollout), written.binding
    recorded = (state.target or state.current) if state is not None else None
    if PIN in written.annotations and recorded is not None:
        return recorded
    if binding is None or written.findings or recorded is None:
        raise RolloutError(f"it has mistakes: {'; '.join(written.findings[:1])}")
    theirs = [one for one in recorded.sets if one[0] == CLUSTER_TASK_SETS.kind]
    known = {(True, "", name): (TaskSet(name, cluster=True), made) for _, name, made in theirs}
    wanted = resolve(binding, found, {**found.good, **known})
    return replace(wanted, sets=tuple(sorted({*wanted.sets, *theirs})))


def _recorded(binding: Written) -> Recorded | None:
    """What the leader has seen a binding bring to all its pods."""
    state = State.of(binding.rollout)
    return state.current if state is not None and state.phase is Phase.COMPLETE else None


async def resume(client: Client, target: Target, say: Say) -> None:
    """Have a halted rollout begin anew. Raises ``CommandError`` where none is halted, and ``ApiError``."""
    if target.resource not in BINDINGS:
        raise CommandError(
            f"{target} is a set; rollouts are those of bindings: taskbinding/NAME or clustertaskbinding/NAME"
        )
    written = read(target.resource.kind, await client.get(target.resource, target.name, target.namespace))
    state = State.of(written.rollout)
    if state is None or state.phase is not Phase.HALTED:
        raise CommandError(f"{target} is not halted{f': {state.moving}' if state and state.moving else ''}")
    patch = {"metadata": {"annotations": {RESUME: written_time(state.since)}}}
    await client.merge(target.resource, target.name, patch, namespace=target.namespace)
    say(f"{target} resumed")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    return ["   ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]


def _yaml(value: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    text = StringIO()
    writer: Any = YAML(typ="safe", pure=True)  # its attributes are typed as None
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.dump(value, text)
    return text.getvalue().rstrip()
