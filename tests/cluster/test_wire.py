"""The wire to the API server does to a watch what networks do."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from tests.cluster.apiserver import Cluster
from tests.cluster.wire import Wire, wire


@asynccontextmanager
async def watch(through: Wire, namespace: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a watch of pods."""
    headers = through.cluster.http.headers
    async with (
        httpx.AsyncClient(base_url=through.url, headers=headers, timeout=30, trust_env=False) as http,
        http.stream("GET", f"/api/v1/namespaces/{namespace}/pods?watch=1") as answer,
    ):
        assert answer.status_code == 200
        yield answer.aiter_raw()


async def test_a_watch_is_cut_in_the_middle_of_a_line(cluster: Cluster, namespace: str) -> None:
    async with wire(cluster) as between, watch(between, namespace) as found:
        await trio.to_thread.run_sync(cluster.make_pod, namespace, "web-0")
        assert json.loads(await anext(found))["object"]["metadata"]["name"] == "web-0"

        between.cut_in(b"node-of-nobody")
        await trio.to_thread.run_sync(cluster.make_pod, namespace, "web-1")
        text = await anext(found)
        assert b"web-1" in text
        assert text.endswith(b"node-of")
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(found)


async def test_silence_holds_back_and_cutting_closes(cluster: Cluster, namespace: str) -> None:
    async with wire(cluster) as between:
        async with watch(between, namespace) as found:
            between.fall_silent()
            await trio.to_thread.run_sync(cluster.make_pod, namespace, "web-0")
            with trio.move_on_after(0.5) as silent:
                await anext(found)
            assert silent.cancelled_caught
        async with watch_after(between, namespace) as found:
            assert b"web-0" in await anext(found)
            assert between.cut(reset=True) == 1
            with pytest.raises(httpx.ReadError):
                await anext(found)
        assert between.taken == 2

        between.refusing = True
        with pytest.raises(httpx.RemoteProtocolError):
            async with watch(between, namespace):
                pass


@asynccontextmanager
async def watch_after(between: Wire, namespace: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """A watch that is asked for in silence, and heard when it ends."""

    async def speak() -> None:
        await trio.testing.wait_all_tasks_blocked(0.1)
        between.speak()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        async with watch(between, namespace) as found:
            yield found


@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut_wire_works_again(cluster: Cluster, namespace: str, reset: bool) -> None:
    async with wire(cluster) as between:
        for name in ("web-0", "web-1"):
            async with watch(between, namespace) as found:
                await trio.to_thread.run_sync(cluster.make_pod, namespace, name)
                while name.encode() not in await anext(found):
                    pass
                assert between.cut(reset=reset) == 1
                with pytest.raises(httpx.ReadError if reset else httpx.RemoteProtocolError):
                    await anext(found)
