"""What process 1 of a pod owes, on real processes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from tests import pidns
from tests.patience import ENDURANCE, PATIENCE_SECONDS

PIDONE = [sys.executable, "-m", "pidone"]
NO_REPO = {"PIDONE_REPO": "http://127.0.0.1:9/", "PIDONE_POD_UID": ""}
THREADS = 1 << 31 | 1 << 32  # signals 32 and 33 belong to the C library, which lets nobody change them
DOZE = Path(__file__).parents[2] / "build/doze"

private = pytest.mark.skipif(pidns.missing() is not None, reason=str(pidns.missing()))


def wait_for(what: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Other processes have no event to wait for; the state itself is looked at."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(params=["doze", "python"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """Process 1 without a repo: in doze, where it was built, and in Python alone."""
    if request.param == "python":
        return NO_REPO | {"PIDONE_DOZE": "/nowhere"}
    if not DOZE.exists():
        pytest.skip("doze is not built: make doze")
    return NO_REPO | {"PIDONE_DOZE": str(DOZE)}


def waits(process: pidns.ProcessOne, env: dict[str, str], log: Path) -> bool:
    """Whether it has come to rest."""
    if env["PIDONE_DOZE"] == str(DOZE):
        in_doze = Path(f"/proc/{process.pid}/exe").readlink() == DOZE
        return in_doze and process.alone()  # nobody asks
    return b"event=repo-away" in log.read_bytes()


@pytest.mark.pidns
def test_without_a_repo_it_reaps_and_waits_and_leaves_on_term_with_0(log: Path, env: dict[str, str]) -> None:
    with log.open("wb") as output, pidns.process_one(PIDONE, env=env, output=output) as process:
        wait_for(lambda: waits(process, env, log))
        process.make_orphans(200)
        wait_for(process.alone)
        survived = {
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGPIPE,
            signal.SIGALRM,
            signal.SIGWINCH,
        }
        for number in survived | {signal.SIGQUIT, signal.SIGTTIN, signal.SIGCONT}:
            process.signal(number)
        process.make_orphans(10)
        wait_for(process.alone)
        assert process.same()
        process.signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    if env["PIDONE_DOZE"] == "/nowhere":
        assert b"reaped=210" in log.read_bytes()


@pytest.mark.pidns
def test_zombies_that_are_older_than_its_handlers_are_collected(log: Path, env: dict[str, str]) -> None:
    with log.open("wb") as output, pidns.process_one(PIDONE, env=env, output=output) as process:
        process.make_orphans(50)  # while the interpreter starts
        wait_for(lambda: waits(process, env, log))
        wait_for(lambda: process.zombies() == 0)


@pytest.mark.pidns
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_is_not_lost(
    log: Path, env: dict[str, str], number: signal.Signals
) -> None:
    def blocked(pid: int) -> bool:
        """Whether the first lines have run; before that the kernel drops the signal for anybody."""
        if b"podlet" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False  # the test's own helper is being forked off, which blocks for a moment
        status = Path(f"/proc/{pid}/status").read_text()
        mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)
        return bool(mask >> (number - 1) & 1)

    for _ in range(3 * ENDURANCE):
        with log.open("wb") as output, pidns.process_one(PIDONE, env=env, output=output) as process:
            wait_for(lambda process=process: blocked(process.pid))  # type: ignore[misc] # the loop's own
            time.sleep(random.random() * 0.3)  # any moment of the start
            process.signal(number)
            assert process.wait(PATIENCE_SECONDS) == 0


STORM_ORPHANS = 1000 * ENDURANCE
STORM = dedent("""
    import sys
    import trio
    from pidone.pid1 import signals, stages
    from pidone.pid1.reaper import Reaper

    async def main():
        stages.block()
        reaper, wrong, codes = Reaper(), [], list(range(256)) + [-9, -15]
        async with trio.open_nursery() as nursery:
            await nursery.start(reaper.run)
            signals.unblock()
            limit = trio.CapacityLimiter(8)

            async def one(code):
                async with limit:
                    kill = f"kill {code} $$" if code < 0 else f"exit {code}"
                    got = await reaper.spawn(["/bin/sh", "-c", kill], env={}).wait()
                    if got != code:
                        wrong.append((code, got))

            runs = 0
            while not runs or reaper.orphans < int(sys.argv[1]):
                async with trio.open_nursery() as batch:
                    for code in codes:
                        batch.start_soon(one, code)
                        runs += 1
            nursery.cancel_scope.cancel()
        print(f"runs={runs} orphans={reaper.orphans} wrong={wrong}", flush=True)

    trio.run(main)
""")


@pytest.mark.pidns
@private
def test_a_storm_of_orphans_never_falsifies_an_exit_code(tmp_path: Path, log: Path) -> None:
    script = tmp_path / "storm.py"
    script.write_text(STORM)
    with (
        log.open("wb") as output,
        pidns.process_one(
            [sys.executable, str(script), str(STORM_ORPHANS)], env={}, output=output
        ) as process,
    ):
        deadline = time.monotonic() + ENDURANCE * PATIENCE_SECONDS
        while not process.ended() and time.monotonic() < deadline:
            try:
                process.make_orphans(50)
            except (OSError, AssertionError):
                break  # the script has ended, and the helper with it
        process.wait(PATIENCE_SECONDS)
    # The helper in the namespace may end with a traceback in the same log.
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("runs="))
    said = dict(item.split("=", 1) for item in line.split(" ", 2))
    assert said["wrong"] == "[]"
    assert int(said["orphans"]) >= STORM_ORPHANS


def test_on_a_desk_a_file_runs_as_in_a_pod(tmp_path: Path, log: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text(
        dedent("""
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {name: desk}
        spec:
          params: [{name: text, default: none}]
          tasks:
            - name: second
              needs: [first]
              exec: {command: [/bin/sh, -c, "echo second", "x"]}
            - name: first
              exec: {command: [/bin/echo, first, $(params.text)]}
            - name: clean
              exec: {command: [/bin/grep, -E, "^Sig(Blk|Ign)", /proc/self/status]}
            - name: bad
              exec: {command: [/bin/sh, -c, "exit 7"]}
              backoffLimit: 0
        """)
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PIDONE, "run", str(file), "--param", "text=hello"], stdout=output, stderr=output
        )
        try:
            wait_for(lambda: b'"task": "second", "state": "succeeded"' in log.read_bytes())
            wait_for(lambda: b'"task": "clean", "state": "succeeded"' in log.read_bytes())
            wait_for(lambda: b"exit code 7" in log.read_bytes())
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
    lines = log.read_text()
    assert lines.index('"task": "first", "line": "first hello"') < lines.index(
        '"task": "second", "line": "second"'
    )
    # a command starts with nothing blocked and nothing ignored, whatever process 1 does with its own signals
    masks = dict(re.findall(r"(SigBlk|SigIgn):\W+t?([0-9a-f]+)", lines))
    assert masks.keys() == {"SigBlk", "SigIgn"}
    for mask in masks.values():
        assert int(mask, 16) & ~THREADS == 0


def test_a_command_that_outlives_its_task_is_ended_with_its_session(tmp_path: Path, log: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text(
        dedent(f"""
        apiVersion: pidone.dev/v1alpha1
        kind: TaskSet
        metadata: {{name: desk}}
        spec:
          tasks:
            - name: stubborn
              exec: {{command: [/bin/sh, -c, "trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"]}}
        """)
    )
    with log.open("wb") as output:
        process = subprocess.Popen([*PIDONE, "run", str(file)], stdout=output, stderr=output)
        try:
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
            child = int((tmp_path / "pid").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
            assert not psutil.pid_exists(child)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "nowhere.yaml"], 2, "pidone run: nowhere.yaml: No such file or directory"),
        (["run", "bad.yaml"], 1, 'bad.yaml:5:21: unknown field "exce"; did you mean "exec"? [unknown-field]'),
        (["run", "good.yaml"], 1, 'param "who" has no value'),
        (
            ["run", "good.yaml", "--param", "hwo=x"],
            1,
            '--param hwo: no TaskSet here has a param "hwo"; did you mean "who"?',
        ),
        (["run", "good.yaml", "--param", "who"], 2, '"who" is not NAME=VALUE'),
        (["run", "good.yaml", "--pod", "bad.yaml"], 1, "expected a List or Pods, not TaskSet"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
    ],
)
def test_mistakes_on_the_command_line_are_told_without_a_traceback(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    head = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: x}\n"
    (tmp_path / "bad.yaml").write_text(head + "spec:\n  tasks: [{name: a, exce: {command: [/bin/true]}}]\n")
    (tmp_path / "good.yaml").write_text(
        head
        + "spec:\n  params: [{name: who}]\n  tasks: [{name: a, exec: {command: [/bin/echo, $(params.who)]}}]\n"
    )
    done = subprocess.run(
        [*PIDONE, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_fails_as_a_whole_is_the_same_process_and_begins_anew(
    tmp_path: Path, log: Path
) -> None:
    """An error that no part expected: process 1 waits as pause does, and starts its program again."""
    script = tmp_path / "sabotage.py"
    script.write_text(
        dedent("""
        import os, sys
        from pidone import __main__
        from pidone.engine.runner import Engine
        run = Engine.run

        async def sabotaged(self, **options):
            if os.environ.get("PIDONE_FAILURES", "0") < "2":
                raise MemoryError("as if")
            await run(self, **options)

        Engine.run = sabotaged
        __main__.process_one()
        """)
    )
    env = NO_REPO | {"PIDONE_DOZE": "/nowhere"}
    with (
        log.open("wb") as output,
        pidns.process_one([sys.executable, str(script)], env=env, output=output) as process,
    ):
        wait_for(lambda: log.read_bytes().count(b"event=program-failed") == 1)
        process.make_orphans(20)
        wait_for(lambda: process.zombies() == 0)  # reaped while it waits, too
        wait_for(lambda: b"event=repo-away" in log.read_bytes())
        assert process.same()
        process.signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    said = log.read_bytes()
    assert said.count(b"event=program-failed") == 2
    starts = [line for line in said.splitlines() if b" event=start " in line and line.startswith(b"2")]
    told = [b' after="MemoryError: as if' in line for line in starts]
    assert told == [False, True, True], "the next start tells why the one before ended"


def test_the_pod_loads_no_yaml_no_schema_no_tls_and_no_client_library() -> None:
    """The memory of process 1 is charged to every pod."""
    script = "import sys, json; import pidone.pod.live; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    # Trio itself imports ssl, before Python 3.15 could be lazy about it
    assert not loaded & {
        "ruamel",
        "jsonschema",
        "httpx",
        "httpcore",
        "psutil",
        "argparse",
        "asyncio",
        "certifi",
    }
    assert "pidone.language" not in json.loads(done.stdout)
