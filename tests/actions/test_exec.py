"""Commands with real processes, real signals and a real reaper."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from textwrap import dedent
from typing import Any

import psutil
import pytest
import trio

from pidone.actions import Setting
from pidone.actions.exec import Exec, build
from pidone.counters import Counters
from pidone.engine.runner import Engine
from pidone.errors import Refused, TaskFailed
from pidone.journal import Journal
from pidone.pid1.reaper import Reaper
from pidone.pid1.subreaper import become_subreaper
from pidone.plan.fields import Fields
from pidone.plan.format import decode_plan
from pidone.plan.model import Pod
from tests.actions.watcher import Watcher
from tests.patience import PATIENCE_SECONDS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user: sudo make test")


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    """Orphans come to this process, as they come to process 1."""
    assert become_subreaper()
    yield
    import ctypes

    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def setting(programs: str = "/") -> Setting:
    return Setting(Pod("p", "n", "u", "127.0.0.1"), None, Reaper(), Counters(), lambda: (), programs)


def make(config: dict[str, Any], programs: str = "/") -> tuple[Exec, Reaper]:
    given = setting(programs)
    return build(Fields(config, "x"), given), given.reaper


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", dedent(script)]


async def run(script: str, **config: Any) -> Watcher:
    watcher, error = await attempt(script, **config)
    assert error == ""
    return watcher


async def attempt(script: str, **config: Any) -> tuple[Watcher, str]:
    """One run to its end, and why it failed."""
    action, reaper = make({"command": python(script), **config})
    watcher, why = Watcher(), ""
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                await action.run(watcher)
            except TaskFailed as error:
                why = str(error)
        nursery.cancel_scope.cancel()
    return watcher, why


@asynccontextmanager
async def running(
    script: str, *, stop_timeout: float = 2.0
) -> AsyncIterator[tuple[Watcher, trio.CancelScope]]:
    """A run that goes on, from its first line of output on; at the end it has ended."""
    action, reaper = make({"command": python(script)})
    watcher, ended, scope = Watcher(), trio.Event(), trio.CancelScope()
    watcher.stop_timeout = stop_timeout

    async def act() -> None:
        with scope:
            await action.run(watcher)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        nursery.start_soon(act)
        with trio.fail_after(PATIENCE_SECONDS):
            while not watcher.lines:
                await trio.sleep(0.01)
            yield watcher, scope
            await ended.wait()
        nursery.cancel_scope.cancel()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_exit_code_0_is_a_success() -> None:
    watcher = await run("print('done')")
    assert watcher.states == ["started", "succeeded"]
    assert watcher.lines == ["done"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import sys; print('no disk'); sys.exit(3)", "exit code 3: no disk"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)", "ended by signal 35"),
    ],
)
async def test_any_other_end_is_a_failure_with_the_last_words(script: str, why: str) -> None:
    assert (await attempt(script))[1] == f"{sys.executable}: {why}"


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    for command, config, why in (
        ("/no/such/program", {}, "/no/such/program: No such file or directory"),
        (f"{tmp_path}/text", {}, f"{tmp_path}/text: Permission denied"),
        (sys.executable, {"workingDir": "/no/folder"}, "workingDir /no/folder: No such file or directory"),
    ):
        action, _ = make({"command": [command], **config})
        watcher = Watcher()
        with pytest.raises(TaskFailed) as failed:
            await action.run(watcher)
        assert str(failed.value) == why
        assert watcher.states == ["started", "failed"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "x.command: expected the absolute path of a program and its arguments"),
        ({"command": ["ls"]}, "x.command: expected the absolute path of a program and its arguments"),
        ({"command": ["/bin/ls"]}, "x.command: /bin/ls is not in /opt/pidone/"),
        ({"command": ["/opt/pidone/../../bin/ls"]}, "is not in /opt/pidone/"),
        ({"command": ["/opt/pidonette/ls"]}, "is not in /opt/pidone/"),
        ({"command": ["/opt/pidone"]}, "is not in /opt/pidone/"),
        (
            {"command": ["/opt/pidone/a", "b\0c"]},
            "x.command: 'b\\x00c' has a character that cannot be passed",
        ),
        ({"command": ["/opt/pidone/a", "\ud800"]}, "has a character that cannot be passed"),
        ({"command": ["/opt/pidone/a"], "env": [{"name": "A=B", "value": ""}]}, '"A=B" cannot be the name'),
        (
            {"command": ["/opt/pidone/a"], "env": [{"name": "", "value": ""}]},
            "cannot be the name of a variable",
        ),
        (
            {"command": ["/opt/pidone/a"], "env": [{"name": "A", "valueFrom": {}}]},
            'does not know "valueFrom"',
        ),
        ({"command": ["/opt/pidone/a"], "runAsUser": -1}, "x.runAsUser: expected 0 to"),
        ({"command": ["/opt/pidone/a"], "shell": True}, 'does not know "shell"'),
    ],
)
def test_what_must_not_run_is_refused_when_the_plan_comes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refused:
        make(config, programs="/opt/pidone")
    assert message in str(refused.value)


async def test_the_environment_is_what_the_plan_says_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "not for commands")
    watcher = await run(
        "import os; print(sorted(set(os.environ) - {'LC_CTYPE', 'PIDONE_RUN'})); print(os.environ['A'])",
        env=[{"name": "A", "value": "b c"}],
    )
    assert watcher.lines == ["['A', 'PATH']", "b c"]


async def test_it_runs_in_its_folder_and_is_killed_first_when_memory_runs_out(tmp_path: Path) -> None:
    script = (
        "import os, time; time.sleep(.2); print(os.getcwd()); print(open('/proc/self/oom_score_adj').read())"
    )
    assert (await run(script, workingDir=str(tmp_path))).lines == [str(tmp_path), "1000"]
    assert (await run("import os; print(os.getcwd())")).lines == ["/"]


@needs_root
async def test_it_runs_as_the_user_and_group_of_the_plan_without_other_groups() -> None:
    watcher = await run("", command=["/usr/bin/id"], runAsUser=65534, runAsGroup=65533)
    assert watcher.lines == ["uid=65534(nobody) gid=65533 groups=65533"]


@needs_root
def test_without_root_another_user_is_an_error_that_says_so() -> None:
    pid = os.fork()
    if pid == 0:  # this process cannot become root again
        os.setuid(65534)
        try:
            Reaper().spawn(["/bin/true"], env={}, user=0)
        except Exception as error:  # noqa: BLE001 - looked at by its text
            good = str(error).endswith(
                "cannot become uid 0, because pidone runs as uid 65534 and not as root"
            )
            os._exit(0 if good else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


async def test_output_of_any_kind_is_lines_of_text_with_a_bound() -> None:
    script = """
        import os
        os.write(1, b"\\xff\\xfe caf\\xc3\\xa9\\n" + b"x" * 100_000 + b"\\n\\n" + b"no end")
        os.write(2, b" of a line")
    """
    watcher = await run(script)
    assert watcher.lines[0] == "\ufffd\ufffd café"
    assert watcher.lines[1] == "x" * 300
    assert watcher.lines[2].startswith("no end")


async def test_a_flood_of_output_is_neither_memory_nor_lines() -> None:
    before = psutil.Process().memory_info().rss
    watcher = await run("import os\nfor _ in range(64): os.write(1, b'y\\n' * 32768)")
    assert 10 <= len(watcher.lines) <= 1000  # ten at once, and one more each second that the flood lasts
    (said,) = [fields["lines"] for event, fields in watcher.events if event == "output-untold"]
    assert said == 64 * 32768 - len(watcher.lines)
    assert psutil.Process().memory_info().rss - before < 4 << 20


async def test_a_cancelled_run_gets_term_and_may_say_its_last_words() -> None:
    script = """
        import os, signal
        def term(*_):
            os.write(1, b"z" * 200_000 + b"\\n")  # more than a pipe holds: somebody must listen
            os.write(1, b"good bye\\n")
            os._exit(0)
        signal.signal(signal.SIGTERM, term)
        print("ready", flush=True)
        while True: signal.pause()
    """
    async with running(script, stop_timeout=3600) as (watcher, scope):
        scope.cancel()
    assert watcher.lines[-1] == "good bye"
    assert watcher.states == ["started", "failed"]


async def test_what_ignores_term_is_killed_after_the_stop_timeout() -> None:
    script = """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        while True: signal.pause()
    """
    async with running(script, stop_timeout=0.5) as (watcher, scope):
        began = trio.current_time()
        scope.cancel()
    assert trio.current_time() - began >= 0.5
    assert not alive(int(watcher.lines[0]))


FAMILY = """
    import os, signal, sys, time
    def child(away, orphan, deaf):
        reading, writing = os.pipe()
        if os.fork() == 0:
            if away: os.setsid()
            if orphan and os.fork(): os._exit(0)
            if deaf: signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writing, b"%d" % os.getpid())
            while True: time.sleep(60)
        return os.read(reading, 20).decode()
    pids = [child(away, orphan, deaf) for away in (0, 1) for orphan in (0, 1) for deaf in (0, 1)]
    print(*pids, flush=True)
"""


async def test_the_whole_tree_ends_with_its_run_wherever_it_has_hidden() -> None:
    script = dedent(FAMILY) + "while True: time.sleep(60)"
    async with running(script, stop_timeout=0.5) as (watcher, scope):
        pids = [int(word) for word in watcher.lines[0].split()]
        assert len(pids) == 8
        assert all(map(alive, pids))
        scope.cancel()
    assert [pid for pid in pids if alive(pid)] == []


async def test_what_a_command_leaves_behind_does_not_outlive_its_run() -> None:
    async with running(FAMILY, stop_timeout=0.5) as (watcher, _):
        pids = [int(word) for word in watcher.lines[0].split()]
    assert watcher.states[-1] == "succeeded"
    assert [pid for pid in pids if alive(pid)] == []


async def test_a_process_that_forks_all_the_time_is_caught() -> None:
    script = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            if os.fork() == 0:
                os.setsid()
                time.sleep(30)
                os._exit(0)
            time.sleep(0.002)
    """
    before = set(psutil.Process().children(recursive=True))  # servers of other tests
    async with running(script, stop_timeout=0.2) as (_, scope):
        scope.cancel()
    left = {child for child in psutil.Process().children(recursive=True) if alive(child.pid)}
    assert left <= before


async def test_a_stopped_process_takes_its_term() -> None:
    script = "import os, signal; print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    async with running(script, stop_timeout=3600) as (watcher, scope):
        while psutil.Process(int(watcher.lines[0])).status() != psutil.STATUS_STOPPED:
            await trio.sleep(0.01)
        scope.cancel()
    assert not alive(int(watcher.lines[0]))


async def test_a_stranger_with_the_same_parent_is_left_alone() -> None:
    """Other commands, and orphans of the application, are our children as well."""
    action, reaper = make({"command": python(FAMILY)})
    watcher = Watcher()
    watcher.stop_timeout = 0.2
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        stranger = reaper.spawn(["/bin/sleep", "60"], env={"PIDONE_RUN": "another"})
        with trio.fail_after(PATIENCE_SECONDS):
            await action.run(watcher)
            assert alive(stranger.pid)
            os.kill(stranger.pid, signal.SIGKILL)
            assert await stranger.wait() == -9
        nursery.cancel_scope.cancel()


async def test_when_the_budget_of_the_end_is_spent_what_is_left_is_killed() -> None:
    script = """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0: os.setsid()
        print(os.getpid(), flush=True)
        while True: signal.pause()
    """
    task = {"name": "deaf", "exec": {"command": python(script)}, "stopTimeout": 3600}
    given = setting()
    journal = Journal(echo=lambda line: None)
    engine = Engine(given, journal, changed=lambda: None, random=Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(given.reaper.run)
        await nursery.start(engine.run)
        engine.apply(decode_plan([task], ["exec"]))
        with trio.fail_after(PATIENCE_SECONDS):
            while len(lines := [line for line in journal.lines if "event=output" in line]) < 2:
                await trio.sleep(0.01)
            pids = [int(line.rpartition("=")[2]) for line in lines]
            assert all(map(alive, pids))
            await engine.drain(0.5)
        assert [pid for pid in pids if alive(pid)] == []
        nursery.cancel_scope.cancel()
