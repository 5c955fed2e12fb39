"""The kubelet's prober as a process, built once for each content of its module by ``make prober``."""

import itertools
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from tests import golang
from tests.patience import PATIENCE_SECONDS

MODULE = Path(__file__).parent / "prober"
BUILD = "make prober"


def missing() -> str | None:
    """Return why the prober cannot be started here, with the remedy; None if it can."""
    return (
        None
        if golang.cached(MODULE, "prober").exists()
        else f"no prober of the kubelet: {BUILD} (needs Go 1.26)"
    )


class Kubelet:
    """Answers questions in any order; each has a number."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._numbers = itertools.count()
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        self._writing = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    async def probe(self, pod: Any) -> dict[str, Any]:
        """Probe the pod's first container once by its readinessProbe. See prober/main.go for the answer."""
        assert self._process.stdin
        number, answer = next(self._numbers), Future[dict[str, Any]]()
        self._answers[number] = answer
        with self._writing:
            self._process.stdin.write(json.dumps({"id": number, "pod": pod}) + "\n")
            self._process.stdin.flush()
        return await trio.to_thread.run_sync(answer.result, PATIENCE_SECONDS)

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers.pop(answer["id"]).set_result(answer)


@contextmanager
def running() -> Iterator[Kubelet]:
    program = golang.cached(MODULE, "prober")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Kubelet(process)
        process.kill()


if __name__ == "__main__":
    golang.run(lambda: golang.build_cached(MODULE, "prober", golang.kubernetes_flags(MODULE)))
