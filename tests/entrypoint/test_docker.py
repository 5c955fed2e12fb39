"""pidone, tini and dumb-init in containers of a real Docker engine."""

import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from tests.entrypoint.docker import Docker, engine, unavailable
from tests.entrypoint.peers import PEERS, Peer
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for

reason = unavailable()
pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(reason), reason=reason or "it is there")]

TRAPS = """
for name in HUP INT QUIT USR1 USR2; do trap "echo $name" $name; done
trap 'echo TERM; exit 5' TERM
echo ready
while :; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with engine(tmp_path_factory.mktemp("docker")) as running:
        yield running


def doing(*jobs: str) -> list[object]:
    return [
        pytest.param(peer, job, id=f"{peer.name}-{job}") for job in jobs for peer in PEERS if job in peer.jobs
    ]


def entrypoint(peer: Peer, job: str = "plain") -> list[str]:
    return peer.argv(job, program=f"/bin/{peer.name}")


@pytest.mark.parametrize(("peer", "job"), doing("plain"))
def test_signals_of_docker_kill_and_docker_stop_reach_the_command(
    docker: Docker, peer: Peer, job: str
) -> None:
    container = docker.start(entrypoint(peer, job), "sh", "-c", TRAPS)
    wait_for(lambda: docker.logs(container) == ["ready"])
    said = ["ready"]
    for name in ("HUP", "INT", "QUIT", "USR1", "USR2"):
        docker.said("kill", "-s", name, container)
        said.append(name)
        wait_for(lambda: docker.logs(container) == said)
    docker.said("stop", container)
    assert docker.code(container) == 5
    assert docker.logs(container) == [*said, "TERM"]


@pytest.mark.parametrize(("peer", "job"), doing("plain", "143 is 0", "15 becomes 3"))
def test_exit_codes(docker: Docker, peer: Peer, job: str) -> None:
    code = {"plain": 143, "143 is 0": 0, "15 becomes 3": 131}[job]
    container = docker.start(entrypoint(peer, job), "sleep", "1000")
    docker.said("stop", "--time", "600", container)  # nobody waits for KILL, which would be 137
    assert docker.code(container) == code
    assert docker.run(entrypoint(peer, job), "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_interactive_container(docker: Docker, peer: Peer) -> None:
    """``docker run -it``: the command has the terminal, and Ctrl-C ends it."""
    master, slave = os.openpty()
    words = [
        "run",
        "-it",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        f"/bin/{peer.name}",
        "pidone-test",
        "--",
    ]
    script = "tty; read line; echo got $line; exec sleep 1000"
    with subprocess.Popen(
        docker.argv(*words, "sh", "-c", script),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            expect(master, "/dev/pts/0")
            os.write(master, b"hello\n")
            expect(master, "got hello")
            os.write(master, b"\x03")
            assert process.wait(PATIENCE_SECONDS) == 130
        finally:
            process.kill()
            os.close(master)


def expect(master: int, text: str) -> None:
    """Read from a terminal until the text is there."""
    output = ""
    while text not in output:
        assert select.select([master], [], [], PATIENCE_SECONDS)[0], f"{text!r} did not come: {output!r}"
        try:
            output += os.read(master, 4096).decode()
        except OSError:  # the last process has closed it
            raise AssertionError(f"{text!r} did not come: {output!r}") from None


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_orphans_are_reaped(docker: Docker, peer: Peer) -> None:
    script = (
        "for n in 1 2 3 4 5; do (sleep 0.01 & exec sleep 0) ; done; sleep 0.2; echo made; exec sleep 1000"
    )
    container = docker.start(entrypoint(peer), "sh", "-c", script)
    wait_for(lambda: docker.logs(container) == ["made"])
    states = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || :"
    wait_for(lambda: docker.said("exec", container, "sh", "-c", states) == "0")


RESTRICTIONS = {
    "read-only": ["--read-only"],
    "another user": ["--user", "12345:54321"],
    "no capabilities": ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
    "few descriptors": ["--ulimit", "nofile=20:20"],
    "the host's processes": ["--pid", "host"],
    "variables": ["-e", "PYTHONHOME=/app/python", "-e", "PYTHONPATH=/tmp", "-e", "LD_PRELOAD=/no/such.so"],
    "a working directory": ["-w", "/tmp"],
    "an engine's own init": ["--init"],
    "little memory": ["--memory", "8m"],
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_under_the_restrictions_that_people_set(docker: Docker, restriction: str) -> None:
    done = docker.run(
        ["/bin/pidone", "--"], "sh", "-c", "echo $PWD $PYTHONHOME; exit 4", options=RESTRICTIONS[restriction]
    )
    where = "/tmp" if restriction == "a working directory" else "/"
    assert done.stdout.decode().split() == [where, *["/app/python"] * (restriction == "variables")]
    assert done.returncode == 4
    assert done.stderr == b""


def test_in_the_processes_of_another_container_it_ends_its_own_alone(docker: Docker) -> None:
    first = docker.start(["/bin/pidone", "--"], "sleep", "1000")
    second = docker.start(
        ["/bin/pidone", "--"], "sh", "-c", "sleep 1000 & wait", options=["--pid", f"container:{first}"]
    )
    wait_for(lambda: sleeping(docker, first) == 5)  # of both, pidone and its commands
    docker.said("stop", second)
    assert docker.code(second) == 143
    wait_for(lambda: sleeping(docker, first) == 2)


def sleeping(docker: Docker, container: str) -> int:
    """The number of processes of a container with the word in their command line."""
    return sum("sleep 1000" in line for line in docker.said("exec", container, "ps").splitlines())


def test_the_output_of_the_container_is_open_to_its_processes(docker: Docker) -> None:
    """cron jobs and the like write to /proc/1/fd/1."""
    container = docker.start(["/bin/pidone", "--"], "sh", "-c", "echo said > /proc/1/fd/1; exec sleep 1000")
    wait_for(lambda: docker.logs(container) == ["said"])
    assert docker.said("exec", container, "cat", "/proc/1/environ").strip("\0") == ""
