"""The status port of a pod, for its own containers: ``GET /status`` and ``GET /drain``.

    {"version", "pid", "processes", "repo": {"urls", "reached"}, "digest", "applied", "phase", "ending",
     "after", "reaped", "logs": [line, ...],
     "tasks": {name: {"action", "stage", "state", "since", "why", "next", "runs", "failures", "error",
                      "lastDuration", "lastSuccess"}}}

``since``, ``applied`` and ``lastSuccess`` are seconds since 1970, ``next`` is seconds from now until the next
run, ``processes`` are all that ``/proc`` shows, this one too; null is what nobody knows, or what never was.
"""

import json
import os
from functools import partial
from time import time
from typing import Any, Protocol

import trio

from pidone import __version__
from pidone.counters import Counters
from pidone.engine.core import Stage, TaskState, waits_for
from pidone.engine.runner import Engine
from pidone.errors import Refused
from pidone.http.client import redacted
from pidone.http.connect import encoded
from pidone.http.message import JSON, Request, Response, text_response
from pidone.journal import RING, Journal
from pidone.pid1.claims import processes
from pidone.plan.report import TaskReport, encode_task
from pidone.pod.settings import Settings

LOG_LINES = 50  # of the journal, the newest
RETRY_SECONDS = 60.0  # between two attempts to listen on a port that is taken
MAX_CONNECTIONS = 8


class Program(Protocol):
    """What the status port needs of ``pidone.pod.program.PodProgram``."""

    settings: Settings
    engine: Engine
    journal: Journal
    counters: Counters

    @property
    def repos(self) -> tuple[str, ...]: ...
    def details(self) -> dict[str, Any]: ...
    def tasks(self) -> dict[str, TaskReport]: ...
    async def drain(self, by: str) -> None: ...


async def serve_status(program: Program) -> None:
    """Serve ``/status`` and ``/drain`` until cancelled; a port that is taken is tried again later."""
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
                address = f"{host or '*'}:{port}"
                journal.write(
                    "status-off", address=address, error=error.strerror, retry=f"{RETRY_SECONDS:g}s"
                )
            reported = True
        await trio.sleep(RETRY_SECONDS)

    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_first_connection, listener, nursery.cancel_scope)
        from pidone.http.server import serve  # 2.8 MiB, where no task serves: loaded for the first request

        await serve(partial(answer, program), listeners, max_connections=MAX_CONNECTIONS)
    finally:
        for listener in listeners:  # else this process itself would hold the port when this part is restarted
            listener.socket.close()


async def _first_connection(listener: trio.SocketListener, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(listener.socket)
    scope.cancel()


async def answer(program: Program, request: Request) -> Response:
    """To one request. A ``/drain`` whose peer goes away goes on without it."""
    if request.path not in {"/status", "/drain"}:
        return text_response(404, "there are /status and /drain")
    if request.method not in {"GET", "HEAD"}:
        return text_response(405, "ask with GET", allow="GET, HEAD")
    if request.path == "/status" or request.method == "HEAD":
        return _json(document(program))
    return _json(await _drain(program))


async def _drain(program: Program) -> dict[str, Any]:
    """The end, begun by whomever, when it is over."""
    began, written = trio.current_time(), program.journal.written
    tasks = [state.task.name for state in program.engine.tasks]
    await program.drain("GET /drain")
    left = [state.task.name for state in program.engine.tasks]
    return {
        "undone": [name for name in tasks if name not in left],
        "left": left,
        "seconds": round(trio.current_time() - began, 3),
        "logs": list(program.journal.lines)[written - program.journal.written or RING :],
    }


def document(program: Program) -> dict[str, Any]:
    """The answer to ``/status``."""
    counters, tasks, states = program.counters, program.tasks(), list(program.engine.tasks)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "processes": processes() or None,
        "repo": {"urls": [redacted(url) for url in program.repos], "reached": counters.repo_up},
        "digest": counters.bundle_digest,
        "applied": counters.bundle_applied or None,
        "ending": program.engine.ending,
        **program.details(),
        "left": sorted(program.engine.left),
        "tasks": {
            state.task.name: encode_task(tasks[state.task.name]) | _more(state, states) for state in states
        },
        "logs": list(program.journal.lines)[-LOG_LINES:],
    }


def _more(state: TaskState, states: list[TaskState]) -> dict[str, Any]:
    now = trio.current_time()
    success = state.last_success
    return {
        "action": state.task.action,
        "stage": state.stage.value,
        "why": _why(state, states),
        "next": round(max(0.0, state.due - now), 3) if state.stage is Stage.DUE else None,
        "lastDuration": state.last_duration,
        "lastSuccess": None if success is None else round(time() - now + success, 3),
    }


def _why(state: TaskState, states: list[TaskState]) -> str:
    """Why it does not run, for people."""
    task = state.task
    match state.stage:
        case Stage.WAITING:
            return f"needs {waits_for(state, states)}"
        case Stage.PAUSING | Stage.PAUSED:
            return f"while {waits_for(state, states)}"
        case Stage.ARMED:
            return f"runs on {', '.join(map(str, task.run_on))}"
        case Stage.DUE:
            return (
                "failed, and is tried again"
                if state.streak
                else "its period"
                if task.every
                else "about to run"
            )
        case Stage.FINISHED:
            return f"restartPolicy {task.restart}" if task.restart != "Always" else "the pod ends"
        case Stage.FAILED:
            return f"backoffLimit {task.backoff_limit} is reached"
        case Stage.STOPPING | Stage.UNDOING:
            return "is taken back"
        case _:
            return ""


def _json(value: dict[str, Any]) -> Response:
    return Response(200, {"content-type": JSON}, json.dumps(value, separators=(",", ":")).encode() + b"\n")
