"""The changes between doze and Python in process 1. Imports built-in modules only.

    doze ──child──► ask          asks the repo whether there is a plan (``pidone.pid1.ask``)
    doze ──execve─► run          there is a plan: the engine (``pidone.pod.live``)
    run  ──execve─► doze         there are no tasks any more, or the program failed

Children, zombies, and blocked and pending signals survive an ``execve``; handlers, threads and descriptors do not. So
all signals are blocked before each. The program that starts reaps once, sets its handlers, and unblocks last. Without
doze (a desk without a compiler) the engine runs all the time.
"""

import _signal
import posix

from pidone.pid1 import freezing

RETRY_MAX_SECONDS = 300.0  # the longest doze after a failure of the program
BACKOFF_RESET_SECONDS = 600.0  # a run of this length resets the number of failures
MAX_WORDS = 6000  # characters of last words that are kept; a request may have a head of 16 KiB
MAX_UNTOLD_BYTES = 60_000  # of the journal; one environment variable may have 128 KiB

STAGE, WORDS, FAILURES = b"PIDONE_STAGE", b"PIDONE_LAST_WORDS", b"PIDONE_FAILURES"
HASTE = b"PIDONE_HASTE"  # number of runs in a row without a task, though a repo had announced one; see doze.c
UNTOLD = b"PIDONE_UNTOLD"  # lines of the journal that were not reported to the repo

# The file that doze executes in place of Python, or the reason why it does not any more ("signal 4"); see doze.c.
SNAPSHOT = b"PIDONE_SNAPSHOT"
USED, OFF = "used", "off"

MAINTENANCE = b"PIDONE_MAINTENANCE"  # 1 while POST /maintenance is in effect


restored = False  # the snapshot sets it: this process started from it


def snapshot() -> str:
    """Return ``USED`` if this process started from the snapshot, ``OFF`` without one, else why doze gave it up."""
    setting = posix.environ.get(SNAPSHOT, b"").decode("ascii", "replace")
    return USED if restored else OFF if not setting or setting.startswith("/") else setting


def block() -> None:
    """Block all signals. The kernel drops a signal to process 1 that is neither handled nor blocked."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())


def doze_program() -> str:
    """Return the path of doze: PIDONE_DOZE, that in the wheel or in the clone's build folder, or ""."""
    here = __file__.rpartition("/")[0]
    setting = posix.environ.get(b"PIDONE_DOZE", b"").decode()
    paths = (setting,) if setting else (f"{here}/doze-{posix.uname().machine}", f"{here}/../../build/doze")
    return next((path for path in paths if posix.access(path, posix.X_OK)), "")


def doze(argv: list[str], *, delay: float = 0.0) -> None:
    """Exec doze, which runs ``argv`` to ask for a plan after ``delay`` seconds. Returns only if that is impossible."""
    program = doze_program()
    block()
    freezing.continue_all()
    posix.environ.pop(STAGE, None)
    options = ["-d", str(int(delay * 1000))] if delay else []
    if program:
        try:
            posix.execve(program, [program, *options, *argv], posix.environ)
        except OSError:
            pass  # it is not executable, or there is no memory


def fail(argv: list[str], words: str, ran: float, *, untold: str = "") -> bool:
    """Exec doze after a failure of the program, which ran for ``ran`` seconds. doze waits, longer after each failure.

    The environment keeps the reason, ``words``, for the next request to the repo, and the unreported lines for the
    journal of the next program. Return True after TERM or INT, and False if neither doze nor Python can be started.
    """
    before = posix.environ.get(FAILURES, b"0")
    failures = int(before) if ran <= BACKOFF_RESET_SECONDS and before.isdigit() and len(before) < 5 else 0
    delay = min(RETRY_MAX_SECONDS, 2.0 ** min(failures, 16))
    posix.environ[FAILURES] = b"%d" % (failures + 1)
    posix.environ[WORDS] = words[:MAX_WORDS].encode("utf-8", "replace").replace(b"\0", b"?")
    posix.environ[UNTOLD] = untold.encode("utf-8", "replace").replace(b"\0", b"?")[-MAX_UNTOLD_BYTES:]
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
    """Reap for some seconds, as doze does. Return True as soon as TERM or INT arrives."""
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
        received = _signal.sigtimedwait((*stop, _signal.SIGCHLD), left)
        if received is not None and received.si_signo in stop:
            return True
