"""Process 1 of a pod: ``python pod.py PLAN APPLICATION...`` starts the application and runs the plan.

PLAN is a JSON text: the tasks of a bundle. The application is a child here; in a real pod the runtime starts it.
"""

import os
import signal
import sys

import trio

from pidone.journal import Journal
from pidone.metrics.sock_diag import LISTEN, sockets
from pidone.pid1 import signals
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod
from pidone.plan.strict_json import loads
from pidone.pod.live import live
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings


def main() -> None:
    plan, address, *application = sys.argv[1:]
    if os.fork() == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(application[0], application)
    signals.ignore_other_signals()
    pod = Pod("web", "shop", "uid-web", address)
    bundle = encode_bundle(loads(plan.encode()), phase=Phase.RUNNING, pod=pod)
    program = PodProgram(Settings(repos=(), programs="/"), Journal())

    async def run() -> None:
        # in a real pod the task needs a probe; an application that is frozen before it listens is woken by nothing
        while not any(sockets({LISTEN})):
            await trio.sleep(0.01)
        await live(program, local=canonical(bundle))

    trio.run(run)


if __name__ == "__main__":
    main()
