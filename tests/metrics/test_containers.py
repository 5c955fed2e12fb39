"""The collector ``containers`` in a PID namespace, beside the kernel's own accounts: cgroups, /proc and ps."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pidone.metrics import containers, proc
from pidone.metrics.containers import ContainerProcesses
from pidone.metrics.exposition import Family
from pidone.metrics.labels import Facts
from pidone.pid1.reaper import Reaper
from tests import pidns
from tests.patience import PATIENCE_SECONDS

CGROUPS = Path("/sys/fs/cgroup")
UNIFIED = (CGROUPS / "cgroup.controllers").exists()
TREES = [CGROUPS] if UNIFIED else [CGROUPS / "cpuacct", CGROUPS / "pids"]
TICK = 1 / os.sysconf("SC_CLK_TCK")

needs_cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or not all(os.access(tree, os.W_OK) for tree in TREES),
    reason="no container can be made: run as root, with cgroups",
)

Page = dict[tuple[str, ...], float]


class Pod:
    """Containers, whose first processes have no parent in the PID namespace, as a runtime starts them."""

    def __init__(self, folder: str, names: list[str], *, privileged: bool) -> None:
        self.ids = {name: secrets.token_hex(32) for name in names}
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._input: IO[bytes] | None = None
        # a process reads more of another one only if it has all of its capabilities
        lower = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        self._drop = [] if privileged else lower
        program = [sys.executable, "-m", "tests.metrics.sampling_pod", json.dumps(self.ids)]
        self.process = subprocess.Popen(
            [*pidns.way()[1], *self._drop, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.page()  # it has started
        (self.pid,) = [child.pid for child in psutil.Process(self.process.pid).children()]

    def page(self) -> Page:
        families = text_string_to_metric_families(self.text().decode())
        return {
            (sample.name.removeprefix("pidone_"), *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }

    def text(self) -> bytes:
        """Return a page of this moment."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != b"# EOF\n":
            assert line, "process 1 has ended"
            lines.append(line)
        return b"".join(lines)

    def start(
        self, name: str, *command: str, user: int = 0, cgroup: str = "", stdin: bool = False
    ) -> psutil.Process:
        """Start a process of a container, as a runtime does. Return its first process. It may read from ``send``."""
        places = [tree / self._folder / self.ids[name] / cgroup for tree in TREES]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        join = " && ".join(f"echo 0 > {shlex.quote(str(place))}/cgroup.procs" for place in places)
        become = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount"]
        shell = [*self._drop, "setsid", "sh", "-c", f'{join} && exec "$@"', "sh", *become]
        source = subprocess.PIPE if stdin else subprocess.DEVNULL
        runtime = subprocess.Popen([*enter, *shell, *command], stdin=source)
        self._started.append(runtime)
        self._input = runtime.stdin or self._input
        children: list[psutil.Process] = []
        while not children:
            assert runtime.poll() is None, "it has ended"
            children = psutil.Process(runtime.pid).children()
        return children[0]

    def send(self, data: bytes) -> None:
        assert self._input
        self._input.write(data)
        self._input.flush()

    def usage(self, name: str) -> float:
        """Return the CPU seconds that the kernel has counted for a container."""
        place = TREES[0] / self._folder / self.ids[name]
        if not UNIFIED:
            return int((place / "cpuacct.usage").read_text()) / 1e9
        return int((place / "cpu.stat").read_text().split()[1]) / 1e6

    def end(self) -> None:
        self.process.kill()
        if self._input:
            self._input.close()
        for runtime in self._started:
            runtime.wait(PATIENCE_SECONDS)
        self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        for tree in TREES:
            until(lambda top=tree / self._folder: _removed(top))  # type: ignore[misc]


def _removed(folder: Path) -> bool:
    """Remove a tree of cgroups; False while processes of it are ending."""
    try:
        for path, _, _ in os.walk(folder, topdown=False):
            Path(path).rmdir()
    except OSError:
        return False
    return True


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def pod_of(*names: str, privileged: bool = True) -> Iterator[Pod]:
    pod = Pod(f"pidone-metrics-{os.getpid()}-{secrets.token_hex(4)}", list(names), privileged=privileged)
    try:
        yield pod
    finally:
        pod.end()


def cpu(page: Page, label: str) -> float:
    return sum(value for name, value in page.items() if name[:2] == ("cpu_seconds_total", label))


LOOP = "n=0; while [ $n -lt {} ]; do n=$((n+1)); done"
BURN, LONG_BURN = LOOP.format(4000), LOOP.format(200_000)  # milliseconds; several ticks
# Each ends in one long sleep, after it has forked 100 children.
STORMS = {
    "waits": f"i=0; while [ $i -lt 100 ]; do ({BURN}); i=$((i+1)); done; exec sleep 100000",
    # each child is an orphan from its beginning on
    "orphans": f"i=0; while [ $i -lt 100 ]; do ( ({BURN}) & ); i=$((i+1)); done; exec sleep 100000",
    # each child has children of its own, and leaves one to process 1
    "trees": f"i=0; while [ $i -lt 30 ]; do ( ({BURN}) & ({BURN}); ({BURN}) ); i=$((i+1)); done; exec sleep 100000",
}


@needs_cgroups
@pytest.mark.pidns
def test_containers_that_fork_all_the_time_have_the_cpu_that_the_kernel_has_counted() -> None:
    with pod_of(*STORMS) as pod:
        first = {name: pod.start(name, "sh", "-c", script) for name, script in STORMS.items()}
        before: Page = {}
        while not all(process.name() == "sleep" for process in first.values()):
            page = pod.page()
            backwards = {
                name: (value, page[name])
                for name, value in before.items()
                if name[0].endswith("_total") and page[name] < value
            }
            assert not backwards
            before = page
        until(lambda: pod.page()[("zombies",)] == 0)
        until(lambda: len(psutil.Process(pod.pid).children()) == 0)  # the orphans have ended

        page = pod.page()
        for name in STORMS:
            # what /proc shows is rounded down for the process, and for its children, to a tick each
            assert pod.usage(name) - 6 * TICK <= cpu(page, name) <= pod.usage(name) + TICK, name
        assert cpu(page, "UNKNOWN") == 0


@needs_cgroups
@pytest.mark.pidns
def test_a_container_that_ends_keeps_what_was_seen_and_its_successor_goes_on() -> None:
    with pod_of("app") as pod:
        process = pod.start("app", "sh", "-c", f"{LONG_BURN}; exec sleep 100000")
        until(lambda: process.name() == "sleep")
        used = cpu(pod.page(), "app")
        assert used > 0
        process.kill()
        until(lambda: not any(name[:2] == ("processes", "app") for name in pod.page()))
        page = pod.page()
        assert cpu(page, "app") == pytest.approx(used)
        assert not any(name[1:2] == ("app",) and not name[0].endswith("_total") for name in page)

        process = pod.start("app", "sh", "-c", f"{LONG_BURN}; exec sleep 100000")
        until(lambda: process.name() == "sleep")
        assert cpu(pod.page(), "app") == pytest.approx(pod.usage("app"), abs=6 * TICK)


@needs_cgroups
@pytest.mark.pidns
def test_a_daemon_that_nobody_saw_is_of_the_pods_only_container_or_unknown() -> None:
    daemon = ["sh", "-c", f"setsid sh -c '({LONG_BURN}) & exit 0'; exec sleep 100000"]
    for names, label in [(["app"], "app"), (["app", "other"], "app" if UNIFIED else "UNKNOWN")]:
        with pod_of(*names) as pod:
            process = pod.start("app", *daemon)
            until(lambda process=process: process.name() == "sleep")  # type: ignore[misc]
            until(lambda pod=pod: not psutil.Process(pod.pid).children())  # type: ignore[misc]
            page = pod.page()
            assert cpu(page, "app") + cpu(page, "UNKNOWN") == pytest.approx(pod.usage("app"), abs=6 * TICK)
            assert cpu(page, label) > 0


HOLDER = "import sys, threading, time, os; from pathlib import Path\n{}\nprint('ready', flush=True)\ntime.sleep(1e5)"


@needs_cgroups
@pytest.mark.pidns
def test_a_container_at_rest_is_as_proc_and_ps_show_it(tmp_path: Path) -> None:
    work = f"""
files = [open('/dev/null') for _ in range(40)]
for _ in range(3): threading.Thread(target=time.sleep, args=(1e5,), daemon=True).start()
with open('{tmp_path}/file', 'wb') as file: file.write(bytes(1 << 20)); file.flush(); os.fsync(file.fileno())
Path('{tmp_path}/ready').touch()
"""
    with pod_of("app") as pod:
        process = pod.start("app", sys.executable, "-c", HOLDER.format(work))
        until((tmp_path / "ready").exists)
        until(lambda: process.status() == psutil.STATUS_SLEEPING)
        page = pod.page()
        assert page["processes", "app", "sleeping"] == 1
        assert page["threads", "app"] == process.num_threads() == 4
        assert page["open_fds", "app"] == process.num_fds()
        limit = process.rlimit(psutil.RLIMIT_NOFILE)[0]
        assert page["fd_worst_ratio", "app"] == pytest.approx(process.num_fds() / limit)
        assert page["memory_resident_bytes", "app"] == process.memory_info().rss
        ps = subprocess.check_output(["ps", "-o", "rss=,nlwp=,maj_flt=", "-p", str(process.pid)], text=True)
        assert page["memory_resident_bytes", "app"] == int(ps.split()[0]) * 1024
        assert page["major_page_faults_total", "app"] == int(ps.split()[2])
        assert page["memory_swap_bytes", "app"] == 0
        assert page["disk_written_bytes_total", "app"] == process.io_counters().write_bytes >= 1 << 20
        assert page["disk_read_bytes_total", "app"] == process.io_counters().read_bytes
        switches = process.num_ctx_switches()
        assert page["context_switches_total", "app", "voluntary"] == switches.voluntary
        started = page["oldest_process_start_time_seconds", "app"]
        assert started == pytest.approx(process.create_time(), abs=2)
        assert page[("processes_visible",)] == 1
        assert page[("processes_omitted",)] == 0
        assert page["processes", "POD", "running"] == 1


@needs_cgroups
@pytest.mark.pidns
@pytest.mark.process_exporter
@pytest.mark.skipif(
    shutil.which("prometheus-process-exporter") is None,
    reason="no process-exporter: apt-get install --no-install-recommends prometheus-process-exporter",
)
def test_process_exporter_shows_the_same(free_port: Callable[[], int]) -> None:
    """It runs in the pod, and groups processes by name. So each container has programs of its own."""
    address = f"127.0.0.1:{free_port()}"
    with pod_of("sleeps", "burns", "exporter") as pod:
        for _ in range(3):
            pod.start("sleeps", "sleep", "100000")
        burner = pod.start("burns", "bash", "-c", f"read; {LONG_BURN}; read", stdin=True)
        options = ["-procnames=sleep,bash", f"-web.listen-address={address}"]
        pod.start("exporter", "prometheus-process-exporter", *options)
        until(lambda: _scraped(address).get(("num_procs", "sleep")) == 3)
        until(lambda: pod.page().get(("processes", "sleeps", "sleeping")) == 3)

        page, theirs = pod.page(), _scraped(address)
        for label, group in (("sleeps", "sleep"), ("burns", "bash")):
            # it reads the field of /proc/PID/stat that lags behind
            resident = pytest.approx(theirs["memory_bytes", group, "resident"], rel=0.25)
            assert page["memory_resident_bytes", label] == resident
            assert page["open_fds", label] == theirs["open_filedesc", group]
            assert page["threads", label] == theirs["num_threads", group]
            assert page["fd_worst_ratio", label] == pytest.approx(theirs["worst_fd_ratio", group])
            started = page["oldest_process_start_time_seconds", label]
            assert started == pytest.approx(theirs["oldest_start_time_seconds", group], abs=2)

        pod.send(b"\n")
        until(lambda: burner.cpu_times().user >= 2 * TICK)
        until(lambda: burner.status() == psutil.STATUS_SLEEPING)
        later, theirs_later = pod.page(), _scraped(address)
        for mode in ("user", "system"):
            used = later["cpu_seconds_total", "burns", mode] - page["cpu_seconds_total", "burns", mode]
            cpu_of = [each.get(("cpu_seconds_total", "bash", mode), 0.0) for each in (theirs, theirs_later)]
            assert used == pytest.approx(cpu_of[1] - cpu_of[0], abs=2 * TICK)


def _scraped(address: str) -> Page:
    """Return the page of process-exporter; empty while it starts."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_SECONDS) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        (sample.name.removeprefix("namedprocess_namegroup_"), *_ordered(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _ordered(labels: dict[str, str]) -> list[str]:
    """Return the values of labels, the group's name first."""
    return [labels[name] for name in sorted(labels, key=lambda name: (name != "groupname", name))]


@needs_cgroups
@pytest.mark.pidns
def test_what_belongs_to_another_user_is_left_out_and_said() -> None:
    with pod_of("own", "other", privileged=False) as pod:
        own = pod.start("own", "sleep", "100000")
        stranger = pod.start("other", "sleep", "100000", user=65534)
        until(lambda: own.name() == stranger.name() == "sleep")
        page = pod.page()
        assert page["disk_read_bytes_total", "own"] >= 0
        assert ("disk_read_bytes_total", "other") not in page
        assert ("disk_written_bytes_total", "other") not in page
        assert page["processes_unreadable", "other", "io"] == 1
        assert page["memory_resident_bytes", "other"] == stranger.memory_info().rss
        assert cpu(page, "other") == pytest.approx(pod.usage("other"), abs=6 * TICK)


@needs_cgroups
@pytest.mark.pidns
@pytest.mark.promtool
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_promtool_has_nothing_to_say() -> None:
    with pod_of("app", "other", privileged=False) as pod:
        pod.start("app", "sleep", "100000")
        pod.start("other", "sleep", "100000", user=65534)
        until(lambda: ("processes_unreadable", "other", "io") in pod.page())
        command = ["promtool", "check", "metrics"]
        check = subprocess.run(command, input=pod.text(), capture_output=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


@needs_cgroups
@pytest.mark.pidns
def test_zombies_are_counted_where_they_belong() -> None:
    with pod_of("app", "other") as pod:
        process = pod.start(
            "app", sys.executable, "-c", "import os, time\nos.fork() or os._exit(0)\ntime.sleep(1e5)"
        )
        pod.start("other", "sleep", "100000")
        until(lambda: any(child.status() == psutil.STATUS_ZOMBIE for child in process.children()))
        page = pod.page()
        assert page[("zombies",)] == 1
        assert page["processes", "app", "zombie"] == 1


@needs_cgroups
@pytest.mark.pidns
def test_odd_names_of_processes_and_cgroups_mislead_nobody() -> None:
    rename = "open('/proc/self/comm', 'wb').write({!r})"
    with pod_of("app", "other") as pod:
        names = [b") R 1 1 (", b"\nVmSwap: 9 kB", b"\xff) (", b"a b) Z 0"]
        for name in names:
            work = rename.format(name)
            pod.start("app", sys.executable, "-c", f"import time\n{work}\ntime.sleep(1e5)")
        # a container that may write its cgroup takes another one's name
        pod.start("app", "sleep", "100000", cgroup=pod.ids["other"])
        pod.start("app", "sleep", "100000", cgroup='x"{y} \\')
        until(lambda: pod.page().get(("processes", "app", "sleeping")) == len(names) + 2)
        page = pod.page()
        assert page["memory_swap_bytes", "app"] == 0
        assert not any(name[1:2] == ("other",) for name in page)
        assert not any(name[1:2] == ("UNKNOWN",) for name in page)


@needs_cgroups
@pytest.mark.pidns
def test_a_container_that_gets_its_name_later_keeps_its_counters() -> None:
    with pod_of() as pod:
        pod.ids["app"] = container = secrets.token_hex(32)
        process = pod.start("app", "sh", "-c", f"{LONG_BURN}; exec sleep 100000")
        until(lambda: process.name() == "sleep")
        assert cpu(pod.page(), container[:12]) == pytest.approx(pod.usage("app"), abs=6 * TICK)
        process.kill()
        until(
            lambda: not cpu(pod.page(), container[:12])
        )  # without a name the counter ends with its processes


def values_of(families: Iterator[Family | None]) -> Page:
    return {
        (family.name.removeprefix("pidone_"), *labels.values()): value
        for family in families
        if family is not None
        for labels, value in family.samples
    }


def test_processes_above_the_limit_are_omitted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a PID namespace of its own, the collector takes the processes of its cgroup alone."""
    monkeypatch.setattr(containers, "MAX_PROCESSES", 1)
    monkeypatch.setattr(proc, "pids", lambda: [os.getppid(), os.getpid(), *range(1_000_000, 1_000_005)])
    reaper = Reaper()
    collector = ContainerProcesses(reaper, Facts("", dict))
    monkeypatch.setattr(collector._labels, "_alone", True)
    first = values_of(collector.collect())
    assert first[("processes_omitted",)] == 6
    assert sum(value for name, value in first.items() if name[0] == "processes") == 1
    second = values_of(collector.collect())
    (started,) = [name for name in first if name[0] == "oldest_process_start_time_seconds"]
    assert second[started] == first[started], "another process was read than before"


def test_processes_of_other_pods_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (
        "0::/kubepods/pod" + "-".join(letter * size for size in (8, 4, 4, 4, 12)) for letter in "ab"
    )
    cgroups = {
        "self": ours + "/sandbox",
        5: ours + "/" + "c" * 64,
        6: theirs + "/" + "d" * 64,
        7: "0::/system.slice",
    }
    read = proc.read
    monkeypatch.setattr(
        proc,
        "read",
        lambda pid, name: cgroups[pid].encode() if name == "cgroup" else read("self", name),
    )
    monkeypatch.setattr(proc, "pids", lambda: [5, 6, 7])
    page = values_of(ContainerProcesses(Reaper(), Facts("", dict)).collect())
    labels = {name[1] for name in page if name[0] == "processes"}
    assert labels == {"c" * 12}
