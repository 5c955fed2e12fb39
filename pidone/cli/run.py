"""``pidone run``: what process 1 of a pod would do with these TaskSets, here and without a repo."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence

import trio

from pidone.cli.render import DeskPod, bundle_for, param_values, read_objects, read_pod
from pidone.errors import PidoneError, Refused
from pidone.journal import Journal
from pidone.plan.digest import canonical


def run_files(paths: Sequence[str], pod_file: str | None, arguments: Mapping[str, str]) -> int:
    """Run until TERM or INT, then take everything back; 0 then, 1 for mistakes in the files, 2 for no file."""
    try:
        pod = (read_pod(pod_file) if pod_file else _here()).with_facts("127.0.0.1")
        objects = read_objects(paths)
        bundle = bundle_for(pod, objects, param_values(objects, arguments))
    except OSError as error:
        print(f"pidone run: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except PidoneError as error:
        print(error, file=sys.stderr)
        return 1
    return _live(canonical(bundle))


def _here() -> DeskPod:
    return DeskPod({"metadata": {"name": socket.gethostname()}})


def _live(bundle: bytes) -> int:
    from pidone.pid1 import stages
    from pidone.pid1.subreaper import become_subreaper
    from pidone.pod import PodProgram, Settings, live

    stages.block()
    if os.getpid() != 1:
        become_subreaper()
    # who may start this command may run any program without it
    settings = Settings(repos=(), pod_ip=os.environ.get("PIDONE_POD_IP"), programs="/")
    program = PodProgram(settings, Journal())
    try:
        trio.run(lambda: live(program, local=bundle))
    except BaseExceptionGroup as group:
        refused, others = group.split(Refused)
        if others is not None or refused is None:
            raise
        print("\n".join(f"refused: {error}" for error in refused.exceptions), file=sys.stderr)
        return 1
    return 0
