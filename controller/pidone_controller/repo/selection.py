"""Which live pods a binding chooses, what each is served, and what it said of that: for statuses and rollouts."""

from collections.abc import Mapping, Sequence

from pidone.language.binding import Key
from pidone_controller.pods.model import FrozenLabels, Pod
from pidone_controller.repo.server import Repo
from pidone_controller.rollout.step import Seen
from pidone_controller.status.compose import Matched


class Chosen:
    """The pods of each binding, found in one pass over all pods whenever they are asked for after a change.

    A pod that is on its way out is not among them: it is served its end, and no plan is expected of it.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._pods: Mapping[Key, Sequence[Pod]] | None = None

    def changed(self) -> None:
        """A pod is new, gone or another than it was, or there are new rules."""
        self._pods = None

    def pods(self, binding: Key) -> Sequence[Pod]:
        if self._pods is None:
            self._pods = self._found()
        return self._pods.get(binding, ())

    def seen(self, binding: Key) -> list[Seen]:
        """For a rollout."""
        return [
            Seen(pod.uid, one.pod, digest=one.digest, etag=one.etag, report=one.report)
            for pod in self.pods(binding)
            for one in (self._matched(pod),)
        ]

    def matched(self, binding: Key) -> list[Matched]:
        """For a status."""
        return [self._matched(pod) for pod in self.pods(binding)]

    def _matched(self, pod: Pod) -> Matched:
        entry = self._repo.entry(pod)
        bundle = entry.bundle
        return Matched(
            pod.path,
            digest=bundle.digest if bundle else "",
            etag=bundle.etag.strip('"') if bundle else "",
            tasks=bundle.count if bundle else 0,
            report=self._repo.report(pod),
            error=entry.error,
            faults=entry.faults,
            withheld=self._repo.withheld(pod),
        )

    def _found(self) -> dict[Key, list[Pod]]:
        rules = self._repo.rules
        like: dict[tuple[str, FrozenLabels], list[Key]] = {}  # pods of one workload have the same labels
        found: dict[Key, list[Pod]] = {}
        for pod in self._repo.inventory:
            if not pod.served or pod.terminating:
                continue
            looks = pod.namespace, pod.labels
            if looks not in like:
                like[looks] = [binding.key for binding in rules.matching(pod)]
            for key in like[looks]:
                found.setdefault(key, []).append(pod)
        return found
