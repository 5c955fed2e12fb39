"""The changes between doze and Python, in this one process. Built-in modules only.

    doze ──child──► ask          is there a plan? (``pidone.pid1.ask``)
    doze ──execve─► run          there is one: the engine (``pidone.pod.live``)
    run  ──execve─► doze         nothing to do any more, or the program is at its end

Children, zombies, and blocked and pending signals survive an ``execve``; handlers, threads and descriptors
do not. So everything is blocked before each, and whoever comes up sweeps once, sets its handlers, and
unblocks last. Where there is no doze (a desk without a compiler) the engine runs, and waits, all the time.
"""

import _signal
import posix

RETRY_MAX = 300.0  # seconds of doze after a failure of the program, at most
GOOD_RUN = 600.0  # seconds after which earlier failures are forgotten
WORDS_MAX = 6000  # characters of last words carried over; a request may have a head of 16 KiB

LINES_MAX = 60_000  # bytes of the journal carried over; one variable may have 128 KiB

STAGE, WORDS, FAILURES = b"PIDONE_STAGE", b"PIDONE_LAST_WORDS", b"PIDONE_FAILURES"
UNTOLD = b"PIDONE_UNTOLD"  # lines of the journal that the repo has not got


def block() -> None:
    """To process 1 the kernel drops a signal that is neither handled nor blocked; a blocked one stays pending."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())


def doze_program() -> str:
    """Where doze is: PIDONE_DOZE, else in the wheel, else built in the clone; empty where it is not."""
    here = __file__.rpartition("/")[0]
    said = posix.environ.get(b"PIDONE_DOZE", b"").decode()
    places = (said,) if said else (f"{here}/doze-{posix.uname().machine}", f"{here}/../../build/doze")
    return next((path for path in places if posix.access(path, posix.X_OK)), "")


def doze(argv: list[str], *, delay: float = 0.0) -> None:
    """Become doze, which asks ``argv`` for a plan after ``delay`` seconds. Returns only where that cannot be."""
    program = doze_program()
    block()
    posix.environ.pop(STAGE, None)
    options = ["-d", str(int(delay * 1000))] if delay else []
    if program:
        try:
            posix.execve(program, [program, *options, *argv], posix.environ)
        except OSError:
            pass  # not executable after all, or no memory


def fail(argv: list[str], words: str, ran: float, *, untold: str = "") -> bool:
    """The program is at its end, after ``ran`` seconds: doze, longer each time, and begin anew.

    The words are carried over in the environment, and told to the repo by whoever asks next; the lines that it
    was not told go into the journal of the next program. Returns only after TERM or INT (True),
    or where neither doze nor Python can be started now (False).
    """
    failures = 0 if ran > GOOD_RUN else int(posix.environ.get(FAILURES, b"0"))
    delay = min(RETRY_MAX, 2.0 ** min(failures, 16))
    posix.environ[FAILURES] = b"%d" % (failures + 1)
    posix.environ[WORDS] = words[:WORDS_MAX].encode("utf-8", "replace").replace(b"\0", b"?")
    posix.environ[UNTOLD] = untold.encode("utf-8", "replace").replace(b"\0", b"?")[-LINES_MAX:]
    doze(argv, delay=delay)
    if pause(delay):
        return True
    posix.environ.pop(STAGE, None)
    try:
        posix.execve(argv[0], argv, posix.environ)
    except OSError:
        pass
    return False


def pause(seconds: float) -> bool:
    """What doze does, here: reap for that long; True when asked to end in the meantime."""
    import time

    until = time.monotonic() + seconds
    while True:
        try:
            while posix.waitpid(-1, posix.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        left = until - time.monotonic()
        if left <= 0:
            return False
        stop = (_signal.SIGTERM, _signal.SIGINT)
        said = _signal.sigtimedwait((*stop, _signal.SIGCHLD), left)
        if said is not None and said.si_signo in stop:
            return True
