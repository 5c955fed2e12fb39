"""``pidone run``: what process 1 of a pod would do with these TaskSets, here and without a repo."""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from pidone.errors import LanguageError, Refused
from pidone.journal import Journal
from pidone.language.checking import check_text
from pidone.language.model import TaskSet
from pidone.language.params import from_text
from pidone.language.pods import pod_facts, read_pods
from pidone.language.rendering import render
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase


def run_file(file: str, pod_file: str | None, arguments: Mapping[str, str]) -> int:
    """Run until TERM or INT, then take everything back; 0 then, 1 for mistakes in the files, 2 for no file."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        pod = _pod(Path(pod_file).read_text(encoding="utf-8", errors="replace") if pod_file else None)
        bundle = _bundle(text, file, pod, arguments)
    except OSError as error:
        print(f"pidone run: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except LanguageError as error:
        print(error, file=sys.stderr)
        return 1
    return _live(bundle)


def _pod(text: str | None) -> Mapping[str, Any]:
    if text is None:
        name = socket.gethostname()
        return {"metadata": {"name": name, "namespace": "default"}, "status": {"podIP": "127.0.0.1"}}
    pods = read_pods(text)
    if len(pods) != 1:
        raise LanguageError(f"--pod: expected one pod, not {len(pods)}")
    return pods[0]


def _bundle(text: str, file: str, pod: Mapping[str, Any], arguments: Mapping[str, str]) -> bytes:
    checked = check_text(text, file)
    if checked.findings:
        raise LanguageError("\n".join(str(finding) for finding in checked.findings))
    task_sets = [item for item in checked.objects if isinstance(item, TaskSet)]
    if not task_sets:
        raise LanguageError(f"{file}: there is no TaskSet in it")
    params = {param.name: param for task_set in task_sets for param in task_set.params}
    unknown = sorted(arguments.keys() - params.keys())
    if unknown:
        raise LanguageError(f'--param {unknown[0]}: no TaskSet of {file} has a param "{unknown[0]}"')
    values = {name: from_text(params[name], value) for name, value in arguments.items()}
    tasks = render(task_sets, values, pod)
    return canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=pod_facts(pod)))


def _live(bundle: bytes) -> int:
    from pidone.pid1 import stages
    from pidone.pid1.subreaper import become_subreaper
    from pidone.pod import PodProgram, Settings, live

    stages.block()
    if os.getpid() != 1:
        become_subreaper()
    program = PodProgram(Settings(repos=(), pod_ip=os.environ.get("PIDONE_POD_IP")), Journal())
    try:
        trio.run(lambda: live(program, local=bundle))
    except BaseExceptionGroup as group:
        refused, others = group.split(Refused)
        if others is not None or refused is None:
            raise
        print("\n".join(f"refused: {error}" for error in refused.exceptions), file=sys.stderr)
        return 1
    return 0
