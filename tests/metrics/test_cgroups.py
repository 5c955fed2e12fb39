"""The collector ``cgroup``: version 1 on real cgroups, version 2 on trees after the kernel's documentation."""

import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from pidone.metrics import cgroups
from pidone.metrics.cgroups import ContainerCgroups, Figures, Mount, mounts, read
from pidone.metrics.exposition import render
from pidone.metrics.labels import Facts
from pidone.plan.model import Container
from tests.metrics.test_containers import CGROUPS, LONG_BURN, Page, needs_cgroups, pod_of, until, values_of

# Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst of Linux 6.12
VERSION_2 = {
    "memory.current": "52428800\n",
    "memory.max": "134217728\n",
    "memory.events": "low 0\nhigh 12\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 12500000\nuser_usec 10000000\nsystem_usec 2500000\ncore_sched.force_idle_usec 0\n"
    "nr_periods 100\nnr_throttled 7\nthrottled_usec 250000\nnr_bursts 0\nburst_usec 0\n",
    "cpu.pressure": "some avg10=0.12 avg60=0.00 avg300=0.00 total=3000000\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=20\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
}
# Documentation/admin-guide/cgroup-v1 and Documentation/scheduler/sched-bwc.rst
VERSION_1 = {
    "memory": {
        "memory.usage_in_bytes": "52428800\n",
        "memory.limit_in_bytes": "134217728\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    },
    "cpu": {"cpu.stat": "nr_periods 100\nnr_throttled 7\nthrottled_time 250000000\n"},
    "cpuacct": {"cpuacct.usage": "12500000000\n"},
}


def write(folder: Path, files: dict[str, str]) -> Mount:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    controllers = frozenset() if files is VERSION_2 else frozenset({folder.name})
    return Mount(f"/{folder.name}", os.stat(folder).st_dev, "/", controllers)


@pytest.fixture
def unified(tmp_path: Path) -> Mount:
    return write(tmp_path / "unified", VERSION_2)


def test_version_2_is_read(tmp_path: Path, unified: Mount) -> None:
    assert read(str(tmp_path), [unified]) == Figures(
        memory=52428800,
        memory_limit=134217728,
        cpu=12.5,
        throttled=0.25,
        oom_kills=1,
        waiting={"cpu": 3.0, "memory": 0.00002, "io": 0.0},
        stalled={"cpu": 1.0, "memory": 0.00001, "io": 0.0},
    )


def test_version_1_is_read(tmp_path: Path) -> None:
    found = [write(tmp_path / name, files) for name, files in VERSION_1.items()]
    assert read(str(tmp_path), found) == Figures(
        memory=52428800, memory_limit=134217728, cpu=12.5, throttled=0.25, oom_kills=1
    )


def test_without_limits_and_controllers_nothing_is_made_up(tmp_path: Path, unified: Mount) -> None:
    folder = tmp_path / "unified"
    (folder / "memory.max").write_text("max\n")
    (folder / "cpu.stat").write_text(
        "usage_usec 5\nuser_usec 5\nsystem_usec 0\n"
    )  # the controller cpu is off
    for name in ("cpu.pressure", "io.pressure", "memory.pressure", "memory.events"):
        (folder / name).unlink()
    assert read(str(tmp_path), [unified]) == Figures(memory=52428800, cpu=0.000005)
    memory = write(tmp_path / "memory", {"memory.limit_in_bytes": "9223372036854771712\n"})
    assert read(str(tmp_path), [memory]) == Figures()


def test_a_container_that_puts_other_files_in_their_place_stops_nobody(
    tmp_path: Path, unified: Mount
) -> None:
    folder = tmp_path / "unified"
    (folder / "memory.current").unlink()
    os.mkfifo(folder / "memory.current")
    (folder / "memory.max").unlink()
    (folder / "memory.max").symlink_to("/proc/sys/kernel/pid_max")
    (folder / "cpu.stat").write_bytes(b"usage_usec \xff\n" + bytes(100_000))
    (folder / "memory.events").write_text("oom_kill -1\noom_kill\n")
    (folder / "cpu.pressure").write_text("some total=\nfull total=x\n\n")
    found = read(str(tmp_path), [unified])
    assert found.waiting.keys() == {"memory", "io"}
    assert (found.memory, found.memory_limit, found.cpu, found.oom_kills) == (None,) * 4
    assert read(str(tmp_path), [unified._replace(device=unified.device + 1)]) == Figures()


@pytest.mark.promtool
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_promtool_has_nothing_to_say(tmp_path: Path, unified: Mount) -> None:
    page = render(cgroups._families({"app": read(str(tmp_path), [unified])}))
    assert page.count(b"# TYPE") == 7
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def families_of(pid: int, container: str) -> Page:
    facts = Facts("", lambda: {"app": Container(f"test://{container}", started=True)})
    return values_of(ContainerCgroups(facts).collect())


@needs_cgroups
@pytest.mark.pidns
@pytest.mark.skipif(not (CGROUPS / "memory").exists(), reason="these cgroups are version 2")
def test_version_1_of_a_container_is_as_the_kernel_shows_it_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    with pod_of("app") as pod:
        container = pod.ids["app"]
        places = {name: CGROUPS / name / pod._folder / container for name in ("memory", "cpu", "cpuacct")}
        places["memory"].mkdir(parents=True)
        places["cpu"].mkdir(parents=True)
        (places["memory"] / "memory.limit_in_bytes").write_text(str(64 << 20))
        below = {name: str(place).replace(str(CGROUPS), "/mnt") for name, place in places.items()}
        folders = {name: CGROUPS / name for name in places}
        # as runc mounts them: a tmpfs, with the container's own cgroups in it
        script = " && ".join(
            [
                "mount --rbind /sys/fs/cgroup /mnt",
                "mount -t tmpfs tmpfs /sys/fs/cgroup",
                *(f"mkdir {folders[name]} && mount --bind {below[name]} {folders[name]}" for name in places),
                "umount -l /mnt",
                f"( {LONG_BURN} )",
                "exec sleep 100000",
            ]
        )
        joins = " && ".join(f"echo 0 > {places[name]}/cgroup.procs" for name in ("memory", "cpu"))
        process = pod.start("app", "sh", "-c", f"{joins} && exec unshare --mount sh -c '{script}'")
        until(lambda: process.name() == "sleep")
        assert {mount.folder.rpartition("/")[2] for mount in mounts(process.pid)} == places.keys()

        page = families_of(process.pid, container)
        usage = int((places["memory"] / "memory.usage_in_bytes").read_text())
        assert page["cgroup_memory_bytes", "app"] == pytest.approx(usage, abs=1 << 20)
        assert page["cgroup_memory_limit_bytes", "app"] == 64 << 20
        assert page["cgroup_cpu_seconds_total", "app"] == pytest.approx(pod.usage("app"), abs=0.01)
        assert page["cgroup_oom_kills_total", "app"] == 0
        assert not any(name[0].startswith("cgroup_pressure") for name in page)

        # another container's, or the node's, are not taken for its own
        monkeypatch.setattr(
            cgroups, "mounts", lambda pid: [mount._replace(root="/") for mount in mounts(pid)]
        )
        assert not families_of(process.pid, container)
        other = f"/kubepods/{secrets.token_hex(32)}"
        monkeypatch.setattr(
            cgroups, "mounts", lambda pid: [mount._replace(root=other) for mount in mounts(pid)]
        )
        assert not families_of(process.pid, container)


def test_a_mount_above_another_one_hides_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (
        "30 20 0:26 / /sys rw - sysfs sysfs rw\n"
        "31 30 0:32 /kubepods/a /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory\n"
        "32 30 0:33 /kubepods/a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "33 30 0:40 / /sys/fs/cgroup/memory rw - fuse.x x rw\n"
        "36 30 0:36 / /sys/fs/cgroup/pids/x ro - cgroup cgroup rw,pids\n"
        "37 30 0:37 / /sys/fs/cgroup/pids ro - tmpfs tmpfs rw\n"
        "34 30 0:34 /../b /sys/fs/cgroup/unified ro shared:3 - cgroup2 cgroup rw\n"
        "35 30 0:35 / /sys/fs/cg"
    )
    (tmp_path / "mountinfo").write_text(text)
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, *given: opened(tmp_path / Path(path).name, *given))
    assert mounts(1) == [
        Mount(
            "/sys/fs/cgroup/cpu,cpuacct",
            os.makedev(0, 33),
            "/kubepods/a",
            frozenset({"rw", "cpu", "cpuacct"}),
        ),
        Mount("/sys/fs/cgroup/unified", os.makedev(0, 34), "/../b", frozenset()),
    ]
