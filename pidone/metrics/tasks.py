"""Metrics of the plan, of all its tasks, and of the processes that were reaped. Actions add their own."""

import sys
from collections.abc import Iterable, Iterator
from time import time

import trio

from pidone import __version__
from pidone.counters import Counters, TaskView
from pidone.metrics.exposition import Family, counter, gauge
from pidone.metrics.labels import sees_other_cgroups
from pidone.pid1 import stages
from pidone.pid1.reaper import Reaper
from pidone.plan.model import Pod


def collect(pod: Pod, reaper: Reaper, counts: Counters, tasks: Iterable[TaskView]) -> Iterator[Family]:
    yield gauge("pidone_build_info", "Versions of pidone, Python and Trio; always 1.").add(
        1, version=__version__, python=sys.version.partition(" ")[0], trio=trio.__version__
    )
    yield gauge(
        "pidone_snapshot_info",
        "How Python was started: used, off, or why the snapshot was given up; always 1.",
    ).add(1, snapshot=stages.snapshot())
    counts.shared_pid_namespace = counts.shared_pid_namespace or sees_other_cgroups()
    shared = "true" if counts.shared_pid_namespace else "false"
    yield gauge("pidone_pod_info", "The pod of this process; always 1.").add(
        1, uid=pod.uid, node=pod.node, shared_pid_namespace=shared
    )
    reaped = counter("pidone_reaped_total", "Processes that ended and were reaped.")
    yield reaped.add(reaper.orphans, reason="orphan").add(reaper.children, reason="task")
    yield from _plan(counts)
    yield from _tasks(tasks)


def _plan(counts: Counters) -> Iterator[Family]:
    yield gauge("pidone_bundle_info", "The running plan; always 1.").add(1, digest=counts.bundle_digest)
    yield gauge(
        "pidone_bundle_applied_timestamp_seconds", "When the running plan was applied.", counts.bundle_applied
    )
    yield counter("pidone_bundle_fetches_total", "Requests to the repo for a bundle.", counts.bundle_fetches)
    yield counter(
        "pidone_bundle_fetch_failures_total",
        "Requests for a bundle that failed.",
        counts.bundle_fetch_failures,
    )
    yield counter(
        "pidone_bundle_rejections_total", "Bundles that this pod rejected.", counts.bundle_rejections
    )
    if counts.repo_up is not None:
        yield gauge("pidone_repo_up", "Whether the last request to the repo succeeded.", counts.repo_up)


def _tasks(tasks: Iterable[TaskView]) -> Iterator[Family]:
    epoch = time() - trio.current_time()
    info = gauge("pidone_task_info", "The tasks of the plan; always 1.")
    state = gauge("pidone_task_state", "The current state of each task; always 1.")
    runs = counter("pidone_task_runs_total", "Runs that were started.")
    failures = counter("pidone_task_failures_total", "Runs that failed.")
    restarts = counter("pidone_task_restarts_total", "Runs after the first, of tasks without a period.")
    duration = gauge("pidone_task_last_duration_seconds", "Duration of the last run.")
    success = gauge("pidone_task_last_success_timestamp_seconds", "Time of the last successful run.")
    for view in tasks:
        name = view.task.name
        info.add(1, task=name, kind=view.task.action)
        state.add(1, task=name, state=view.shown)
        runs.add(view.runs, task=name)
        failures.add(view.failures, task=name)
        if view.task.every is None:
            restarts.add(max(0, view.runs - 1), task=name)
        if view.last_duration is not None:
            duration.add(view.last_duration, task=name)
        if view.last_success is not None:
            success.add(epoch + view.last_success, task=name)
    yield from (info, state, runs, failures, restarts, duration, success)
