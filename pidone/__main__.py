"""``python -m pidone``: what the program ``pidone`` does, started by an interpreter that runs already.

With no arguments this is process 1 of a pod. With arguments it is the command line, or process 1 of one container,
which is the static program of ``pid1/pidone.c``. That program starts Python with this module too.
"""

import sys

HELP = (
    "-h",
    "--help",
    "--version",
)  # options of the command line; all others are those of process 1 of a container


def main() -> int:
    if len(sys.argv) == 1:
        return process_one()
    if sys.argv[1].startswith("-") and sys.argv[1] not in HELP:
        return contain()
    from pidone.cli.main import run

    return run(sys.argv[1:])


def contain() -> int:
    """Become the static program: process 1 of one container, before the application's own command.

    Return an exit code only if there is no such program. It blocks all signals first. This function does not: other
    threads of this interpreter would not inherit the mask, and would take a signal whose default action ends them.
    """
    import posix

    here = __file__.rpartition("/")[0]
    machine = posix.uname().machine
    for program in (f"{here}/pid1/pidone-{machine}", f"{here}/../build/pidone"):
        try:
            posix.execve(program, [program, *sys.argv[1:]], _started_with())
        except OSError:
            pass  # it is not there, or is for another machine
    posix.write(2, b"pidone: process 1 of a container is a static program, which is missing: make doze\n")
    return 125  # as env(1) and timeout(1)


def _started_with() -> dict[bytes, bytes]:
    """Return the environment that this process was started with. In the C locale the interpreter adds LC_CTYPE."""
    import posix

    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:
            items = [item.partition(b"=") for item in file.readall().split(b"\0")]
    except OSError:
        return dict(posix.environ)
    return {name: value for name, equals, value in reversed(items) if equals}


def process_one() -> int:
    """Run the stage that the environment names, see ``pidone.pid1.stages``. Only TERM and INT end process 1."""
    import posix

    from pidone.pid1 import stages

    if posix.environ.get(stages.STAGE) == b"ask":
        from pidone.pid1 import ask

        posix._exit(ask.main())
    import time

    while True:
        try:
            _run()
        except BaseException as error:  # noqa: BLE001 - not even the words of a failure could be kept: no memory
            try:
                if stages.fail([sys.executable, *sys.orig_argv[1:]], type(error).__name__, 0.0):
                    posix._exit(0)
            except BaseException:  # noqa: BLE001 - process 1 does not end, whatever happened
                time.sleep(1)


def _run() -> None:
    """Become doze at the first start; after that run the program of the pod. Never returns."""
    import posix

    from pidone.pid1 import stages

    argv = _command()
    if posix.environ.get(stages.STAGE) is None:
        _drop_environment()
        stages.doze(argv)
        if posix.getpid() != 1:
            from pidone.pid1.subreaper import become_subreaper

            become_subreaper()
    stages.block()  # before all that takes time: a TERM that arrives during the imports must not be lost
    posix.chdir("/")  # a working directory elsewhere would pin its file system
    import time

    while True:
        began = time.monotonic()
        try:
            _use_generated()
            from pidone.pod import live

            stopped = live.main()
            if not stopped:
                stages.doze(argv)
        except BaseException as error:  # noqa: BLE001 - process 1 does not end, whatever happened
            stages.block()
            untold = "\n".join(getattr(error, "__notes__", ()))
            stopped = stages.fail(argv, _last_words(error), time.monotonic() - began, untold=untold)
        if stopped:
            # without the clean-up of the interpreter, which takes longer than all that a pod waits for
            posix._exit(0)


def _command() -> list[str]:
    """Return the command that starts this program again, with absolute paths: process 1 leaves its directory.

    In place of ``-m`` it names the folders of this start, with -I and -S: no later start reads the environment or runs
    a ``sitecustomize``, whose threads would take signals.
    """
    import posix

    script, words = sys.argv[0], sys.orig_argv[1:]
    if "-m" in words:
        start = f"import sys; sys.path[:] = {sys.path!r}; from pidone.__main__ import main; sys.exit(main())"
        words[words.index("-m") :] = ["-I", "-S", "-c", start]
    elif script in words and not script.startswith("/") and script != "-c":
        try:
            words[words.index(script)] = f"{posix.getcwd()}/{script}"
        except OSError:
            pass  # the directory is gone, and the script with it
    return [sys.executable, *words]


def _drop_environment() -> None:
    """Keep the variables of pidone, and those of the resolver and of TLS; doze does the same.

    The others belong to the application, and commands of tasks that run as the same user can read those of process 1.
    """
    import posix

    kept = {b"RES_OPTIONS", b"LOCALDOMAIN", b"SSL_CERT_FILE", b"SSL_CERT_DIR"}
    for name in list(posix.environ):
        if not name.startswith(b"PIDONE_") and name not in kept:
            del posix.environ[name]


def _use_generated() -> None:
    try:
        from pidone.generated import use  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:  # only the image has it
        return
    use()


def _last_words(error: BaseException) -> str:
    try:
        from pidone.errors import last_words

        words = last_words(error)
        print(f"event=program-failed error={words!r}", file=sys.stderr, flush=True)
    except BaseException:  # noqa: BLE001 - there may be no memory, and the words are not necessary
        return type(error).__name__
    return words


if __name__ == "__main__":
    sys.exit(main())
