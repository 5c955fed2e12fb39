"""``python -m tests.bench.absence [REPO]``: processor time of 100 dozing pods whose repo is not there.

By default the repo's name does not exist. ``http://127.0.0.1:1`` is a repo whose port is closed. Pods ask at growing
intervals, so the time is taken after the first two minutes.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from pidone.protocol import IN_CLUSTER

ROOT = Path(__file__).parents[2]
PODS = 100
BEFORE_SECONDS, SECONDS = 120.0, 120.0


def cpu(pid: int) -> float:
    """Return the seconds of a process and of its children that were reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    repo = sys.argv[1] if len(sys.argv) > 1 else IN_CLUSTER
    doze = ROOT / f"build/doze-{os.uname().machine}"
    env = {"PIDONE_REPO": repo, "PIDONE_POD_UID": "u", "PYTHONPATH": str(ROOT)}
    command = [str(doze), sys.executable, "-m", "pidone"]
    pods = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for _ in range(PODS)]
    try:
        time.sleep(BEFORE_SECONDS)
        before = sum(cpu(pod.pid) for pod in pods)
        time.sleep(SECONDS)
        spent = sum(cpu(pod.pid) for pod in pods) - before
    finally:
        for pod in pods:
            pod.terminate()
            pod.wait()
    print(f"{PODS} pods, repo {repo}: {100 * spent / SECONDS:.2f} % of a core")


if __name__ == "__main__":
    main()
