"""Polls the repo for the pod's bundle, and reports the pod's status to it.

The repo holds ``GET /v1/bundle`` until the bundle changes (long polling), so a change arrives at once. An
unreachable repo is a normal state: the client retries for ever with growing delays, and the tasks keep running.
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

SLACK_SECONDS = 15.0  # beyond WAIT_SECONDS before a held request counts as failed
RETRY = Backoff(initial=2.0, maximum=60.0)  # of a request for the bundle
# The first retries of all pods that lost one repo at the same moment are spread over this time. They keep their plans.
LOST_SPREAD_SECONDS = 12.0
MAX_REPLICAS = 8  # replicas of the repo that are remembered: more than an installation has
MAX_REPLICA_WIDTH = 64  # characters of a replica's name
MAX_ETAG_WIDTH = 200  # characters; an ETag goes back to the repo with each request
# A refused bundle is requested again after this time: a proxy may have damaged it and kept its ETag.
REFUSAL_SECONDS = 600.0
POLL_GAP_SECONDS = 0.2  # between two requests that are answered at once: limits the cost of a faulty repo
REPORT_GAP_SECONDS = 1.0  # between two reports
REPORT_TIMEOUT_SECONDS = 10.0
LAST_REPORT_SECONDS = 1.0  # for the last report, which the end of the pod waits for
REPORT_RETRY = Backoff(initial=2.0, maximum=10.0)


class Consumer(Protocol):
    """Applies bundles received from the repo; implemented by ``pidone.pod.program.PodProgram``."""

    def apply(self, data: bytes, *, trusted: bool) -> None:
        """Apply a bundle, or raise ``Refused`` and change nothing. ``trusted``: the repo proved by TLS who it is."""

    def look_at_files(self) -> bool:
        """Apply the plan again if files with its values have changed. True if a refused bundle may be accepted now."""

    def status(self) -> Report:
        """Return the running plan, its tasks, and those that were not undone. The client adds the rest."""

    def details(self) -> dict[str, Any]:
        """Return fields for people who read the request; see ``pidone.plan.report``."""

    def repo_away(self) -> None:
        """Note that no repo answers any more."""


@dataclass(slots=True)
class Outcome:
    """The result of one request for the bundle."""

    pause: float  # seconds until the next request, at least
    error: str = ""  # empty: the repo works
    lost: bool = False  # no answer: all pods of that repo have lost it at the same moment


@dataclass(frozen=True, slots=True)
class Received:
    """A bundle that was applied or refused. Its ETag is valid only for the repo that sent it (RFC 9110)."""

    url: str  # of the repo
    etag: str
    body: int  # hash of the body
    at: float  # clock time


class RepoClient:
    """The client of one pod. It tries ``urls`` in their order, and stays with the first one that answers."""

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
        """``token`` is the path of a file with a bearer token, which is sent over https only."""
        self._token = token
        self._urls = [url.rstrip("/") for url in urls]
        self._consumer = consumer
        self._journal = journal
        self._counters = counters
        self._source = source
        self._random = random
        self._current = 0  # index of the URL in use
        self._due = dict.fromkeys(self._urls, 0.0)  # by URL: not before this clock time, as its repo demands
        self._applied: Received | None = None  # the bundle that was applied last
        self._refused: dict[str, Received] = {}  # by URL: the last bundle of that repo, refused after it
        self._error = ""  # the reason of the last refusal
        self._changed = trio.Event()  # set: a report is due
        self._reached = trio.Event()  # set: the repo has answered the last request
        self._delivered = trio.Event()  # set: the repo has received a report
        self._last_report, self._last_reported = trio.Lock(), False
        self._boot = os.urandom(8).hex()
        self._replicas: dict[str, None] = {}  # replicas of the repo that have answered, by their REPO_HEADER
        self._withheld = ""  # the reason why a repo over plain http withheld the plan
        self._headers = {**claims, BOOT_HEADER: self._boot, VERSION_HEADER: __version__}

    @property
    def refused(self) -> bool:
        """True if the last bundle received was refused."""
        return bool(self._refused)

    def status_changed(self) -> None:
        """Request a report; at most one is sent in ``REPORT_GAP_SECONDS``."""
        self._changed.set()

    async def poll(self) -> None:
        """Poll for bundles and apply them, until cancelled. Errors are logged and retried."""
        failures = 0
        while True:
            outcome = await self._poll_once()
            self._counters.bundle_fetches += 1
            if not outcome.error:
                if self._counters.repo_up is not True:
                    self._journal.write("repo-reached", repo=redacted(self._urls[self._current]))
                    self._changed.set()  # a repo that was away may have lost the last report
                failures, self._counters.repo_up = 0, True
                self._reached.set()
                await trio.sleep(outcome.pause)
                continue

            failures += 1
            self._counters.bundle_fetch_failures += 1
            self._counters.repo_up = False
            if failures == 1:
                self._journal.write(
                    "repo-away", repo=redacted(self._urls[self._current]), error=outcome.error
                )
                self._consumer.repo_away()
            now = trio.current_time()
            self._due[self._urls[self._current]] = now + outcome.pause
            self._next_repo(now)
            if self._reached.is_set():  # otherwise ``report`` waits for this event, and must not lose it
                self._reached = trio.Event()

            limit = RETRY.limit(failures)
            if outcome.lost and self._replicas:
                limit = max(LOST_SPREAD_SECONDS, limit)
            pause = self._due[self._urls[self._current]] - now
            await trio.sleep(max(pause, limit * self._random.random()))

    def _next_repo(self, now: float = 0.0) -> None:
        """Change to the next URL whose repo demands the shortest wait."""
        number = len(self._urls)
        following = [(self._current + step) % number for step in range(1, number + 1)]
        self._current = min(following, key=lambda index: max(0.0, self._due[self._urls[index]] - now))

    async def _poll_once(self) -> Outcome:
        url = self._urls[self._current]
        if self._consumer.look_at_files():
            self._refused.pop(url, None)  # the repo sends it again
        received_before = self._received_from(url)
        headers = {**self._headers, **self._authorization(url), "accept": MEDIA_TYPE}
        if self._counters.repo_up or not received_before:
            # not after a failed request, so that a restarted repo answers at once
            headers["prefer"] = f"wait={WAIT_SECONDS:g}"
        if received_before:
            headers["if-none-match"] = ", ".join(bundle.etag for bundle in received_before)

        began = trio.current_time()
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
            return Outcome(0.0, str(error), lost=True)

        self._remember_replica(answer.headers.get(REPO_HEADER, "")[:MAX_REPLICA_WIDTH])
        gap = max(0.0, began + POLL_GAP_SECONDS - trio.current_time())
        held = "preference-applied" in answer.headers or "prefer" not in headers
        match answer.status:
            case 200:
                etag = answer.headers.get("etag", "")
                if not _is_usable(etag):
                    shown = f"{etag[:40]}..." if len(etag) > 40 else etag or "none"
                    return Outcome(
                        gap,
                        f"the ETag of the bundle is {shown}; expected {MAX_ETAG_WIDTH} ASCII characters in quotes",
                    )
                received = Received(url, etag, hash(answer.body), trio.current_time())
                if any((bundle.etag, bundle.body) == (etag, received.body) for bundle in received_before):
                    return Outcome(gap, f"the bundle with the ETag {etag} came again, though the pod has it")
                self._apply(answer, received)
                return Outcome(gap)
            case 304 if not received_before:
                return Outcome(gap, "304, though the pod has no bundle of this repo")
            case 304 | 426:
                if answer.status == 426:  # the repo works; the pod keeps its plan, reports, and gets its end
                    self._plan_withheld(_message(answer))
                # a repo that does not hold requests would be polled in a tight loop
                return Outcome(gap if held else WAIT_SECONDS * self._random.random())
            case status:
                return Outcome(_retry_after(answer, self._random), f"{status} {_message(answer)}")

    def _received_from(self, url: str) -> list[Received]:
        """Return the bundles whose ETags are sent to this repo, so that it answers only with another one."""
        refused = self._refused.get(url)
        if refused is not None and trio.current_time() - refused.at > REFUSAL_SECONDS:
            del self._refused[url]
            refused = None
        return [
            received for received in (self._applied, refused) if received is not None and received.url == url
        ]

    def _remember_replica(self, name: str) -> None:
        """Report again to a replica that is new: neither it nor its leader may know this pod's last report."""
        if name and name not in self._replicas:
            self._replicas[name] = None
            if len(self._replicas) > MAX_REPLICAS:
                del self._replicas[next(iter(self._replicas))]
            self._changed.set()

    def _plan_withheld(self, reason: str) -> None:
        """Log once that the plan needs an https repo, and change to the next URL."""
        if not self._withheld:
            self._withheld = reason
            self._journal.write("plan-withheld", repo=redacted(self._urls[self._current]), error=reason)
        self._next_repo()

    def _authorization(self, url: str) -> dict[str, str]:
        """Return the header with the token, for https only. The kubelet renews the file, so it is read each time."""
        if not self._token or not url.startswith("https://"):
            return {}
        try:
            with open(self._token, encoding="utf-8") as file:
                token = file.read().strip()
            if not (token.isascii() and token.isprintable()):
                raise ValueError("the token has more than one line, or is not ASCII")
        except (OSError, ValueError) as error:
            self._journal.write("token-unread", file=self._token, error=str(error))
            return {}  # the repo identifies the pod by its address
        return {"authorization": f"Bearer {token}"}

    def _apply(self, answer: Response, received: Received) -> None:
        try:
            if not answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
                raise Refused(f"expected {MEDIA_TYPE}, not {answer.headers.get('content-type', 'nothing')}")
            self._consumer.apply(answer.body, trusted=received.url.startswith("https://"))
        except Exception as error:  # noqa: BLE001 - a plan that causes an internal error is rejected as well
            reason = (
                str(error)
                if isinstance(error, Refused)
                else f"internal error: {type(error).__name__}: {error}"
            )
            self._refused.pop(received.url, None)
            self._refused[received.url], self._error = received, reason  # the last one is the newest
            self._counters.bundle_rejections += 1
            self._journal.write("plan-refused", error=reason)
            self._next_repo()  # it may have a plan that this pod can run
        else:
            self._applied, self._refused, self._error = received, {}, ""
        self._changed.set()

    async def report(self) -> None:
        """Report the status after each change, until cancelled. Reports that fail are retried."""
        failures = 0
        while True:
            await self._changed.wait()
            await self._reached.wait()
            self._changed = trio.Event()
            if await self._report_once():
                failures = 0
            else:
                # The first retries come soon, because new lines push unreported ones out of the journal's ring.
                failures += 1
                self._changed.set()
                await trio.sleep(REPORT_RETRY.delay(failures, self._random))
            await trio.sleep(REPORT_GAP_SECONDS)

    async def _report_once(self) -> bool:
        """Post one report; True if the repo accepted it."""
        body, reported = self._status(LINES, ERROR_WIDTH)
        for most in (LINES // 2, LINES // 10, 1):  # a line may be six times as long in JSON
            if len(body) <= MAX_REPORT_BYTES:
                break
            body, reported = self._status(most, ERROR_WIDTH * most // LINES)

        url = self._urls[self._current]
        try:
            answer = await request(
                "POST",
                f"{url}{STATUS_PATH}",
                headers={**self._headers, **self._authorization(url), "content-type": JSON},
                body=body,
                timeout=REPORT_TIMEOUT_SECONDS,
                source=self._source,
            )
        except TransferError:
            return False  # not logged, because the held request fails as well

        if answer.status == 204:
            self._journal.reported = reported
            if reported < self._journal.written:
                self._changed.set()
            self._delivered.set()
            self._delivered = trio.Event()
        return answer.status == 204

    async def report_end(self) -> None:
        """Report the end of the tasks once, at once, and give up after ``LAST_REPORT_SECONDS``.

        Without this report the controller would deregister instances that are deregistered already, and would not
        know of tasks whose undoing failed.
        """
        async with self._last_report:
            if self._reached.is_set() and not self._last_reported:
                with trio.move_on_after(LAST_REPORT_SECONDS):
                    self._last_reported = await self._report_once()

    def _status(self, most: int, width: int) -> tuple[bytes, int]:
        """Return a report with at most ``most`` lines, and ``Journal.reported`` once the repo has it.

        Errors have ``width`` characters at most.
        """
        lines, reported = self._journal.unreported(most)
        report = replace(
            self._consumer.status(),
            boot=self._boot,
            version=__version__,
            state=REJECTED if self._refused else APPLIED,
            error=self._error[:width] if self._refused else "",
            rejected=next((bundle.etag.strip('"') for bundle in reversed(self._refused.values())), None),
            logs=tuple(line[:LINE_WIDTH] for line in lines),
        )
        details = {
            name: value[:width] if isinstance(value, str) else value
            for name, value in self._consumer.details().items()
        }
        value = encode(report) | {"time": time(), **details}
        return json.dumps(value, separators=(",", ":")).encode(), reported

    async def wait_reported(self) -> None:
        """Return when all lines of the journal are reported."""
        while self._journal.reported < self._journal.written:
            await self._delivered.wait()


def _is_usable(etag: str) -> bool:
    """True for an ETag that any server accepts in If-None-Match: RFC 9110, without the bytes beyond ASCII."""
    tag = etag.removeprefix("W/")
    quoted = len(tag) >= 2 and tag[0] == tag[-1] == '"' and tag.count('"') == 2
    return quoted and len(etag) <= MAX_ETAG_WIDTH and all("!" <= sign <= "~" for sign in tag)


def _message(answer: Response) -> str:
    return " ".join(answer.text.split())[:200]


def _retry_after(answer: Response, random: Random) -> float:
    """Return the seconds until the next request, with up to a quarter more, which spreads the pods of one refusal."""
    value = answer.headers.get("retry-after", "")
    seconds = min(float(value), MAX_RETRY_AFTER_SECONDS) if value.isdecimal() else 1.0
    return seconds * (1 + 0.25 * random.random())
