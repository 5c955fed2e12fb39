"""Writes the list of metrics in docs/metrics.md, from its heading to the end of the file: ``make schema``.

Name, kind and help of a metric are literals in the code of the pod. What only the document says stands here, so that it
costs pods no memory. Both must have the same metrics.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADING = "## All metrics"
_INTRODUCTION = f"""{HEADING}

`make schema` generates this list from the code. Every counter ends in `_total`. The label `container` is the name of a
container, `POD`, `UNKNOWN` or a short ID; see [Containers](#containers).
"""
_FOLDERS = ("metrics", "actions")
_STAT, _STATUS = "/proc/PID/stat", "/proc/PID/status"
_UNSEEN = "no process of the container is visible"
_OTHER_USER = "a process of the container belongs to another user, or has capabilities that process 1 lacks"


@dataclass(frozen=True, slots=True)
class Description:
    """What only the document says of a metric."""

    source: str
    missing: str = "never"  # when the metric is missing
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """What the code says of a metric."""

    name: str
    kind: str
    help: str

    @property
    def unit(self) -> str:
        """The unit, by the end of the name (https://prometheus.io/docs/practices/naming/)."""
        name = self.name.removesuffix("_total")
        if self.name.endswith("_time_seconds") or name.endswith("_timestamp_seconds"):
            return "seconds since 1970"
        units = {"_seconds": "seconds", "_bytes": "bytes", "_ratio": "ratio", "_info": "always 1"}
        return next((unit for end, unit in units.items() if name.endswith(end)), "number")


def _of_container(source: str, missing: str = _UNSEEN, *labels: str) -> Description:
    return Description(source, missing, ("container", *labels))


def _of_cgroup(version_2: str, version_1: str, *labels: str, missing: str = "") -> Description:
    unreadable = "the container's cgroup file system cannot be read"
    source = version_2 if version_1 == version_2 else f"{version_2}; v1: {version_1 or 'nothing'}"
    return Description(
        source, f"{missing}, or {unreadable}" if missing else unreadable, ("container", *labels)
    )


_PRESSURE = ("cpu.pressure, memory.pressure, io.pressure", "", "resource")
_NETWORK = Description("/proc/net/dev", labels=("device",))
_TASK = Description("the engine", "the plan has no task", ("task",))


def _of_registration(source: str, *labels: str, missing: str = "the plan has no registration") -> Description:
    return Description(source, missing, ("task", "registry", "target", *labels))


def _of_idle(*labels: str, missing: str = "the plan has no idle task") -> Description:
    return Description("a task with `idle`", missing, ("task", *labels))


GROUPS: dict[str, dict[str, Description]] = {
    "process": {
        "process_cpu_seconds_total": Description("/proc/self/stat"),
        "process_resident_memory_bytes": Description("/proc/self/stat"),
        "process_virtual_memory_bytes": Description("/proc/self/stat"),
        "process_start_time_seconds": Description("/proc/self/stat, /proc/stat"),
        "process_open_fds": Description("/proc/self/fd"),
        "process_max_fds": Description("/proc/self/limits"),
    },
    "containers": {
        "pidone_processes": _of_container(_STAT, _UNSEEN, "state"),
        "pidone_threads": _of_container(_STAT),
        "pidone_cpu_seconds_total": _of_container(f"{_STAT}, wait4(2) of orphans", _UNSEEN, "mode"),
        "pidone_memory_resident_bytes": _of_container(_STATUS),
        "pidone_memory_swap_bytes": _of_container(_STATUS),
        "pidone_major_page_faults_total": _of_container(f"{_STAT}, wait4(2) of orphans"),
        "pidone_context_switches_total": _of_container(_STATUS, _UNSEEN, "kind"),
        "pidone_open_fds": _of_container("/proc/PID/fd", f"{_OTHER_USER}, before Linux 6.2"),
        "pidone_fd_worst_ratio": _of_container("/proc/PID/fd, limits", f"{_OTHER_USER}, before Linux 6.2"),
        "pidone_disk_read_bytes_total": _of_container("/proc/PID/io, wait4(2) of orphans", _OTHER_USER),
        "pidone_disk_written_bytes_total": _of_container("/proc/PID/io, wait4(2) of orphans", _OTHER_USER),
        "pidone_oldest_process_start_time_seconds": _of_container(_STAT),
        "pidone_processes_unreadable": _of_container("/proc/PID", "all files can be read", "file"),
        "pidone_zombies": Description(_STAT),
        "pidone_processes_visible": Description("/proc"),
        "pidone_processes_omitted": Description("/proc"),
    },
    "network": {
        "pidone_network_receive_bytes_total": _NETWORK,
        "pidone_network_receive_errs_total": _NETWORK,
        "pidone_network_receive_drop_total": _NETWORK,
        "pidone_network_transmit_bytes_total": _NETWORK,
        "pidone_network_transmit_errs_total": _NETWORK,
        "pidone_network_transmit_drop_total": _NETWORK,
        "pidone_tcp_connections": Description(
            "sock_diag(7), /proc/net/sockstat; else /proc/net/tcp, tcp6",
            "no socket is in that state",
            ("state",),
        ),
        "pidone_tcp_connections_omitted": Description("the same"),
        "pidone_tcp_retransmitted_segments_total": Description(
            "/proc/net/snmp", "the kernel has no such line"
        ),
        "pidone_tcp_listen_overflows_total": Description("/proc/net/netstat", "the kernel has no such line"),
    },
    "tasks": {
        "pidone_build_info": Description("this process", labels=("version", "python", "trio")),
        "pidone_snapshot_info": Description("how this process was started", labels=("snapshot",)),
        "pidone_pod_info": Description(
            "the repo; /proc/PID/cgroup", labels=("uid", "node", "shared_pid_namespace")
        ),
        "pidone_reaped_total": Description("waitpid(2)", labels=("reason",)),
        "pidone_bundle_info": Description("the repo", labels=("digest",)),
        "pidone_bundle_applied_timestamp_seconds": Description("the repo"),
        "pidone_bundle_fetches_total": Description("the repo"),
        "pidone_bundle_fetch_failures_total": Description("the repo"),
        "pidone_bundle_rejections_total": Description("the repo"),
        "pidone_repo_up": Description("the repo", "no repo is configured, or none has answered yet"),
        "pidone_task_info": Description("the engine", "the plan has no task", ("task", "kind")),
        "pidone_task_state": Description("the engine", "the plan has no task", ("task", "state")),
        "pidone_task_runs_total": _TASK,
        "pidone_task_failures_total": _TASK,
        "pidone_task_restarts_total": Description("the engine", "the task has `every`", ("task",)),
        "pidone_task_last_duration_seconds": Description("the engine", "no run has ended", ("task",)),
        "pidone_task_last_success_timestamp_seconds": Description(
            "the engine", "no run has succeeded", ("task",)
        ),
        "pidone_probe_success": Description("a task with `probe`", "the plan has no probe", ("task",)),
        "pidone_registration_up": _of_registration("answers of the registry"),
        "pidone_registration_status": _of_registration(
            "answers of the registry", "status", missing="the registry has not answered yet"
        ),
        "pidone_registration_endpoint": _of_registration("a task with `register`", "endpoint"),
        "pidone_registration_heartbeat_age_seconds": _of_registration(
            "answers of the registry", missing="no heartbeat was accepted yet"
        ),
        "pidone_registration_lease_seconds": _of_registration("answers of the registry"),
        "pidone_registration_backoff_seconds": _of_registration("a task with `register`"),
        "pidone_registrations_total": _of_registration("answers of the registry", "reason"),
        "pidone_heartbeats_total": _of_registration("answers of the registry", "result"),
        "pidone_idle": _of_idle(),
        "pidone_idle_seconds_total": _of_idle("state"),
        "pidone_idle_wakes_total": _of_idle("reason", missing="the application was never frozen"),
        "pidone_idle_blinks_total": _of_idle(),
        "pidone_idle_undone_total": _of_idle(),
        "pidone_idle_would_freeze_total": _of_idle(missing="the task freezes"),
    },
    "cgroup": {
        "pidone_cgroup_memory_bytes": _of_cgroup("memory.current", "memory.usage_in_bytes"),
        "pidone_cgroup_memory_limit_bytes": _of_cgroup(
            "memory.max", "memory.limit_in_bytes", missing="there is no limit"
        ),
        "pidone_cgroup_cpu_seconds_total": _of_cgroup("cpu.stat", "cpuacct.usage"),
        "pidone_cgroup_cpu_throttled_seconds_total": _of_cgroup("cpu.stat", "cpu.stat"),
        "pidone_cgroup_pressure_waiting_seconds_total": _of_cgroup(*_PRESSURE),
        "pidone_cgroup_pressure_stalled_seconds_total": _of_cgroup(*_PRESSURE),
        "pidone_cgroup_oom_kills_total": _of_cgroup(
            "memory.events", "memory.oom_control", missing="before Linux 4.13"
        ),
    },
    "every page": {
        "pidone_collector_success": Description("this page", labels=("collector",)),
        "pidone_series_omitted": Description("this page"),
        "pidone_scrape_duration_seconds": Description("this page"),
    },
}


def metrics(folder: Path) -> dict[str, Metric]:
    """Return the metrics of the pod by name: the calls of ``gauge`` and its like in the package at ``folder``."""
    found = {}
    for part in _FOLDERS:
        for file in sorted((folder / part).glob("*.py")):
            for call in ast.walk(ast.parse(file.read_text())):
                if isinstance(call, ast.Call) and (metric := _metric(call)):
                    found[metric.name] = metric
    return found


def _metric(call: ast.Call) -> Metric | None:
    kinds = {"gauge": "gauge", "counter": "counter", "counter_by": "counter"}
    kind = kinds.get(call.func.id) if isinstance(call.func, ast.Name) else None
    texts = [
        each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    names = [index for index, text in enumerate(texts) if text.startswith(("pidone_", "process_"))]
    if kind is None or not names:
        return None
    return Metric(texts[names[0]], kind, texts[names[0] + 1])


def reference(folder: Path) -> str:
    """Return the list. Raises ``ValueError`` if code and descriptions do not have the same metrics."""
    code = metrics(folder)
    described = [name for group in GROUPS.values() for name in group]
    if different := sorted(set(described) ^ set(code)):
        raise ValueError(
            f"{', '.join(different)}: in the code or in pidone/generate/metrics.py, and not in the other"
        )
    parts = [_INTRODUCTION]
    for group, descriptions in GROUPS.items():
        heading = f"the collector {group}" if group != "every page" else group
        parts.append(
            f"### {heading[0].upper()}{heading[1:]}\n\n" + "\n".join(_table(code, descriptions)) + "\n"
        )
    return "\n".join(parts)


def _table(code: dict[str, Metric], descriptions: dict[str, Description]) -> Iterator[str]:
    yield "| metric | labels | kind, unit | meaning | source | missing if |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, description in descriptions.items():
        metric = code[name]
        labels = ", ".join(f"`{label}`" for label in description.labels)
        facts = [f"{metric.kind}, {metric.unit}", metric.help, description.source, description.missing]
        yield " | ".join([f"| `{name}`", labels, *facts]) + " |"


def with_reference(text: str) -> str:
    """Return the document with its list made anew."""
    return text.partition(HEADING)[0] + reference(Path(__file__).parents[1])


def main(path: str) -> int:
    file = Path(path)
    file.write_text(with_reference(file.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
