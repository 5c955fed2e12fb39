"""What the sandbox process is under a real containerd: what it sees, survives, adopts, and how it ends."""

import os
import signal
import subprocess

import psutil
import pytest

from tests import processes
from tests.cri.conftest import BUSYBOX, busybox, doze
from tests.cri.images import Image
from tests.cri.messages import ContainerState, Mode, SandboxState
from tests.cri.node import Node, Sandbox, until
from tests.processes import command

pytestmark = pytest.mark.cri

NOWHERE = "http://127.0.0.1:9"  # where no repo listens
READY = (SandboxState.READY, 0)  # and at the first attempt
ORPHANS = 200
KILLED = 128 + signal.SIGKILL


@pytest.fixture(params=["pause", "image"])
def sandboxes(request: pytest.FixtureRequest, containerd: Node) -> Node:
    """A node whose sandboxes are doze alone, or the image without a repo."""
    image: Image = request.getfixturevalue(request.param)
    containerd.put(image.with_env(PIDONE_REPO=NOWHERE))
    return containerd


@pytest.fixture
def pauses(containerd: Node, pause: Image) -> Node:
    """A node whose sandboxes are doze alone."""
    containerd.put(pause)
    return containerd


def sleepers(sandbox: Sandbox) -> list[psutil.Process]:
    """The living ones that it adopted: the image has a child now and then that asks for a plan."""
    return [child for child in sandbox.children() if command(child)[-2:-1] == ["sleep"]]


def zombies(sandbox: Sandbox) -> int:
    return processes.zombies(sandbox.pid)


@pytest.mark.parametrize("user", [None, 1000])
def test_it_has_what_pause_has(sandboxes: Node, request: pytest.FixtureRequest, user: int | None) -> None:
    image = request.getfixturevalue(request.node.callspec.params["sandboxes"]).with_env(PIDONE_REPO=NOWHERE)
    with sandboxes.sandbox(user=user) as sandbox:
        assert sandbox.program() == "/doze"
        assert sandbox.proc("cmdline").read_text().split("\0")[:-1] == image.config["config"]["Entrypoint"]
        environment = set(sandbox.proc("environ").read_text().split("\0")) - {"", "HOME=/"}
        assert environment == set(image.env())
        assert sandbox.status("NSpid").split()[1:] == ["1"]
        assert sandbox.status("Uid").split() == [str(user or 0)] * 4
        assert sandbox.status("CapEff") == ("0" * 16 if user else "00000000a80425fb")
        assert sandbox.status("NoNewPrivs") == "1"
        assert sandbox.status("Seccomp") == "2"
        assert [os.readlink(sandbox.proc(f"fd/{number}")) for number in range(3)] == ["/dev/null"] * 3
        assert os.readlink(sandbox.proc("cwd")) == "/"
        with pytest.raises(OSError, match="Read-only file system"):
            (sandbox.proc("root") / "written").touch()
        uid = sandbox.config["metadata"]["uid"]
        assert (
            f"/{sandboxes.cgroup}/kubepods/besteffort/pod{uid}/{sandbox.id}\n"
            in sandbox.proc("cgroup").read_text()
        )
        assert sandbox.state() == READY


def test_it_survives_every_signal_but_two_and_stop_is_sigkill_at_once(sandboxes: Node) -> None:
    with sandboxes.sandbox() as sandbox:
        until(lambda: "fffffffc7ffbfeff" in sandbox.status("SigBlk"))  # all that can be blocked
        ending = {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP}
        for number in signal.valid_signals() - ending:
            os.kill(sandbox.pid, number)
        until(lambda: int(sandbox.status("ShdPnd"), 16) == 0)
        assert sandbox.same()
        assert sandbox.state() == READY
        sandbox.stop()
        assert not sandbox.same()
        assert sandbox.exit_code() == KILLED
        assert sandbox.state() == (SandboxState.NOTREADY, 0)


def test_it_belongs_to_its_shim_and_not_to_containerd(sandboxes: Node) -> None:
    with sandboxes.sandbox() as sandbox:
        sandboxes.end()
        assert sandbox.same()
        sandboxes.start()
        assert sandbox.same()
        assert sandbox.state() == READY


def test_with_a_shared_pid_namespace_it_adopts_and_reaps_the_orphans_of_the_application(
    sandboxes: Node,
) -> None:
    script = (
        f"n=0; while [ $n -lt {ORPHANS} ]; do (true &); n=$((n+1)); done; (sleep 1000 &); exec sleep 2000"
    )
    with sandboxes.sandbox(pid=Mode.POD) as sandbox:
        app = sandbox.run(BUSYBOX, "sh", "-c", script)
        until(lambda: sleepers(sandbox))
        (orphan,) = sleepers(sandbox)
        assert app.pid not in [child.pid for child in sandbox.children()], "the runtime reaps first processes"
        seen = sandbox.sees()
        assert len(seen) >= 3, "itself, the application and its orphan"
        until(lambda: not zombies(sandbox))
        orphan.kill()
        until(lambda: not psutil.pid_exists(orphan.pid))
        assert app.state() == (ContainerState.RUNNING, 0)

        again = sandbox.run(BUSYBOX, "sh", "-c", "(sleep 1000 &); exec sleep 2000", user=1000)
        until(lambda: sleepers(sandbox))
        again.stop()
        until(lambda: not sleepers(sandbox) and not zombies(sandbox))
        assert sandbox.same()
        assert sandbox.state() == READY


def test_with_a_pid_namespace_of_its_own_it_does_not_see_the_application(sandboxes: Node) -> None:
    with sandboxes.sandbox(pid=Mode.CONTAINER) as sandbox:
        app = sandbox.run(BUSYBOX, "sh", "-c", "(sleep 1000 &); exec sleep 2000")
        assert os.readlink(f"/proc/{app.pid}/ns/pid") != os.readlink(sandbox.proc("ns/pid"))
        until(lambda: sandbox.sees() == {1})
        until(lambda: len(psutil.Process(app.pid).children()) == 1)  # its orphan is its own
        assert not sleepers(sandbox)
        assert app.state() == (ContainerState.RUNNING, 0)
        assert sandbox.state() == READY


def test_with_the_pid_namespace_of_the_node_it_signals_nobody(sandboxes: Node) -> None:
    with (
        subprocess.Popen(["sleep", "1000"]) as bystander,
        sandboxes.sandbox(pid=Mode.NODE) as sandbox,
    ):
        try:
            app = sandbox.run(BUSYBOX, "sleep", "1000")
            assert sandbox.status("NSpid") == str(sandbox.pid), "not process 1"
            assert sandbox.state() == READY
            os.kill(sandbox.pid, signal.SIGTERM)
            assert sandbox.exit_code() == 0
            assert bystander.poll() is None
            assert app.state() == (ContainerState.RUNNING, 0)
        finally:
            bystander.kill()


@pytest.mark.parametrize("mode", [Mode.CONTAINER, Mode.NODE], ids=["process 1", "hostPID"])
def test_a_program_that_fails_is_asked_again_and_the_orphans_it_leaves_are_adopted(
    containerd: Node, mode: Mode
) -> None:
    careless = busybox("/doze", BUSYBOX, "sh", "-c", "sleep 1000 & exit 1", doze=doze())
    containerd.put(careless)
    with containerd.sandbox(pid=mode) as sandbox:
        until(lambda: len(sleepers(sandbox)) == 2)  # it asked twice
        for orphan in sleepers(sandbox):
            orphan.kill()
        until(lambda: not zombies(sandbox))
        assert sandbox.program() == "/doze"
        assert sandbox.same()
        assert sandbox.state() == READY


@pytest.mark.parametrize("user", [0, 1000])
def test_a_term_from_an_application_with_its_uid_ends_the_pod_as_it_does_with_pause(
    sandboxes: Node, user: int
) -> None:
    with sandboxes.sandbox(pid=Mode.POD, user=user) as sandbox:
        bystander = sandbox.run(BUSYBOX, "sleep", "1000", user=user)
        sender = sandbox.run(BUSYBOX, "kill", "-TERM", "1", user=user)
        assert sandbox.exit_code() == 0
        until(lambda: sandbox.state() == (SandboxState.NOTREADY, 0))
        until(lambda: bystander.state() == (ContainerState.EXITED, KILLED))
        until(lambda: sender.state()[0] is ContainerState.EXITED)


def test_a_term_from_an_application_with_another_uid_is_refused(sandboxes: Node) -> None:
    with sandboxes.sandbox(pid=Mode.POD) as sandbox:
        app = sandbox.run(BUSYBOX, "kill", "-TERM", "1", user=1000)
        until(lambda: app.state() == (ContainerState.EXITED, 1))
        assert sandbox.same()
        assert sandbox.state() == READY
