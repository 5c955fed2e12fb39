"""What each pod is to be served: its plan in the envelope, as bytes with their ETag.

``Shelf`` is a value: stocking makes the next one from the one before, and ``changed`` says whom to wake.
The same inventory and rules give the same bytes in any process; the one before is asked only where nothing
new can be derived: a pod whose derivation fails keeps what it has.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pidone.errors import PidoneError
from pidone.language.binding import Rules, derive
from pidone.plan import model
from pidone.plan.digest import canonical
from pidone.plan.format import MAX_BUNDLE, MAX_TASKS, encode_bundle
from pidone.plan.model import Phase
from pidone_controller.inventory import Inventory, Pod

Derive = Callable[[Pod, Rules], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One answer. The ETag is over the whole envelope, so a change of phase is one too."""

    body: bytes
    etag: str  # as in the header, with its quotes
    digest: str  # of the tasks
    phase: Phase
    tasks: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One pod's place on the shelf. No bundle: nothing good was ever derived, and ``error`` says why."""

    pod: Pod
    bundle: Bundle | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Every pod that is served, and what it is served, at one moment."""

    inventory: Inventory
    rules: Rules
    entries: Mapping[str, Entry] = field(default_factory=dict)  # by the pod's key

    def stock(self, inventory: Inventory, rules: Rules, derive: Derive = derive) -> "Shelf":
        """The next shelf. Pods that are the same under the same rules are not derived again."""
        entries: dict[str, Entry] = {}
        for key, pod in inventory.pods.items():
            if not pod.served:
                continue
            before = self.entries.get(key)
            if before and rules is self.rules and before.pod == pod:
                entries[key] = before
            else:
                entries[key] = _entry(pod, rules, before, derive)
        return Shelf(inventory, rules, entries)

    def changed(self, before: "Shelf") -> frozenset[str]:
        """The addresses at which an answer may be another one now: whoever waits there is to look again."""
        addresses = set(self.inventory.nodes ^ before.inventory.nodes)
        for key in self.entries.keys() | before.entries.keys():
            new, old = self.entries.get(key), before.entries.get(key)
            if new is None or old is None or new.pod.ips != old.pod.ips or new.bundle != old.bundle:
                addresses.update(*(entry.pod.ips for entry in (new, old) if entry))
        return frozenset(addresses)


EMPTY = Shelf(Inventory.of([]), Rules())


def encode(pod: Pod, tasks: list[dict[str, Any]]) -> Bundle:
    """The envelope's bytes: canonical, so that every replica serves the same ETag."""
    phase = Phase.TERMINATING if pod.terminating else Phase.RUNNING
    facts = model.Pod(pod.name, pod.namespace, pod.uid, pod.ips[0] if pod.ips else "", pod.node)
    envelope = encode_bundle(tasks, phase=phase, pod=facts)
    body = canonical(envelope)
    etag = f'"sha256-{hashlib.sha256(body).hexdigest()}"'
    return Bundle(body, etag, envelope["digest"], phase, tuple(tasks))


def _entry(pod: Pod, rules: Rules, before: Entry | None, derive: Derive) -> Entry:
    try:
        tasks = derive(pod, rules)
        if len(tasks) > MAX_TASKS:
            raise PidoneError(f"{len(tasks)} tasks are bound to the pod; it takes at most {MAX_TASKS}")
        bundle = encode(pod, tasks)
        if len(bundle.body) > MAX_BUNDLE:
            raise PidoneError(f"the plan has {len(bundle.body)} bytes; a pod takes at most {MAX_BUNDLE}")
        return Entry(pod, bundle)
    except PidoneError as error:
        text = str(error)
    except Exception as error:  # noqa: BLE001 - a bug that one pod's fields bring out must not stop the others
        text = f"internal error: {type(error).__name__}: {error}"
    # The tasks it had, in an envelope of now: its end must reach it whatever is wrong with its plan. Where
    # nothing was ever derived, an end needs no tasks, and anything else is not ours to invent: an empty
    # plan would end what the pod got from the controller before this one.
    if before and before.bundle:
        return Entry(pod, encode(pod, list(before.bundle.tasks)), text)
    return Entry(pod, encode(pod, []) if pod.terminating else None, text)
