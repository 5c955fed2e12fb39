"""All pods of the cluster, indexed by name and by address."""

from collections.abc import Iterable, Iterator

from pidone_controller.pods.identity import Claims, Identity, NodeAddress, Unknown, narrow
from pidone_controller.pods.model import Pod


class Inventory:
    """All present pods. A change costs the same at any number of pods."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._pods: dict[
            str, dict[str, Pod]
        ] = {}  # by namespace, then name: a tuple for each key takes memory
        self._count = 0
        self._by_address: dict[
            str, Pod | tuple[Pod, ...]
        ] = {}  # served pods; several at one address are rare
        self._nodes: dict[str, int] = {}  # the number of pods by their node's address
        for pod in pods:
            self.put(pod)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Pod]:
        for pods in self._pods.values():
            yield from pods.values()

    def find(self, namespace: str, name: str) -> Pod | None:
        """Return the pod of this name, in any phase; None if it does not exist."""
        return self._pods.get(namespace, {}).get(name)

    def in_namespace(self, namespace: str) -> Iterator[Pod]:
        yield from self._pods.get(namespace, {}).values()

    def at(self, address: str) -> tuple[Pod, ...]:
        """Return the served pods that have this address."""
        pods = self._by_address.get(address, ())
        return pods if isinstance(pods, tuple) else (pods,)

    def is_node(self, address: str) -> bool:
        """True if a node of any pod has this address."""
        return address in self._nodes

    def put(self, pod: Pod) -> set[str]:
        """Add a pod or replace the one of its name. Return the addresses whose owner may have changed.

        A pod of the same name with another uid replaces the earlier pod, which no longer exists.
        """
        before = self.find(pod.namespace, pod.name)
        if before is None:
            self._count += 1
        elif before.template == pod.template:
            # The pool may have forgotten the template. The two are equal, so the pods may keep sharing one.
            object.__setattr__(pod, "template", before.template)
        self._pods.setdefault(pod.namespace, {})[pod.name] = pod
        return self._reindex(before, pod)

    def drop(self, namespace: str, name: str) -> set[str]:
        """Remove a pod if it is present. Return as ``put``."""
        pods = self._pods.get(namespace, {})
        before = pods.pop(name, None)
        if before is None:
            return set()
        self._count -= 1
        if not pods:
            del self._pods[namespace]
        return self._reindex(before, None)

    def identify(self, address: str, claims: Claims) -> Identity:
        """Return the pod at a normalised address; never at a node's, which any process of the node may use."""
        if address in self._nodes:
            return NodeAddress(address)
        pods = self.at(address)
        if not pods:
            return Unknown(f"the address {address}")
        return narrow(address, pods, claims)

    def identify_by_token(self, namespace: str, name: str, uid: str, claims: Claims) -> Identity:
        """Return the pod of a token. This also identifies pods of the host's network, whose address does not."""
        pod = self.find(namespace, name)
        if pod is None or pod.uid != uid or pod.finished:
            return Unknown(f"the token of {namespace}/{name} (uid {uid})")
        return narrow("the token's owner", (pod,), claims)

    def _reindex(self, before: Pod | None, after: Pod | None) -> set[str]:
        """Index ``after`` instead of ``before``. Return as ``put``."""
        changed = set[str]()
        if before is None or after is None or before.host_ips != after.host_ips:
            for address in after.host_ips if after else ():
                self._nodes[address] = self._nodes.get(address, 0) + 1
                if self._nodes[address] == 1:
                    changed.add(address)
            # Finished pods count too: their node still exists.
            for address in before.host_ips if before else ():
                self._nodes[address] -= 1
                if not self._nodes[address]:
                    del self._nodes[address]
                    changed ^= {address}

        old = before.ips if before and before.served else ()
        new = after.ips if after and after.served else ()
        for address in old:
            self._index(address, tuple(pod for pod in self.at(address) if pod is not before))
        for address in new:
            assert after is not None
            self._index(address, (*self.at(address), after))
        return changed | set(old) ^ set(new)

    def _index(self, address: str, pods: tuple[Pod, ...]) -> None:
        if not pods:
            self._by_address.pop(address, None)
        elif len(pods) == 1:
            self._by_address[address] = pods[0]
        else:
            self._by_address[address] = tuple(sorted(pods, key=lambda pod: (pod.path, pod.uid)))
