"""Collector ``tasks``: the plan, its tasks, and what process 1 reaped."""

import sys
from collections.abc import Iterable, Iterator
from time import time

import trio

from pidone import __version__
from pidone.counters import Counters, TaskView
from pidone.metrics.exposition import Family, counter, gauge
from pidone.pid1.reaper import Reaper
from pidone.plan.model import Pod


def collect(pod: Pod, reaper: Reaper, counts: Counters, tasks: Iterable[TaskView]) -> Iterator[Family]:
    yield gauge("pidone_build_info", "What this process is made of; always 1.").add(
        1, version=__version__, python=sys.version.partition(" ")[0], trio=trio.__version__
    )
    yield gauge("pidone_pod_info", "The pod that this process is part of; always 1.").add(
        1, uid=pod.uid, node=pod.node
    )
    reaped = counter("pidone_reaped_total", "Processes that ended and were collected.")
    yield reaped.add(reaper.orphans, reason="orphan").add(reaper.children, reason="task")
    yield from _plan(counts)
    yield from _tasks(tasks)


def _plan(counts: Counters) -> Iterator[Family]:
    yield gauge("pidone_bundle_info", "The plan that runs; always 1.").add(1, digest=counts.bundle_digest)
    yield gauge(
        "pidone_bundle_applied_timestamp_seconds", "When this plan was taken on.", counts.bundle_applied
    )
    yield counter("pidone_bundle_fetches_total", "Questions to the repo.", counts.bundle_fetches)
    yield counter(
        "pidone_bundle_fetch_failures_total", "Questions without an answer.", counts.bundle_fetch_failures
    )
    yield counter("pidone_bundle_rejections_total", "Plans that were refused.", counts.bundle_rejections)
    if counts.repo_up is not None:
        yield gauge("pidone_repo_up", "Whether the last question to the repo was answered.", counts.repo_up)


def _tasks(tasks: Iterable[TaskView]) -> Iterator[Family]:
    epoch = time() - trio.current_time()
    info = gauge("pidone_task_info", "The tasks of the plan; always 1.")
    state = gauge("pidone_task_state", "The state that a task is in; 1 for that state.")
    runs = counter("pidone_task_runs_total", "Runs begun.")
    failures = counter("pidone_task_failures_total", "Runs that failed.")
    restarts = counter("pidone_task_restarts_total", "Runs begun again, of tasks that have no period.")
    duration = gauge("pidone_task_last_duration_seconds", "How long the last run took.")
    success = gauge("pidone_task_last_success_timestamp_seconds", "When a run was good the last time.")
    healthy = gauge("pidone_probe_success", "Whether the application is healthy by this probe.")
    registered = gauge("pidone_registration_up", "Whether the registry holds the registration.")
    beats = counter("pidone_heartbeats_total", "Heartbeats tried.")
    missed = counter("pidone_heartbeat_failures_total", "Heartbeats that failed.")
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
        match view.task.action:
            case "probe":
                healthy.add(view.state == "healthy", task=name)
            case "register":
                registry = next((key for key in view.task.config if key != "follow"), "")
                registered.add(view.state == "registered", task=name, registry=registry)
            case "heartbeat":
                beats.add(view.runs, task=name)
                missed.add(view.failures, task=name)
    yield from (info, state, runs, failures, restarts, duration, success, healthy, registered, beats, missed)
