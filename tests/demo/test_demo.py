"""The demo end to end; and pods survive a kill -9 of each server around them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.demo.registries import consul, etcd, nacos, zookeeper
from tests.eureka import real
from tests.patience import ENDURANCE, PATIENCE_SECONDS

no_consul, no_etcd = consul.missing(), etcd.missing()
no_nacos, no_zookeeper = nacos.missing(), zookeeper.missing()
spring = pytest.mark.skipif(real.missing() is not None, reason=str(real.missing()))
REGISTRIES = [
    pytest.param("fake"),
    pytest.param("spring", marks=[pytest.mark.eureka, spring]),
    pytest.param("consul", marks=pytest.mark.skipif(no_consul is not None, reason=str(no_consul))),
    pytest.param("etcd", marks=pytest.mark.skipif(no_etcd is not None, reason=str(no_etcd))),
    pytest.param("nacos", marks=pytest.mark.skipif(no_nacos is not None, reason=str(no_nacos))),
    pytest.param("zookeeper", marks=pytest.mark.skipif(no_zookeeper is not None, reason=str(no_zookeeper))),
]
# Seconds until a killed server is restarted: long enough for all clients to notice and back off. The demo itself takes
# 20 s.
AWAY_SECONDS = float(os.environ.get("PIDONE_TEST_AWAY", "4"))


@contextmanager
def demo(folder: Path, registry: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if registry == "fake":
        env["PIDONE_EUREKA_JAR"] = str(folder / "none.jar")
    elif registry != "spring":
        arguments = ("--registry", registry, *arguments)
    command = [sys.executable, "-m", "tests.demo", "--folder", str(folder), *arguments]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("registry", REGISTRIES)
def test_the_demo_passes_every_step(tmp_path: Path, registry: str) -> None:
    with demo(tmp_path, registry) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    steps = re.findall(r"^ *[\d.]+ s  (\S+)", output, re.MULTILINE)
    expected = (
        "start plan healthy registered heartbeats orphans broken mended label registry again deleted end done"
    )
    assert list(dict.fromkeys(steps)) == expected.split(), output
    assert ("Spring" in output) is (registry == "spring")


def test_what_is_killed_around_the_pods_comes_back_and_process_1_stays(tmp_path: Path) -> None:
    registry = (
        "fake" if ENDURANCE == 1 or real.missing() else "spring"
    )  # which starts twice, for 20 s of a core
    with demo(tmp_path, registry, "--keep", "--restart-after", str(AWAY_SECONDS)) as process:
        pids = _read_until(process, r"pids: .*\n")
        pods = [psutil.Process(int(pid)) for pid in re.findall(r"shop/\w+ (\d+)", pids)]
        assert len(pods) == 3
        for name in ("repo", "application", "eureka"):
            match = re.search(rf"{name} (\d+)", pids)
            assert match is not None
            killed = time.monotonic()
            os.kill(int(match[1]), signal.SIGKILL)
            _read_until(process, rf"restarted +{name}")
            assert time.monotonic() - killed >= AWAY_SECONDS
        _read_until(process, r"ratings: UP")  # the last to come back was an empty registry
        assert all(pod.is_running() for pod in pods)
        # The end of a process 1 ends the demo, with the reason.
        pods[0].kill()
        rest, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "FAILED: expected that process 1 of shop/web still runs\nseen: it has ended" in rest


def _read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the output up to the line with the pattern. pytest's timeout ends a demo that does not print it."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"the demo ended without {pattern!r}:\n{output}")
