"""The rules of a correct informer, each by its name, on the virtual clock and against the fake."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.errors import PidoneError
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.reflector import INITIAL_END, Reflector
from pidone_controller.kubernetes.resources import PODS, TASK_SETS
from tests.controller.kubernetes.fake import FakeAPIServer, Fault, Refusal, fake_server, refused, stream
from tests.controller.kubernetes.fake_sink import FakeSink, names
from tests.controller.kubernetes.objects import event
from tests.controller.kubernetes.wires import Answer, Wires


class LongestRetries(Random):
    """Every retry waits as long as it may; every watch is as short as it may be."""

    def random(self) -> float:
        return 0.0


class Reflected:
    """A fake, a reflector of its pods, and what came of it."""

    def __init__(self, server: FakeAPIServer, client: Client, wires: Wires, **options: Any) -> None:
        self.server, self.client, self.wires = server, client, wires
        self.sink = FakeSink()
        self.log: list[dict[str, Any]] = []
        settings: dict[str, Any] = {"random": LongestRetries(), "stream": False, **options}
        self.reflector = Reflector(
            client,
            PODS,
            settings.pop("project", lambda value: value["metadata"]["uid"]),
            self.sink,
            log=lambda name, **fields: self.log.append({"event": name, **fields}),
            **settings,
        )

    @property
    def has(self) -> str:
        return names(self.sink.items)

    def pods(self, *wanted: str) -> None:
        for name in wanted:
            self.server.put(PODS, name, "shop")

    def watches(self) -> list[Mapping[str, str]]:
        return [request.query for request in self.server.requests("WATCH /api/v1/pods")]

    def lists(self) -> list[Mapping[str, str]]:
        return [request.query for request in self.server.requests("GET /api/v1/pods")]

    def errors(self) -> list[str]:
        return [str(line["error"]) for line in self.log if line["event"] == "reflector-failed"]

    def bookmark(self, version: int, **annotations: str) -> bytes:
        meta = {"resourceVersion": str(version), "annotations": annotations}
        return event("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": meta})


@asynccontextmanager
async def reflected(
    *pods: str, faults: Mapping[str, list[Fault]] | None = None, **options: Any
) -> AsyncIterator[Reflected]:
    """Running until the block ends; ``pods`` are there and ``faults`` wait before it begins."""
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires, **options)
        it.pods(*pods)
        for end, answers in (faults or {}).items():
            server.fail(end, *answers)
        nursery.start_soon(it.reflector.run)
        yield it
        nursery.cancel_scope.cancel()


async def settle() -> None:
    """All that can happen at this moment has happened."""
    await trio.sleep(0.001)


WATCH, LIST = "WATCH /api/v1/pods", "GET /api/v1/pods"
GONE = Refusal(410, "Expired", "too old resource version: 1 (9)").status


# Rule 1: LIST with limit 500, following continue; 410 on a page -> list again without continue


async def test_rule_1_a_list_comes_in_pages_of_500(autojump_clock: MockClock) -> None:
    async with reflected(*(f"p{i:04}" for i in range(1201))) as it:
        await it.reflector.synced.wait()
        assert [query["limit"] for query in it.lists()] == ["500"] * 3
        assert ["continue" in query for query in it.lists()] == [False, True, True]
        assert len(it.sink.items) == 1201
        assert len(it.sink.told) == 1, "a sink sees a list whole or not at all"


async def test_rule_1_a_page_that_is_gone_means_a_new_list(autojump_clock: MockClock) -> None:
    faults: list[Fault] = [lambda _: None, refused(410, "Expired")]
    async with reflected(*(f"p{i:04}" for i in range(501)), faults={LIST: faults}) as it:
        await it.reflector.synced.wait()
        assert ["continue" in query for query in it.lists()] == [False, True, False, True]
        assert len(it.sink.items) == 501


async def test_rule_1_a_page_that_is_truly_compacted_means_a_new_list(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires)
        it.pods(*(f"p{i:04}" for i in range(600)))
        server.fail(LIST, lambda _: None, lambda _: server.compact())
        nursery.start_soon(it.reflector.run)
        await it.reflector.synced.wait()
        assert len(it.lists()) == 4
        assert "Expired" in it.errors()[0] or "too old" in it.errors()[0]
        nursery.cancel_scope.cancel()


async def test_rule_1_a_streamed_list_is_swapped_in_at_its_bookmark(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires, stream=True)
        pod = server.put(PODS, "a", "shop")
        later = trio.Event()

        async def slowly() -> AsyncGenerator[bytes, None]:
            yield event("ADDED", pod)
            yield it.bookmark(104)
            await later.wait()
            yield it.bookmark(105, **{INITIAL_END: "true"})
            await trio.sleep_forever()

        server.fail(WATCH, lambda _: Answer(200, pieces=slowly()))
        nursery.start_soon(it.reflector.run)
        await settle()
        assert not it.sink.told
        assert not it.reflector.synced.is_set()
        later.set()
        await settle()
        assert it.sink.told == [("replaced", "a")]
        assert it.reflector.synced.is_set()
        assert it.watches()[0]["sendInitialEvents"] == "true"
        assert it.watches()[0]["resourceVersionMatch"] == "NotOlderThan"
        assert it.watches()[0]["allowWatchBookmarks"] == "true"
        assert "resourceVersion" not in it.watches()[0]
        assert not it.lists()
        nursery.cancel_scope.cancel()


async def test_rule_1_the_stream_goes_on_as_the_watch(autojump_clock: MockClock) -> None:
    async with reflected("a", "b", stream=True) as it:
        await it.reflector.synced.wait()
        it.pods("c")
        it.server.drop(PODS, "a", "shop")
        await settle()
        assert it.sink.told == [("replaced", "a b"), ("changed", "c"), ("removed", "a")]
        assert len(it.server.asked) == 1


@pytest.mark.parametrize("code", [400, 405, 415, 422])
async def test_rule_1_a_server_that_streams_no_list_gives_pages(code: int, autojump_clock: MockClock) -> None:
    async with reflected("a", stream=True, faults={WATCH: [refused(code, "Invalid")]}) as it:
        await it.reflector.synced.wait()
        assert trio.current_time() < 0.1, "it is no failure, and costs no waiting"
        assert it.has == "a"
        it.server.compact()
        it.wires.hang_up()
        await trio.sleep(60)
        assert len(it.lists()) == 2, "and it is not asked for a stream again"


@pytest.mark.parametrize(
    ("code", "reason"), [(401, "Unauthorized"), (403, "Forbidden"), (404, "NotFound"), (429, "")]
)
async def test_rule_1_other_refusals_say_nothing_about_streams(
    code: int, reason: str, autojump_clock: MockClock
) -> None:
    async with reflected("a", stream=True, faults={WATCH: [refused(code, reason)]}) as it:
        await it.reflector.synced.wait()
        assert not it.lists()
        assert len(it.watches()) == 2


async def test_rule_1_a_streamed_list_that_stands_still_is_asked_for_in_pages(
    autojump_clock: MockClock,
) -> None:
    never = stream(
        event("ADDED", {"metadata": {"name": "x", "namespace": "shop", "resourceVersion": "9"}}), silent=True
    )
    async with reflected("a", stream=True, faults={WATCH: [never]}) as it:
        await it.reflector.synced.wait()
        assert 30 <= trio.current_time() < 32
        assert it.has == "a"


async def test_rule_1_a_streamed_list_that_ends_early_is_no_list(autojump_clock: MockClock) -> None:
    half = stream(
        event("ADDED", {"metadata": {"name": "x", "namespace": "shop", "resourceVersion": "9"}}), lasts=5
    )
    async with reflected("a", stream=True, faults={WATCH: [half]}) as it:
        await it.reflector.synced.wait()
        assert it.sink.told == [("replaced", "a")]
        assert "before its list was whole" in it.errors()[0]


@pytest.mark.parametrize(
    "body", [b"{}", b'{"metadata":{"resourceVersion":""},"items":[]}', b'{"items":[{}]}', b"[]"]
)
async def test_rule_1_what_is_no_list_is_asked_for_again(body: bytes, autojump_clock: MockClock) -> None:
    async with reflected("a", faults={LIST: [lambda _: Answer(200, body)]}) as it:
        await it.reflector.synced.wait()
        assert it.sink.told == [("replaced", "a")]
        assert "not a list" in it.errors()[0]


# Rule 2: WATCH from the collection's version, 5-10 minutes, bookmarks on; every event and bookmark moves it


async def test_rule_2_a_watch_begins_where_the_list_ended(autojump_clock: MockClock) -> None:
    async with reflected("a", "b") as it:
        await it.reflector.synced.wait()
        await settle()
        assert it.watches()[0]["resourceVersion"] == str(it.server.version)
        assert it.watches()[0]["allowWatchBookmarks"] == "true"
        assert "sendInitialEvents" not in it.watches()[0]


async def test_rule_2_watches_end_after_5_to_10_minutes_each_at_another_time(
    autojump_clock: MockClock,
) -> None:
    async with reflected("a", random=Random(1)) as it:
        await trio.sleep(3600)
        seconds = [int(query["timeoutSeconds"]) for query in it.watches()]
        assert len(seconds) >= 6
        assert all(300 <= number <= 600 for number in seconds)
        assert len(set(seconds)) == len(seconds)
        assert not it.log, "the end of a watch is no failure"
        assert len(it.lists()) == 1


async def test_rule_2_every_event_moves_the_version(autojump_clock: MockClock) -> None:
    async with reflected("a") as it:
        await it.reflector.synced.wait()
        await settle()
        it.pods("b")
        it.server.put(TASK_SETS, "elsewhere", "shop")
        it.server.drop(PODS, "a", "shop")
        gone = it.server.version
        await settle()
        it.wires.hang_up()
        await trio.sleep(2)
        assert it.watches()[1]["resourceVersion"] == str(gone)
        assert len(it.lists()) == 1
        assert it.has == "b"


async def test_rule_2_every_bookmark_moves_the_version(autojump_clock: MockClock) -> None:
    async with reflected("a") as it:
        await it.reflector.synced.wait()
        it.server.put(TASK_SETS, "elsewhere", "shop")  # no event for pods, but the cluster goes on
        await trio.sleep(61)
        it.wires.hang_up()
        await trio.sleep(2)
        assert it.watches()[1]["resourceVersion"] == str(it.server.version)


async def test_rule_2_nothing_is_lost_between_two_watches(autojump_clock: MockClock) -> None:
    async with reflected("a") as it:
        await it.reflector.synced.wait()
        await settle()
        it.wires.refuses = True
        it.wires.hang_up()
        await settle()
        it.pods("b", "c")
        it.server.drop(PODS, "b", "shop")
        it.wires.refuses = False
        await trio.sleep(10)
        assert it.sink.told == [("replaced", "a"), ("changed", "b"), ("changed", "c"), ("removed", "b")]


# Rule 3: 75 s of silence is an alarm, because bookmarks come each minute


async def test_rule_3_a_silent_peer_is_dead_after_75_seconds(autojump_clock: MockClock) -> None:
    async with reflected("a", faults={WATCH: [stream(silent=True)]}) as it:
        await it.reflector.synced.wait()
        it.pods("b")
        await trio.sleep(74)
        assert it.has == "a"
        await trio.sleep(3)
        assert it.has == "a b"
        assert [line["event"] for line in it.log] == ["reflector-silent"]
        assert len(it.lists()) == 1, "what the dead peer did not tell, the next watch does"


async def test_rule_3_a_server_that_has_no_bookmarks_is_watched_on_without_growing_waits(
    autojump_clock: MockClock,
) -> None:
    """The real one sends none for a kind of which it has heard nothing since it started."""
    async with reflected("a", faults={WATCH: [stream(silent=True)] * 20}) as it:
        await trio.sleep(1501)
        assert len(it.watches()) == 21
        it.pods("b")
        await settle()
        assert it.has == "a b", "watched by the moment"
        assert len(it.log) == 1, "said once"


async def test_rule_3_bookmarks_keep_a_quiet_watch_alive(autojump_clock: MockClock) -> None:
    async with reflected("a") as it:
        await trio.sleep(299)
        assert len(it.watches()) == 1
        assert trio.current_time() - it.reflector.heard <= 60


async def test_rule_3_heard_stands_still_while_nobody_answers(autojump_clock: MockClock) -> None:
    async with reflected("a") as it:
        await it.reflector.synced.wait()
        await settle()
        it.wires.refuses = True
        it.wires.hang_up()
        await trio.sleep(400)
        assert trio.current_time() - it.reflector.heard >= 400


# Rule 4: what failed is backed off; 410 and ERROR mean a new list


@pytest.mark.parametrize(
    "gone", [refused(410, "Expired"), stream(event("ERROR", GONE))], ids=["status", "event"]
)
async def test_rule_4_a_version_that_is_gone_means_a_new_list(gone: Fault, autojump_clock: MockClock) -> None:
    async with reflected("a", "b", faults={WATCH: [gone]}) as it:
        await it.reflector.synced.wait()
        it.server.drop(PODS, "a", "shop")
        await trio.sleep(2)
        assert it.sink.told == [("replaced", "a b"), ("replaced", "b")]
        assert len(it.lists()) == 2
        assert it.reflector.lists == 2


async def test_rule_4_compacted_history_means_a_new_list(autojump_clock: MockClock) -> None:
    async with reflected("a", "b") as it:
        await it.reflector.synced.wait()
        await settle()
        it.wires.refuses = True
        it.wires.hang_up()
        await settle()
        it.server.drop(PODS, "b", "shop")
        it.server.compact()
        it.wires.refuses = False
        await trio.sleep(10)
        assert it.sink.told == [("replaced", "a b"), ("replaced", "a")]


async def test_rule_4_any_error_event_means_a_new_list(autojump_clock: MockClock) -> None:
    broken = stream(event("ERROR", Refusal(500, "InternalError", "etcd is not well").status))
    async with reflected("a", faults={WATCH: [broken]}) as it:
        await trio.sleep(3)
        assert len(it.lists()) == 2
        assert "etcd is not well" in it.errors()[0]


async def test_rule_4_a_server_that_always_says_410_is_not_hammered(autojump_clock: MockClock) -> None:
    """kr8s asked 209 times in two seconds."""
    async with reflected("a", faults={WATCH: [refused(410, "Expired")] * 99}) as it:
        await trio.sleep(60)
        assert len(it.server.asked) < 20


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_rule_4_retry_after_is_honoured(code: int, autojump_clock: MockClock) -> None:
    async with reflected("a", faults={LIST: [refused(code, "", retry_after=17)]}) as it:
        await it.reflector.synced.wait()
        assert 17 <= trio.current_time() <= 17.81


async def test_rule_4_retry_after_in_the_status_is_honoured(autojump_clock: MockClock) -> None:
    later = Refusal(429, "TooManyRequests", "slowly", retryAfterSeconds=9)
    async with reflected("a", faults={WATCH: [lambda _: later.answer()]}) as it:
        await trio.sleep(8.9)
        assert len(it.watches()) == 1
        await trio.sleep(1)
        assert len(it.watches()) == 2


async def test_rule_4_waits_double_from_0_8_to_30_seconds(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires)
        wires.refuses = True
        nursery.start_soon(it.reflector.run)
        await trio.sleep(120)
        waits = [line["again"] for line in it.log]
        assert (
            waits
            == ["0.8s", "1.6s", "3.2s", "6.4s", "12.8s", "25.6s", "30.0s", "30.0s", "30.0s"][: len(waits)]
        )
        assert len(waits) >= 8
        nursery.cancel_scope.cancel()


async def test_rule_4_waits_are_any_time_up_to_that(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires, random=Random(7))
        wires.refuses = True
        nursery.start_soon(it.reflector.run)
        await trio.sleep(600)
        waits = [float(line["again"].rstrip("s")) for line in it.log[6:]]
        assert max(waits) <= 30
        assert min(waits) < 10
        assert len(set(waits)) > len(waits) / 2
        nursery.cancel_scope.cancel()


async def test_rule_4_two_good_minutes_make_the_next_failure_a_first_one(autojump_clock: MockClock) -> None:
    async with reflected("a", faults={LIST: [refused(500, "")] * 5}) as it:
        await it.reflector.synced.wait()
        assert it.log[-1]["again"] == "12.8s"
        await trio.sleep(121)
        it.wires.hang_up()
        await settle()
        assert it.log[-1]["again"] == "0.8s"


async def test_rule_4_a_watch_that_ends_at_once_with_nothing_has_failed(autojump_clock: MockClock) -> None:
    async with reflected("a", faults={WATCH: [stream(lasts=0.5)] * 3}) as it:
        await trio.sleep(20)
        assert [line["again"] for line in it.log] == ["0.8s", "1.6s", "3.2s"]


async def test_rule_4_a_short_watch_with_something_has_not(autojump_clock: MockClock) -> None:
    pod = {"metadata": {"name": "x", "namespace": "shop", "resourceVersion": "101"}}
    async with reflected(
        "a", faults={WATCH: [stream(event("ADDED", pod | {"metadata": pod["metadata"] | {"uid": "1"}}))]}
    ) as it:
        await trio.sleep(20)
        assert not it.log
        assert it.has == "a x"


async def test_rule_4_a_line_cut_in_the_middle_is_never_half_an_event(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires)
        it.pods("a")
        version = server.version
        whole = event("ADDED", server.put(PODS, "b", "shop"))
        after = server.version
        cut = event("MODIFIED", server.put(PODS, "a", "shop", spec={"nodeName": "n1"}))
        server.fail(LIST, lambda _: _page(server, version))
        server.fail(WATCH, stream(whole + cut[: len(cut) // 2], cut=True), lambda _: None)
        nursery.start_soon(it.reflector.run)
        await it.reflector.synced.wait()
        await settle()
        assert it.sink.told == [("replaced", "a"), ("changed", "b")]
        await trio.sleep(2)
        assert it.watches()[1]["resourceVersion"] == str(after)
        assert it.sink.told[2:] == [("changed", "a")]
        nursery.cancel_scope.cancel()


def _page(server: FakeAPIServer, version: int) -> Answer:
    import json

    items = [value for (_, _, name), value in server.objects.items() if name == "a"]
    return Answer(
        200,
        json.dumps(
            {"kind": "PodList", "metadata": {"resourceVersion": str(version)}, "items": items}
        ).encode(),
    )


async def test_rule_4_a_line_that_ends_cleanly_in_the_middle_is_cut_as_well(
    autojump_clock: MockClock,
) -> None:
    async with reflected(
        "a", faults={WATCH: [stream(b'{"type":"ADDED","object":{"metadata"', lasts=3)]}
    ) as it:
        await trio.sleep(6)
        assert "in the middle of an event" in it.errors()[0]
        assert it.sink.told == [("replaced", "a")]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":{}}\n',
        b'{"type":"ERROR","object":{}}\n',
    ],
)
async def test_rule_4_what_is_no_event_is_a_failed_watch(line: bytes, autojump_clock: MockClock) -> None:
    async with reflected("a", faults={WATCH: [stream(line, lasts=9)]}) as it:
        await trio.sleep(3)
        assert "not an event" in it.errors()[0]
        assert len(it.watches()) == 2


async def test_a_restored_etcd_whose_versions_are_older_means_a_new_list(autojump_clock: MockClock) -> None:
    ahead = Refusal(504, "Timeout", "Too large resource version: 9, current: 3", retryAfterSeconds=1)
    ahead.status["details"]["causes"] = [
        {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    ]
    async with reflected("a", faults={WATCH: [lambda _: ahead.answer()]}) as it:
        await trio.sleep(3)
        assert len(it.lists()) == 2


# Rule 5: a relist is a replace


async def test_rule_5_a_relist_tells_what_is_left_and_not_what_is_gone(autojump_clock: MockClock) -> None:
    async with reflected("a", "b", "c") as it:
        await it.reflector.synced.wait()
        await settle()
        it.wires.refuses = True
        it.wires.hang_up()
        await settle()
        for name in "ab":
            it.server.drop(PODS, name, "shop")
        it.pods("d")
        it.server.compact()
        it.wires.refuses = False
        await trio.sleep(10)
        assert it.sink.told == [("replaced", "a b c"), ("replaced", "c d")]
        assert it.has == "c d"


async def test_rule_5_a_relist_that_fails_half_way_changes_nothing(autojump_clock: MockClock) -> None:
    async with reflected(*(f"p{i:04}" for i in range(501))) as it:
        await it.reflector.synced.wait()
        await settle()
        it.server.drop(PODS, "p0000", "shop")
        await settle()
        it.server.compact()
        it.server.fail(LIST, lambda _: None, refused(500, ""))
        it.wires.hang_up()
        await trio.sleep(0.9)
        assert len(it.sink.items) == 500
        assert [kind for kind, _ in it.sink.told] == ["replaced", "removed"]
        await trio.sleep(5)
        assert [kind for kind, _ in it.sink.told] == ["replaced", "removed", "replaced"]


async def test_rule_5_has_synced_is_not_unset_by_a_relist(autojump_clock: MockClock) -> None:
    async with reflected("a", faults={WATCH: [refused(410, "Expired")]}) as it:
        await it.reflector.synced.wait()
        await trio.sleep(5)
        assert it.reflector.synced.is_set()


# Rule 6: versions are opaque


async def test_rule_6_versions_are_handed_back_and_never_compared(autojump_clock: MockClock) -> None:
    def pod(name: str, version: str) -> bytes:
        return event(
            "ADDED",
            {"metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version}},
        )

    lines = stream(pod("x", "not-a-number"), pod("y", "3"), pod("x", "2"), lasts=5)
    async with reflected("a", faults={WATCH: [lines, stream(silent=True)]}) as it:
        await trio.sleep(6)
        assert it.sink.told[1:] == [("changed", "x"), ("changed", "y"), ("changed", "x")]
        assert it.watches()[1]["resourceVersion"] == "2"


# Rule 7: handlers get keys and may be told twice; rule 8 is in test_client; rule 9: has_synced


async def test_rule_9_has_synced_waits_for_the_last_page(autojump_clock: MockClock) -> None:
    faults: list[Fault] = [lambda _: None, refused(503, ""), lambda _: None, refused(503, "")]
    async with reflected(*(f"p{i:04}" for i in range(501)), faults={LIST: faults}) as it:
        await trio.sleep(2)
        assert len(it.lists()) == 4
        assert not it.reflector.synced.is_set()
        assert not it.sink.told
        await it.reflector.synced.wait()
        assert len(it.sink.items) == 501


async def test_rule_9_an_empty_cluster_is_synced(autojump_clock: MockClock) -> None:
    for streams in (True, False):
        async with reflected(stream=streams) as it:
            await it.reflector.synced.wait()
            assert it.sink.told == [("replaced", "")]


# Projection


async def test_objects_are_projected_one_by_one_and_others_have_their_turn(autojump_clock: MockClock) -> None:
    """Every 100 objects. Trio may give two turns in a row to a task, so up to 200 between two turns of another."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        async with reflected(*(f"p{i:04}" for i in range(450)), project=lambda _: seen.append(turns)) as it:
            await it.reflector.synced.wait()
        nursery.cancel_scope.cancel()
    assert len(seen) == 450
    assert max(seen.count(turn) for turn in set(seen)) <= 200


async def test_what_the_projection_leaves_out_is_not_there(autojump_clock: MockClock) -> None:
    def only_named(value: Mapping[str, Any]) -> str | None:
        app: str | None = value["metadata"].get("labels", {}).get("app")
        return app

    async with reflected("a", project=only_named) as it:
        await it.reflector.synced.wait()
        await settle()
        it.server.put(PODS, "a", "shop", metadata={"labels": {"app": "web"}})
        await settle()
        assert it.sink.items == {("shop", "a"): "web"}
        it.server.put(PODS, "a", "shop", metadata={"labels": {}})
        await settle()
        assert it.sink.told[-1] == ("removed", "a")


@pytest.mark.parametrize("error", [PidoneError("no pod"), ZeroDivisionError()])
async def test_an_object_that_is_not_understood_costs_the_others_nothing(
    error: Exception, autojump_clock: MockClock
) -> None:
    def project(value: Mapping[str, Any]) -> str:
        if value["metadata"]["name"] in {"bad", "worse"}:
            raise error
        return str(value["metadata"]["uid"])

    async with reflected("a", "bad", project=project) as it:
        await it.reflector.synced.wait()
        await settle()
        it.pods("worse", "b")
        await settle()
        assert it.has == "a b"
        assert [line["object"] for line in it.log] == ["shop/bad", "shop/worse"]


async def test_selectors_are_the_servers(autojump_clock: MockClock) -> None:
    async with reflected(
        "a", field_selector="spec.hostNetwork=false,status.phase!=Failed", label_selector="!hidden"
    ) as it:
        await it.reflector.synced.wait()
        await settle()
        it.server.put(PODS, "a", "shop", status={"phase": "Failed"})
        it.server.put(PODS, "b", "shop", metadata={"labels": {"hidden": "yes"}})
        it.server.put(PODS, "c", "shop", spec={"hostNetwork": True})
        it.server.put(PODS, "d", "shop", spec={"hostNetwork": False})
        await settle()
        assert it.sink.told == [("replaced", "a"), ("removed", "a"), ("changed", "d")]
        for query in (*it.lists(), *it.watches()):
            assert query["labelSelector"] == "!hidden"
            assert query["fieldSelector"] == "spec.hostNetwork=false,status.phase!=Failed"


async def test_cluster_kinds_have_no_namespace_in_their_keys(autojump_clock: MockClock) -> None:
    from pidone_controller.kubernetes.resources import CLUSTER_TASK_SETS

    async with fake_server() as (server, client, _), trio.open_nursery() as nursery:
        server.put(CLUSTER_TASK_SETS, "baseline")
        sink = FakeSink()
        reflector = Reflector(
            client, CLUSTER_TASK_SETS, lambda value: str(value["kind"]), sink, log=lambda *_: None
        )
        nursery.start_soon(reflector.run)
        await reflector.synced.wait()
        assert sink.items == {("", "baseline"): "ClusterTaskSet"}
        nursery.cancel_scope.cancel()


async def test_rule_7_sinks_get_keys_and_the_same_twice_is_no_harm(autojump_clock: MockClock) -> None:
    """A watch from an older version tells again what is known, deletions of what never was among it."""
    async with fake_server() as (server, client, wires), trio.open_nursery() as nursery:
        it = Reflected(server, client, wires)
        it.pods("a")
        pod = server.objects[PODS, "shop", "a"]
        lines = [
            event("MODIFIED", pod),
            event("ADDED", pod),
            event("DELETED", {**pod, "metadata": {**pod["metadata"], "name": "x"}}),
        ]
        server.fail(WATCH, stream(*lines, lasts=9))
        nursery.start_soon(it.reflector.run)
        await trio.sleep(2)
        assert it.sink.told == [("replaced", "a"), ("changed", "a"), ("changed", "a"), ("removed", "x")]
        assert it.has == "a"
        assert not it.log
        nursery.cancel_scope.cancel()


async def test_rule_7_what_came_in_one_piece_is_told_before_anybody_else_runs(
    autojump_clock: MockClock,
) -> None:
    """So whoever is woken by the first of ten changes sees all ten, and derives once."""
    pods = [
        event(
            "ADDED",
            {
                "metadata": {
                    "name": f"p{number}",
                    "namespace": "shop",
                    "uid": "u",
                    "resourceVersion": f"{number}",
                }
            },
        )
        for number in range(10)
    ]
    woken = list[int]()
    async with reflected(faults={WATCH: [stream(b"".join(pods), silent=True)]}) as it:
        await it.sink.until(lambda sink: bool(sink.items))
        woken.append(len(it.sink.items))
    assert woken == [10]
