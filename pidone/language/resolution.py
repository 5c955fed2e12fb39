"""Flattened sets: each with all that it extends, and without contradictions."""

from collections.abc import Sequence

from pidone.errors import LanguageError
from pidone.language.extends import Sets, flat
from pidone.language.findings import suggestion
from pidone.language.model import TaskSet
from pidone.language.semantics import inconsistencies


def flatten(task_set: TaskSet, sets: Sets) -> TaskSet:
    """The set with all that it extends, which ``sets`` must have. Raises ``LanguageError``."""
    found = flat(task_set, sets)
    for owner, index in found.missing:
        name = owner.extends[index]
        meant = suggestion(name, sets.names(owner))
        raise LanguageError(f'{owner.title} extends "{name}", which is not there{meant}')
    for problem in found.problems:
        raise LanguageError(f"{problem.owner.title}: {problem.message}")
    if task_set.extends:  # a set without extends was checked as a whole already
        for message, _ in inconsistencies(found.task_set):
            raise LanguageError(f"{task_set.title} with all that it extends: {message}")
    return found.task_set


def heirs(task_sets: Sequence[TaskSet]) -> list[TaskSet]:
    """Return the sets that no other set extends, flattened. Raises ``LanguageError``."""
    sets = Sets.of(task_sets)
    extended = {id(base) for one in task_sets for base in sets.bases(one)}
    return [flatten(one, sets) for one in task_sets if id(one) not in extended]
