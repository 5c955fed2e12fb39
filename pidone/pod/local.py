"""The status port of a pod, for its own containers: ``/status``, ``/drain`` and ``/maintenance``.

``GET /status`` shows the pod:

    {"version", "pid", "snapshot", "processes", "repo": {"urls", "reached"}, "digest", "applied", "phase", "ending",
     "after", "reaped", "maintenance": [source, ...], "logs": [line, ...],
     "tasks": {name: {"action", "stage", "state", "since", "why", "next", "runs", "failures", "error",
                      "lastDuration", "lastSuccess"}}}

``GET /drain`` ends the pod's tasks and answers when it is over:

    {"undone": [name, ...], "failed": {name: error}, "left": [name, ...], "seconds", "logs": [line, ...]}

The effect of a task in ``failed`` outside the pod, such as a registration, may still exist. A task in ``left`` has not
ended.

``POST /maintenance`` takes the instances of the pod out of service, and ``DELETE /maintenance`` brings them back. Both
are idempotent, and answer when all registries have accepted it, at most after ``MAINTENANCE_SECONDS``: with 200 if all
show it, else with 202. ``GET /maintenance`` answers at once with the same document:

    {"maintenance": true, "by": [source, ...], "done": false,
     "registrations": {task: {registry: {"status", "error"}, ...}, ...}}

A source is "POST /maintenance" or "annotation" (``pidone.dev/maintenance``); the pod is in maintenance while there is
one. ``status`` is what the registry shows, in its own words. ``error`` is the reason why it does not show what it
should. An instance that is not registered is in no registry, and is registered as out of service later.

``since``, ``applied`` and ``lastSuccess`` are in seconds since 1970. ``next`` is in seconds from now. ``processes`` is
the number of processes in ``/proc``, with this one. ``after`` is the failure of the program before this one. A value
that is unknown, or belongs to an event that has not happened, is null.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from time import time
from typing import Any, Protocol

import trio

from pidone import __version__
from pidone.actions import Displayed, Reasoned, Shown
from pidone.counters import Counters
from pidone.engine.core import Stage, TaskState, waits_for
from pidone.engine.runner import Engine
from pidone.errors import Refused
from pidone.http.client import redacted
from pidone.http.connect import encoded
from pidone.http.message import JSON, Request, Response, text_response
from pidone.http.urls import authority
from pidone.journal import RING, Journal
from pidone.maintenance import LOCAL, Maintenance
from pidone.pid1 import stages
from pidone.pid1.claims import processes
from pidone.plan.report import TaskReport, encode_task
from pidone.pod.settings import Settings

LOG_LINES = 50  # the newest lines of the journal
MAINTENANCE_SECONDS = 10.0  # that an answer waits for the registries
METHODS = {
    "/status": ("GET", "HEAD"),
    "/drain": ("GET", "HEAD"),
    "/maintenance": ("GET", "HEAD", "POST", "DELETE"),
}
RETRY_SECONDS = 60.0  # between two attempts to listen on a port that is taken


class Program(Protocol):
    """The part of ``pidone.pod.program.PodProgram`` that the status port uses."""

    settings: Settings
    engine: Engine
    journal: Journal
    counters: Counters
    maintenance: Maintenance

    @property
    def repos(self) -> tuple[str, ...]: ...
    def details(self) -> dict[str, Any]: ...
    def tasks(self) -> dict[str, TaskReport]: ...
    async def drain(self, by: str) -> None: ...


async def serve_status(program: Program) -> None:
    """Serve the paths of ``METHODS`` until cancelled. While the port is in use, retry each ``RETRY_SECONDS``."""
    journal = program.journal
    try:
        host, port = program.settings.status_address()
    except Refused as error:
        journal.write("status-off", error=error)
        port = 0
    if not port:
        await trio.sleep_forever()

    reported = False
    while True:
        try:
            listeners = await trio.open_tcp_listeners(port, host=encoded(host) if host else None)
            break
        except OSError as error:
            if not reported:
                address = authority(host or "*", port)
                journal.write(
                    "status-off", address=address, error=error.strerror, retry=f"{RETRY_SECONDS:g}s"
                )
            reported = True
        await trio.sleep(RETRY_SECONDS)

    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_cancel_on_connection, listener, nursery.cancel_scope)
        # 2.8 MiB if no task has loaded them; loaded for the first request
        from pidone.http.pod_rooms import CONNECTIONS, assign_in_pod, default_gateways
        from pidone.http.server import serve

        await serve(
            partial(answer, program),
            listeners,
            max_connections=CONNECTIONS,
            max_body=0,
            assign=assign_in_pod(default_gateways()),
        )
    finally:
        for listener in listeners:  # so that this part, when it is restarted, finds the port free
            listener.socket.close()


async def _cancel_on_connection(listener: trio.SocketListener, scope: trio.CancelScope) -> None:
    """Wait for the first connection to the listener, and cancel ``scope``."""
    await trio.lowlevel.wait_readable(listener.socket)
    scope.cancel()


async def answer(program: Program, request: Request) -> Response:
    """Answer one request. A drain continues if its client disconnects, and so does a maintenance."""
    methods = METHODS.get(request.path)
    if methods is None:
        return text_response(404, f"the paths are {', '.join(METHODS)}")
    if request.method not in methods:
        allowed = ", ".join(methods)
        return text_response(405, f"the methods are {allowed}", allow=allowed)
    if request.path == "/maintenance":
        return await _maintain(program, request.method)
    if request.path == "/status" or request.method == "HEAD":
        return _json(document(program))
    return _json(await _drain(program))


async def _maintain(program: Program, method: str) -> Response:
    """Begin or end the maintenance, wait until the registries show it, and return what they show."""
    changes = method in {"POST", "DELETE"}
    if changes:
        program.maintenance.set(LOCAL, on=method == "POST")
        with trio.move_on_after(MAINTENANCE_SECONDS):
            while any(instance.pending for instance in _instances(_shown(program))):
                await program.maintenance.news()
    shown, mask = _shown(program), program.journal.mask
    value = {
        "maintenance": program.maintenance.on,
        "by": program.maintenance.by,
        "done": not any(instance.error for instance in _instances(shown)),
        "registrations": {
            task: {
                mask(registry): {"status": instance.status, "error": mask(instance.error)}
                for registry, instance in registries.items()
            }
            for task, registries in shown.items()
        },
    }
    return _json(value, 202 if changes and not value["done"] else 200)


def _shown(program: Program) -> dict[str, Mapping[str, Shown]]:
    """Return what each registry shows, by the name of the task."""
    shown = {}
    for state in program.engine.tasks:
        action: object = program.engine.action(state.task.name)
        if isinstance(action, Displayed):
            shown[state.task.name] = action.shown()
    return shown


def _instances(shown: Mapping[str, Mapping[str, Shown]]) -> Iterator[Shown]:
    return (instance for registries in shown.values() for instance in registries.values())


async def _drain(program: Program) -> dict[str, Any]:
    """Begin the pod's end, unless it has begun, wait until it is over, and return its result."""
    began, written = trio.current_time(), program.journal.written
    tasks = [state.task.name for state in program.engine.tasks]
    await program.drain("GET /drain")
    left, failed = [state.task.name for state in program.engine.tasks], dict(program.engine.left)
    return {
        "undone": [name for name in tasks if name not in left and name not in failed],
        "failed": failed,
        "left": left,
        "seconds": round(trio.current_time() - began, 3),
        "logs": list(program.journal.lines)[written - program.journal.written or RING :],
    }


def document(program: Program) -> dict[str, Any]:
    """Return the answer to ``/status``."""
    counters, tasks, states = program.counters, program.tasks(), list(program.engine.tasks)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "snapshot": stages.snapshot(),
        "processes": processes() or None,
        "repo": {"urls": [redacted(url) for url in program.repos], "reached": counters.repo_up},
        "digest": counters.bundle_digest,
        "applied": counters.bundle_applied or None,
        "ending": program.engine.ending,
        **program.details(),
        "maintenance": program.maintenance.by,
        "left": sorted(program.engine.left),
        "tasks": {
            state.task.name: encode_task(tasks[state.task.name])
            | _details(state, states, program.engine.action(state.task.name))
            for state in states
        },
        "logs": list(program.journal.lines)[-LOG_LINES:],
    }


def _details(state: TaskState, states: list[TaskState], action: object) -> dict[str, Any]:
    """Return the fields of a task that a report to the repo does not have."""
    now = trio.current_time()
    success = state.last_success
    running = state.stage is Stage.RUNNING
    why = action.why() if running and isinstance(action, Reasoned) else _reason(state, states)
    return {
        "action": state.task.action,
        "stage": state.stage.value,
        "why": why,
        "next": round(max(0.0, state.due - now), 3) if state.stage is Stage.DUE else None,
        "lastDuration": state.last_duration,
        "lastSuccess": None if success is None else round(time() - now + success, 3),
    }


def _reason(state: TaskState, states: list[TaskState]) -> str:
    """Return the reason why the task does not run, for people; empty if it runs."""
    task = state.task
    match state.stage:
        case Stage.WAITING:
            return f"needs {waits_for(state, states)}"
        case Stage.PAUSING | Stage.PAUSED:
            return f"while {waits_for(state, states)}"
        case Stage.ARMED:
            return f"runs on {', '.join(map(str, task.run_on))}"
        case Stage.DUE:
            due = "waits for its period" if task.every else "about to run"
            return "failed, waits for its retry" if state.streak else due
        case Stage.FINISHED:
            return f"restartPolicy {task.restart}" if task.restart != "Always" else "the pod is ending"
        case Stage.FAILED:
            return f"backoffLimit {task.backoff_limit} is reached"
        case Stage.STOPPING | Stage.UNDOING:
            return "is being undone"
        case _:
            return ""


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(status, {"content-type": JSON}, json.dumps(value, separators=(",", ":")).encode() + b"\n")
