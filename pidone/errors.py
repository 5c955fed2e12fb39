"""All exceptions that pidone raises, in one tree. Exceptions of libraries are translated at one place each.

PidoneError
├── Refused            a plan, or a part of one, that this program does not accept
├── TransferError      an HTTP exchange without an answer           (translated in pidone.http.client)
│   ├── ConnectError       unknown name, no route, connection refused or reset
│   ├── TransferTimeout    no answer within the time allowed
│   └── ProtocolError      an answer that is not HTTP, or larger than allowed
├── TaskFailed         a run of a task has failed
│   ├── NotAccepted        a monitoring system did not accept a report
│   └── RegistryError      the registry answered with an error      (translated in pidone.registries)
│       └── RegistryRefused    ... and a retry cannot help
├── StartError         a command could not be started               (translated in pidone.pid1.reaper)
└── LanguageError      mistakes in YAML files or arguments: findings with positions
"""


class PidoneError(Exception):
    """Base class of all expected errors. Any other exception is a bug, or lack of memory."""


class Refused(PidoneError):
    """A plan, or a part of one, that this program does not accept. The text is reported to the repo."""


class TransferError(PidoneError):
    """An HTTP exchange without an answer. ``sent``: the server may have got the request, and acted on it."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectError(TransferError):
    """The name is unknown, or the connection was refused, reset or closed early."""


class TransferTimeout(TransferError):
    """No answer within the time allowed."""


class ProtocolError(TransferError):
    """An answer that is not HTTP/1.1, or larger than allowed."""


class TaskFailed(PidoneError):
    """A run of a task has failed. The engine retries it after its backoff."""


class NotAccepted(TaskFailed):
    """A monitoring system did not accept a report.

    ``refused``: it would not accept the same report later. ``wait``: seconds that it has asked for before the next try.
    """

    def __init__(self, message: str, *, refused: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.refused = refused
        self.wait = wait


class RegistryError(TaskFailed):
    """The registry answered with an error; a retry may help."""


class RegistryRefused(RegistryError):
    """The registry answered with an error that lasts until the task, its credentials or the server change."""


class StartError(PidoneError):
    """A command could not be started: it does not exist, is not executable, or no process can be created."""


class LanguageError(PidoneError):
    """Mistakes in what people wrote. ``str()`` is all findings, each with its position and remedy."""


def describe(error: BaseException) -> str:
    """Return the error in one line: the message of a ``PidoneError``, else the type and the message."""
    if isinstance(error, PidoneError):
        return str(error)
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(describe(inner) for inner in error.exceptions))
    return f"{type(error).__name__}: {error}"


def last_words(error: BaseException) -> str:
    """Return one line about a failure of the whole program: the error, the last 8 frames, and its notes.

    The notes are the lines of the journal that were not reported.
    """
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        line = trace.tb_lineno or ""  # the image has no line numbers of libraries
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{line} {code.co_name}")
        trace = trace.tb_next
    notes = "; ".join(getattr(error, "__notes__", ())).replace("\n", " | ")
    return f"{describe(error)} (at {' < '.join(reversed(frames[-8:]))}) {notes}".rstrip()
