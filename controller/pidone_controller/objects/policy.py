"""Judges earlier versions of sets by the present policy, as the API server judges new ones (``k3d/admission.yaml``).

The API server checks a set only when it is written. A kept version can apply again without a write: by a pin, by a
halted rollout, and when the present version has mistakes.
"""

from collections.abc import Mapping
from typing import Any

EXEC_LABEL, ALLOWED = "pidone.dev/exec", "allowed"  # of a namespace whose TaskSets may run programs
EXEC_SELECTOR = f"{EXEC_LABEL}={ALLOWED}"


def runs_programs(spec: Mapping[str, Any]) -> bool:
    """True if a task of the set itself runs a program. Inherited tasks are judged with the set that has them."""
    tasks = spec.get("tasks")
    return isinstance(tasks, list) and any(map(_runs_program, tasks))


def _runs_program(task: object) -> bool:
    if not isinstance(task, Mapping):
        return False
    probe = task.get("probe")
    return "exec" in task or (isinstance(probe, Mapping) and "exec" in probe)
