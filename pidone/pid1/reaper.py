"""The one owner of every wait in this process.

``waitpid(-1)`` beside a ``subprocess`` object steals the object's status, and ``subprocess`` turns the loss
into exit code 0: a failed command is reported as a success, without an exception. So nobody else waits:
whoever wants a child asks the reaper to start it, and asks the reaper for its end.
"""

import _signal
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

from pidone.errors import StartError

# Zombies taken before other tasks get a turn: a burst of 10,000 must not stall a heartbeat, and a
# checkpoint after each would double the cost of reaping.
BATCH = 256
REST = 0.002  # seconds between two looks: a stream of orphans is taken some at a time, and not each by itself
MARK = "PIDONE_RUN"  # a variable in the environment of each command: which run it belongs to


class Child:
    """A process that the reaper started. Its pid is not reused before ``returncode`` is set."""

    def __init__(self, pid: int, mark: str = "") -> None:
        self.pid = pid
        self.mark = mark
        self.returncode: int | None = None
        self._ended = trio.Event()

    async def wait(self) -> int:
        """The exit code, or minus the signal that ended it. Cancelling the wait leaves the child running."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def end(self, number: signal.Signals) -> None:
        """Signal it and all processes that it has become, each once, and wait until none is left."""
        from pidone.pid1.tree import Tree  # for plans with commands

        await Tree(self).end(number)

    def _end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def _first_to_go(pid: int) -> None:
    """The score of an init (-998 in a sandbox) is inherited, and not meant for a command. Raising takes no right."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as score:
            score.write(b"1000")
    except OSError:
        pass  # ended already, or a user of its own and we no root


@contextmanager
def _deaf() -> Iterator[None]:
    """SIGCHLD waits: each by itself would wake the loop, which costs ten times what reaping does."""
    # no other signal's state is touched: the whole mask changes meanwhile, at the program's start and end
    _signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    try:
        yield
    finally:
        _signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))


@contextmanager
def _empty_mask() -> Iterator[None]:
    """For a command that is started in between; there is no ``await`` in it."""
    before = _signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        _signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Reaper:
    """Starts children, collects them and every orphan that was handed to this process."""

    def __init__(self) -> None:
        self.orphans = 0  # reaped, not started here
        self.children = 0  # reaped, started here
        self._started: dict[int, Child] = {}

    @property
    def started(self) -> Iterable[Child]:
        """The children that it started and has not collected yet."""
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
        """Start a command in a session of its own; what it says goes to ``output``, else where ours goes.

        Beside ``env`` it has ``MARK``, by which its processes are known when they have left everything else.
        Signal dispositions are the default ones and nothing is blocked. With ``user`` or ``group`` it has no
        other groups. Where memory runs out it is killed before us and the application. Raises ``StartError``
        with the reason.
        """
        user = None if user == os.geteuid() else user  # which takes no right, and so no root
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
                wanted = f"uid {user}" if user is not None else f"gid {group}"
                why = f"cannot become {wanted}, for pidone runs as uid {os.geteuid()} and not as root"
                raise StartError(f"{argv[0]}: {why}") from error
            where = f"workingDir {cwd}" if error.filename == cwd != argv[0] else argv[0]
            raise StartError(f"{where}: {error.strerror}") from error
        _first_to_go(process.pid)
        # Popen is a portable fork and exec here and nothing more. With a return code it believes that the
        # process was waited for, so neither it nor its destructor ever waits.
        process.returncode = 0
        child = self._started[process.pid] = Child(process.pid, mark)
        return child

    def sweep(self) -> bool:
        """Collect what has ended, at most ``BATCH``; True where more may be there."""
        for _ in range(BATCH):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
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

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reap until cancelled. SIGCHLD only says "look": signals coalesce, so each look takes all there is."""
        with trio.open_signal_receiver(signal.SIGCHLD) as bells:
            task_status.started()
            while True:
                while self.sweep():  # also once before the first bell: zombies may be older than the handler
                    await trio.lowlevel.checkpoint()
                with _deaf():
                    await trio.sleep(REST)
                await anext(bells)
