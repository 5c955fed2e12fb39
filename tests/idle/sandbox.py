"""Process 1 of a pod on a real node: pidone of the image, with a plan of its own instead of a repo's.

It is added to the image as a file. PIDONE_IDLE_PLAN is the JSON text of the tasks.
"""

import os
import sys

sys.path.insert(0, "/pidone")

import trio

from pidone.journal import Journal
from pidone.pid1 import signals
from pidone.plan.digest import canonical
from pidone.plan.format import encode_bundle
from pidone.plan.model import Phase, Pod
from pidone.plan.strict_json import loads
from pidone.pod.live import live
from pidone.pod.program import PodProgram
from pidone.pod.settings import Settings


async def run() -> None:
    pod = Pod(os.uname().nodename, "", "", "")
    bundle = encode_bundle(loads(os.environ["PIDONE_IDLE_PLAN"].encode()), phase=Phase.RUNNING, pod=pod)
    await live(PodProgram(Settings(), Journal()), local=canonical(bundle))


signals.ignore_other_signals()
trio.run(run)
