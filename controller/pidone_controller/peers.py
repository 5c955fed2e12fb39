"""Replicas tell the leader what pods told them: one replica holds a pod's request, another may get its report.

Every replica serves every pod, and the leader alone writes statuses, Events and the steps of rollouts, and takes out
of registries what dead pods left. So each of the others sends it the last report of each live pod, at once when one
comes, several in a request while one is under way, and all of them again when another leads.

    POST /v1/peers/reports   {"pods": [{"namespace", "name", "uid", "received", "report": {...}}]}
    200                      {"unknown": ["namespace/name", ...]}: sent again, for the leader may hear of them later

The leader's address stands in the Lease, in the identity of its holder (``identity_of``, ``url_of``). Who calls must
be the controller's own service account: each replica has the API server make it a token that is good for this
alone (TokenRequest with an audience of our own), so that it may go over plain http, and the leader has the API server
say whose it is (TokenReview).

``Peers`` for each replica: ``handle`` is a route of ``Repo`` (``{PATH: ("POST", handle)}``), ``heard(pod)`` is called
for every report that the repo has got, ``run()`` sends while another leads. Of two reports the one that came later
to whichever replica counts, by the replicas' clocks: a pod does not report more often than once a second.
"""

import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from os import urandom
from random import Random
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import trio

from pidone.errors import PidoneError
from pidone.http.client import request
from pidone.http.message import JSON, Request, Response, text_response
from pidone.metrics.exposition import Family, gauge
from pidone.plan.report import OMITTED, Report, encode
from pidone.protocol import MAX_REPORT_BYTES
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.reviews import own_name, token_of, whose
from pidone_controller.kubernetes.tokens import Tokens, bearer_token
from pidone_controller.log import Log
from pidone_controller.pods import reports
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import NamespacedName, Pod

PATH = "/v1/peers/reports"
BATCH = MAX_REPORT_BYTES - 4096  # bytes of a request; the rest is for its frame
TIMEOUT = 10.0  # seconds for one request
UNKNOWN = 1.0  # seconds until a pod that the leader did not know is told again
RETRY_MAX = 10.0  # seconds between two tries, at most
ERROR = 500  # characters of a task's error: a report of many tasks is to fit

AUDIENCE = "pidone-peers"
SERVICE_ACCOUNT = "system:serviceaccount:"
TOKEN_LIFE = 3600.0  # seconds; the API server makes none for less than ten minutes

Post = Callable[[str, bytes, str], Awaitable[Response]]  # the URL, the body, the token


class PeerError(PidoneError):
    """What a replica said is not what replicas say."""


class Lead(Protocol):
    """``kubernetes.election.Election``, as far as it is needed here."""

    identity: str

    @property
    def holder(self) -> str: ...

    async def holder_after(self, known: str) -> str: ...


class Reports(Protocol):
    """The methods of ``repo.plans.Plans`` that are used here."""

    inventory: Inventory

    def last_report(self, pod: Pod) -> tuple[Report, float] | None:
        """The last report of a pod, and when it was received in seconds since 1970."""

    def receive(self, pod: Pod, report: Report, received: float | None = None) -> None: ...


def identity_of(name: str, url: str) -> str:
    """What a replica writes into the Lease: its name, where its peers reach it, and what no other process has."""
    return f"{name}_{url}_{urandom(4).hex()}"


def url_of(holder: str) -> str:
    """Where the leader is reached; empty where its identity does not say it."""
    parts = holder.split("_")
    where = urlsplit(parts[1]) if len(parts) == 3 else None
    return parts[1] if where is not None and where.scheme in {"http", "https"} and where.hostname else ""


async def post(url: str, body: bytes, token: str) -> Response:
    """Over a connection of its own: the leader's address changes with the leader. Raises ``TransferError``."""
    headers = {"content-type": JSON, "authorization": f"Bearer {token}"}
    return await request("POST", url, headers=headers, body=body, timeout=TIMEOUT)


class Account:
    """Who we are to the API server, and what proves it to our peers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name = ""
        self._token, self._until = "", -math.inf
        self._asking = trio.Lock()

    async def name(self) -> str:
        """``system:serviceaccount:<namespace>:<name>``. Raises ``ApiError``."""
        self._name = self._name or await own_name(self._client)
        return self._name

    async def token(self) -> str:
        """One that is good for peers alone. Raises ``ApiError``, and ``PeerError`` for who is no service account."""
        async with self._asking:
            if trio.current_time() >= self._until:
                name = await self.name()
                namespace, _, account = name.removeprefix(SERVICE_ACCOUNT).partition(":")
                if not (account and name.startswith(SERVICE_ACCOUNT)):
                    raise PeerError(
                        f"{name} is no service account, and the API server makes no tokens for it"
                    )
                self._token = await token_of(self._client, namespace, account, AUDIENCE, TOKEN_LIFE)
                self._until = trio.current_time() + 0.8 * TOKEN_LIFE
        return self._token

    async def review(self, token: str) -> Mapping[str, Any]:
        """For ``tokens.Tokens``: the status of a TokenReview, which says no to a token that is for something else."""
        return await whose(self._client, token, [AUDIENCE])


class Peers:
    """One replica among others."""

    def __init__(
        self,
        reports: Reports,
        lead: Lead,
        account: Account,
        log: Log,
        *,
        post: Post = post,
        random: Random | None = None,
    ) -> None:
        self._reports, self._lead, self._account, self._log = reports, lead, account, log
        self._tokens = Tokens(account.review)
        self._post = post
        self._random = random or Random()
        self._pending: dict[NamespacedName, None] = {}  # their last report is to be sent; the oldest first
        self._work = trio.Event()

    @property
    def pending(self) -> int:
        """Reports that the leader has not got yet."""
        return len(self._pending)

    def heard(self, pod: Pod) -> None:
        """A report of this pod is there."""
        if self._lead.holder != self._lead.identity:
            self._pending[pod.namespace, pod.name] = None
            self._work.set()

    def families(self) -> Iterator[Family]:
        """Metrics of forwarding."""
        yield gauge(
            "pidone_controller_peers_pending", "Reports that the leader has not received yet.", self.pending
        )

    # As a replica that does not lead

    async def run(self) -> NoReturn:
        """Send what there is to whoever leads, until cancelled."""
        while True:
            holder = self._lead.holder
            self._pending.clear()
            url = url_of(holder)
            if holder == self._lead.identity or not url:
                await self._lead.holder_after(holder)
                continue
            for pod in self._reports.inventory:
                if self._reports.last_report(pod) is not None:
                    self.heard(pod)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, f"{url}{PATH}", nursery)
                await self._lead.holder_after(holder)
                nursery.cancel_scope.cancel()

    async def _send(self, url: str, nursery: trio.Nursery) -> None:
        failures = 0
        while True:
            while not self._pending:
                self._work = trio.Event()
                await self._work.wait()
            keys, body = self._batch()
            for key in keys:
                del self._pending[key]  # what comes while this is under way is news
            if not body:
                continue
            try:
                answer = await self._post(url, body, await self._account.token())
                unknown = _unknown(answer)
            except PidoneError as error:
                failures += 1
                if failures == 1:
                    self._log("leader-not-told", leader=url, error=error)
                self._pending = dict.fromkeys([*keys, *self._pending])
                await trio.sleep(min(RETRY_MAX, 2.0 ** min(failures, 10)) * self._random.random())
                continue
            if failures:
                self._log("leader-told", leader=url)
            failures = 0
            if unknown:
                nursery.start_soon(self._again, unknown & {*keys})

    async def _again(self, keys: frozenset[NamespacedName]) -> None:
        await trio.sleep(UNKNOWN)
        for key in keys:
            pod = self._reports.inventory.find(*key)
            if pod is not None:
                self.heard(pod)

    def _batch(self) -> tuple[list[NamespacedName], bytes]:
        """As many of the pending as fit into one request; those that have no report, or are gone, are done too."""
        keys: list[NamespacedName] = []
        parts: list[bytes] = []
        size = 0
        for key in self._pending:
            pod = self._reports.inventory.find(*key)
            last = self._reports.last_report(pod) if pod is not None else None
            part = _encoded(pod, *last) if pod is not None and last is not None else b""
            if size + len(part) > BATCH:
                break
            size += len(part) + 1
            keys.append(key)
            parts += [part] if part else []
        return keys, b'{"pods":[' + b",".join(parts) + b"]}" if parts else b""

    # As the leader

    async def handle(self, request: Request) -> Response:
        """``POST /v1/peers/reports``."""
        token = bearer_token(request.headers.get("authorization"))
        if token is None:
            return text_response(401, "only for replicas of this controller", www_authenticate="Bearer")
        try:
            bearer = await self._tokens.bearer(token)
            ours = bearer is not None and bearer.user["username"] == await self._account.name()
        except PidoneError as error:
            return text_response(503, f"the token cannot be checked: {error}", retry_after="1")
        if not ours:
            return text_response(403, "the token is not one of this controller's for its peers")
        if self._lead.holder != self._lead.identity:
            return text_response(409, "this replica does not lead", retry_after="1")
        try:
            told = list(_told(request.body))
        except PidoneError as error:
            return text_response(400, str(error))
        unknown = []
        for (namespace, name), uid, received, report in told:
            pod = self._reports.inventory.find(namespace, name)
            if pod is None or pod.uid != uid or pod.finished:
                unknown.append(f"{namespace}/{name}")
            else:
                self._reports.receive(pod, report, received)
        return Response(200, {"content-type": JSON}, json.dumps({"unknown": unknown}).encode())


def _encoded(pod: Pod, report: Report, received: float) -> bytes:
    """One report for the leader: without the log lines, which nobody aggregates."""
    value = encode(report)
    del value["logs"]
    for task in value["tasks"].values():
        task["error"] = task["error"][:ERROR]
    told = {
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
        "received": received,
        "report": value,
    }
    body = _json(told)
    if len(body) > BATCH:
        value["tasks"] = {
            name: {"state": task["state"], "runs": task["runs"]} for name, task in value["tasks"].items()
        }
        body = _json(told)
    if len(body) <= BATCH:
        return body
    omitted = len(report.tasks) + report.omitted
    return _json({**told, "report": {**value, "tasks": {}, "left": [], OMITTED: omitted}})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _told(body: bytes) -> Iterator[tuple[NamespacedName, str, float, Report]]:
    """What a replica sends. Raises ``ReportError`` and ``PeerError``."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"not JSON: {error}") from error
    pods = value.get("pods") if isinstance(value, dict) else None
    if not isinstance(pods, list):
        raise PeerError("pods: expected a list")
    for one in pods:
        match one:
            case {
                "namespace": str(space),
                "name": str(name),
                "uid": str(uid),
                "received": int(at) | float(at),
            }:
                yield (space, name), uid, min(at, time.time()), reports.of(one.get("report"))
            case _:
                raise PeerError("pods: expected namespace, name, uid and received of each")


def _unknown(answer: Response) -> frozenset[NamespacedName]:
    """The pods that the leader does not know. Raises ``PeerError`` for any other answer than its own."""
    if answer.status != 200:
        raise PeerError(f"answered {answer.status} {' '.join(answer.text.split())[:200]}")
    try:
        names = json.loads(answer.body)["unknown"]
        return frozenset((namespace, name) for namespace, _, name in (one.partition("/") for one in names))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PeerError("answered something else than a replica does") from error
