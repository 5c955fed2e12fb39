"""The Secrets that plans need, read by their names, each granted to the controller by its own namespace.

The installation gives the controller no right on them. A namespace grants one by a Role that names it, for the verbs
get and watch, and a RoleBinding to the controller's account. A plan gets values of its pod's own namespace only, also
from a ClusterTaskBinding. A pod could mount these too, and what its author may not read stays with the pod: values
are served to it over https, and are in no status, Event, log or page.

A Secret is read as soon as a plan needs it, and until no binding names it any more.
"""

from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import trio

from pidone.errors import PidoneError
from pidone.language.binding import Rules, Version
from pidone.language.extends import ANY
from pidone.language.model import Param, TaskBinding
from pidone.language.secrets import SecretError, decoded, file_reference, salted
from pidone.metrics.exposition import Family, gauge
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import Forbidden
from pidone_controller.kubernetes.resources import SECRETS
from pidone_controller.kubernetes.single import Single
from pidone_controller.log import Log

# Of one namespace, and in all: each has a connection to the API server.
MAX_OF_NAMESPACE, MAX_SECRETS = 20, 2000
ACCOUNT = "pidone-controller"  # of the controller, as in k3d/rbac.yaml

_PENDING, _ABSENT, _DENIED = object(), object(), object()
_STATES = {id(_PENDING): "pending", id(_ABSENT): "absent", id(_DENIED): "denied"}
_NAME = tuple[str, str]  # namespace and name


class SecretStore:
    """``Secrets`` for the rules of a cluster. ``changed`` is called with a namespace after a change of its Secrets.

    ``home`` is the controller's namespace.
    """

    def __init__(self, home: str, changed: Callable[[str], None], log: Log) -> None:
        self._home, self._changed, self._log = home, changed, log
        self._key = b""  # of salts: the same in all replicas
        self._values: dict[_NAME, object] = {}  # one of the above, or the data of the Secret
        self._scopes: dict[_NAME, trio.CancelScope] = {}
        self._more = trio.Event()

    # For rendering

    def text(self, param: Param, namespace: str) -> str | None:
        if param.file:
            return file_reference(param)
        if not self._key:
            raise SecretError(f'waits for Secret "{param.secret}", which is being read', pending=True)
        data = self._values.get((namespace, param.secret))
        if data is None:
            self._want(namespace, param.secret)
            data = _PENDING
        if data is _PENDING:
            raise SecretError(f'waits for Secret "{param.secret}", which is being read', pending=True)
        if isinstance(data, Mapping) and param.key in data:
            return decoded(_bytes(data[param.key]), f'key "{param.key}" of Secret "{param.secret}"')
        if param.optional:
            return None
        if data is _DENIED:
            raise SecretError(
                f'needs Secret "{param.secret}", which the namespace has not granted to the controller: '
                + grant(namespace, param.secret, self._home)
            )
        if data is _ABSENT:
            raise SecretError(f'needs Secret "{param.secret}", which is not there; create it in {namespace}')
        raise SecretError(f'needs the key "{param.key}", which Secret "{param.secret}" does not have; add it')

    def salt(self, namespace: str, values: Sequence[str]) -> str:
        if not self._key:
            raise SecretError("waits for the key of digests, which is being read", pending=True)
        return salted(self._key, namespace, values)

    # Changes

    def use_key(self, key: bytes) -> None:
        """Make salts by this key from now on."""
        if key != self._key:
            self._key = key
            self._changed(ANY)

    def prune(self, rules: Rules) -> None:
        """Forget the Secrets that no binding names any more."""
        named: dict[str, set[str]] = {}
        for namespace, name in list(self._values):
            if namespace not in named:
                named[namespace] = set(names(rules, namespace))
            if name not in named[namespace]:
                del self._values[namespace, name]
                scope = self._scopes.pop((namespace, name), None)
                if scope is not None:
                    scope.cancel()

    async def run(self, client: Client) -> NoReturn:
        """Read all Secrets that are needed, until cancelled."""
        client = client.apart()
        async with trio.open_nursery() as nursery:
            while True:
                self._more = trio.Event()
                for name in self._values.keys() - self._scopes.keys():
                    scope = self._scopes[name] = trio.CancelScope()
                    nursery.start_soon(self._keep, client, name, scope)
                await self._more.wait()

    def families(self) -> Iterator[Family]:
        """Yield metrics. None of them names a Secret."""
        states = Counter({"present": 0, "absent": 0, "denied": 0, "pending": 0})
        states.update(_STATES.get(id(data), "present") for data in self._values.values())
        secrets = gauge("pidone_controller_secrets", "Secrets that plans need, by state.")
        for state, number in sorted(states.items()):
            secrets.add(number, state=state)
        yield secrets

    async def _keep(self, client: Client, name: _NAME, scope: trio.CancelScope) -> None:
        with scope:
            await Single(client, SECRETS, *name, partial(self._set, name, scope), log=self._log).run()

    def _set(self, name: _NAME, scope: trio.CancelScope, value: Mapping[str, Any] | Forbidden | None) -> None:
        if self._scopes.get(name) is not scope:
            return  # forgotten, and perhaps wanted again
        if isinstance(value, Forbidden):
            data: object = _DENIED
        elif value is None:
            data = _ABSENT
        else:
            data = value.get("data") or {}
        if data != self._values.get(name):
            self._values[name] = data
            self._changed(name[0])

    def _want(self, namespace: str, name: str) -> None:
        of_namespace = sum(1 for other, _ in self._values if other == namespace)
        if of_namespace >= MAX_OF_NAMESPACE:
            raise SecretError(
                f'needs Secret "{name}", and {MAX_OF_NAMESPACE} other ones of {namespace} are read already; '
                "put several values into one Secret"
            )
        if len(self._values) >= MAX_SECRETS:
            raise SecretError(
                f'needs Secret "{name}", and {MAX_SECRETS} are read already, the most for a cluster'
            )
        self._values[namespace, name] = _PENDING
        self._more.set()


def grant(namespace: str, name: str, home: str) -> str:
    """Return the commands by which a namespace grants a Secret to the controller."""
    role = f"pidone-{name}"
    return (
        f"kubectl -n {namespace} create role {role} --verb=get,watch --resource=secrets --resource-name={name}; "
        f"kubectl -n {namespace} create rolebinding {role} --role={role} --serviceaccount={home}:{ACCOUNT}"
    )


def names(rules: Rules, namespace: str) -> Iterator[str]:
    """Yield the names of the Secrets that the bindings of a namespace, and those of the cluster, may need there."""
    for place in dict.fromkeys((ANY, namespace)):
        for binding in rules.by_namespace.get(place, ()):
            for param in _params(rules, binding, namespace):
                if param.secret:
                    yield param.secret


def _params(rules: Rules, binding: TaskBinding, namespace: str) -> Iterator[Param]:
    for version in _versions(rules, binding):
        for name in version.task_sets:
            try:
                yield from rules.task_set(name, binding, namespace, version.sets).params
            except PidoneError:
                continue  # missing, or it does not fit: no plan needs it


def _versions(rules: Rules, binding: TaskBinding) -> Iterable[Version]:
    rollout = rules.rollouts.get(binding.key)
    if rollout is None or isinstance(rollout, str):
        return [Version(binding.task_sets, binding.params, rules.sets)]
    return [version for version in (rollout.current, rollout.target) if version is not None]


def _bytes(value: object) -> bytes:
    try:
        return b64decode(str(value), validate=True)
    except ValueError:
        raise SecretError("is not in base64 in its Secret") from None
