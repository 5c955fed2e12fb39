"""``pidone``: with no arguments process 1 of a pod, with arguments the command line."""

import sys


def main() -> int:
    if len(sys.argv) == 1:
        return process_one()
    group = sys.argv[1] == "-g"
    if sys.argv[1 + group :][:1] == ["--"]:
        return command(sys.argv[2 + group :], group=group)
    from pidone.cli.main import run

    return run(sys.argv[1:])


def command(argv: list[str], *, group: bool) -> int:
    """``pidone [-g] -- COMMAND...``: process 1 of one container, before the application's own command."""
    import _signal
    import posix

    _signal.pthread_sigmask(
        _signal.SIG_SETMASK, _signal.valid_signals()
    )  # what comes from here on is forwarded
    from pidone.pid1 import entrypoint

    posix._exit(entrypoint.main(argv, group=group))


def process_one() -> int:
    """The stage that the environment names; see ``pidone.pid1.stages``. Ends after TERM or INT alone."""
    import posix

    from pidone.pid1 import stages

    stage = posix.environ.get(stages.STAGE)
    if stage == b"ask":
        from pidone.pid1 import ask

        posix._exit(ask.main())
    # Before everything else that takes time: a TERM that comes during the imports must not be lost.
    stages.block()
    # The same interpreter with the same options; paths absolute, for the working directory changes.
    here = posix.getcwd()
    words = sys.orig_argv[1:]
    if not sys.argv[0].startswith("/"):
        words = [f"{here}/{word}" if word == sys.argv[0] else word for word in words]
    argv = [sys.executable, *words]
    posix.chdir("/")  # a working directory elsewhere would pin its file system
    if stage is None:
        stages.doze(argv)
        if posix.getpid() != 1:
            from pidone.pid1.subreaper import become_subreaper

            become_subreaper()
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
            # without the interpreter's clean-up, which takes longer than all that a pod waits for here
            posix._exit(0)


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
    except BaseException:  # noqa: BLE001 - there may be no memory; the words are a courtesy
        return type(error).__name__
    return words


if __name__ == "__main__":
    sys.exit(main())
