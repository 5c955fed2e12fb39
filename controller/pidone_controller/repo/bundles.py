"""Builds the bundle of each pod: its plan in the envelope, as bytes with their ETag.

The same pod and rules give the same bytes in any process. The previous entry is read only if no plan can be derived:
then the pod keeps its plan.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pidone import actions
from pidone.actions.metrics import LOOPBACK, PORT
from pidone.errors import PidoneError
from pidone.language.binding import BindingError, Fault, Rules
from pidone.language.schemas import action_of
from pidone.plan import model
from pidone.plan.digest import canonical
from pidone.plan.format import MAX_TASKS, encode_bundle
from pidone.plan.model import Phase
from pidone.protocol import MAX_BUNDLE_BYTES
from pidone_controller.pods.model import Pod

Derive = Callable[[Pod, Rules], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One envelope. Its ETag is the hash of the body, so a change of phase changes the ETag too."""

    body: bytes
    etag: str  # as in the header, with its quotes
    digest: str  # of the plan
    phase: Phase
    count: int  # of tasks
    privileged: str = ""  # the first task that needs the https repo, and its action
    metrics: int | None = None  # the port where Prometheus scrapes the pod
    secrets: bool = False  # a task has values of Secrets
    kept: bytes = b""  # the tasks as JSON, if the body is without them

    @property
    def tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = json.loads(self.kept) if self.kept else json.loads(self.body)["tasks"]
        return tasks


@dataclass(frozen=True, slots=True)
class Entry:
    """The plan of one pod as served. Without a bundle no plan was ever derived, and ``error`` is the reason."""

    pod: Pod
    bundle: Bundle | None
    error: str = ""
    faults: tuple[Fault, ...] = ()  # the bindings at fault
    rest: Bundle | None = None  # the plan without the tasks of ``faults``, for a pod without a plan

    @property
    def uses_secrets(self) -> bool:
        """True if the plan may change with a Secret."""
        return bool(self.error) or (self.bundle is not None and self.bundle.secrets)

    @property
    def pending(self) -> bool:
        """True if the plan lacks only Secrets that will be read in a moment."""
        return bool(self.faults) and all(fault.pending for fault in self.faults)

    def answer(self, *, fresh: bool) -> Bundle | None:
        """Return the bundle to serve; None if the pod keeps its plan. ``fresh``: it has no plan yet."""
        return self.bundle or (self.rest if fresh else None)


def entry(pod: Pod, rules: Rules, before: Entry | None, derive: Derive) -> Entry:
    """Derive the entry of ``pod`` under ``rules``; ``before`` is its previous entry."""
    faults: tuple[Fault, ...] = ()
    rest = None
    try:
        return Entry(pod, _checked(pod, derive(pod, rules)))
    except BindingError as error:
        text, faults = str(error), error.faults
        if len(error.rest) <= MAX_TASKS:
            with suppress(PidoneError):
                rest = encode(pod, error.rest)
    except PidoneError as error:
        text = str(error)
    except Exception as error:  # noqa: BLE001 - a bug that one pod's fields trigger must not stop the others
        text = f"internal error: {type(error).__name__}: {error}"
    # The earlier tasks in a new envelope: the pod must receive its end although its plan cannot be derived. If none
    # was ever derived, the end needs no tasks; otherwise there is no bundle, because an empty plan would stop the tasks
    # that the pod got from an earlier controller.
    # The same if a Secret was deleted or is granted no more: its value is not sent again.
    bundle = None
    withdrawn = any(fault.secret for fault in faults)
    if before and before.bundle and not (withdrawn and before.bundle.secrets):
        bundle = encode(pod, before.bundle.tasks)
    elif pod.terminating:
        bundle = encode(pod, [])
    return Entry(pod, bundle, text, faults, rest)


def _checked(pod: Pod, tasks: list[dict[str, Any]]) -> Bundle:
    if len(tasks) > MAX_TASKS:
        raise PidoneError(f"{len(tasks)} tasks are bound to the pod; it takes at most {MAX_TASKS}")
    bundle = encode(pod, tasks)
    if len(bundle.body) > MAX_BUNDLE_BYTES:
        raise PidoneError(f"the plan has {len(bundle.body)} bytes; a pod takes at most {MAX_BUNDLE_BYTES}")
    return bundle


def encode(pod: Pod, tasks: Sequence[dict[str, Any]]) -> Bundle:
    """Return the envelope in canonical form, so that every replica serves the same ETag.

    The containers are included only if they are read: by a task with metrics, by one that runs when all have started,
    or by the engine of a pod whose containers run once. Otherwise each restart of a container, which changes its ID,
    would send the bundle again. Raises ``PidoneError`` for a value that JSON cannot express.

    The end of a pod is told over plain http too, and needs no tasks. So it comes without them if they have secrets.
    """
    phase = Phase.TERMINATING if pod.terminating else Phase.RUNNING
    ips = pod.ips
    facts = model.Pod(
        pod.name,
        pod.namespace,
        pod.uid,
        ips[0] if ips else "",
        pod.node_name,
        restart_policy=pod.restart_policy,
    )
    with_containers = facts.restart_policy == "Never" or any(map(_reads_containers, tasks))
    # an inventory that was written by hand may have the containers of a running pod, and not their status
    known = pod.template.containers or pod.phase == "Pending"
    containers = pod.containers if tasks and with_containers and known else {}
    maintenance = pod.maintenance and bool(tasks)
    try:
        envelope = encode_bundle(
            list(tasks), phase=phase, pod=facts, containers=containers, maintenance=maintenance
        )
        secrets = any(model.SECRETS in task for task in tasks)
        kept = canonical(envelope["tasks"]) if secrets and pod.terminating else b""
        body = canonical({**envelope, "tasks": []} if kept else envelope)
    except (ValueError, RecursionError) as error:  # .nan, .inf, or half a character
        raise PidoneError(f"the plan cannot be written as JSON: {error}") from error
    return Bundle(
        body,
        f'"sha256-{hashlib.sha256(body).hexdigest()}"',
        envelope["digest"],
        phase,
        len(tasks),
        next((text for text in map(_privileged, tasks) if text), ""),
        next((port for port in map(_scraped_port, tasks) if port), None),
        secrets,
        kept,
    )


def _reads_containers(task: Mapping[str, Any]) -> bool:
    """True if a task reads the containers, or runs when they have started."""
    return "metrics" in task or "idle" in task or model.CONTAINERS_STARTED in task.get("runOn", ())


def _scraped_port(task: Mapping[str, Any]) -> int | None:
    """Return the port at which Prometheus reaches the metrics of a task; None if there is none."""
    fields = task.get("metrics")
    if not isinstance(fields, dict) or fields.get("address") == LOOPBACK:
        return None
    port: int = fields.get("port", PORT)
    return port


def _privileged(task: Mapping[str, Any]) -> str:
    if model.SECRETS in task:
        return f'task "{task["name"]}": a value of a Secret'
    action = action_of(task)
    if action is None or not actions.privileged(action.name, task[action.name]):
        return ""
    return f'task "{task["name"]}": {action.name}'
