"""Commands of ``pidone-controller rollout``: history, undo, status and resume, as kubectl's for Deployments.

The commands use the API server with the rights of the kubeconfig's user. They do not talk to the controller.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import trio

from pidone.errors import PidoneError
from pidone.http.client import redacted
from pidone.http.urls import has_dot_segments
from pidone.language.model import TaskSet
from pidone.text import printable
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import Config, kubeconfig, load
from pidone_controller.kubernetes.errors import Conflict, Forbidden, Unreachable
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
from pidone_controller.rollout.catalog import Affected, Catalog
from pidone_controller.rollout.resolve import RolloutError, resolve
from pidone_controller.rollout.state import Phase, RolloutState, VersionRef, micro_time, short_version

SETS = (TASK_SETS, CLUSTER_TASK_SETS)
BINDINGS = (TASK_BINDINGS, CLUSTER_TASK_BINDINGS)
NO_CAUSE = "<none>"
UNSEEN = "no controller has looked at it yet"

Print = Callable[[str], None]  # gets one line


class CommandError(PidoneError):
    """The command cannot be carried out; the text gives the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The set or binding that a command is about."""

    resource: Resource
    name: str
    namespace: str  # "" of the cluster's
    home: str  # the controller's namespace, which holds the versions of ClusterTaskSets

    @property
    def key(self) -> tuple[bool, str, str]:
        return not self.resource.namespaced, self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.resource.kind.lower()}/{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of the command line."""

    verb: str  # history | undo | status | resume
    target: str  # KIND/NAME
    namespace: str = ""
    file: str = ""  # a kubeconfig
    context: str = ""
    home: str = "pidone-system"
    revision: int = 0
    timeout: float = 0.0  # seconds


def run(request: Request, say: Print = print) -> int:
    """Run a command and return its exit code: 0 done or complete; 1 not, with the reason on stderr."""
    try:
        config = _config(request)
        subject = parse(request.target, request.namespace or config.namespace, request.home)
        trio.run(_run, config, request, subject, shown_by(say), strict_exception_groups=True)
    except PidoneError as error:
        print(printable(f"pidone-controller: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def shown_by(say: Print) -> Print:
    """Return ``say`` for lines that contain texts of objects, which may have control characters."""
    return lambda line: say(printable(line))


def _config(request: Request) -> Config:
    if request.file:
        return kubeconfig([Path(request.file)], context=request.context)
    return load(context=request.context)


async def _run(config: Config, request: Request, subject: Subject, say: Print) -> None:
    try:
        await _with_server(config, request, subject, say)
    except Unreachable as error:
        server = redacted(config.server)
        raise CommandError(f"{server} of the kubeconfig: {error}; is this the API server?") from error


async def _with_server(config: Config, request: Request, subject: Subject, say: Print) -> None:
    async with connect(config) as client:
        match request.verb:
            case "history":
                await history(client, subject, request.revision, say)
            case "undo":
                await undo(client, subject, request.revision, say)
            case "resume":
                await resume(client, subject, say)
            case _:
                with trio.move_on_after(request.timeout or float("inf")):
                    return await status(client, subject, say)
                raise CommandError(f"{subject} is not complete after {request.timeout:g} seconds")
    return None


def parse(text: str, namespace: str, home: str) -> Subject:
    """Read ``KIND/NAME``, with the kind in any form that kubectl accepts. Raises ``CommandError``."""
    kind, _, name = text.partition("/")
    kind = kind.lower().removesuffix(f".{TASK_SETS.group}")
    for resource in (*SETS, *BINDINGS):
        is_name = name and "/" not in name and not has_dot_segments(f"{namespace}/{name}")
        if kind in {resource.kind.lower(), resource.plural} and is_name:
            return Subject(resource, name, namespace if resource.namespaced else "", home)
    raise CommandError(
        f'"{text}" is no set and no binding; write taskset/NAME, clustertaskset/NAME, taskbinding/NAME or '
        "clustertaskbinding/NAME"
    )


# history and undo


async def history(client: Client, subject: Subject, number: int, say: Print) -> None:
    """Print the versions of a set, or with a ``number`` that revision. Raises ``CommandError`` and ``ApiError``."""
    present, kept = await _versions(client, subject)
    if number:
        revision = _numbered(kept, number, subject)
        say(f"{subject} with revision #{number}")
        say(f"digest: {revision.digest}")
        say(f"cause: {revision.cause or NO_CAUSE}")
        for line in _yaml({"spec": revision.spec}).split("\n"):
            say(line)
        return

    say(f"{subject}")
    rows = [("REVISION", "DIGEST", "CREATED", "CHANGE-CAUSE")]
    for revision in kept:
        mark = " (present)" if revision.digest == present.digest else ""
        digest, cause = short_version(revision.digest), f"{revision.cause or NO_CAUSE}{mark}"
        rows.append((str(revision.number), digest, revision.created, cause))
    for line in _columns([tuple(map(printable, row)) for row in rows]):
        say(line)

    if not any(revision.digest == present.digest for revision in kept):
        reason = (
            f"it has mistakes: {present.findings[0]}" if present.findings else "no controller has seen it yet"
        )
        say(f"The present version, {short_version(present.digest)}, is not kept: {reason}")


async def undo(client: Client, subject: Subject, number: int, say: Print) -> None:
    """Write an earlier spec back to a set: that of revision ``number``, or with 0 of the one before the present.

    Raises ``CommandError`` and ``ApiError``. A concurrent change is not overwritten.
    """
    _, kept = await _versions(client, subject)
    value = await client.get(subject.resource, subject.name, subject.namespace)
    present = read(subject.resource.kind, value)
    if number:
        revision = _numbered(kept, number, subject)
    else:
        others = [revision for revision in kept if revision.digest != present.digest]
        if not others:
            raise CommandError(f"{subject} has no version before the present one to go back to")
        revision = others[-1]

    if revision.digest == present.digest:
        say(f"{subject} skipped: it is what revision {revision.number} has already")
        return
    _, findings, _ = check(subject.resource.kind, subject.namespace, subject.name, revision.spec)
    if findings:
        raise CommandError(
            f"revision {revision.number} of {subject} has mistakes today, and was left: {findings[0]}"
        )

    metadata = value["metadata"]
    annotations = {key: text for key, text in (metadata.get("annotations") or {}).items() if key != CAUSE}
    if revision.cause:
        annotations[CAUSE] = revision.cause
    body = {**value, "metadata": {**metadata, "annotations": annotations}, "spec": revision.spec}
    try:
        await client.replace(subject.resource, body)
    except Conflict as error:
        raise CommandError(
            f"{subject} was changed by somebody else meanwhile; look, and try again"
        ) from error
    say(f"{subject} rolled back to revision {revision.number}, {short_version(revision.digest)}")


async def _versions(client: Client, subject: Subject) -> tuple[Written, list[Revision]]:
    """Return a set and its revisions, the oldest first."""
    if subject.resource not in SETS:
        raise CommandError(
            f"{subject} is a binding; versions are kept of sets: taskset/NAME or clustertaskset/NAME"
        )
    value = await client.get(subject.resource, subject.name, subject.namespace)
    present = read(subject.resource.kind, value)
    values = await client.list(
        CONTROLLER_REVISIONS,
        namespace=subject.namespace or subject.home,
        label_selector=f"{LABEL}={subject.name}",
    )
    every = (revisions.read(value, subject.home) for value in values)
    return present, History([present], (revision for revision in every if revision)).kept(present.key)


def _numbered(kept: Sequence[Revision], number: int, subject: Subject) -> Revision:
    for revision in kept:
        if revision.number == number:
            return revision
    numbers = ", ".join(str(revision.number) for revision in kept) or "none"
    raise CommandError(f"{subject} has no revision {number}; there are: {numbers}")


# status and resume


async def status(client: Client, subject: Subject, say: Print) -> None:
    """Wait until a binding, or every binding that reaches a set, brings the present version to all its pods.

    Raises ``CommandError`` if a rollout is halted or can never complete; and ``ApiError``.
    """
    await client.get(subject.resource, subject.name, subject.namespace)  # fails at once if it does not exist

    changed = trio.Event()

    def on_change(_: Affected) -> None:
        changed.set()

    catalog = Catalog(subject.home, on_change)
    reflectors = await _reflectors(client, subject, catalog)
    whole = any(reflector.resource is CLUSTER_TASK_SETS for reflector in reflectors)
    problem: CommandError | None = None
    async with trio.open_nursery() as nursery:
        for reflector in reflectors:
            nursery.start_soon(reflector.run)
        for reflector in reflectors:
            await reflector.synced.wait()

        printed = ""
        while True:
            changed = trio.Event()
            try:
                waiting = "; ".join(waits_for(subject, catalog, whole=whole))
            except CommandError as error:
                problem = error  # raised outside of the nursery, which would wrap it
                break
            if not waiting:
                break
            if waiting != printed:
                say(f"Waiting for {waiting}")
                printed = waiting
            await changed.wait()
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    say(f"{subject} is complete")


async def _reflectors(client: Client, subject: Subject, catalog: Catalog) -> list[Reflector[Any]]:
    """Return a reflector for each kind that the subject depends on and the user may read. Raises ``ApiError``."""
    reflectors: list[Reflector[Any]] = []
    for resource, sink in catalog.sinks.items():
        if resource is CLUSTER_TASK_BINDINGS and subject.namespace:
            continue  # they bring ClusterTaskSets only
        namespace = subject.namespace if resource.namespaced else ""
        selector = revisions.SELECTOR if resource is CONTROLLER_REVISIONS else ""
        # A reflector would retry for ever without the right to read; this request fails at once.
        try:
            await client.page(resource, namespace=namespace, label_selector=selector)
        except Forbidden:
            if resource is not CLUSTER_TASK_SETS or not subject.namespace:
                raise
            continue  # a person who may read a namespace need not have the right to read cluster kinds
        reflectors.append(
            Reflector(
                client,
                resource,
                sink.project,
                sink,
                namespace=namespace,
                label_selector=selector,
                log=_no_log,
            )
        )
    return reflectors


def _no_log(event: str, **values: object) -> None:
    """Drop the log lines of a reflector: it retries by itself."""


def waits_for(subject: Subject, catalog: Catalog, *, whole: bool = True) -> list[str]:
    """Return the incomplete bindings, each with its progress. Raises ``CommandError`` if one can never complete.

    ``whole``: ClusterTaskSets are known, and not only the sets of one namespace.
    """
    of_set = subject.resource in SETS
    written = catalog.find_set(subject.key) if of_set else catalog.find_binding(subject.key)
    if written is None:
        raise CommandError(f"{subject} is not there any more")
    if of_set and written.findings:
        raise CommandError(
            f"{subject} has mistakes, and nothing of it is brought to any pod: {written.findings[0]}"
        )

    texts = []
    for binding in catalog.bindings if of_set else [written]:
        named = binding.binding is not None and subject.name in binding.binding.task_sets
        if not whole and RolloutState.of(binding.rollout) is None:
            texts += [f"{binding}: {UNSEEN}"] if named or binding is written else []
            continue
        try:
            wanted = catalog.wanted(binding) if whole else _wanted_of_namespace(binding, catalog.history)
        except RolloutError as error:
            if binding is written or (named and of_set):
                raise CommandError(f"{binding}: {error}") from error
            continue

        reached = [key for key, _ in wanted.keys(binding.namespace)]
        if binding is not written and written.key not in reached:
            continue
        progress, halt_reason = catalog.progress(binding, wanted)
        if halt_reason:
            resume = f"pidone-controller rollout resume {binding.kind.lower()}/{binding.name}"
            raise CommandError(f"{binding} is halted: {halt_reason}. Change it, undo it, or {resume}")
        if not progress and _complete_version(binding) != wanted:
            progress = UNSEEN
        texts += [f"{binding}: {progress}"] if progress else []
    return texts


def _wanted_of_namespace(written: Written, history: History) -> VersionRef:
    """Return the wanted version of a binding if ClusterTaskSets cannot be read, with those in its status.

    Raises ``RolloutError``.
    """
    state, binding = RolloutState.of(written.rollout), written.binding
    recorded = (state.target or state.current) if state is not None else None
    if PIN in written.annotations and recorded is not None:
        return recorded
    if binding is None or written.findings or recorded is None:
        raise RolloutError(f"it has mistakes: {'; '.join(written.findings[:1])}")

    cluster_sets = [item for item in recorded.sets if item[0] == CLUSTER_TASK_SETS.kind]
    good = {(True, "", name): (TaskSet(name, cluster=True), digest) for _, name, digest in cluster_sets}
    wanted = resolve(binding, history, {**history.good, **good})
    return replace(wanted, sets=tuple(sorted({*wanted.sets, *cluster_sets})))


def _complete_version(binding: Written) -> VersionRef | None:
    """Return the version that all pods of a binding have, by its status; None during a rollout."""
    state = RolloutState.of(binding.rollout)
    return state.current if state is not None and state.phase is Phase.COMPLETE else None


async def resume(client: Client, subject: Subject, say: Print) -> None:
    """Restart a halted rollout. Raises ``CommandError`` if it is not halted, and ``ApiError``."""
    if subject.resource not in BINDINGS:
        raise CommandError(
            f"{subject} is a set; rollouts are those of bindings: taskbinding/NAME or clustertaskbinding/NAME"
        )
    value = await client.get(subject.resource, subject.name, subject.namespace)
    state = RolloutState.of(read(subject.resource.kind, value).rollout)
    if state is None or state.phase is not Phase.HALTED:
        raise CommandError(
            f"{subject} is not halted{f': {state.progress}' if state and state.progress else ''}"
        )
    patch = {"metadata": {"annotations": {RESUME: micro_time(state.since)}}}
    await client.merge(subject.resource, subject.name, patch, namespace=subject.namespace)
    say(f"{subject} resumed")


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
