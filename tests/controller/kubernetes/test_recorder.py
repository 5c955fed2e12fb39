"""Events, and how few of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone_controller.kubernetes.recorder import Recorder
from pidone_controller.kubernetes.resources import EVENTS
from tests.controller.kubernetes.fake import FakeAPIServer, fake_server, refused

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1"}}


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[Recorder, FakeAPIServer, list[Any]]]:
    told: list[Any] = []
    async with fake_server() as (server, client, _):
        yield (
            Recorder(client, instance="pidone-0", log=lambda *words, **fields: told.append((words, fields))),
            server,
            told,
        )


def events(server: FakeAPIServer) -> list[dict[str, Any]]:
    return [value for (resource, _, _), value in server.objects.items() if resource is EVENTS]


async def test_an_event_is_what_kubectl_describe_looks_for(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        await recorder.record(POD, "Warning", "Refused", "param app has no value")
        (event,) = events(server)
        assert event["involvedObject"] == {
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u1",
        }  # fmt: skip
        assert event["metadata"]["namespace"] == "shop"
        assert event["metadata"]["name"].startswith("web-0.")
        assert (event["type"], event["reason"], event["message"]) == (
            "Warning",
            "Refused",
            "param app has no value",
        )
        assert event["source"] == {"component": "pidone-controller"}
        assert event["count"] == 1


async def test_an_event_about_a_cluster_kind_is_in_default(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        await recorder.record(
            {"kind": "ClusterTaskBinding", "metadata": {"name": "all"}}, "Normal", "Halted", "x"
        )
        assert events(server)[0]["metadata"]["namespace"] == "default"


async def test_the_same_again_counts_up(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        for _ in range(4):
            await recorder.record(POD, "Warning", "Refused", "the same")
        (event,) = events(server)
        assert event["count"] == 4
        assert [request.method for request in server.asked] == ["POST", "PATCH", "PATCH", "PATCH"]


async def test_one_that_has_expired_is_written_anew(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, told):
        await recorder.record(POD, "Warning", "Refused", "the same")
        (event,) = events(server)
        server.drop(EVENTS, event["metadata"]["name"], "shop")
        await trio.sleep(4000)
        await recorder.record(POD, "Warning", "Refused", "the same")
        (again,) = events(server)
        assert again["count"] == 2
        assert again["firstTimestamp"] == event["firstTimestamp"]
        assert not told


async def test_different_messages_of_one_reason_become_one(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        for number in range(15):
            await recorder.record(POD, "Warning", "Refused", f"digest {number}")
        messages = [event["message"] for event in events(server)]
        assert len(messages) == 11
        assert messages[-1] == "(combined from similar events): digest 14"
        assert events(server)[-1]["count"] == 5
        await trio.sleep(601)
        await recorder.record(POD, "Warning", "Refused", "digest 99")
        assert events(server)[-1]["message"] == "digest 99"


async def test_25_at_once_and_one_each_five_minutes_about_one_object(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        for _ in range(100):
            await recorder.record(POD, "Warning", "Refused", "the same")
        assert len(server.asked) == 25
        await recorder.record(
            {**POD, "metadata": {"name": "other", "namespace": "shop"}}, "Normal", "Refused", "x"
        )
        assert len(server.asked) == 26, "another object has its own"
        await trio.sleep(301)
        await recorder.record(POD, "Warning", "Refused", "the same")
        await recorder.record(POD, "Warning", "Refused", "the same")
        assert len(server.asked) == 27
        assert events(server)[0]["count"] == 101, "what was not written is counted all the same"


@pytest.mark.parametrize("code", [403, 422, 500])
async def test_an_event_that_cannot_be_written_is_logged(code: int, autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, told):
        server.fail("/events", refused(code, "no"))
        await recorder.record(POD, "Warning", "Refused", "x")
        assert told[0][0] == ("event-not-written",)
        await recorder.record(POD, "Warning", "Refused", "x")
        assert len(events(server)) == 1


async def test_a_long_message_is_cut_where_the_api_server_would_refuse_it(autojump_clock: MockClock) -> None:
    async with recording() as (recorder, server, _):
        await recorder.record(POD, "Warning", "Refused", "x" * 5000)
        assert len(events(server)[0]["message"]) == 1024
