"""``python -m tests.bench.language``: measures ``pidone check`` of 1,000 TaskSets, and ``pidone --help``.

Prints processor time, which does not depend on the load of the machine, and wall-clock time. Exit code 1 if a processor
time is above its goal.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).parent.parent.parent
SETS = 1000
CHECK_GOAL_SECONDS, HELP_GOAL_SECONDS = 10.0, 0.150
HELP_RUNS = 11


def task_sets(folder: Path) -> None:
    """Write files with the ready-made sets in turn. Names, ports and times differ; some sets have one task more."""
    random = Random(1)
    texts = [
        file.read_text("utf-8")
        for file in sorted((ROOT / "tasks").glob("*.yaml"))
        if not file.name.endswith(".test.yaml")
    ]
    for number in range(SETS):
        text = texts[number % len(texts)]
        text = re.sub(r"(metadata:\n  name: )(\S+)", rf"\g<1>\g<2>-{number}", text, count=1)
        text = re.sub(r"default: 8080", f"default: {random.randrange(1024, 60000)}", text)
        text = re.sub(r"max: 30s", f"max: {random.randrange(10, 90)}s", text)
        if "\n  tasks:" in text and number % 3 == 0:
            text = text.rstrip("\n") + (
                f"\n\n    - name: note-{number}\n      every: {random.randrange(10, 600)}s\n"
                f"      exec: {{command: [/opt/pidone/note, --set, set-{number}, --pod, $(pod.name)]}}\n"
            )
        (folder / f"{number:04}.yaml").write_text(text, "utf-8")


def measured(*arguments: str) -> tuple[int, float, float]:
    """Return the exit code, processor seconds and seconds of one command."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pidone", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime, time.monotonic() - began


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        task_sets(Path(name))
        code, processor, passed = measured("check", name)
    print(
        f"check of {SETS} TaskSets: {processor:.1f} s of processor time, {passed:.1f} s, exit code {code}; "
        f"goal {CHECK_GOAL_SECONDS:g} s"
    )
    helps = sorted(measured("--help")[1:] for _ in range(HELP_RUNS))
    median = helps[HELP_RUNS // 2]
    print(
        f"--help, median of {HELP_RUNS}: {median[0] * 1000:.0f} ms of processor time, {median[1] * 1000:.0f} ms; "
        f"goal {HELP_GOAL_SECONDS * 1000:g} ms"
    )
    return 0 if code == 0 and processor < CHECK_GOAL_SECONDS and median[0] < HELP_GOAL_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
