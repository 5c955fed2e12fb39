"""Requests, errors, tokens and the pace, on the virtual clock."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone_controller.kubernetes.config import Config
from pidone_controller.kubernetes.credentials import Token, tls
from pidone_controller.kubernetes.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    ConfigError,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from pidone_controller.kubernetes.resources import (
    CLUSTER_TASK_SETS,
    CONTROLLER_REVISIONS,
    EVENTS,
    PODS,
    TASK_BINDINGS,
    TASK_SETS,
)
from tests.controller.kubernetes.fake import fake_server, refused, stream
from tests.controller.kubernetes.wires import Answer


def task_set(name: str = "web", **fields: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "shop"}
    return {
        "apiVersion": "pidone.dev/v1alpha1",
        "kind": "TaskSet",
        "metadata": meta,
        "spec": {"tasks": []},
        **fields,
    }


def test_paths_are_those_of_kubernetes() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("shop", "web-0", "status") == "/api/v1/namespaces/shop/pods/web-0/status"
    assert CONTROLLER_REVISIONS.path("shop") == "/apis/apps/v1/namespaces/shop/controllerrevisions"
    assert CLUSTER_TASK_SETS.path("ignored", "base") == "/apis/pidone.dev/v1alpha1/clustertasksets/base"
    assert PODS.path("shop", "../secrets?") == "/api/v1/namespaces/shop/pods/..%2Fsecrets%3F"


async def test_an_object_is_made_read_replaced_and_deleted(autojump_clock: MockClock) -> None:
    async with fake_server() as (_, client, _):
        made = await client.create(TASK_SETS, task_set())
        assert made["metadata"]["generation"] == 1
        read = await client.get(TASK_SETS, "web", "shop")
        assert read == made
        read["spec"]["tasks"] = [{"name": "ready"}]
        changed = await client.replace(TASK_SETS, read)
        assert changed["metadata"]["generation"] == 2
        with pytest.raises(Conflict) as conflict:
            await client.replace(TASK_SETS, made)
        assert conflict.value.reason == "Conflict"
        await client.delete(TASK_SETS, "web", "shop")
        with pytest.raises(NotFound):
            await client.get(TASK_SETS, "web", "shop")


async def test_what_exists_is_not_made_again(autojump_clock: MockClock) -> None:
    async with fake_server() as (_, client, _):
        await client.create(TASK_SETS, task_set())
        with pytest.raises(AlreadyExists) as error:
            await client.create(TASK_SETS, task_set())
        assert isinstance(error.value, Conflict)


async def test_a_status_is_applied_beside_the_spec(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.put(TASK_BINDINGS, "web", "shop", spec={"taskSets": ["a"]})
        body = {
            "metadata": {"name": "web", "namespace": "shop"},
            "status": {"matched": 3},
            "spec": {"taskSets": []},
        }
        applied = await client.apply(TASK_BINDINGS, body, subresource="status")
        assert applied["status"] == {"matched": 3}
        assert applied["spec"] == {"taskSets": ["a"]}
        (request,) = server.requests("/taskbindings/web/status")
        assert request.query == {"fieldManager": "pidone-controller", "force": "true"}
        assert request.headers["content-type"] == "application/apply-patch+yaml"
        assert json.loads(request.body)["kind"] == "TaskBinding", (
            "apply needs apiVersion and kind in the body"
        )
        body["status"] = {"applied": 1}
        assert (await client.apply(TASK_BINDINGS, body, subresource="status"))["status"] == {"applied": 1}


async def test_a_field_of_another_manager_is_a_conflict_without_force(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.put(TASK_BINDINGS, "web", "shop")
        other = {"fieldManager": "other", "force": "true"}
        body = {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"priority": 1}}
        from tests.controller.kubernetes.wires import Request

        headers = {"content-type": "application/apply-patch+yaml"}
        path = TASK_BINDINGS.path("shop", "web")
        await server.handle(Request("PATCH", path, other, headers, json.dumps(body).encode()))
        body["spec"] = {"priority": 2}
        with pytest.raises(Conflict) as error:
            await client.apply(TASK_BINDINGS, body, force=False)
        assert error.value.causes == ("FieldManagerConflict",)
        assert (await client.apply(TASK_BINDINGS, body))["spec"] == {"priority": 2}


async def test_a_merge_patch_removes_what_is_null(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.put(
            TASK_BINDINGS, "web", "shop", metadata={"annotations": {"pidone.dev/pin": "sha256-1", "a": "b"}}
        )
        patch = {"metadata": {"annotations": {"pidone.dev/pin": None}}}
        patched = await client.merge(TASK_BINDINGS, "web", patch, namespace="shop")
        assert patched["metadata"]["annotations"] == {"a": "b"}


async def test_a_list_is_read_to_its_last_page(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        for number in range(1001):
            server.put(TASK_SETS, f"t{number:04}", "shop", metadata={"labels": {"half": str(number % 2)}})
        assert len(await client.list(TASK_SETS, namespace="shop")) == 1001
        assert len(await client.list(TASK_SETS, namespace="shop", label_selector="half=1")) == 500
        assert not await client.list(TASK_SETS, namespace="elsewhere")


async def test_objects_of_a_list_say_what_they_are(autojump_clock: MockClock) -> None:
    """The API server leaves it out for built-in kinds."""
    async with fake_server() as (server, client, _):
        server.put(PODS, "a", "shop")
        (pod,) = await client.list(PODS)
        assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, BadRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (415, BadRequest),
        (422, BadRequest),
        (429, TooManyRequests),
        (500, ServerError),
        (503, ServerError),
        (504, ServerError),
    ],
)
async def test_each_refusal_has_its_error(code: int, kind: type[ApiError], autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/pods/a", refused(code, "Because", "the reason", retry_after=7))
        with pytest.raises(kind) as error:
            await client.get(PODS, "a", "shop")
        assert type(error.value) is kind
        assert (error.value.status, error.value.reason, error.value.retry_after) == (code, "Because", 7.0)
        assert str(error.value) == f"GET /api/v1/namespaces/shop/pods/a: {code} the reason"
        assert client.requests == {("GET", code): 1}


async def test_a_refusal_that_is_no_status_is_one_all_the_same(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail(
            "/pods/a",
            lambda _: Answer(502, b"<html>bad gateway"),
            lambda _: Answer(302, b"", {"location": "/"}),
        )
        with pytest.raises(ServerError):
            await client.get(PODS, "a", "shop")
        with pytest.raises(BadRequest, match="302"):
            await client.get(PODS, "a", "shop")


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"half":', b"\xff"])
async def test_an_answer_that_is_no_object_is_no_answer(body: bytes, autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/pods/a", lambda _: Answer(200, body))
        with pytest.raises(Unreachable, match=r"JSON|object"):
            await client.get(PODS, "a", "shop")


@pytest.mark.parametrize("body", [b"", b"{", b'{"items":[{"a":1}', b'{"items":[{"a":1}}', b"[]", b"\xff"])
async def test_a_list_that_is_none_is_no_answer(body: bytes, autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/pods", lambda _: Answer(200, body))
        with pytest.raises(Unreachable, match="not a list"):
            await client.list(PODS)


async def test_nobody_there_is_unreachable(autojump_clock: MockClock) -> None:
    async with fake_server() as (_, client, wires):
        wires.refuses = True
        with pytest.raises(Unreachable, match="connection refused") as error:
            await client.get(PODS, "a", "shop")
        assert error.value.status == 0
        assert client.requests == {("GET", 0): 1}


async def test_an_answer_cut_off_is_unreachable(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/pods/a", stream(b'{"kind": "Pod", ', cut=True))
        with pytest.raises(Unreachable):
            await client.get(PODS, "a", "shop")


async def test_an_answer_that_never_comes_is_waited_for_65_seconds(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/pods/a", stream(silent=True))
        with pytest.raises(Unreachable, match="silent"):
            await client.get(PODS, "a", "shop")
        assert trio.current_time() == pytest.approx(65, abs=0.1)


# Tokens


async def test_a_token_file_is_read_again_each_minute(tmp_path: Path, autojump_clock: MockClock) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with fake_server(Config("http://fake", token_file=str(file))) as (server, client, _):
        server.put(PODS, "a", "shop")
        for wait in (0, 30, 29, 2):
            await trio.sleep(wait)
            await client.get(PODS, "a", "shop")
            file.write_text("second")
        used = [request.headers["authorization"] for request in server.asked]
        assert used == ["Bearer first", "Bearer first", "Bearer first", "Bearer second"]


async def test_a_401_reads_the_token_at_once_and_asks_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with fake_server(Config("http://fake", token_file=str(file))) as (server, client, _):
        server.put(PODS, "a", "shop")
        server.token = "old"
        await client.get(PODS, "a", "shop")
        server.token = "new"
        file.write_text("new")
        await client.get(PODS, "a", "shop")
        used = [request.headers["authorization"] for request in server.asked]
        assert used == ["Bearer old", "Bearer old", "Bearer new"]


async def test_a_401_with_the_same_token_is_no_reason_to_ask_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    file = tmp_path / "token"
    file.write_text("bad")
    async with fake_server(Config("http://fake", token_file=str(file))) as (server, client, _):
        server.token = "good"
        with pytest.raises(Unauthorized):
            await client.get(PODS, "a", "shop")
        assert len(server.asked) == 1


async def test_a_401_of_a_watch_reads_the_token_as_well(tmp_path: Path, autojump_clock: MockClock) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with fake_server(Config("http://fake", token_file=str(file))) as (server, client, _):
        await trio.sleep(1)
        client._token.current(trio.current_time())
        server.token = "new"
        file.write_text("new")
        async with client.watch(PODS, {"resourceVersion": "100", "timeoutSeconds": "1"}) as watch:
            assert await watch.read() is None


def test_a_token_file_that_is_gone_for_a_moment_leaves_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    token = Token(Config("http://fake", token_file=str(file)))
    assert token.current(0) == "one"
    file.unlink()
    assert token.current(100) == "one"
    file.write_text("")
    assert token.current(200) == "one", "a file in the middle of being written"
    file.write_text("two")
    assert token.current(300) == "two"


def test_a_token_file_that_never_was_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized, match="no token can be read"):
        Token(Config("http://fake", token_file=str(tmp_path / "none"))).current(0)


def test_a_token_stands_in_until_its_file_can_be_read(tmp_path: Path) -> None:
    token = Token(Config("http://fake", token="written", token_file=str(tmp_path / "none")))
    assert token.current(0) == "written"
    (tmp_path / "none").write_text("read")
    assert token.current(61) == "read"


# TLS


def test_only_the_clusters_authority_is_trusted(tmp_path: Path) -> None:
    context = tls(Config("https://k8s", insecure=True))
    assert context.verify_mode is ssl.CERT_NONE
    with pytest.raises(ConfigError, match="no certificate in it"):
        tls(Config("https://k8s", ca_data=b"nonsense"))
    with pytest.raises(ConfigError, match=r"none.crt"):
        tls(Config("https://k8s", ca_file=str(tmp_path / "none.crt")))
    with pytest.raises(ConfigError, match="not a pair"):
        tls(Config("https://k8s", insecure=True, cert_data=b"a", key_data=b"b"))


# Rule 8: 20 requests a second, 30 at once; watches take no place


async def test_rule_8_requests_are_20_a_second_and_30_at_once(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.put(PODS, "a", "shop")
        times = list[float]()

        async def ask() -> None:
            await client.get(PODS, "a", "shop")
            times.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(130):
                nursery.start_soon(ask)
        assert sum(time < 0.01 for time in times) == 30
        assert max(times) == pytest.approx(5.0, abs=0.01)
        times.clear()
        await trio.sleep(10)
        async with trio.open_nursery() as nursery:
            for _ in range(31):
                nursery.start_soon(ask)
        assert sum(time < 15.01 for time in times) == 30, "a rest fills the bucket, and no further"


async def test_rule_8_a_watch_takes_no_place_and_waits_for_none(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.put(PODS, "a", "shop")
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.get, PODS, "a", "shop")
            await trio.sleep(0.01)
            async with client.watch(PODS, {"resourceVersion": "100"}) as watch:
                assert b"ADDED" in (await watch.read() or [b""])[0]
                assert trio.current_time() < 0.1
            nursery.cancel_scope.cancel()


async def test_what_is_cancelled_closes_its_connection(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires):
        server.fail("/pods/a", stream(silent=True))
        with trio.move_on_after(1):
            await client.get(PODS, "a", "shop")
        assert not client._http._transport._pool.connections  # type: ignore[attr-defined]
        assert wires.connections == 1
        await client.create(EVENTS, {"metadata": {"name": "e"}}, "shop")
