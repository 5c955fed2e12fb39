"""``python -m tests.bench.language``: ``pidone check`` of 1,000 TaskSets, and ``pidone --help``.

Processor time of one process, so of one core, whatever else the machine does; beside it the time that passed. Exits
with 1 where a figure is above its bound.
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
CHECK_BOUND, HELP_BOUND = 10.0, 0.150  # seconds
HELP_RUNS = 11


def task_sets(folder: Path) -> None:
    """Files with the ready-made sets in turn: names, ports, times and params differ, and some have a task more."""
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
    """The exit code, processor seconds and seconds of one command."""
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
        f"check of {SETS} TaskSets: {processor:.1f} s of processor, {passed:.1f} s, exit code {code}; "
        f"bound {CHECK_BOUND:g} s"
    )
    helps = sorted(measured("--help")[1:] for _ in range(HELP_RUNS))
    median = helps[HELP_RUNS // 2]
    print(
        f"--help, median of {HELP_RUNS}: {median[0] * 1000:.0f} ms of processor, {median[1] * 1000:.0f} ms; "
        f"bound {HELP_BOUND * 1000:g} ms"
    )
    return 0 if code == 0 and processor < CHECK_BOUND and median[0] < HELP_BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
