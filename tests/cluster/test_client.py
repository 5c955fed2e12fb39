"""The client, the reflector and the lease, against the real API server and what can happen to it."""

import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from ruamel.yaml import YAML
from trio.to_thread import run_sync

from pidone_controller.kubernetes import client as client_module
from pidone_controller.kubernetes.client import Client, connect
from pidone_controller.kubernetes.config import Config, kubeconfig
from pidone_controller.kubernetes.election import Election
from pidone_controller.kubernetes.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    Unauthorized,
    Unreachable,
)
from pidone_controller.kubernetes.recorder import Recorder
from pidone_controller.kubernetes.reflector import Reflector
from pidone_controller.kubernetes.resources import (
    EVENTS,
    LEASES,
    PODS,
    SECRETS,
    TASK_BINDINGS,
    TASK_SETS,
    Resource,
)
from pidone_controller.kubernetes.reviews import is_allowed, own_user, review_token
from tests.cluster import program
from tests.cluster.apiserver import ADMIN, Cluster, ControlPlane, control_plane
from tests.cluster.wire import Wire, wire
from tests.controller.kubernetes.fake_sink import FakeSink
from tests.patience import PATIENCE_SECONDS

LOG = list[dict[str, Any]]


@asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[Client]:
    async with connect(kubeconfig([cluster.kubeconfig])) as client:
        yield client


def through(between: Wire, **fields: Any) -> Config:
    return Config(between.url, **{"token": ADMIN, **fields})


class Reflected:
    def __init__(self, client: Client, namespace: str, resource: Resource = PODS, **options: Any) -> None:
        self.sink = FakeSink()
        self.log: LOG = []
        options.setdefault("project", _labels)
        self.reflector = Reflector(
            client, resource, sink=self.sink, namespace=namespace, log=self._say, **options
        )

    def _say(self, event: str, **fields: Any) -> None:
        self.log.append({"event": event, **{key: str(value) for key, value in fields.items()}})

    async def until(self, holds: Callable[[FakeSink], bool]) -> None:
        await self.sink.until(holds)


def _labels(value: Mapping[str, Any]) -> str:
    return json.dumps(value["metadata"].get("labels", {}))


@asynccontextmanager
async def reflected(client: Client, namespace: str, **options: Any) -> AsyncIterator[Reflected]:
    it = Reflected(client, namespace, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.reflector.run)
        with trio.fail_after(PATIENCE_SECONDS):
            await it.reflector.synced.wait()
        yield it
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "paged"])
async def test_pods_are_seen_as_they_come_change_and_go(
    stream: bool, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    for name in "abcde":
        await run_sync(cluster.make_pod, namespace, name)
    async with client_of(cluster) as client, reflected(client, namespace, stream=stream) as it:
        assert it.sink.told == [("replaced", "a b c d e")]
        await run_sync(cluster.label, namespace, "a", {"app": "web"})
        await it.until(lambda sink: sink.items[namespace, "a"] == '{"app": "web"}')
        await run_sync(cluster.finish_pod, namespace, "b")
        await run_sync(cluster.make_pod, namespace, "f")
        await it.until(lambda sink: sink.has == "a c d e f")
        assert client.requests["GET", 200] == (1 if stream else 4)
        assert not it.log


async def test_custom_objects_come_in_pages_too(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lists have the fields in another order: items before metadata."""
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    async with client_of(cluster) as client:
        for name in "abc":
            await client.create(TASK_SETS, {"metadata": {"name": name}, "spec": SPEC} | KIND, namespace)
        found = await client.list(TASK_SETS, namespace=namespace)
        assert [item["metadata"]["name"] for item in found] == ["a", "b", "c"]
        assert found[0]["kind"] == "TaskSet"
        page = await client.page(TASK_SETS, namespace=namespace)
        assert len(list(page)) == 2
        assert page.more
        assert page.version
        async with reflected(client, namespace, resource=TASK_SETS) as it:
            assert it.sink.has == "a b c"


KIND = {"apiVersion": "pidone.dev/v1alpha1", "kind": "TaskSet"}
SPEC = {"tasks": [{"name": "numbers", "metrics": {}}]}
BINDING = {"podSelector": {"matchLabels": {"app": "web"}}, "taskSets": ["a"]}


async def test_a_server_without_streamed_lists_is_asked_for_pages_and_a_certificate_is_an_identity(
    tmp_path: Path,
) -> None:
    if reason := program.missing():
        pytest.skip(reason)
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a client's certificate (Debian: apt-get install openssl)")
    certificates = Certificates(tmp_path)
    more = ("--feature-gates=WatchList=false", f"--client-ca-file={certificates.ca}")
    with control_plane(tmp_path / "plane", *more) as plane:
        await run_sync(plane.make_namespace, "shop")
        await run_sync(plane.make_pod, "shop", "a")
        async with connect(certificates.config(plane)) as client, reflected(client, "shop") as it:
            assert it.sink.told == [("replaced", "a")]
            assert [line["event"] for line in it.log] == ["reflector-in-pages"]
            assert await own_user(client) == "jane"


class Certificates:
    """An authority for clients, and the certificate of one who may do everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "clients.crt"
        new = (
            "openssl",
            "req",
            "-new",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        )
        signed = ("-CA", "clients.crt", "-CAkey", "clients.key", "-CAcreateserial", "-out", "jane.crt")
        for words in (
            (*new, "-x509", "-subj", "/CN=clients", "-keyout", "clients.key", "-out", "clients.crt"),
            (*new, "-subj", "/O=system:masters/CN=jane", "-keyout", "jane.key", "-out", "jane.csr"),
            ("openssl", "x509", "-req", "-in", "jane.csr", "-days", "1", *signed),
        ):
            subprocess.run(words, cwd=folder, check=True, capture_output=True)

    def config(self, plane: ControlPlane) -> Config:
        """By way of a kubeconfig with the data in it, as installers write them."""
        document = YAML(typ="safe", pure=True).load(plane.kubeconfig.read_text())
        data = {name: b64encode((self._folder / file).read_bytes()).decode() for name, file in PARTS.items()}
        document["users"][0]["user"] = data
        path = self._folder / "jane.kubeconfig"
        path.write_text(json.dumps(document))
        return kubeconfig([path])


PARTS = {"client-certificate-data": "jane.crt", "client-key-data": "jane.key"}


async def test_a_killed_api_server_is_watched_on_where_it_was_left(plane: ControlPlane) -> None:
    await run_sync(plane.make_namespace, "shop")
    await run_sync(plane.make_pod, "shop", "a")
    async with client_of(plane) as client, reflected(client, "shop") as it:
        await run_sync(plane.make_pod, "shop", "b")
        await it.until(lambda sink: sink.has == "a b")
        await run_sync(plane.apiserver.kill)
        await run_sync(plane.apiserver.start)
        await run_sync(plane.make_pod, "shop", "c")
        await run_sync(plane.finish_pod, "shop", "a")
        await it.until(lambda sink: sink.has == "b c")
        assert it.reflector.lists == 1, "nothing was missed, so nothing was listed again"
        assert it.log
        assert all(line["event"] == "reflector-failed" for line in it.log)


async def test_compacted_history_means_a_new_list_without_what_is_gone(plane: ControlPlane) -> None:
    await run_sync(plane.make_namespace, "shop")
    for name in "abc":
        await run_sync(plane.make_pod, "shop", name)
    async with wire(plane) as between, connect(through(between)) as client, reflected(client, "shop") as it:
        between.refusing = True
        between.cut()
        await run_sync(plane.finish_pod, "shop", "a")
        await run_sync(plane.make_pod, "shop", "d")
        await run_sync(plane.lose_history)
        between.refusing = False
        await it.until(lambda sink: sink.has == "b c d")
        assert it.sink.told[-1] == ("replaced", "b c d")
        assert it.reflector.lists == 2
        assert any("410" in line["error"] for line in it.log)


async def test_an_old_version_is_gone_by_status_and_by_event(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 1)
    await run_sync(plane.make_namespace, "shop")
    for name in "ab":
        await run_sync(plane.make_pod, "shop", name)
    async with client_of(plane) as client:
        page = await client.page(PODS, namespace="shop")
        assert len(list(page)) == 1
        await run_sync(plane.lose_history)
        with pytest.raises(Gone) as gone:
            await client.page(PODS, namespace="shop", more=page.more)
        assert gone.value.reason == "Expired"
        async with client.watch(PODS, {"resourceVersion": page.version}, namespace="shop") as watch:
            (line,) = await watch.read() or []
            assert json.loads(line)["type"] == "ERROR"
            assert json.loads(line)["object"]["code"] == 410


async def test_a_watch_cut_in_the_middle_of_a_line_loses_nothing(cluster: Cluster, namespace: str) -> None:
    await run_sync(cluster.make_pod, namespace, "a")
    async with (
        wire(cluster) as between,
        connect(through(between)) as client,
        reflected(client, namespace) as it,
    ):
        between.cut_in(b"the-half-of-it")
        await run_sync(partial(cluster.make_pod, namespace, "b", labels={"app": "the-half-of-it"}))
        await it.until(lambda sink: sink.has == "a b")
        assert it.sink.items[namespace, "b"] == '{"app": "the-half-of-it"}'
        assert it.reflector.lists == 1
        assert len(it.log) == 1


async def test_a_list_cut_in_the_middle_changes_nothing(cluster: Cluster, namespace: str) -> None:
    for name in "abc":
        await run_sync(partial(cluster.make_pod, namespace, name, labels={"app": f"here-is-{name}"}))
    async with wire(cluster) as between, connect(through(between)) as client:
        between.cut_in(b"here-is-b")
        for stream in (True, False):
            async with reflected(client, namespace, stream=stream) as it:
                assert it.sink.told == [("replaced", "a b c")]
            between.cut_in(b"here-is-c")


async def test_a_silent_peer_is_given_up(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 1.0)
    async with (
        wire(cluster) as between,
        connect(through(between)) as client,
        reflected(client, namespace) as it,
    ):
        between.fall_silent()
        await run_sync(cluster.make_pod, namespace, "a")
        with trio.fail_after(PATIENCE_SECONDS):
            while not it.log:
                await trio.sleep(0.05)
        assert it.log[0]["event"] == "reflector-silent"
        assert not it.sink.items
        between.speak()
        await it.until(lambda sink: sink.has == "a")
        assert it.reflector.lists == 1


async def test_a_reset_connection_and_one_that_is_refused_are_unreachable(cluster: Cluster) -> None:
    async with wire(cluster) as between, connect(through(between)) as client:
        between.refusing = True
        with pytest.raises(Unreachable):
            await client.list(PODS, namespace="default")
    async with connect(through(between)) as client:
        with pytest.raises(Unreachable, match="Connection refused"):
            await client.list(PODS, namespace="default")
    async with connect(Config("https://nobody.invalid")) as client:
        with pytest.raises(Unreachable, match="does not resolve"):
            await client.list(PODS, namespace="default")


async def test_a_token_that_rotates_is_read_again_when_it_is_refused(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """As the kubelet does with a projected token; which one is used, the API server says itself."""
    file = tmp_path / "token"
    tokens = [await run_sync(cluster.token, namespace, "default")]
    base = kubeconfig([cluster.kubeconfig])
    config = Config(base.server, ca_file=base.ca_file, ca_data=base.ca_data, token_file=str(file))
    file.write_text("no token of this cluster")
    async with connect(config) as client:
        with pytest.raises(Unauthorized):
            await own_user(client)
        file.write_text(tokens[0])
        assert await own_user(client) == f"system:serviceaccount:{namespace}:default"
        assert client.requests["POST", 401] == 2


async def test_a_token_whose_pod_is_gone_costs_the_watch_and_a_new_one_heals_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await run_sync(plane.make_namespace, "shop")
    await run_sync(
        partial(
            plane.account,
            "shop",
            "reader",
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        )
    )
    pod = await run_sync(partial(plane.make_pod, "shop", "ours", serviceAccountName="reader"))
    file = tmp_path / "token"
    file.write_text(await run_sync(partial(plane.token, "shop", "reader", pod=pod)))
    async with (
        wire(plane) as between,
        connect(through(between, token="", token_file=str(file))) as client,
        reflected(client, "shop") as it,
    ):
        await run_sync(plane.finish_pod, "shop", "ours")
        await it.until(lambda sink: not sink.items)
        await run_sync(plane.apiserver.kill)
        await run_sync(plane.apiserver.start)  # it remembers a good token for ten seconds
        await run_sync(plane.make_pod, "shop", "other")
        with trio.fail_after(PATIENCE_SECONDS):
            while not any("401" in line["error"] for line in it.log):
                await trio.sleep(0.05)
        assert not it.sink.items
        file.write_text(await run_sync(plane.token, "shop", "reader"))
        await it.until(lambda sink: sink.has == "other")


async def test_what_is_refused_has_its_own_error(cluster: Cluster, namespace: str) -> None:
    path = await run_sync(
        partial(
            cluster.account, namespace, "narrow", {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
        )
    )
    async with client_of(cluster) as client, connect(kubeconfig([path])) as narrow:
        with pytest.raises(Forbidden, match="cannot list resource"):
            await narrow.list(PODS, namespace=namespace)
        with pytest.raises(NotFound, match='"nobody" not found'):
            await narrow.get(PODS, "nobody", namespace)
        with pytest.raises(NotFound):
            await client.list(Resource("pidone.dev", "v1alpha1", "nothings", "Nothing"), namespace=namespace)
        await client.create(TASK_SETS, {"metadata": {"name": "a"}, "spec": SPEC} | KIND, namespace)
        with pytest.raises(AlreadyExists):
            await client.create(TASK_SETS, {"metadata": {"name": "a"}, "spec": SPEC} | KIND, namespace)
        first = await client.get(TASK_SETS, "a", namespace)
        await client.merge(TASK_SETS, "a", {"metadata": {"labels": {"x": "y"}}}, namespace=namespace)
        with pytest.raises(Conflict, match="has been modified"):
            await client.replace(TASK_SETS, first)
        with pytest.raises(BadRequest) as invalid:
            await client.create(TASK_SETS, {"metadata": {"name": "b"}, "spec": {}} | KIND, namespace)
        assert invalid.value.status == 422
        await client.delete(TASK_SETS, "a", namespace)
        with pytest.raises(NotFound):
            await client.get(TASK_SETS, "a", namespace)


async def test_a_status_is_ours_and_the_spec_is_theirs(cluster: Cluster, namespace: str) -> None:
    binding = {"apiVersion": KIND["apiVersion"], "kind": "TaskBinding", "spec": BINDING}
    meta = {"name": "web", "namespace": namespace}
    async with client_of(cluster) as client:
        made = await client.create(TASK_BINDINGS, {**binding, "metadata": meta})
        status = {"observedGeneration": made["metadata"]["generation"]}
        body = {"metadata": meta, "status": status}
        applied = await client.apply(TASK_BINDINGS, body, subresource="status")
        assert applied["status"] == status
        assert applied["spec"] == made["spec"]
        assert applied["metadata"]["generation"] == made["metadata"]["generation"]
        managers = {entry["operation"]: entry for entry in applied["metadata"]["managedFields"]}
        assert managers["Apply"]["manager"] == "pidone-controller"
        assert managers["Apply"]["subresource"] == "status"
        other = {"metadata": meta, "spec": {**BINDING, "podSelector": {"matchLabels": {"app": "other"}}}}
        with pytest.raises(Conflict) as conflict:
            await client.apply(TASK_BINDINGS, other, force=False)
        assert set(conflict.value.causes) == {"FieldManagerConflict"}


async def test_whose_token_it_is_and_what_they_may(cluster: Cluster, namespace: str) -> None:
    pod = await run_sync(cluster.make_pod, namespace, "web-0")
    token = await run_sync(partial(cluster.token, namespace, "default", audience="pidone-repo", pod=pod))
    rules = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    await run_sync(cluster.account, namespace, "reader", rules)
    reader = await run_sync(cluster.token, namespace, "reader")
    async with client_of(cluster) as client:
        status = await review_token(client, token, ["pidone-repo"])
        assert status["authenticated"] is True
        assert status["user"]["username"] == f"system:serviceaccount:{namespace}:default"
        assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
        for bad in (
            review_token(client, token, ["another"]),
            review_token(client, token),
            review_token(client, "nonsense", ["pidone-repo"]),
        ):
            assert not (await bad).get("authenticated")
        assert not await is_allowed(client, status["user"], "get", PODS, namespace=namespace, name="web-0")
        user = (await review_token(client, reader))["user"]
        assert await is_allowed(client, user, "get", PODS, namespace=namespace, name="web-0")
        assert await is_allowed(client, user, "get", PODS)
        assert not await is_allowed(client, user, "list", PODS, namespace=namespace)
        assert not await is_allowed(client, user, "get", SECRETS, namespace=namespace)


async def test_an_event_is_seen_by_kubectl_describe_and_counts_up(cluster: Cluster, namespace: str) -> None:
    pod = await run_sync(cluster.make_pod, namespace, "web-0")
    told: LOG = []
    async with client_of(cluster) as client:
        recorder = Recorder(client, instance="here", log=lambda name, **fields: told.append(fields))
        for _ in range(3):
            await recorder.record(
                pod | {"kind": "Pod", "apiVersion": "v1"}, "Warning", "PlanRefused", "no value for app"
            )
        (event,) = await client.list(EVENTS, namespace=namespace)
        assert event["count"] == 3
        assert not told
    described = await run_sync(partial(cluster.kubectl, "describe", "pod", "web-0", "--namespace", namespace))
    assert "PlanRefused" in described
    assert "(x3 over" in described
    assert "no value for app" in described


async def test_one_of_two_replicas_leads_and_the_other_follows_it(cluster: Cluster, namespace: str) -> None:
    leading = list[str]()
    changed = trio.Event()

    def work(name: str) -> Callable[[], Any]:
        async def lead() -> None:
            nonlocal changed
            leading.append(name)
            changed.set()
            changed = trio.Event()
            try:
                await trio.sleep_forever()
            finally:
                leading.remove(name)

        return lead

    async with client_of(cluster) as client, trio.open_nursery() as nursery:
        scopes = {}
        for name in "ab":
            election = Election(
                client, namespace=namespace, name="controller", identity=name, log=lambda *_, **__: None
            )
            scopes[name] = trio.CancelScope()

            async def replica(election: Election = election, name: str = name) -> None:
                with scopes[name]:
                    await election.run(work(name))

            nursery.start_soon(replica)
        with trio.fail_after(PATIENCE_SECONDS):
            await changed.wait()
        first = leading[0]
        await trio.sleep(3)
        assert leading == [first]
        lease = await client.get(LEASES, "controller", namespace)
        assert lease["spec"]["holderIdentity"] == first
        scopes[first].cancel()
        with trio.fail_after(PATIENCE_SECONDS):
            await changed.wait()
        assert leading == ["b" if first == "a" else "a"]
        lease = await client.get(LEASES, "controller", namespace)
        assert lease["spec"]["leaseTransitions"] == 2
        nursery.cancel_scope.cancel()


async def test_an_api_server_with_another_authority_is_not_trusted(
    cluster: Cluster, plane: ControlPlane
) -> None:
    ours, theirs = kubeconfig([cluster.kubeconfig]), kubeconfig([plane.kubeconfig])
    async with connect(
        Config(theirs.server, ca_file=ours.ca_file, ca_data=ours.ca_data, token=ADMIN)
    ) as client:
        with pytest.raises(Unreachable, match="certificate"):
            await client.list(SECRETS, namespace="default")


async def test_what_is_applied_arrives_as_it_is_whatever_yaml_makes_of_it(
    cluster: Cluster, namespace: str
) -> None:
    """Bodies of server-side apply are read as YAML, which has more ends of lines and control characters than JSON."""
    odd = ' \n \x00 \x1b \x7f \x85 \x9b \u2028 \u2029 \ufeff \ufffe \U0001f600 \\ " '
    meta = {"name": "odd", "namespace": namespace, "annotations": {"odd": odd}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    accounts = Resource("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
    async with client_of(cluster) as client:
        applied = await client.apply(accounts, account)
        assert applied["metadata"]["annotations"]["odd"] == odd

        # half a pair of surrogates is no text, and a refusal, not an accident
        with pytest.raises(BadRequest):
            await client.apply(accounts, account | {"metadata": meta | {"annotations": {"odd": "\ud800"}}})
