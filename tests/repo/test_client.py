"""The conversation with the repo: words over real sockets, times by a mock clock with scripted answers."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.counters import Counters
from pidone.errors import ConnectError, Refused
from pidone.http.message import Request, Response, text_response
from pidone.journal import RING, Journal
from pidone.plan.format import MEDIA_TYPE
from pidone.plan.report import LINES, Report
from pidone.protocol import MAX_REPORT_BYTES
from pidone.repo import client as module
from pidone.repo.client import RepoClient
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS

APPLIED_PREFERENCE = {"preference-applied": "wait=55"}


def bundle(tag: str, **headers: str) -> Response:
    return Response(200, {"etag": f'"{tag}"', "content-type": MEDIA_TYPE} | headers, tag.encode())


class Pod:
    """Takes every bundle but those whose text says "bad"; remembers all."""

    def __init__(self, urls: list[str], token: str = "") -> None:
        self.taken: list[tuple[str, bool]] = []
        self.files_changed = False
        self.counters = Counters()
        self.journal = Journal(echo=lambda line: None)
        claims = {"pidone-hostname": "web"}
        self.client = RepoClient(
            urls,
            self,
            self.journal,
            self.counters,
            claims=claims,
            source=None,
            random=Random(1),
            token=token,
        )

    def apply(self, data: bytes, *, trusted: bool) -> None:
        self.taken.append((data.decode(), trusted))
        if b"bad" in data:
            raise Refused('task "x": cannot be built')

    def status(self) -> Report:
        return Report(digest="d")

    def look_at_files(self) -> bool:
        return self.files_changed

    def repo_away(self) -> None:
        """Nothing to do."""

    def details(self) -> dict[str, Any]:
        return {}

    def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.client.poll)
        nursery.start_soon(self.client.report)

    def said(self, text: str) -> int:
        return sum(text in line for line in self.journal.lines)


class Repo:
    """Hands out the answers one by one, holds when there are none, and remembers questions and reports."""

    def __init__(self) -> None:
        self._answers_in, self._answers = trio.open_memory_channel[Response](99)
        self._asked_in, self._asked = trio.open_memory_channel[Request](99)
        self._reports_in, self._reports = trio.open_memory_channel[dict[str, Any]](99)

    def answer(self, *answers: Response) -> None:
        for answer in answers:
            self._answers_in.send_nowait(answer)

    async def question(self) -> Request:
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._asked.receive()

    async def report(self) -> dict[str, Any]:
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._reports.receive()

    async def handle(self, request: Request) -> Response:
        if request.method == "POST":
            assert request.path == "/v1/status"
            assert request.headers["pidone-hostname"] == "web"
            self._reports_in.send_nowait(json.loads(request.body))
            return Response(204)
        self._asked_in.send_nowait(request)
        return await self._answers.receive()

    async def start(self, nursery: trio.Nursery) -> str:
        return f"http://127.0.0.1:{await http_server(nursery, self.handle, body=1 << 16)}"


@pytest.fixture
async def repo(nursery: trio.Nursery) -> tuple[Repo, str]:
    repo = Repo()
    return repo, await repo.start(nursery)


async def test_the_first_question_is_held_and_says_who_asks(
    repo: tuple[Repo, str], nursery: trio.Nursery
) -> None:
    served, url = repo
    pod = Pod([url + "/"])
    pod.start(nursery)
    asked = await served.question()
    assert (asked.method, asked.target) == ("GET", "/v1/bundle")
    assert asked.headers["prefer"] == "wait=55"
    assert asked.headers["accept"] == MEDIA_TYPE
    assert asked.headers["pidone-hostname"] == "web"
    assert len(asked.headers["pidone-boot"]) == 16
    assert "if-none-match" not in asked.headers
    assert pod.taken == []
    served.answer(bundle("one"))
    assert (await served.question()).headers["if-none-match"] == '"one"'
    assert pod.taken == [("one", False)]
    report = await served.report()
    assert (report["state"], report["error"], report["boot"]) == ("applied", "", asked.headers["pidone-boot"])


async def test_a_refused_bundle_is_reported_with_its_reason_and_not_fetched_again(
    repo: tuple[Repo, str], nursery: trio.Nursery
) -> None:
    served, url = repo
    pod = Pod([url])
    pod.start(nursery)
    served.answer(bundle("one"), bundle("bad"))
    tags = [(await served.question()).headers.get("if-none-match") for _ in range(3)]
    assert tags == [None, '"one"', '"one", "bad"']
    report = await served.report()
    while report["state"] == "applied":
        report = await served.report()
    assert (report["state"], report["rejected"]) == ("rejected", "bad")
    assert report["error"] == 'task "x": cannot be built'
    served.answer(Response(304, APPLIED_PREFERENCE), bundle("two"))
    assert (await served.question()).headers["if-none-match"] == '"one", "bad"'
    assert (await served.question()).headers["if-none-match"] == '"two"'
    assert [text for text, _ in pod.taken] == ["one", "bad", "two"]
    assert (await served.report())["state"] == "applied"
    assert pod.counters.bundle_rejections == 1


async def test_a_refused_bundle_is_fetched_again_when_a_file_that_it_names_has_changed(
    repo: tuple[Repo, str], nursery: trio.Nursery
) -> None:
    served, url = repo
    pod = Pod([url])
    pod.start(nursery)
    served.answer(bundle("one"), bundle("bad"))
    tags = [(await served.question()).headers.get("if-none-match") for _ in range(3)]
    assert tags[-1] == '"one", "bad"'
    pod.files_changed = True
    served.answer(Response(304, APPLIED_PREFERENCE))
    assert (await served.question()).headers["if-none-match"] == '"one"'


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.pidone.bundle.v2+json", None])
async def test_a_bundle_of_another_kind_is_refused_unread(
    kind: str | None, repo: tuple[Repo, str], nursery: trio.Nursery
) -> None:
    served, url = repo
    pod = Pod([url])
    pod.start(nursery)
    headers = {"etag": '"new"'} | ({"content-type": kind} if kind else {})
    served.answer(Response(200, headers, b"{}"))
    report = await served.report()
    assert report["state"] == "rejected"
    assert report["error"] == f"expected {MEDIA_TYPE}, not {kind or 'nothing'}"
    assert pod.taken == []


async def test_the_second_repo_is_asked_when_the_first_is_dead_and_is_kept(
    repo: tuple[Repo, str], nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    served, url = repo
    pod = Pod([f"http://127.0.0.1:{free_port()}", url])
    pod.start(nursery)
    served.answer(bundle("one"), Response(304, APPLIED_PREFERENCE))
    for _ in range(3):
        await served.question()
    await served.report()
    assert pod.counters.bundle_fetch_failures == 1
    assert pod.counters.repo_up is True
    assert pod.said("repo-away") == 1
    assert pod.said("Connection refused") == 1


Script = Callable[[str, dict[str, str]], Awaitable[Response]]


class Wire:
    """In place of ``request``: what was asked when, and one function that answers questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
        self.script = script
        self.asked: list[float] = []
        self.urls: list[str] = []
        self.held: list[bool] = []
        self.reports: list[float] = []
        self.lines: list[str] = []  # of the reports that did not fail
        self.reports_fail = False
        monkeypatch.setattr(module, "request", self.request)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        timeout: float,
        body: bytes = b"",
        **options: object,
    ) -> Response:
        if method == "POST":
            self.reports.append(trio.current_time())
            await trio.sleep(0.01)
            if self.reports_fail:
                return Response(503)
            if len(body) > MAX_REPORT_BYTES:
                return Response(413)
            self.lines += json.loads(body)["logs"]
            return Response(204)
        self.asked.append(trio.current_time())
        self.urls.append(url)
        self.held.append("prefer" in headers)
        await trio.sleep(0.001)
        return await self.script(url, headers)

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.asked, self.asked[1:], strict=False)]


async def nobody(url: str, headers: dict[str, str]) -> Response:
    raise ConnectError(f"GET {url}: Connection refused")


async def good(url: str, headers: dict[str, str]) -> Response:
    """A repo with one bundle."""
    if headers.get("if-none-match") == '"one"':
        if "prefer" not in headers:
            return Response(304)
        await trio.sleep(55)
        return Response(304, APPLIED_PREFERENCE)
    return bundle("one")


async def test_a_repo_that_is_well_is_asked_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    Pod(["http://repo"]).start(nursery)
    await trio.sleep(3600)
    assert 60 <= len(wire.asked) <= 70
    assert len(wire.reports) == 1  # nothing has changed since
    nursery.cancel_scope.cancel()


async def test_a_repo_that_is_away_is_asked_slower_and_slower_and_for_ever(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, nobody)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(86_400)
    limits = [min(60, 2**failures) for failures in range(1, len(wire.gaps) + 1)]
    assert all(gap <= limit + 0.01 for gap, limit in zip(wire.gaps, limits, strict=True))
    assert max(wire.gaps[:3]) < 8
    assert max(wire.gaps) > 50
    assert 25 < sum(wire.gaps) / len(wire.gaps) < 35  # full jitter: half the limit on average
    assert wire.reports == []
    assert pod.counters.repo_up is False
    assert pod.said("repo-away") == 1  # once, not at every question
    nursery.cancel_scope.cancel()


async def test_a_repo_that_comes_back_is_noticed_at_once_and_told_the_status(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(100)
    wire.script = nobody
    await trio.sleep(200)
    pod.client.status_changed()  # in the middle of the absence, with more failures to come
    await trio.sleep(200)
    assert len(wire.reports) == 1
    assert wire.held[-1] is False  # "there again" must not take another 55 seconds
    wire.script = good
    back = trio.current_time()
    await trio.sleep(62)
    assert pod.counters.repo_up is True
    assert pod.said("repo-reached") == 2
    assert len(wire.reports) == 2
    first = next(moment for moment in wire.asked if moment >= back)
    assert wire.reports[1] - first < 1
    assert wire.held[-1] is True
    assert len(pod.taken) == 1  # what ran kept running
    nursery.cancel_scope.cancel()


def met(*repos: str) -> Script:
    """Instances of one repo that answer in turn."""
    turns = 0

    async def answer(url: str, headers: dict[str, str]) -> Response:
        nonlocal turns
        turns += 1
        answered = await good(url, headers)
        return replace(answered, headers={**answered.headers, "pidone-repo": repos[turns % len(repos)]})

    return answer


async def test_another_instance_of_the_repo_is_told_everything_and_once(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, met("a", "b"))
    Pod(["http://repo"]).start(nursery)
    await trio.sleep(600)
    assert len(wire.reports) == 2
    wire.script = met("a", "c")  # one was restarted, and no question failed
    await trio.sleep(600)
    assert len(wire.reports) == 3
    nursery.cancel_scope.cancel()


async def test_whoever_loses_a_repo_comes_back_spread_over_seconds(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """All pods of a replica lose it at one moment when it dies."""
    broken, back = trio.Event(), list[float]()

    async def breaks(url: str, headers: dict[str, str]) -> Response:
        if "if-none-match" not in headers:
            return bundle("one", **{"pidone-repo": "a"})
        if broken.is_set():
            back.append(trio.current_time())
            await trio.sleep_forever()
        await broken.wait()
        raise ConnectError("reset")

    Wire(monkeypatch, breaks)
    for seed in range(200):
        pod = Pod(["http://repo"])
        pod.client._random = Random(seed)
        nursery.start_soon(pod.client.poll)
    await trio.sleep(5)
    broken.set()
    lost = trio.current_time()
    await trio.sleep(module.LOST_SPREAD_SECONDS + 1)
    counts = [sum(second <= moment - lost < second + 1 for moment in back) for second in range(12)]
    assert sum(counts) == 200
    assert max(counts) < 35  # of the 17 that an even spread over twelve seconds has
    nursery.cancel_scope.cancel()


async def test_a_plan_for_https_alone_is_awaited_and_does_not_count_as_an_absence(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def only_https(url: str, headers: dict[str, str]) -> Response:
        if url.startswith("https"):
            return await good(url, headers)
        await trio.sleep(55)
        return text_response(426, 'task "hook": exec', preference_applied="wait=55")

    wire = Wire(monkeypatch, only_https)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(600)
    assert pod.counters.repo_up is True
    assert all(wire.held)
    assert len(wire.asked) <= 11
    assert pod.said("plan-withheld") == 1
    nursery.cancel_scope.cancel()


async def test_a_plan_for_https_alone_is_asked_of_the_https_repo(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def only_https(url: str, headers: dict[str, str]) -> Response:
        if url.startswith("https"):
            return await good(url, headers)
        return text_response(426, 'task "hook": exec', preference_applied="wait=55")

    Wire(monkeypatch, only_https)
    pod = Pod(["http://repo", "https://repo"])
    pod.start(nursery)
    await trio.sleep(5)
    assert pod.taken == [("one", True)]
    nursery.cancel_scope.cancel()


async def test_two_dead_repos_are_asked_in_turn(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, nobody)
    Pod(["http://a", "http://b/base/"]).start(nursery)
    await trio.sleep(600)
    assert wire.urls[:4] == ["http://a/v1/bundle", "http://b/base/v1/bundle"] * 2
    nursery.cancel_scope.cancel()


async def unheld(url: str, headers: dict[str, str]) -> Response:
    return Response(304) if "if-none-match" in headers else bundle("one")


async def again_and_again(url: str, headers: dict[str, str]) -> Response:
    return bundle("one")


async def without_tag(url: str, headers: dict[str, str]) -> Response:
    return Response(200, {"content-type": MEDIA_TYPE}, b"one")


async def redirected(url: str, headers: dict[str, str]) -> Response:
    return Response(302, {"location": "/login"})


async def at_once(url: str, headers: dict[str, str]) -> Response:
    return Response(304, APPLIED_PREFERENCE) if "if-none-match" in headers else bundle("one")


@pytest.mark.parametrize(
    ("script", "most"),
    [(unheld, 200), (again_and_again, 200), (without_tag, 200), (redirected, 200), (at_once, 5 * 3600)],
)
async def test_a_repo_gone_wild_is_not_asked_in_a_tight_loop(
    script: Script,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    wire = Wire(monkeypatch, script)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(3600)
    assert 60 < len(wire.asked) <= most + 20
    assert len(pod.taken) <= 1
    nursery.cancel_scope.cancel()


async def test_retry_after_is_obeyed_and_spread(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def busy(url: str, headers: dict[str, str]) -> Response:
        return text_response(429, "too many", retry_after="300")

    wire = Wire(monkeypatch, busy)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(86_400)
    assert min(wire.gaps) >= 300
    assert max(wire.gaps) <= 375.1
    assert max(wire.gaps) - min(wire.gaps) > 30
    assert pod.said("429 too many") == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("said", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "\xb2", ""])
async def test_a_retry_after_that_is_no_number_of_seconds_is_passed_over(
    said: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def strange(url: str, headers: dict[str, str]) -> Response:
        return Response(503, {"retry-after": said})

    wire = Wire(monkeypatch, strange)
    Pod(["http://repo"]).start(nursery)
    await trio.sleep(600)
    assert min(wire.gaps) >= 1
    assert max(wire.gaps) <= 61
    nursery.cancel_scope.cancel()


async def test_reports_are_made_on_change_and_at_most_once_a_second(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(10)
    wire.reports.clear()
    for _ in range(1000):
        pod.client.status_changed()
        await trio.sleep(0.01)
    await trio.sleep(10)
    assert 10 <= len(wire.reports) <= 11
    nursery.cancel_scope.cancel()


async def test_a_report_that_fails_is_made_again(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    wire.reports_fail = True
    Pod(["http://repo"]).start(nursery)
    await trio.sleep(120)
    assert 10 <= len(wire.reports) <= 60
    wire.reports_fail = False
    wire.reports.clear()
    await trio.sleep(120)
    assert len(wire.reports) == 1
    nursery.cancel_scope.cancel()


async def test_every_line_of_the_journal_arrives_once_and_in_order_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(10)
    wire.lines.clear()
    wire.reports_fail = True
    for number in range(150):  # more than one report takes, no more than the ring holds
        pod.journal.write("event", number=number)
    pod.client.status_changed()
    await trio.sleep(5)
    wire.reports_fail = False
    await pod.client.wait_reported()
    assert [line.partition("number=")[2] for line in wire.lines] == [str(number) for number in range(150)]
    nursery.cancel_scope.cancel()


async def test_lines_that_were_pushed_out_before_they_were_told_are_counted(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(10)
    wire.lines.clear()
    for number in range(RING + 7):
        pod.journal.write("event", number=number)
    pod.client.status_changed()
    await pod.client.wait_reported()
    assert wire.lines[0].endswith("event=lines-lost count=7")
    assert [line.partition("number=")[2] for line in wire.lines[1:]] == [str(n) for n in range(7, RING + 7)]
    nursery.cancel_scope.cancel()


async def test_a_flood_of_lines_is_told_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    pod.journal.changed = pod.client.status_changed
    pod.start(nursery)
    await trio.sleep(10)
    wire.lines.clear()
    wire.reports.clear()
    for number in range(20_000):
        pod.journal.write("event", number=number)
        await trio.sleep(0.001)
    await pod.client.wait_reported()
    assert len(wire.reports) <= 20 + 2, "a report a second"
    assert len(wire.lines) <= (20 + 2) * (LINES + 1), "a hundred lines each, and how many were lost"
    lost = sum(int(line.rpartition("=")[2]) for line in wire.lines if "event=lines-lost" in line)
    told = sum("event=event" in line for line in wire.lines)
    assert lost + told == 20_000, "none is lost without being counted"
    nursery.cancel_scope.cancel()


async def test_only_https_makes_a_bundle_trusted(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pods = [Pod(["https://repo"]), Pod(["http://https://repo"])]
    for pod in pods:
        pod.start(nursery)
    await trio.sleep(1)
    assert [pod.taken for pod in pods] == [[("one", True)], [("one", False)]]
    assert wire.held == [True, True, True, True]
    nursery.cancel_scope.cancel()


async def test_a_token_is_shown_by_https_alone_and_read_anew(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock, tmp_path: Path
) -> None:
    shown: dict[str, list[str | None]] = {"http": [], "https": []}

    async def never(url: str, headers: dict[str, str]) -> Response:
        shown[url.partition(":")[0]].append(headers.get("authorization"))
        return Response(503)

    Wire(monkeypatch, never)
    file = tmp_path / "token"
    pod = Pod(["https://repo", "http://repo"], token=str(file))
    pod.start(nursery)
    await trio.sleep(30)
    assert pod.said("token-unread")
    assert {*shown["https"]} == {None}
    file.write_text("first\n")
    await trio.sleep(120)
    file.write_text("second\n")
    await trio.sleep(240)
    assert set(shown["https"]) == {None, "Bearer first", "Bearer second"}
    assert shown["https"][-1] == "Bearer second"
    assert set(shown["http"]) == {None}
    nursery.cancel_scope.cancel()


async def test_the_last_report_does_not_wait_for_its_turn_and_is_made_once(
    repo: tuple[Repo, str], nursery: trio.Nursery
) -> None:
    served, url = repo
    pod = Pod([url])
    await pod.client.report_end()  # nobody to tell: nothing is waited for
    served.answer(bundle("one"))
    pod.start(nursery)
    await served.report()
    began = trio.current_time()
    async with trio.open_nursery() as both:
        both.start_soon(pod.client.report_end)
        both.start_soon(pod.client.report_end)
    await served.report()
    assert trio.current_time() < began + module.REPORT_GAP_SECONDS / 2
    with pytest.raises(trio.WouldBlock):
        served._reports.receive_nowait()
    nursery.cancel_scope.cancel()


async def test_lines_that_are_long_in_json_are_told_in_more_reports(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, good)
    pod = Pod(["http://repo"])
    for number in range(150):
        pod.journal.write("output", line=f"{number:03}" + "\N{SNOWMAN}" * 290)
    pod.start(nursery)
    await trio.sleep(20)
    assert [line.split("line=")[1][:3] for line in wire.lines if "line=" in line] == [
        f"{number:03}" for number in range(150)
    ]
    nursery.cancel_scope.cancel()


# Answers of a repo, or of what stands before it, that must not keep a pod from its plan


def tagged(etag: str, body: bytes = b"one") -> Response:
    return Response(200, {"etag": etag, "content-type": MEDIA_TYPE}, body)


UNUSABLE = [
    '"caf\xe9"',
    f'"{"x" * 9000}"',
    f'"{"x" * 200}"',
    '"a"b"',
    '"a\tb"',
    '"a b"',
    "one",
    '"',
    'w/"one"',
    "*",
]


@pytest.mark.parametrize("etag", UNUSABLE)
async def test_an_etag_that_cannot_go_back_is_never_sent(
    etag: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    sent = []
    answers = [tagged(etag), tagged(etag), tagged('"one"')]

    async def strange(url: str, headers: dict[str, str]) -> Response:
        sent.append(headers.get("if-none-match"))
        if answers:
            return answers.pop(0)
        return await good(url, headers)

    wire = Wire(monkeypatch, strange)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(300)
    assert pod.taken == [("one", False)]
    assert sent[:4] == [None, None, None, '"one"']
    assert min(wire.gaps) >= 0.2
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("etag", ['W/"one"', '""', f'"{"x" * 198}"', '"a,b"'])
async def test_other_etags_go_back_as_they_came(
    etag: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def exact(url: str, headers: dict[str, str]) -> Response:
        if headers.get("if-none-match") != etag:
            return tagged(etag)
        await trio.sleep(55)
        return Response(304, APPLIED_PREFERENCE)

    wire = Wire(monkeypatch, exact)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(600)
    assert pod.taken == [("one", False)]
    assert len(wire.asked) < 15
    nursery.cancel_scope.cancel()


async def an_etag(url: str, headers: dict[str, str]) -> Response:
    return tagged('"caf\xe9"')


async def a_start_page(url: str, headers: dict[str, str]) -> Response:
    if "if-none-match" in headers:
        return Response(304)
    return Response(200, {"etag": '"one"', "content-type": "text/html"}, b"<html>")


async def a_bad_bundle(url: str, headers: dict[str, str]) -> Response:
    if headers.get("if-none-match") == '"one"':
        await trio.sleep(55)
        return Response(304, APPLIED_PREFERENCE)
    return tagged('"one"', b"bad")


async def nothing_new(url: str, headers: dict[str, str]) -> Response:
    return Response(304, APPLIED_PREFERENCE)


async def in_an_hour(url: str, headers: dict[str, str]) -> Response:
    return Response(503, {"retry-after": "3600"})


async def https_needed(url: str, headers: dict[str, str]) -> Response:
    return Response(426)


@pytest.mark.parametrize(
    "bad", [an_etag, a_start_page, a_bad_bundle, nothing_new, in_an_hour, https_needed, redirected]
)
async def test_a_bad_first_repo_does_not_keep_the_pod_from_the_second(
    bad: Script, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def two(url: str, headers: dict[str, str]) -> Response:
        return await (bad if "//a/" in url else good)(url, headers)

    wire = Wire(monkeypatch, two)
    pod = Pod(["http://a", "http://b"])
    pod.start(nursery)
    await trio.sleep(120)
    assert ("one", False) in pod.taken
    assert wire.urls[-1] == "http://b/v1/bundle", "and it stays there"
    nursery.cancel_scope.cancel()


async def test_two_repos_whose_bundles_are_refused_are_asked_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, a_bad_bundle)
    pod = Pod(["http://a", "http://b"])
    pod.start(nursery)
    await trio.sleep(3600)
    assert set(wire.urls) == {"http://a/v1/bundle", "http://b/v1/bundle"}
    assert len(wire.asked) < 100
    nursery.cancel_scope.cancel()


async def test_a_retry_after_does_not_hold_for_the_other_repo(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def two(url: str, headers: dict[str, str]) -> Response:
        return await (in_an_hour if "//a/" in url else nobody)(url, headers)

    wire = Wire(monkeypatch, two)
    Pod(["http://a", "http://b"]).start(nursery)
    await trio.sleep(3600)
    assert wire.urls.count("http://a/v1/bundle") == 1
    asked = [at for at, url in zip(wire.asked, wire.urls, strict=True) if url == "http://b/v1/bundle"]
    assert max(later - earlier for earlier, later in pairwise(asked)) <= 61
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("damaged", [b"bad: half of it", b"bad"])
async def test_a_bundle_that_was_damaged_on_the_way_is_asked_for_again(
    damaged: bytes, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answers = [tagged('"one"', damaged)]

    async def proxy(url: str, headers: dict[str, str]) -> Response:
        return answers.pop() if answers else await good(url, headers)

    Wire(monkeypatch, proxy)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(900)
    assert pod.taken == [(damaged.decode(), False), ("one", False)]
    nursery.cancel_scope.cancel()


async def test_a_refused_bundle_with_other_content_is_judged_anew_at_once(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answers = [tagged('"one"'), tagged('"one"', b"bad")]

    async def without_conditions(url: str, headers: dict[str, str]) -> Response:
        return answers.pop() if answers else await good(url, headers)

    Wire(monkeypatch, without_conditions)
    pod = Pod(["http://repo"])
    pod.start(nursery)
    await trio.sleep(10)
    assert pod.taken == [("bad", False), ("one", False)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("token", ["one\ntwo", "a\x00b", "a\x7fb"])
async def test_a_token_that_no_header_can_have_is_not_sent(
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    Wire(monkeypatch, good)
    pod = Pod(["https://repo"], token=str(file))
    pod.start(nursery)
    await trio.sleep(10)
    assert pod.taken == [("one", True)]
    assert pod.said("token-unread")
    nursery.cancel_scope.cancel()


async def test_a_report_fits_however_long_the_texts_in_it_are(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    wire = Wire(monkeypatch, a_bad_bundle)
    pod = Pod(["http://repo"])
    monkeypatch.setattr(pod, "details", lambda: {"after": "\U0001f600" * 6000, "reaped": 1})
    monkeypatch.setattr(
        pod, "apply", lambda data, trusted: (_ for _ in ()).throw(Refused("\U0001f600" * 9000))
    )
    pod.start(nursery)
    for _ in range(150):
        pod.journal.write("said", text="\u00e9" * 300)
    await trio.sleep(600)
    assert sum("event=said" in line for line in wire.lines) == 150
    nursery.cancel_scope.cancel()
