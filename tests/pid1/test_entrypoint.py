"""``pidone -- CMD`` on real processes: as process 1 of a PID namespace, and as an ordinary process."""

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Self

import psutil
import pytest

from tests import pidns
from tests.patience import ENDURANCE, PATIENCE_SECONDS
from tests.pid1.test_process_one import private, wait_for
from tests.processes import waiting_seconds

PIDONE = (str(Path(__file__).parents[2] / "build/pidone"),)
SLEEP = ("sleep", "1000")
THREADS = 1 << 31 | 1 << 32  # signals 32 and 33 belong to the C library, which lets nobody change them
pytestmark = pytest.mark.skipif(not Path(PIDONE[0]).exists(), reason="pidone is not built: make doze")
BOTH = [
    pytest.param(True, marks=[pytest.mark.pidns, private], id="process-1"),
    pytest.param(False, id="subreaper"),
]

# What a starter leaves behind: run as `python -c STARTER... PROGRAM ARG...`
EXEC = "; import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"

# Takes every signal and says which; the last real-time one ends it.
CATCHER = dedent("""
    import os, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    who, other = "child", 0
    def say(what):
        os.write(1, f"{who} {what}\\n".encode())
    if len(sys.argv) > 1 and (other := os.fork()) == 0:
        who, other = "grandchild", 0
    say("ready")
    while (number := signal.sigwaitinfo(signal.valid_signals()).si_signo) != signal.SIGRTMAX:
        if number == signal.SIGHUP and other:
            os.kill(other, signal.SIGHUP)
        if number == signal.SIGTERM and who == "grandchild":
            break
        say(int(number))
""")


@dataclass
class Running:
    outer: "subprocess.Popen[bytes]"
    pid: int  # of pidone, seen from outside

    def line(self) -> str:
        assert self.outer.stdout is not None
        return self.outer.stdout.readline().decode().strip()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def child(self) -> psutil.Process:
        wait_for(lambda: psutil.Process(self.pid).children())
        return psutil.Process(self.pid).children()[0]

    def status(self, field: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(field + ":"))

    def wait(self) -> int:
        return self.outer.wait(PATIENCE_SECONDS)


@contextmanager
def running(
    *command: str, alone: bool, options: Sequence[str] = (), before: Sequence[str] = (), **popen: Any
) -> Iterator[Running]:
    prefix = pidns.way()[1] if alone else ()
    popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "start_new_session": True, **popen}
    outer = subprocess.Popen([*prefix, *before, *PIDONE, *options, "--", *command], **popen)
    try:
        inner = [] if alone else [outer.pid]

        def seen() -> bool:  # a short command may have ended before it is looked for
            inner.extend(child.pid for child in psutil.Process(outer.pid).children())
            return bool(inner) or outer.poll() is not None

        wait_for(seen)
        yield Running(outer, inner[0] if inner else outer.pid)
    finally:
        left = [] if outer.poll() is not None else psutil.Process(outer.pid).children(recursive=True)
        outer.kill()
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass  # the end of its process 1 was its own
        outer.wait(PATIENCE_SECONDS)
        if outer.stdout is not None:
            outer.stdout.close()


def run(*command: str, alone: bool, **popen: Any) -> "subprocess.CompletedProcess[str]":
    prefix = pidns.way()[1] if alone else ()
    argv = [*prefix, *PIDONE, "--", *command]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, **popen
    )


def started(*command: str) -> Sequence[str]:
    """Python that does this and then becomes what follows."""
    return [sys.executable, "-c", "; ".join(command) + EXEC]


# Exit codes


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 255])
def test_the_exit_code_is_the_commands(alone: bool, code: int) -> None:
    assert run("/bin/sh", "-c", f"exit {code}", alone=alone).returncode == code


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 2])
def test_a_death_by_signal_is_128_and_its_number(alone: bool, number: int) -> None:
    assert run(
        sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})", alone=alone
    ).returncode == (128 + number)


MANY = dedent("""
    import os, random, signal, sys, time

    def start(command, group):
        # As after its first instruction.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            os.execv(sys.argv[1], [sys.argv[1], *["-g"] * group, "--", *command])
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        return pid

    def code(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""")


def test_exit_codes_are_passed_on() -> None:
    codes = (
        range(256)
        if ENDURANCE > 1
        else [*range(0, 256, 9), 1, 2, 126, 127, 128, 129, 130, 137, 143, 254, 255]
    )
    script = MANY + f"print([code(start(['/bin/sh', '-c', f'exit {{n}}'], False)) for n in {[*codes]}])"
    done = subprocess.run(
        [sys.executable, "-c", script, *PIDONE],
        capture_output=True,
        check=True,
        timeout=ENDURANCE * PATIENCE_SECONDS,
    )
    assert json.loads(done.stdout) == [*codes]


def test_term_at_any_moment_from_the_fork_on_is_not_lost() -> None:
    """dumb-init loses it where the child is between fork and exec. A lost one here would last 1,000 s."""
    trials = f"TRIALS = {60 * ENDURANCE}\n"
    script = (
        MANY
        + trials
        + dedent("""
        for trial in range(TRIALS):
            pid = start(["sleep", "1000"], trial % 2 == 1)
            until = time.perf_counter() + random.random() * 0.005  # exec is at 1 to 3 ms
            while time.perf_counter() < until:
                pass
            os.kill(pid, signal.SIGTERM)
            assert code(pid) == 143, trial
    """)
    )
    subprocess.run([sys.executable, "-c", script, *PIDONE], check=True, timeout=ENDURANCE * PATIENCE_SECONDS)


@pytest.mark.pidns
@private
def test_term_during_the_start_of_process_1_is_not_lost() -> None:
    def blocked(pidone: Running) -> bool:
        """Not to be seen any more while it waits: sigwaitinfo unblocks in its own way."""
        return int(pidone.status("SigBlk"), 16) >> 9 & 1 == 1 or bool(psutil.Process(pidone.pid).children())

    for trial in range(12):
        with running(*SLEEP, alone=True) as pidone:
            wait_for(lambda pidone=pidone: blocked(pidone))  # type: ignore[misc] # the loop's own
            until = time.perf_counter() + trial * 0.0004
            while time.perf_counter() < until:
                pass
            pidone.signal(signal.SIGTERM)
            assert pidone.wait() == 143


# Signals


@pytest.mark.parametrize("alone", BOTH)
def test_every_signal_is_forwarded_and_real_time_ones_as_often_as_they_came(alone: bool) -> None:
    with running(sys.executable, "-c", CATCHER, alone=alone) as pidone:
        assert pidone.line() == "child ready"
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGRTMAX}:
            if number == signal.SIGCHLD:
                pidone.signal(number)  # is ours: the next line is the next signal's
            else:
                pidone.signal(number)
                assert pidone.line() == f"child {int(number)}"
        for _ in range(20):
            pidone.signal(signal.SIGRTMIN + 5)
        assert [pidone.line() for _ in range(20)] == [f"child {int(signal.SIGRTMIN) + 5}"] * 20
        pidone.signal(signal.SIGRTMAX)
        assert pidone.wait() == 0


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize("group", [True, False])
def test_with_g_the_whole_process_group_gets_the_signal(alone: bool, group: bool) -> None:
    options = ["-g"] if group else []
    with running(sys.executable, "-c", CATCHER, "fork", alone=alone, options=options) as pidone:
        assert {pidone.line(), pidone.line()} == {"child ready", "grandchild ready"}
        pidone.signal(signal.SIGUSR1)
        if group:
            assert {pidone.line(), pidone.line()} == {"child 10", "grandchild 10"}
        else:
            assert pidone.line() == "child 10"
            pidone.signal(signal.SIGHUP)  # the child sends it on: had the other got USR1, it would say so now
            assert {pidone.line(), pidone.line()} == {"child 1", "grandchild 1"}
        pidone.signal(signal.SIGRTMAX)
        assert pidone.wait() == 0  # and the other one got TERM then


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_the_child_stops_and_continues_and_is_forwarded_to_in_between(alone: bool, number: int) -> None:
    """In a session of its own nobody could continue pidone, as in a container: it does not stop."""
    with running(*SLEEP, alone=alone) as pidone:
        child = pidone.child()
        wait_for(lambda: child.name() == "sleep")
        pidone.signal(number)
        wait_for(lambda: child.status() == psutil.STATUS_STOPPED)
        wait_for(lambda: pidone.status("State") == "S")
        pidone.signal(signal.SIGCONT)
        wait_for(lambda: child.status() == psutil.STATUS_SLEEPING)
        pidone.signal(signal.SIGTERM)
        assert pidone.wait() == 143


def test_under_a_parent_that_could_continue_it_pidone_stops_with_the_child() -> None:
    with running(*SLEEP, alone=False, start_new_session=False, process_group=0) as pidone:
        child = pidone.child()
        wait_for(lambda: child.name() == "sleep")
        for _ in range(3):
            pidone.signal(signal.SIGTSTP)
            wait_for(lambda: pidone.status("State") == "T")
            assert child.status() == psutil.STATUS_STOPPED
            pidone.signal(signal.SIGCONT)
            wait_for(lambda: child.status() == psutil.STATUS_SLEEPING)
            wait_for(lambda: pidone.status("State") == "S")
        child.suspend()  # not by the terminal: whoever did it will continue the child, and not us
        child.resume()
        pidone.signal(signal.SIGTERM)
        assert pidone.wait() == 143


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize("touched", [True, False])
def test_the_command_starts_with_nothing_ignored_and_nothing_blocked(alone: bool, touched: bool) -> None:
    starter = started(
        "import signal as s",
        "[s.signal(n, s.SIG_IGN) for n in (s.SIGHUP, s.SIGUSR1, s.SIGCHLD, s.SIGTTOU, s.SIGRTMIN)]",
        "s.pthread_sigmask(s.SIG_BLOCK, [s.SIGUSR2, s.SIGTERM])",
    )
    with running("/bin/cat", "/proc/self/status", alone=alone, before=starter if touched else ()) as pidone:
        assert pidone.outer.stdout is not None
        lines = dict(line.split(b":\t", 1) for line in pidone.outer.stdout.read().splitlines())
        assert pidone.wait() == 0  # and the exit code is there although CHLD was ignored
    for mask in (lines[b"SigIgn"], lines[b"SigBlk"], lines[b"SigPnd"]):
        assert int(mask, 16) & ~THREADS == 0


# Orphans

DOUBLE_FORKS = dedent("""
    import os, signal, sys, time
    for number in range(int(sys.argv[1])):
        if (parent := os.fork()) == 0:
            if os.fork() == 0 and number == 0:
                print(os.getpid(), flush=True)  # one lives on
                signal.pause()
            os._exit(0)
        os.waitpid(parent, 0)
    print("made", flush=True)
    signal.pause()
""")


@pytest.mark.parametrize("alone", BOTH)
def test_orphans_come_to_it_and_are_reaped(alone: bool) -> None:
    with running(sys.executable, "-c", DOUBLE_FORKS, "100", alone=alone) as pidone:
        lines = {pidone.line(), pidone.line()}
        assert "made" in lines
        wait_for(
            lambda: len(psutil.Process(pidone.pid).children()) == 2
        )  # the command, and the one that lives
        wait_for(lambda: pidone.status("State") == "S")
        pidone.signal(signal.SIGTERM)
        assert pidone.wait() == 143


@pytest.mark.pidns
@private
def test_a_process_1_that_does_not_reap_keeps_them_all() -> None:
    """The negative case: so the test above sees zombies where there are some."""
    with pidns.process_one(["/bin/sleep", "1000"], env={}) as process:
        process.make_orphans(20)
        wait_for(lambda: process.zombies() == 20)


LEAVING = dedent("""
    import os, signal, sys, time
    def leave(then):
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            then(write)
        os.read(read, 1)

    def willing(write):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.write(write, b".")
        signal.sigwait([signal.SIGTERM])
        os.write(1, b"got TERM\\n")
        os._exit(0)

    def stubborn(write):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, f"{os.getpid()}\\n".encode())
        os.write(write, b".")
        time.sleep(1000)

    def stopped(write):
        os.write(write, b".")
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)

    for name in sys.argv[1:]:
        leave(globals()[name])
    os._exit(3)
""")


@pytest.mark.parametrize("alone", BOTH)
def test_what_the_command_leaves_in_other_sessions_gets_term(alone: bool) -> None:
    environ = {**os.environ, "PIDONE_GRACE": "3600"}  # nobody waits for the end of the grace period
    done = run(sys.executable, "-c", LEAVING, "willing", "stopped", "willing", alone=alone, env=environ)
    assert done.returncode == 3
    assert done.stdout == "got TERM\n" * 2
    assert done.stderr == ""


@pytest.mark.parametrize("alone", BOTH)
def test_what_ignores_term_is_killed_after_the_grace_period(alone: bool) -> None:
    with subprocess.Popen(SLEEP) as bystander:
        began = time.monotonic()
        environ = {**os.environ, "PIDONE_GRACE": "0.3"}
        done = run(sys.executable, "-c", LEAVING, "stubborn", "willing", alone=alone, env=environ)
        assert done.returncode == 3
        assert time.monotonic() - began >= 0.3
        pid, *rest = done.stdout.splitlines()
        assert rest == ["got TERM"]
        assert done.stderr.startswith("pidone: still there 0.3 s after TERM, and killed: python")
        if not alone:
            assert not psutil.pid_exists(int(pid))
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.pidns
@private
def test_without_a_proc_of_its_namespace_it_signals_nobody_and_leaves_at_once() -> None:
    """The numbers there are those of other processes; the kernel ends what is left in the namespace."""
    prefix = [word for word in pidns.way()[1] if word != "--mount-proc"]
    done = subprocess.run(
        [*prefix, *PIDONE, "--", sys.executable, "-c", LEAVING, "willing"],
        capture_output=True,
        env={**os.environ, "PIDONE_GRACE": "3600"},
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")


def test_a_grace_period_that_is_no_number_is_told_and_does_no_harm() -> None:
    done = run("true", alone=False, env={**os.environ, "PIDONE_GRACE": "5s"})
    assert done.returncode == 0
    assert done.stderr == "pidone: PIDONE_GRACE=5s is no number of seconds from 0 to 86400; using 5\n"


# Terminals


class Terminal:
    """A pty; what is started on it has it as its controlling terminal."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = os.openpty()
        control = started("import fcntl, termios", "fcntl.ioctl(0, termios.TIOCSCTTY, 0)")
        self.process = subprocess.Popen(
            [*control, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "PS1": "$ "},
        )
        os.close(slave)
        self.output = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        """Read until this is there, and forget all up to it."""
        while text not in self.output:
            assert select.select([self.master], [], [], 10)[0], f"{text!r} did not come: {self.output!r}"
            try:
                self.output += os.read(self.master, 4096).decode()
            except OSError:  # the last one has closed it
                raise AssertionError(f"{text!r} did not come: {self.output!r}") from None
        self.output = self.output.partition(text)[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        os.close(self.master)


# Short sleeps: a signal between Python's last look at its signals and the system call would wait for the end of it.
FOREGROUND = (
    "import os, time; print(os.tcgetpgrp(0) == os.getpgrp(), 'there', flush=True); "
    "[time.sleep(0.1) for _ in range(10_000)]"
)


@pytest.mark.parametrize("alone", BOTH)
def test_the_command_has_the_terminal_and_ctrl_c_gives_130(alone: bool) -> None:
    prefix = pidns.way()[1] if alone else ()
    with Terminal(*prefix, *PIDONE, "--", "sh", "-c", f'exec {sys.executable} -c "{FOREGROUND}"') as terminal:
        terminal.expect("True there")
        terminal.type("\x03")
        code = terminal.process.wait(PATIENCE_SECONDS)
        assert code in {130, 1}  # Python's KeyboardInterrupt is a death by INT
    with Terminal(*prefix, *PIDONE, "--", "sh", "-c", "echo there; exec sleep 1000") as terminal:
        terminal.expect("there")
        terminal.type("\x03")
        assert terminal.process.wait(PATIENCE_SECONDS) == 130


def test_a_shell_sees_its_job_stop_continue_and_end() -> None:
    pidone = " ".join(PIDONE)
    with Terminal("bash", "--norc", "--noediting", "-i") as terminal:
        terminal.type(f"{pidone} -- sh -c 'echo the''re; exec cat'\n")
        terminal.expect("there")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("cat'")
        terminal.type("fg\n")
        terminal.expect("cat'")
        terminal.type("hello\n")
        terminal.expect("hello\r\nhello")  # the echo, and cat, which reads in the foreground again
        terminal.type("\x03")
        terminal.expect("$ ")
        terminal.type("echo code=$?\n")
        terminal.expect("code=130")
        # in the background the terminal is left to the shell
        terminal.type(f'{pidone} -- {sys.executable} -c "{FOREGROUND}" &\n')
        terminal.expect("False there")
        terminal.type("kill %1; wait %1; echo code=$?\n")
        terminal.expect("code=143")


def test_a_script_that_goes_on_has_the_terminal_again() -> None:
    script = f'{" ".join(PIDONE)} -- true; {sys.executable} -c "{FOREGROUND}"'
    with Terminal("sh", "-c", script) as terminal:
        terminal.expect("True there")
        terminal.type("\x03")  # or it would outlive the shell
        terminal.process.wait(PATIENCE_SECONDS)


# The start of the command


@pytest.mark.parametrize("alone", BOTH)
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nosuch", 127, "pidone: nosuch: not found in PATH=/usr/bin:/bin"),
        ("", 127, "pidone: : not found in PATH=/usr/bin:/bin"),
        ("{}/nosuch", 127, "pidone: {}/nosuch: no such file"),
        ("{}/plain", 126, "pidone: {}/plain: permission denied"),
        ("{}", 126, "pidone: {}: permission denied"),
        (
            "{}/lost",
            126,
            "pidone: {}/lost: is there, but the interpreter or loader that it asks for is not",
        ),
    ],
)
def test_a_command_that_cannot_be_started(
    tmp_path: Path, alone: bool, name: str, code: int, said: str
) -> None:
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "lost").write_text("#!/no/such/shell\n")
    (tmp_path / "lost").chmod(0o755)
    done = run(name.format(tmp_path), alone=alone, env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stderr) == (code, said.format(tmp_path) + "\n")


def test_a_script_without_an_interpreter_line_runs_as_in_a_shell(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $0 $1; exit 4\n")
    (tmp_path / "script").chmod(0o755)
    done = run("script", "one", alone=False, env={"PATH": f"/nowhere:{tmp_path}:/bin"})
    assert (done.returncode, done.stdout) == (4, f"{tmp_path}/script one\n")


def test_no_command() -> None:
    done = run(alone=False)
    assert (done.returncode, done.stderr) == (2, "pidone: no command after --\n")


@pytest.mark.parametrize("alone", BOTH)
def test_descriptors_and_directory_are_the_commands_and_not_held(tmp_path: Path, alone: bool) -> None:
    read, write = os.pipe()
    with running(
        sys.executable,
        "-c",
        f"import os; os.write({write}, b'hi'); os.execvp('sleep', ['sleep', '1000'])",
        alone=alone,
        pass_fds=[write],
        cwd=tmp_path,
    ) as pidone:
        os.close(write)
        assert os.read(read, 10) == b"hi"
        child = pidone.child()
        assert child.cwd() == str(tmp_path)
        wait_for(lambda: psutil.Process(pidone.pid).cwd() == "/")
        assert sorted(os.listdir(f"/proc/{pidone.pid}/fd")) == ["0", "1", "2"]
        child.kill()
        assert pidone.wait() == 137
        assert os.read(read, 1) == b""  # nobody holds it
    os.close(read)


def test_the_environment_is_what_it_was_and_sockets_are_the_commands() -> None:
    """Without a locale the interpreter sets LC_CTYPE for all that it starts."""
    starter = started(
        "import os", "os.environ['LISTEN_PID'] = str(os.getpid())", "os.environ.pop('LC_CTYPE', 0)"
    )
    environ = {"A": "b=c", "EMPTY": "", "LISTEN_FDS": "1", "LISTEN_PIDFDID": "77"}
    with running(
        "/bin/cat", "/proc/self/environ", "/proc/self/stat", alone=False, before=starter, env=environ
    ) as pidone:
        assert pidone.outer.stdout is not None
        *items, stat = pidone.outer.stdout.read().decode().split("\0")
        assert pidone.wait() == 0
    own = stat.split()[0]
    assert set(items) == {"A=b=c", "EMPTY=", "LISTEN_FDS=1", f"LISTEN_PID={own}"}
    other = run("/usr/bin/env", alone=False, env={"LISTEN_PID": "1"})
    assert other.stdout == "LISTEN_PID=1\n"  # meant for somebody else


@pytest.mark.parametrize("score", [-500, 0, 300])
def test_a_low_oom_score_of_an_init_is_not_the_commands_and_a_high_one_stays(score: int) -> None:
    if score < 0 and not _may_lower_oom_scores():
        score = 100  # without CAP_SYS_RESOURCE no process here can have a low one, so there is none to raise
    starter = started(f"import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'{score}')")
    with running(
        "sh", "-c", "cat /proc/self/oom_score_adj; exec sleep 1000", alone=False, before=starter
    ) as pidone:
        assert pidone.line() == str(max(score, 0))
        assert Path(f"/proc/{pidone.pid}/oom_score_adj").read_text() == f"{score}\n"
        pidone.signal(signal.SIGTERM)
        assert pidone.wait() == 143


def _may_lower_oom_scores() -> bool:
    lower = "import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-500')"
    return subprocess.run([sys.executable, "-c", lower], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("alone", BOTH)
def test_idle_it_never_wakes(alone: bool) -> None:
    with running(*SLEEP, alone=alone) as pidone:
        wait_for(lambda: psutil.Process(pidone.pid).cwd() == "/")
        wait_for(lambda: waiting_seconds(pidone.pid) == math.inf)  # tini looks once a second
