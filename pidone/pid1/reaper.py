"""Starts all child processes and makes all waitpid calls of this process, so that no exit code is lost.

``waitpid(-1)`` beside a ``subprocess`` object steals the object's status, and ``subprocess`` turns the loss
into exit code 0: a failed command is reported as a success, without an exception. So all other code starts its
children with ``Reaper.spawn`` and waits for them with ``Child.wait``.
"""

import _signal
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from pidone.errors import StartError

if TYPE_CHECKING:
    from resource import struct_rusage

MARK = "PIDONE_RUN"  # a variable in the environment of each command: a random word for each run
# Zombies reaped before other Trio tasks get a turn: a burst of 10,000 must not delay a heartbeat, and a
# checkpoint after each zombie would double the cost of reaping.
BATCH = 256
REST_SECONDS = 0.002  # between two batches: a stream of orphans is reaped in batches, not one by one


# Called with the pid of a process before it is reaped, while /proc still has it. Returns a function for its resource
# usage, with that of all children that it has waited for. Neither raises.
Observe = Callable[[int], "Callable[[struct_rusage], None]"]


class Child:
    """A process that the reaper started. Its pid is not reused before ``returncode`` is set."""

    def __init__(self, pid: int, mark: str = "") -> None:
        self.pid = pid
        self.mark = mark
        self.returncode: int | None = None
        self._ended = trio.Event()

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the signal's number. A cancelled wait leaves it running."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def end(self, number: signal.Signals) -> None:
        """Signal the child and all its descendants once, and wait until none is left; see ``pidone.pid1.tree``."""
        from pidone.pid1.tree import Tree  # only plans with commands need it

        await Tree(self.pid, f"{MARK}={self.mark}".encode(), lambda: self.returncode is not None).end(number)

    def _end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def _prefer_for_oom_kill(pid: int) -> None:
    """Set the highest OOM score: a command inherits that of process 1 (-998 in a sandbox), which protects it.

    Raising the score needs no privilege (proc_pid_oom_score_adj(5)).
    """
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as score:
            score.write(b"1000")
    except OSError:
        pass  # the command has ended, or runs as another user and we are not root


@contextmanager
def _sigchld_blocked() -> Iterator[None]:
    """Block SIGCHLD in the block, because a wakeup of the loop for each signal costs ten times as much as reaping."""
    # SIGCHLD alone, because the rest of the mask changes meanwhile, at the program's start and end
    _signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    try:
        yield
    finally:
        _signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))


@contextmanager
def _empty_mask() -> Iterator[None]:
    """Unblock all signals while a command is started, which inherits the mask. The block must not contain ``await``."""
    before = _signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        _signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Reaper:
    """Starts children, and reaps them and all orphans that this process adopted."""

    def __init__(self) -> None:
        self.orphans = 0  # reaped processes that ``spawn`` did not start
        self.children = 0  # reaped processes that ``spawn`` started
        self._started: dict[int, Child] = {}
        self.observe: Observe | None = None

    @property
    def started(self) -> Iterable[Child]:
        """The children that ``spawn`` started and that are not reaped yet."""
        return self._started.values()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        output: int | None = None,
        user: int | None = None,
        group: int | None = None,
    ) -> Child:
        """Start a command in a session of its own, and return it.

        Its output goes to the descriptor ``output``, else to that of this process. Its environment is ``env`` and
        ``MARK``, by which ``pidone.pid1.tree`` finds its processes. It has default signal dispositions and an empty
        signal mask. With ``user`` or ``group`` it has no supplementary groups. When memory runs out, the kernel kills
        it before this process and the application. Raises ``StartError`` with the reason.
        """
        user = None if user == os.geteuid() else user  # its own uid needs no privilege
        group = None if group == os.getegid() else group
        mark = os.urandom(8).hex()
        groups: list[int] | None = None if user is None and group is None else []
        try:
            with _empty_mask():
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**env, MARK: mark},
                    cwd=cwd,
                    user=user,
                    group=group,
                    extra_groups=groups,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            if groups is not None and isinstance(error, PermissionError) and os.geteuid() != 0:
                identity = f"uid {user}" if user is not None else f"gid {group}"
                reason = (
                    f"cannot become {identity}, because pidone runs as uid {os.geteuid()} and not as root"
                )
                raise StartError(f"{argv[0]}: {reason}") from error
            where = f"workingDir {cwd}" if error.filename == cwd != argv[0] else argv[0]
            raise StartError(f"{where}: {error.strerror}") from error

        _prefer_for_oom_kill(process.pid)
        # Popen is used as a portable fork and exec only. With a return code it treats the process as reaped, so
        # neither it nor its destructor ever waits.
        process.returncode = 0
        child = self._started[process.pid] = Child(process.pid, mark)
        return child

    def sweep(self) -> bool:
        """Reap at most ``BATCH`` processes that have ended; True if there may be more."""
        for _ in range(BATCH):
            try:
                pid, status = self._reap()
            except ChildProcessError:
                return False
            if pid == 0:
                return False
            child = self._started.pop(pid, None)
            if child is None:
                self.orphans += 1
            else:
                self.children += 1
                child._end(status)
        return True

    def _reap(self) -> tuple[int, int]:
        """Reap a process that has ended. Return its pid and status, as ``waitpid`` with WNOHANG."""
        if self.observe is None:
            return os.waitpid(-1, os.WNOHANG)
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0
        note = self.observe(ended.si_pid)
        pid, status, usage = os.wait4(ended.si_pid, os.WNOHANG)
        note(usage)
        return pid, status

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reap until cancelled. Signals coalesce, so each SIGCHLD leads to a sweep of all ended processes."""
        with trio.open_signal_receiver(signal.SIGCHLD) as arrivals:
            task_status.started()
            while True:
                while self.sweep():  # also before the first signal: zombies may be older than the handler
                    await trio.lowlevel.checkpoint()
                with _sigchld_blocked():
                    await trio.sleep(REST_SECONDS)
                await anext(arrivals)
