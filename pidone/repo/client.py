"""Asks the repo for the bundle, holds the question open, and tells it what became of the answer.

``GET /v1/bundle`` is held by the repo until there is something new, so a change arrives at once and nothing
polls. No repo is a normal state: this client asks for ever, slower and slower, and what runs keeps running.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from time import time
from typing import Any, Protocol

import trio

from pidone import __version__
from pidone.counters import Counters
from pidone.errors import Refused, TransferError
from pidone.http.client import redacted, request
from pidone.http.message import JSON, Response
from pidone.journal import Journal
from pidone.pacing import Backoff
from pidone.plan.format import MEDIA_TYPE
from pidone.plan.report import APPLIED, ERROR_WIDTH, LINE_WIDTH, LINES, REJECTED, Report, encode
from pidone.protocol import (
    BOOT_HEADER,
    BUNDLE_PATH,
    MAX_BUNDLE_BYTES,
    MAX_REPORT_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    REPO_HEADER,
    STATUS_PATH,
    VERSION_HEADER,
    WAIT_SECONDS,
)

SLACK_SECONDS = 15.0  # beyond WAIT_SECONDS before a held question counts as lost
RETRY = Backoff(initial=2.0, maximum=60.0)  # of a request for the bundle
# The first retries of all pods that lost one repo at the same moment are spread over this time. They have their plans.
LOST_SPREAD_SECONDS = 12.0
REPOS = 8  # instances of the repo that are remembered: more than it has replicas
ANSWER_GAP = 0.2  # seconds between two questions that are answered at once: a repo gone wild costs no more
STATUS_GAP = 1.0  # seconds between two reports
STATUS_TIMEOUT = 10.0
FAREWELL = 1.0  # seconds that the last report may take: between the end and it stands nothing but this
REPORT_RETRY = Backoff(initial=2.0, maximum=10.0)


class Consumer(Protocol):
    """Applies bundles received from the repo; implemented by ``pidone.pod.program.PodProgram``."""

    def take(self, data: bytes, *, trusted: bool) -> None:
        """Apply a bundle, or raise ``Refused`` and change nothing. ``trusted``: the repo proved by TLS who it is."""

    def status(self) -> Report:
        """Return the plan that runs, its tasks, and what could not be undone. The client adds the rest."""

    def details(self) -> dict[str, Any]:
        """Return fields for people who read the request; see ``pidone.plan.report``."""


@dataclass(slots=True)
class Answer:
    """What to do after one answer: wait that many seconds, and whether the repo is well."""

    pause: float
    trouble: str = ""
    lost: bool = False  # no answer at all: all pods of that repo lost it at this moment


class RepoClient:
    """One pod's conversation with its repo. ``urls`` are tried in their order, the one that answers is kept."""

    def __init__(
        self,
        urls: list[str],
        consumer: Consumer,
        journal: Journal,
        counters: Counters,
        *,
        claims: Mapping[str, str],
        source: str | None,
        random: Random,
        token: str = "",
    ) -> None:
        """``token`` is the path of a file with a bearer token, which only a repo by https gets to see."""
        self._token = token
        self._urls = [url.rstrip("/") for url in urls]
        self._consumer = consumer
        self._journal = journal
        self._counters = counters
        self._source = source
        self._random = random
        self._current = 0
        self._applied = ""  # entity tags
        self._rejected = ""
        self._error = ""  # why the bundle was rejected
        self._dirty = trio.Event()
        self._reached = trio.Event()
        self._heard = trio.Event()
        self._parting, self._parted = trio.Lock(), False
        self._boot = os.urandom(8).hex()
        self._met: dict[str, None] = {}  # instances of the repo, by what they call themselves
        self._withheld = ""  # why a plan did not come over plain http, the last time
        self._headers = {**claims, BOOT_HEADER: self._boot, VERSION_HEADER: __version__}

    @property
    def refused(self) -> bool:
        """Whether the last bundle that came was refused."""
        return bool(self._rejected)

    def status_changed(self) -> None:
        """There is something to report; reports are made at most every ``STATUS_GAP`` seconds."""
        self._dirty.set()

    async def ask(self) -> None:
        """Ask until cancelled. Nothing that a repo answers, or fails to answer, ends this."""
        failures = 0
        while True:
            answer = await self._ask_once()
            self._counters.bundle_fetches += 1
            if answer.trouble:
                failures += 1
                self._counters.bundle_fetch_failures += 1
                if failures == 1:
                    self._journal.write(
                        "repo-away", repo=redacted(self._urls[self._current]), error=answer.trouble
                    )
                self._current = (self._current + 1) % len(self._urls)
                limit = RETRY.limit(failures)
                if answer.lost and self._met:
                    limit = max(LOST_SPREAD_SECONDS, limit)
                self._counters.repo_up = False
                if self._reached.is_set():  # else ``report`` waits for this one, and would wait for ever
                    self._reached = trio.Event()
                await trio.sleep(max(answer.pause, limit * self._random.random()))
            else:
                if self._counters.repo_up is not True:
                    self._journal.write("repo-reached", repo=redacted(self._urls[self._current]))
                    self._dirty.set()  # a repo that was away may have forgotten what it was told
                failures, self._counters.repo_up = 0, True
                self._reached.set()
                await trio.sleep(answer.pause)

    async def _ask_once(self) -> Answer:
        url = self._urls[self._current]
        known = ", ".join(tag for tag in (self._applied, self._rejected) if tag)
        headers = {**self._headers, **self._proof(url), "accept": MEDIA_TYPE}
        if self._counters.repo_up or not known:
            headers["prefer"] = (
                f"wait={WAIT_SECONDS:g}"  # not after an absence: then "there again" is known at once
            )
        if known:
            headers["if-none-match"] = known
        asked = trio.current_time()
        try:
            answer = await request(
                "GET",
                f"{url}{BUNDLE_PATH}",
                headers=headers,
                timeout=WAIT_SECONDS + SLACK_SECONDS,
                source=self._source,
                limit=MAX_BUNDLE_BYTES,
                fatal=True,
            )
        except TransferError as error:
            return Answer(0.0, str(error), lost=True)
        self._meet(answer.headers.get(REPO_HEADER, ""))
        quick = max(0.0, asked + ANSWER_GAP - trio.current_time())
        held = "preference-applied" in answer.headers or "prefer" not in headers
        match answer.status:
            case 200:
                tag = answer.headers.get("etag", "")
                if not tag or tag in known:
                    return Answer(
                        quick, f"the bundle's entity tag is {tag or 'missing'}, and {known or 'none'} is here"
                    )
                self._take(answer, tag, trusted=url.startswith("https://"))
                return Answer(quick)
            case 304 | 426:
                if answer.status == 426:  # the repo is well; what is here stays, with its reports and its end
                    self._keep_without(_words(answer))
                # a repo that does not hold questions would be asked in a tight loop
                return Answer(quick if held else WAIT_SECONDS * self._random.random())
            case status:
                return Answer(_retry_after(answer, self._random), f"{status} {_words(answer)}")

    def _meet(self, repo: str) -> None:
        """An instance that was not met before knows nothing of this pod: it, or whoever leads, is told all again."""
        if repo and repo not in self._met:
            self._met[repo] = None
            if len(self._met) > REPOS:
                del self._met[next(iter(self._met))]
            self._dirty.set()

    def _keep_without(self, why: str) -> None:
        """The plan needs a repo that proves who it is; one of the others may."""
        if self._withheld != why:
            self._withheld = why
            self._journal.write("plan-withheld", repo=redacted(self._urls[self._current]), error=why)
        if any(url.startswith("https://") for url in self._urls):
            self._current = (self._current + 1) % len(self._urls)

    def _proof(self, url: str) -> dict[str, str]:
        """Who we are, where there is a token; read each time, for the kubelet renews it in place."""
        if not self._token or not url.startswith("https://"):
            return {}
        try:
            with open(self._token, encoding="ascii") as file:
                return {"authorization": f"Bearer {file.read().strip()}"}
        except (OSError, ValueError) as error:
            self._journal.write("token-unread", file=self._token, error=str(error))
            return {}  # the address still says who asks

    def _take(self, answer: Response, tag: str, *, trusted: bool) -> None:
        try:
            if not answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
                raise Refused(f"expected {MEDIA_TYPE}, not {answer.headers.get('content-type', 'nothing')}")
            self._consumer.take(answer.body, trusted=trusted)
        except Exception as error:  # noqa: BLE001 - a plan that brings out a bug of ours is refused as well
            why = (
                str(error)
                if isinstance(error, Refused)
                else f"internal error: {type(error).__name__}: {error}"
            )
            self._rejected, self._error = tag, why
            self._counters.bundle_rejections += 1
            self._journal.write("plan-refused", error=why)
        else:
            self._applied, self._rejected, self._error = tag, "", ""
        self._dirty.set()

    async def report(self) -> None:
        """Report what runs whenever it has changed, until cancelled; a report that fails is made again later."""
        failures = 0
        while True:
            await self._dirty.wait()
            await self._reached.wait()
            self._dirty = trio.Event()
            if await self._report_once():
                failures = 0
            else:
                # Soon at first: the journal is a ring, and what is written meanwhile pushes out what is untold.
                failures += 1
                self._dirty.set()
                await trio.sleep(REPORT_RETRY.delay(failures, self._random))
            await trio.sleep(STATUS_GAP)

    async def _report_once(self) -> bool:
        body, told = self._status(LINES)
        for most in (LINES // 2, LINES // 10, 1):  # a line may be six times as long in JSON
            if len(body) <= MAX_REPORT_BYTES:
                break
            body, told = self._status(most)
        try:
            answer = await request(
                "POST",
                f"{self._urls[self._current]}{STATUS_PATH}",
                headers={**self._headers, **self._proof(self._urls[self._current]), "content-type": JSON},
                body=body,
                timeout=STATUS_TIMEOUT,
                source=self._source,
            )
        except TransferError:
            return False  # the question that is held open notices as well, and says so
        if answer.status == 204:
            self._journal.told = told
            if told < self._journal.written:
                self._dirty.set()
            self._heard.set()
            self._heard = trio.Event()
        return answer.status == 204

    async def farewell(self) -> None:
        """Report the end once, without waiting for the next report's turn, and for ``FAREWELL`` seconds at most.

        Else the controller would take out of registries what is out of them already, and would not know of what
        could not be taken back.
        """
        async with self._parting:
            if self._reached.is_set() and not self._parted:
                with trio.move_on_after(FAREWELL):
                    self._parted = await self._report_once()

    def _status(self, most: int) -> tuple[bytes, int]:
        """A report with that many lines of the journal, and what it tells of them; see ``Journal.untold``."""
        lines, told = self._journal.untold(most)
        report = replace(
            self._consumer.status(),
            boot=self._boot,
            version=__version__,
            state=REJECTED if self._rejected else APPLIED,
            error=self._error[:ERROR_WIDTH],
            rejected=self._rejected.strip('"') or None,
            logs=tuple(line[:LINE_WIDTH] for line in lines),
        )
        value = encode(report) | {"time": time(), **self._consumer.details()}
        return json.dumps(value, separators=(",", ":")).encode(), told

    async def all_told(self) -> None:
        """Return when the repo has every line of the journal."""
        while self._journal.told < self._journal.written:
            await self._heard.wait()


def _words(answer: Response) -> str:
    return " ".join(answer.text.split())[:200]


def _retry_after(answer: Response, random: Random) -> float:
    """Seconds until the next question, spread by a quarter: pods that were refused together come back apart."""
    said = answer.headers.get("retry-after", "")
    seconds = min(float(said), MAX_RETRY_AFTER_SECONDS) if said.isdecimal() else 1.0
    return seconds * (1 + 0.25 * random.random())
