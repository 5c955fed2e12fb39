"""Which statuses a change of objects, pods or reports concerns."""

from collections.abc import Sequence

from pidone.language.binding import Key
from pidone_controller.pods.model import Pod
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.selection import Selection
from pidone_controller.rollout.catalog import Affected, Catalog


class Changes:
    """Updates the rules after changes of objects, and returns the objects whose statuses may change."""

    def __init__(self, catalog: Catalog, plans: Plans, selection: Selection) -> None:
        self._catalog, self._plans, self._selection = catalog, plans, selection
        self._affected = Affected()

    def objects_changed(self, affected: Affected) -> None:
        """Remember these objects until ``apply``."""
        self._affected.add(affected)

    def apply_all(self) -> None:
        """Set the first rules: every plan may change."""
        self._affected = Affected()
        self._catalog.update()
        self._plans.rule(self._catalog.rules)
        self._selection.clear()

    def apply(self) -> Affected:
        """Update the rules after the changes that ``objects_changed`` was called with."""
        affected, self._affected = self._affected, Affected()
        change = self._catalog.update()
        if change is not None:
            # Bindings that share a pod with a changed one may conflict with it, or have another plan there.
            pods = self._plans.rule(change.rules, change.bindings)
            affected.bindings |= self.of_reports(pods)
        self._selection.changed(affected.bindings)
        return affected

    def of_pods(self, pods: Sequence[Pod]) -> set[Key]:
        """The bindings that a change of these pods concerns; with each changed pod as it was and as it is."""
        bindings = self.of_reports(pods)
        self._selection.changed(bindings)
        return bindings

    def of_reports(self, pods: Sequence[Pod]) -> set[Key]:
        """The bindings that reports or plans of these pods concern: those that select them."""
        groups = {
            (pod.namespace, pod.labels): pod for pod in pods
        }  # pods of one workload have the same labels
        return {binding.key for pod in groups.values() for binding in self._plans.rules.matching(pod)}
