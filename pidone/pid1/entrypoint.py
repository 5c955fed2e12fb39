"""``pidone [-g] -- CMD ARG...``: process 1 of one container, before the application's own command.

Every signal is blocked before the fork and taken with sigwaitinfo: no handler, no wakeup while idle, and
nothing can get lost between two instructions. Only built-in modules (``signal`` with its enums and ``os``
cost 1 MiB more), for this process stays beside the application as long as that runs.

Signals go to no process that is not a descendant, and there is no ``kill(-1)``: what process 1 leaves
behind the kernel ends itself, and a ``kubectl exec`` session in the container is not ours to signal.
"""

import _signal
import errno
import posix
import sys
import time

GRACE = b"PIDONE_GRACE"
# Seconds from TERM to KILL for what the command leaves behind. They are part of the runtime's own grace period:
# of Docker's 10 s half are left, of a pod's 30 s more, so our KILL comes before the runtime's, which would turn
# the command's exit code into 137. In the environment and not an option: the command line is baked into the
# image, while terminationGracePeriodSeconds, which this has to fit into, stands in the manifest.
GRACE_SECONDS = 5.0
AFTER_KILL = 1.0  # seconds; a process that hangs in the kernel must not keep this one for ever

NO_COMMAND, FAILED, NOT_EXECUTABLE, NOT_FOUND = (
    2,
    125,
    126,
    127,
)  # 125 to 127 as env(1) and timeout(1) have them

EVERY = _signal.valid_signals()
CHLD, CONT, TSTP = _signal.SIGCHLD, _signal.SIGCONT, _signal.SIGTSTP
TERMINAL_STOPS = (TSTP, _signal.SIGTTIN, _signal.SIGTTOU)


def main(command: list[str], *, group: bool) -> int:
    """The command's exit code, or 128 and the signal that ended it. ``group``: signals go to its process group."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, EVERY)
    # Ignored (a starter may have left it so), the kernel would reap by itself and keep no exit code.
    _signal.signal(CHLD, _signal.SIG_DFL)
    if not command:
        _say("no command after --")
        return NO_COMMAND
    if posix.getpid() != 1:
        _adopt_orphans()
    grace = _grace()
    ours = posix.getpgrp()
    try:
        child = posix.fork()
    except OSError as error:
        _say(f"fork: {error.strerror}")
        return FAILED
    if child == 0:
        _become(command, ours)
    try:
        posix.setpgid(child, child)  # the child does it too: whoever comes first, the group is there for -g
    except OSError:
        pass  # it is past exec already, or ended
    _hold_nothing()
    while True:
        try:
            code = _watch(child, ours, group=group)
            break
        except MemoryError:
            pass  # the application would end with us; the loop begins with a look at all children
    _hand_over(ours, child)  # to the shell script that goes on after us
    _end_the_rest(grace)
    return code


def _watch(child: int, ours: int, *, group: bool) -> int:
    while True:
        status = _reap(child)
        if status is not None:
            if not posix.WIFSTOPPED(status):
                code = posix.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if posix.WSTOPSIG(status) in TERMINAL_STOPS:
                _suspend()
        number = _signal.sigwaitinfo(EVERY).si_signo
        while number != CHLD:
            if number == CONT:
                # The terminal has stopped the whole group, so all of it goes on; in the foreground where
                # the shell's fg has put us.
                _hand_over(child, ours)
            _forward(child, number, group=group or number == CONT)
            number = _signal.sigwaitinfo(EVERY).si_signo


def _reap(child: int) -> int | None:
    """Collect all there is; the status of the child that ended or was stopped.

    SIGCHLD only says "look": signals coalesce, and the pid in one is that of the first of many.
    """
    found = None
    try:
        while True:
            pid, status = posix.waitpid(-1, posix.WNOHANG | posix.WUNTRACED)
            if pid == child:
                found = status
            if pid == 0:
                return found
    except ChildProcessError:
        return found


def _forward(child: int, number: int, *, group: bool) -> None:
    # The child is not reaped before _watch returns, so the pid cannot be a stranger's.
    if group:
        try:
            posix.killpg(child, number)
        except ProcessLookupError:
            pass  # it has changed its group and nobody is left in this one
        except PermissionError:
            return
        else:
            return
    try:
        posix.kill(child, number)
    except OSError:
        pass  # a zombie, or it has another uid by now and we lack CAP_KILL


def _suspend() -> None:
    """Stop as the child did when the terminal stopped it, so that a shell sees its job stopped.

    By TSTP with its default action and not by STOP: the kernel ignores it where nobody could resume us,
    which is a group without a parent in its session: every container. And only for the terminal's
    stops: whoever sends the child a STOP will also send it the CONT, and that one we would not see.
    """
    if posix.getpid() == 1 or CONT in _signal.sigpending():
        return
    posix.kill(posix.getpid(), TSTP)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [TSTP])  # here we are stopped
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [TSTP])


def _hand_over(to: int, holder: int) -> None:
    """Make ``to`` the foreground group of our terminal, if there is one and ``holder`` has the foreground.

    In the background (``pidone -- CMD &``) it is the shell's, and stays so: tini takes it. TTOU is blocked
    and therefore allows the change from the background too.
    """
    try:
        terminal = posix.open("/dev/tty", posix.O_RDWR | posix.O_NOCTTY)
    except OSError:
        return
    try:
        if posix.tcgetpgrp(terminal) == holder:
            posix.tcsetpgrp(terminal, to)
    except OSError:
        pass  # hung up
    finally:
        posix.close(terminal)


def _adopt_orphans() -> None:
    try:
        # ctypes, 0.5 MiB and 9 ms, only on this path
        from pidone.pid1.subreaper import become_subreaper

        adopted = become_subreaper()
    except (ImportError, OSError):
        adopted = False
    if not adopted:
        _say("not process 1 and PR_SET_CHILD_SUBREAPER is refused: orphans go to another process")


def _grace() -> float:
    said = posix.environ.get(GRACE)
    if not said:
        return GRACE_SECONDS
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds <= 86400:
        return seconds
    # An application that does not start over this would be the greater harm.
    _say(
        f"PIDONE_GRACE={said.decode(errors='replace')} is no number of seconds from 0 to 86400; using {GRACE_SECONDS:g}"
    )
    return GRACE_SECONDS


def _hold_nothing() -> None:
    """Close all but 0, 1 and 2, which the child has by now; leave the working directory, which pins its mount.

    By name and not by ``closerange``, which where close_range(2) is forbidden tries every number there is.
    """
    try:
        numbers = [int(name) for name in posix.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(3, 256))
    for number in numbers:
        if number > 2:
            try:
                posix.close(number)
            except OSError:
                pass  # the listing's own
    posix.chdir("/")


# The child, between fork and exec


def _become(command: list[str], ours: int) -> None:
    code = FAILED
    try:
        posix.setpgid(
            0, 0
        )  # no session of its own: as its leader the child could not be stopped by TSTP, and
        _hand_over(
            posix.getpid(), ours
        )  # nobody but itself could make it, so -g would have a gap at the start
        _raise_oom_score()
        environ = _environment()
        # Default for every signal, also for those that were ignored on entry: the interpreter ignores PIPE and
        # XFSZ itself, so what the starter had is not known for all, and every signal is forwarded to the command
        # anyway (nohup's HUP as well). What a runtime's or a shell's leftovers mean the command cannot know.
        # First default and then unblocked: what comes in between stays pending, and then acts as on the command.
        for number in EVERY:
            if number not in {_signal.SIGKILL, _signal.SIGSTOP}:
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        code = _exec(command, environ)
    except BaseException as error:  # noqa: BLE001 - nothing of ours may go on in the child
        _say(f"{command[0]}: {error}")
    finally:
        posix._exit(code)


def _exec(command: list[str], environ: dict[bytes, bytes]) -> int:
    """As execvp(3), with the whole truth about a failure. The exit code; it does not return otherwise."""
    name = command[0].encode(sys.getfilesystemencoding(), "surrogateescape")
    search = environ.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
    paths = [name] if b"/" in name else [(folder or b".") + b"/" + name for folder in search.split(b":")]
    refused = ""
    for path in paths if name else []:
        try:
            posix.execve(path, command, environ)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            if error.errno == errno.ENOEXEC:  # a script without #!, which every shell and tini run
                script: list[str | bytes] = ["/bin/sh", path, *command[1:]]
                try:
                    posix.execve(script[0], script, environ)
                except OSError:
                    pass
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                if not posix.access(path, posix.F_OK):
                    continue
                reason = "is there, but the interpreter or loader that it asks for is not"
            refused = refused or f"{path.decode(errors='replace')}: {reason}"
    if refused:
        _say(refused)
        return NOT_EXECUTABLE
    where = "no such file" if b"/" in name else f"not found in PATH={search.decode(errors='replace')}"
    _say(f"{command[0]}: {where}")
    return NOT_FOUND


def _environment() -> dict[bytes, bytes]:
    """What we were started with, and not what the interpreter made of it: in the C locale it sets LC_CTYPE."""
    try:
        items = _read("/proc/self/environ").split(b"\0")
    except OSError:
        environ = dict(posix.environ)
    else:
        environ = {}
        for item in items:
            name, equals, value = item.partition(b"=")
            if equals:
                environ.setdefault(name, value)
    if environ.get(b"LISTEN_PID") == b"%d" % posix.getppid():
        # sd_listen_fds(3) takes descriptors that are meant for its own pid alone; the pidfd's id is optional
        environ[b"LISTEN_PID"] = b"%d" % posix.getpid()
        environ.pop(b"LISTEN_PIDFDID", None)
    return environ


def _raise_oom_score() -> None:
    """The score of an init (-998 in a sandbox) is not meant for an application. Raising it needs no right."""
    try:
        if int(_read("/proc/self/oom_score_adj")) < 0:
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
                score.write(b"0")
    except OSError:
        pass  # no /proc


# After the child


def _end_the_rest(grace: float) -> None:
    """TERM to every descendant that is left, in whatever session; KILL after the grace period.

    Process 1 could leave that to the kernel, which kills at once: without a TERM nobody saves anything.
    Signals that come now are dropped: TERM has been sent, and the time is bounded.
    """
    if _none_left() or not _send(_signal.SIGTERM):
        return  # nobody; or no /proc of our own, so that nobody was told, and waiting is in vain
    if _gone_within(grace):
        return
    _say(f"still there {grace:g} s after TERM, and killed: {_names(_descendants())}")
    _send(_signal.SIGKILL)
    _gone_within(AFTER_KILL)


def _gone_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _none_left():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        _signal.sigtimedwait([CHLD], left)
    return True


def _none_left() -> bool:
    """Reap; whether there is no descendant any more: whose parent ends becomes a child of ours."""
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _send(number: int) -> bool:
    """Signal all descendants, also those that are forked meanwhile; False where none was found."""
    sent: set[int] = set()
    for _ in range(100):  # a fork bomb must not hold us
        new = [pid for pid in _descendants() if pid not in sent]
        if not new:
            break
        for pid in new:
            _send_one(pid, number)
        sent.update(new)
    return bool(sent)


def _send_one(pid: int, number: int) -> None:
    """The pid of a grandchild may be a stranger's by now: hold the process first, look at it then."""
    try:
        held = posix.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        held = -1  # a kernel before 5.3, or a seccomp filter
    try:
        if _is_ours(pid):
            # CONT, for a process that is stopped takes no TERM
            for one in (number, CONT) if number != _signal.SIGKILL else (number,):
                if held >= 0:
                    _signal.pidfd_send_signal(held, one)
                else:
                    posix.kill(pid, one)
    except OSError:
        pass  # it has ended, or has another uid and we lack CAP_KILL
    finally:
        if held >= 0:
            posix.close(held)


def _is_ours(pid: int) -> bool:
    own = posix.getpid()
    while pid not in {0, own}:
        pid = _parent(pid)
    return pid == own


def _descendants() -> list[int]:
    """Those alive. None where /proc shows another PID namespace, whose numbers mean other processes here."""
    own = posix.getpid()
    try:
        if posix.readlink("/proc/self") != str(own):
            return []
        pids = [int(name) for name in posix.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    children: dict[int, list[int]] = {}
    for pid in pids:
        children.setdefault(_parent(pid), []).append(pid)
    found = list(children.get(own, ()))
    for pid in found:  # it grows
        found += children.get(pid, ())
    return found


def _names(pids: list[int]) -> str:
    names = []
    for pid in pids[:10]:
        try:
            names.append(f"{_read(f'/proc/{pid}/comm').decode(errors='replace').strip()} ({pid})")
        except OSError:
            pass  # ended just now
    return ", ".join([*names, "..."] if len(pids) > 10 else names)


def _parent(pid: int) -> int:
    """0 for a process that is gone, or that came from outside of the namespace."""
    try:
        # the name stands in parentheses and may hold anything, parentheses too
        return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _say(words: str) -> None:
    try:
        posix.write(2, f"pidone: {words}\n".encode(errors="replace"))
    except OSError:
        pass
