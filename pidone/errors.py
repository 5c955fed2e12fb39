"""Every error of ours, in one tree. Foreign errors are mapped to it at one border each.

PidoneError
├── Refused            a plan, or a part of one, that this program does not accept
├── TransferError      an HTTP exchange that gave no answer            (border: pidone.http.client)
│   ├── ConnectError       nobody there, name unknown, connection refused or reset
│   ├── TransferTimeout    no answer within the time allowed
│   └── ProtocolError      an answer that is not HTTP, or larger than allowed
├── TaskFailed         one run of a task ended without doing what it is for
│   └── RegistryError      the registry answered something other than yes    (border: pidone.registries)
│       └── RegistryRefused    ... and will not say yes until somebody changes something
├── StartError         a command could not be started                   (border: pidone.pid1.reaper)
└── LanguageError      what people wrote is wrong: findings with positions
"""


class PidoneError(Exception):
    """The root: whoever catches this catches what pidone itself raises, and no bug."""


class Refused(PidoneError):
    """A plan, or a part of one, that this program does not accept. The text goes to the repo."""


class TransferError(PidoneError):
    """An HTTP exchange that gave no answer."""


class ConnectError(TransferError):
    """Nobody there: the name is unknown, the connection was refused, reset or ended early."""


class TransferTimeout(TransferError):
    """No answer within the time allowed."""


class ProtocolError(TransferError):
    """An answer that is not HTTP/1.1, or larger than allowed."""


class TaskFailed(PidoneError):
    """One run of a task ended without doing what it is for; it is tried again by its backoff."""


class RegistryError(TaskFailed):
    """The registry answered something other than yes; asking again may help."""


class RegistryRefused(RegistryError):
    """The registry will not say yes until somebody changes the task, its credentials or the server."""


class StartError(PidoneError):
    """A command could not be started: not there, not executable, no process to be had."""


class LanguageError(PidoneError):
    """What people wrote is wrong. ``str()`` is every finding, each with its position and remedy."""


def describe(error: BaseException) -> str:
    """An error in one line: the message of ours, type and message of what nobody expected."""
    if isinstance(error, PidoneError):
        return str(error)
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(describe(inner) for inner in error.exceptions))
    return f"{type(error).__name__}: {error}"


def last_words(error: BaseException) -> str:
    """One line on a failure of the whole program: the error, its place, and the lines that were not reported."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        line = trace.tb_lineno or ""  # the image has none of foreign code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{line} {code.co_name}")
        trace = trace.tb_next
    untold = "; ".join(getattr(error, "__notes__", ())).replace("\n", " | ")
    return f"{describe(error)} (at {' < '.join(reversed(frames[-8:]))}) {untold}".rstrip()
