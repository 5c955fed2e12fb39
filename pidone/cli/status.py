"""``pidone status``: prints the status of this pod, which its process 1 serves on the loopback interface."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import trio

from pidone.cli.output import complain
from pidone.errors import PidoneError, Refused
from pidone.http.client import request
from pidone.http.urls import authority
from pidone.pod.settings import Settings
from pidone.text import printable

TIMEOUT_SECONDS = 5.0  # a process 1 that takes longer gets no processor time
LOG_LINES = 10  # of the journal, the newest


def status(port: int | None, *, as_json: bool) -> int:
    """Print the status. Exit code 0, or 1 if no pidone answers."""
    try:
        host, number = Settings.from_environment(os.environ).status_address()
        host, number = host or "127.0.0.1", port or number
        if not number:
            raise Refused("PIDONE_STATUS_PORT is 0, so this pod serves no status; give --port or change it")
        document = trio.run(_fetch, host, number)
    except PidoneError as error:
        complain(f"pidone status: {error}")
        return 1
    print(json.dumps(document, indent=2) if as_json else page(document))
    return 0


async def _fetch(host: str, port: int) -> dict[str, Any]:
    url = f"http://{authority(host, port)}/status"
    try:
        answer = await request("GET", url, timeout=TIMEOUT_SECONDS)
    except PidoneError as error:
        raise Refused(
            f"{error}; is pidone awake in this pod (without tasks it dozes and does not listen), "
            "and is this its port (PIDONE_STATUS_PORT, --port)?"
        ) from error
    try:
        document = json.loads(answer.body)
        page(document)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError):
        document = None
    if answer.status != 200 or document is None:
        raise Refused(
            f"{url} answers {answer.status}, and not as pidone does: another program uses this port"
        )
    return dict(document)


def page(document: Mapping[str, Any]) -> str:
    """Return the document of ``pidone.pod.local`` as text for people.

    Every text in it may be of others. Raises ``ValueError``, ``KeyError`` and the like for another document.
    """
    reached = {True: "reached", False: "not reached", None: "not asked yet"}
    repo = document["repo"]
    urls = ", ".join(repo["urls"])
    shared = "" if document["processes"] is None else f" of {document['processes']}"
    head = [
        f"pidone {document['version']}, process {document['pid']}{shared}",
        f"repo:  {urls}, {reached[repo['reached']]}" if urls else "repo:  none",
        f"plan:  {document['digest'] or 'none'}{since(', since ', document['applied'])}",
        f"phase: {document['phase']}{', and the end has begun' if document['ending'] else ''}",
    ]
    if document.get("maintenance"):
        head.append(f"out of service, by {', '.join(map(str, document['maintenance']))}")
    if document["after"]:
        head.append(f"the program before this one ended: {document['after']}")

    rows = [("TASK", "ACTION", "STATE", "SINCE", "NEXT", "RUNS", "FAILED", "LAST", "WHY")]
    for name, task in document["tasks"].items():
        rows.append(
            (
                name,
                task["action"],
                task["state"],
                since("", task["since"]),
                seconds(task["next"]),
                str(task["runs"]),
                str(task["failures"]),
                seconds(task["lastDuration"]),
                "; ".join(part for part in (task["why"], task["error"]) if part),
            )
        )
    table = columns(rows) if document["tasks"] else ["no tasks"]
    return "\n".join(
        [*map(printable, head), "", *table, "", *map(printable, document["logs"][-LOG_LINES:])]
    ).rstrip()


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as printable lines; each column is as wide as its widest value."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def since(before: str, moment: float | None) -> str:
    """Return ``before`` and the local time of day, with the date if it is not today; empty for None."""
    if moment is None:
        return ""
    local, today = datetime.fromtimestamp(moment, UTC).astimezone(), datetime.now(UTC).astimezone().date()
    return before + local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S")


def seconds(number: float | None) -> str:
    """Return a duration with its two leading digits, such as 85ms, 1.2s or 30s."""
    if number is None:
        return "-"
    return f"{number * 1000:.0f}ms" if number < 1 else f"{number:.1f}s" if number < 10 else f"{number:.0f}s"
