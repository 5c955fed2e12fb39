"""Secrets that plans need: read by their names, as far as they are granted, and forgotten."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.language.binding import Rollout, Rules, Version
from pidone.language.model import Param
from pidone.language.secrets import SecretError, file_reference
from pidone_controller.kubernetes.resources import SECRETS
from pidone_controller.kubernetes.single import WATCH_SECONDS
from pidone_controller.objects import secrets
from pidone_controller.objects.secrets import SecretStore
from tests.controller.factories import binding, rules
from tests.controller.kubernetes.fake import FakeAPIServer, Refusal, fake_server
from tests.controller.kubernetes.wires import Answer

PASSWORD = Param("password", secret="eureka", key="password")
OPTIONAL = replace(PASSWORD, optional=True, default="none")


class Store:
    """A store at a fake API server, and what it said."""

    def __init__(self, server: FakeAPIServer) -> None:
        self.server = server
        self.changes: list[str] = []
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.store = SecretStore("pidone-system", self.changes.append, self._log)

    def _log(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    def put(self, namespace: str = "shop", name: str = "eureka", **data: str) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self.server.put(SECRETS, name, namespace, data=encoded, type="Opaque")

    def told(self, param: Param = PASSWORD, namespace: str = "shop") -> str | None:
        """The value, or the error in angle brackets."""
        try:
            return self.store.text(param, namespace)
        except SecretError as error:
            return f"<{'pending ' if error.pending else ''}{error}>"

    async def until(self, value: str, param: Param = PASSWORD, namespace: str = "shop") -> None:
        with trio.fail_after(600):
            while not (self.told(param, namespace) or "").startswith(value):
                await trio.sleep(0.1)


@asynccontextmanager
async def running(*, key: bytes = b"k" * 32) -> AsyncIterator[Store]:
    async with fake_server() as (server, client, _), trio.open_nursery() as nursery:
        server.granted = set()
        store = Store(server)
        if key:
            store.store.use_key(key)
        nursery.start_soon(store.store.run, client)
        yield store
        nursery.cancel_scope.cancel()


async def test_a_secret_is_read_from_its_grant_to_its_end(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.told() == '<pending waits for Secret "eureka", which is being read>'
        await here.until(
            '<needs Secret "eureka", which the namespace has not granted to the controller: '
            "kubectl -n shop create role pidone-eureka --verb=get,watch --resource=secrets --resource-name=eureka; "
            "kubectl -n shop create rolebinding pidone-eureka --role=pidone-eureka "
            "--serviceaccount=pidone-system:pidone-controller>"
        )
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        await here.until('<needs Secret "eureka", which is not there; create it in shop>')
        here.put(user="pidone")
        await here.until('<needs the key "password", which Secret "eureka" does not have; add it>')
        here.put(password="one")
        await here.until("one")
        here.put(password="two")
        await here.until("two")
        here.server.drop(SECRETS, "eureka", "shop")
        await here.until('<needs Secret "eureka", which is not there')
        here.put(password="three")
        await here.until("three")
        here.server.granted.clear()
        before = trio.current_time()
        await here.until('<needs Secret "eureka", which the namespace has not granted')
        assert trio.current_time() - before <= 2 * WATCH_SECONDS + 1
        assert set(here.changes) == {"", "shop"}
        for secret in ("one", "two", "three"):
            assert secret not in str(here.lines)


async def test_a_secret_is_asked_for_by_its_name_alone(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        here.put(password="one")
        await here.until("one")
        await trio.sleep(5 * WATCH_SECONDS)
        asked = {
            (request.method, request.path, request.query.get("fieldSelector"))
            for request in here.server.asked
        }
    assert asked == {
        ("GET", "/api/v1/namespaces/shop/secrets/eureka", None),
        ("GET", "/api/v1/namespaces/shop/secrets", "metadata.name=eureka"),
    }


async def test_a_namespace_has_its_own_secrets_alone(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        here.put(password="of-shop")
        here.put(namespace="other", password="of-other")
        await here.until("of-shop")
        here.told(namespace="other")
        await here.until('<needs Secret "eureka", which the namespace has not granted', namespace="other")


async def test_an_optional_secret_may_be_missing_or_not_granted(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.told(OPTIONAL) == '<pending waits for Secret "eureka", which is being read>'
        await here.until("<needs")
        assert here.told(OPTIONAL) is None
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        await here.until('<needs Secret "eureka", which is not there')
        assert here.told(OPTIONAL) is None
        here.put(password="one")
        await here.until("one", OPTIONAL)


async def test_a_failing_api_server_takes_nothing_away(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        here.put(password="one")
        await here.until("one")
        here.server.compact()
        await trio.sleep(3 * WATCH_SECONDS)
        assert here.told() == "one"


async def test_a_value_that_is_no_text_is_named_and_not_told(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        here.server.put(SECRETS, "eureka", "shop", data={"password": base64.b64encode(b"\xff").decode()})
        here.told()
        await here.until('<is no text (UTF-8) in key "password" of Secret "eureka">')


async def test_no_namespace_can_make_the_controller_read_any_number(autojump_clock: MockClock) -> None:
    async with running() as here:
        for number in range(secrets.MAX_OF_NAMESPACE):
            here.told(replace(PASSWORD, secret=f"s{number}"))
        assert here.told() == (
            '<needs Secret "eureka", and 20 other ones of shop are read already; '
            "put several values into one Secret>"
        )
        assert here.told(namespace="other") == '<pending waits for Secret "eureka", which is being read>'


async def test_a_file_of_the_controller_is_never_read() -> None:
    store = Store(FakeAPIServer())
    told = store.told(Param("token", file="/etc/hostname"))
    assert told == str(file_reference(Param("token", file="/etc/hostname")))
    assert Path("/etc/hostname").read_text().strip() not in told


async def test_nothing_is_rendered_before_the_key_of_digests_is_known() -> None:
    store = Store(FakeAPIServer())
    assert (store.told() or "").startswith("<pending")
    with pytest.raises(SecretError, match="the key of digests") as raised:
        store.store.salt("shop", ["x"])
    assert raised.value.pending
    store.store.use_key(b"a" * 32)
    first = store.store.salt("shop", ["x"])
    assert store.changes == [""]
    store.store.use_key(b"a" * 32)
    assert store.changes == [""]
    store.store.use_key(b"b" * 32)
    assert store.store.salt("shop", ["x"]) != first


def set_of(name: str, secret: str, *, cluster: bool = False) -> str:
    return f"""\
apiVersion: pidone.dev/v1alpha1
kind: {"Cluster" if cluster else ""}TaskSet
metadata: {{name: {name}{"" if cluster else ", namespace: shop"}}}
spec:
  params: [{{name: p, valueFrom: {{secretKeyRef: {{name: {secret}, key: k}}}}}}]
  tasks: [{{name: {name}, report: {{webhook: {{url: "http://hook", headers: {{X: $(params.p)}}}}}}}}]
"""


CLUSTER = """\
apiVersion: pidone.dev/v1alpha1
kind: ClusterTaskBinding
metadata: {name: all}
spec: {podSelector: {matchLabels: {a: b}}, taskSets: [all]}
"""


def found() -> Rules:
    own = binding().replace("[check]", "[own]").replace("name: checked", "name: own, namespace: shop")
    made = rules(set_of("own", "mine"), set_of("all", "every", cluster=True), own, CLUSTER)
    by_namespace: dict[str, list[Any]] = {}
    for one in made.bindings:
        by_namespace.setdefault(one.namespace, []).append(one)
    return replace(made, by_namespace=by_namespace)


def test_the_secrets_of_a_namespace_are_those_that_its_bindings_name() -> None:
    made = found()
    assert sorted(secrets.names(made, "shop")) == ["every", "mine"]
    assert sorted(secrets.names(made, "other")) == ["every"]
    versions = Rollout(None, Version(("all",), {}, made.sets))
    (cluster,) = (one for one in made.bindings if one.cluster)
    halted = replace(made, rollouts={cluster.key: versions})
    assert sorted(secrets.names(halted, "other")) == ["every"]
    assert list(secrets.names(Rules(), "other")) == []


async def test_what_no_binding_names_any_more_is_forgotten(autojump_clock: MockClock) -> None:
    async with running() as here:
        assert here.server.granted is not None
        here.server.granted |= {("shop", "mine"), ("shop", "every")}
        for name in ("mine", "every", "gone"):
            here.put(name=name, k=f"of-{name}")
            here.told(Param("p", secret=name, key="k"))
        await here.until("of-mine", Param("p", secret="mine", key="k"))
        here.store.prune(found())
        assert (here.told(Param("p", secret="mine", key="k")), len(here.store._values)) == ("of-mine", 2)
        here.store.prune(Rules())
        assert not here.store._values
        here.server.asked.clear()
        await trio.sleep(3 * WATCH_SECONDS)
        assert not here.server.asked


async def test_a_secret_that_may_be_read_and_not_watched_is_not_granted(autojump_clock: MockClock) -> None:
    def forbids(_request: object) -> Answer:
        return Refusal(403, "Forbidden", "secrets is forbidden").answer()

    async with running() as here:
        assert here.server.granted is not None
        here.server.granted.add(("shop", "eureka"))
        here.put(password="one")
        here.server.fail("WATCH /api/v1/namespaces/shop/secrets", *[forbids] * 5)
        here.told()
        await here.until('<needs Secret "eureka", which the namespace has not granted')
        changes = len(here.changes)
        await here.until("one")
        assert len(here.changes) == changes + 1, "it was never granted in between"
