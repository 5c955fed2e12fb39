"""Forwards the reports of pods to the leader: one replica holds a pod's request, another one may get its report.

Every replica serves every pod, and the leader alone writes statuses, Events and the steps of rollouts, and deregisters
instances of dead pods. So each of the others sends it the last report of each live pod: at once when it arrives,
several in one request while another one is under way, and all of them again when another replica leads.

    POST /v1/peers/reports   {"pods": [{"namespace", "name", "uid", "received", "report": {...}}]}
    200                      {"unknown": ["namespace/name", ...]}: sent again, since the leader may learn of them later

The Lease holds the leader's address, in the identity of its holder (``identity_of``, ``url_of``). The caller must
have the controller's own service account: the API server makes each replica a token that is good for this alone
(TokenRequest with an audience of its own), and tells the leader whose it is (TokenReview). It is sent over https to a
certificate of the replicas' own CA, and not taken over http.
"""

import json
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from os import urandom
from random import Random
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import trio

from pidone.errors import PidoneError
from pidone.http.admission import network
from pidone.http.client import request
from pidone.http.message import JSON, Request, Response, text_response
from pidone.metrics.exposition import Family, gauge
from pidone.pacing import Backoff
from pidone.plan.report import OMITTED, Report, encode
from pidone.plan.strict_json import loads
from pidone.protocol import MAX_REPORT_BYTES
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.reviews import own_user, request_token, review_token
from pidone_controller.kubernetes.tokens import Tokens, TooManyTokens, bearer_token
from pidone_controller.log import Log
from pidone_controller.pods import reports
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import NamespacedName, Pod

PATH = "/v1/peers/reports"
MAX_BATCH_BYTES = MAX_REPORT_BYTES - 4096  # of one request; the rest is for its frame
TIMEOUT_SECONDS = 10.0  # of one request
UNKNOWN_SECONDS = 1.0  # until the report of a pod that the leader did not know is sent again
RETRY = Backoff(initial=2.0, maximum=10.0)
TASK_ERROR_WIDTH = 500  # characters of a task's error: a report of many tasks must fit

AUDIENCE = "pidone-peers"
SERVICE_ACCOUNT = "system:serviceaccount:"
TOKEN_SECONDS = 3600.0  # the API server makes no tokens for less than ten minutes

# The URL, the body, the token, and the authorities to trust.
Post = Callable[[str, bytes, str, "ssl.SSLContext | None"], Awaitable[Response]]


class PeerError(PidoneError):
    """A replica has sent something else than a replica sends."""


class Election(Protocol):
    """The members of ``kubernetes.election.Election`` that are used here."""

    identity: str

    @property
    def holder(self) -> str: ...

    async def holder_after(self, previous: str) -> str: ...


class Reports(Protocol):
    """The methods of ``repo.plans.Plans`` that are used here."""

    inventory: Inventory

    def last_report(self, pod: Pod) -> tuple[Report, float] | None:
        """The last report of a pod, and when it was received in seconds since 1970."""

    def receive(self, pod: Pod, report: Report, received: float | None = None) -> None: ...


def identity_of(name: str, url: str) -> str:
    """The identity of a replica in the Lease: its name, its URL for peers, and random digits for this process."""
    return f"{name}_{url}_{urandom(4).hex()}"


def url_of(holder: str) -> str:
    """The URL in the leader's identity; empty if there is none."""
    parts = holder.split("_")
    url = urlsplit(parts[1]) if len(parts) == 3 else None
    return parts[1] if url is not None and url.scheme in {"http", "https"} and url.hostname else ""


async def post(url: str, body: bytes, token: str, trust: ssl.SSLContext | None) -> Response:
    """Send over a connection of its own, since the leader's address changes. Raises ``TransferError``."""
    headers = {"content-type": JSON, "authorization": f"Bearer {token}"}
    return await request("POST", url, headers=headers, body=body, timeout=TIMEOUT_SECONDS, trust=trust)


class Account:
    """The service account of this replica, and the token that proves it to peers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name = ""
        self._token, self._until = "", -math.inf
        self._asking = trio.Lock()

    async def name(self) -> str:
        """``system:serviceaccount:<namespace>:<name>``. Raises ``ApiError``."""
        self._name = self._name or await own_user(self._client)
        return self._name

    async def token(self) -> str:
        """A token for peers alone. Raises ``ApiError``, and ``PeerError`` if this is no service account."""
        async with self._asking:
            if trio.current_time() >= self._until:
                name = await self.name()
                namespace, _, account = name.removeprefix(SERVICE_ACCOUNT).partition(":")
                if not (account and name.startswith(SERVICE_ACCOUNT)):
                    raise PeerError(
                        f"{name} is no service account, and the API server makes no tokens for it"
                    )
                self._token = await request_token(self._client, namespace, account, AUDIENCE, TOKEN_SECONDS)
                self._until = trio.current_time() + 0.8 * TOKEN_SECONDS
        return self._token

    async def review(self, token: str) -> Mapping[str, Any]:
        """The status of a TokenReview, for ``Tokens``; a token with another audience is not authenticated."""
        return await review_token(self._client, token, [AUDIENCE])


class Peers:
    """One replica among others.

    ``handle`` is the route ``PATH`` of the repo, ``reported`` is called with each pod whose report was stored, ``run``
    sends while another replica leads. Of two reports of a pod the one that was received later counts, by the replicas'
    clocks: a pod reports at most once a second.
    """

    def __init__(
        self,
        reports: Reports,
        election: Election,
        account: Account,
        log: Log,
        *,
        post: Post = post,
        random: Random | None = None,
    ) -> None:
        self._reports, self._election, self._account, self._log = reports, election, account, log
        self._tokens = Tokens(account.review)
        self._post = post
        self._random = random or Random()
        self._pending: dict[
            NamespacedName, None
        ] = {}  # pods whose last report is to be sent, the oldest first
        self._work = trio.Event()
        self._trust: ssl.SSLContext | None = None
        self._trusted = trio.Event()

    def trust(self, context: ssl.SSLContext) -> None:
        """Trust these authorities from now on. Nothing is sent before."""
        self._trust = context
        self._trusted.set()

    @property
    def pending(self) -> int:
        """Reports that the leader has not received yet."""
        return len(self._pending)

    def reported(self, pod: Pod) -> None:
        """Send the last report of this pod, if another replica leads."""
        if self._election.holder != self._election.identity:
            self._pending[pod.namespace, pod.name] = None
            self._work.set()

    def families(self) -> Iterator[Family]:
        """Metrics of forwarding."""
        yield gauge(
            "pidone_controller_peers_pending", "Reports that the leader has not received yet.", self.pending
        )

    # As a replica that does not lead

    async def run(self) -> NoReturn:
        """Send reports to the leader until cancelled."""
        await self._trusted.wait()
        while True:
            holder = self._election.holder
            self._pending.clear()
            url = url_of(holder)
            if holder == self._election.identity or not url:
                await self._election.holder_after(holder)
                continue

            for pod in self._reports.inventory:
                if self._reports.last_report(pod) is not None:
                    self.reported(pod)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, f"{url}{PATH}", nursery)
                await self._election.holder_after(holder)
                nursery.cancel_scope.cancel()

    async def _send(self, url: str, nursery: trio.Nursery) -> None:
        failures = 0
        while True:
            while not self._pending:
                self._work = trio.Event()
                await self._work.wait()

            names, body = self._batch()
            for name in names:
                del self._pending[name]  # a report that arrives meanwhile is a new one
            if not body:
                continue
            try:
                answer = await self._post(url, body, await self._account.token(), self._trust)
                unknown = _unknown(answer)
            except PidoneError as error:
                failures += 1
                if failures == 1:
                    self._log("leader-not-told", leader=url, error=error)
                self._pending = dict.fromkeys([*names, *self._pending])
                await trio.sleep(RETRY.delay(failures, self._random))
                continue

            if failures:
                self._log("leader-told", leader=url)
            failures = 0
            if unknown:
                nursery.start_soon(self._send_again, unknown & {*names})

    async def _send_again(self, names: frozenset[NamespacedName]) -> None:
        await trio.sleep(UNKNOWN_SECONDS)
        for name in names:
            pod = self._reports.inventory.find(*name)
            if pod is not None:
                self.reported(pod)

    def _batch(self) -> tuple[list[NamespacedName], bytes]:
        """The names of as many pending pods as fit into one request, and its body; pods that are gone have no part."""
        names: list[NamespacedName] = []
        parts: list[bytes] = []
        size = 0
        for name in self._pending:
            pod = self._reports.inventory.find(*name)
            last = self._reports.last_report(pod) if pod is not None else None
            part = _encoded(pod, *last) if pod is not None and last is not None else b""
            if size + len(part) > MAX_BATCH_BYTES:
                break
            size += len(part) + 1
            names.append(name)
            parts += [part] if part else []
        return names, b'{"pods":[' + b",".join(parts) + b"]}" if parts else b""

    # As the leader

    async def refuse(self, request: Request, *, secure: bool = False) -> Response | None:
        """The answer to a report of another replica by its head; None if this is one, and this replica leads."""
        if not secure:
            return text_response(403, "tokens are taken over https alone")
        token = bearer_token(request.headers.get("authorization"))
        if token is None:
            return text_response(401, "only for replicas of this controller", www_authenticate="Bearer")
        try:
            bearer = await self._tokens.bearer(token, network(request.peer))
            is_peer = bearer is not None and bearer.user["username"] == await self._account.name()
        except TooManyTokens as error:
            return text_response(429, str(error), retry_after=f"{error.pause:.0f}")
        except PidoneError as error:
            return text_response(503, f"the token cannot be checked: {error}", retry_after="1")
        if not is_peer:
            return text_response(403, "the token is not one of this controller's for its peers")
        if self._election.holder != self._election.identity:
            return text_response(409, "this replica does not lead", retry_after="1")
        return None

    async def handle(self, request: Request, *, secure: bool = False) -> Response:
        """``POST /v1/peers/reports``."""
        refusal = await self.refuse(request, secure=secure)
        if refusal is not None:
            return refusal
        try:
            received = list(_decoded(request.body))
        except PidoneError as error:
            return text_response(400, str(error))

        unknown = []
        for (namespace, name), uid, at, report in received:
            pod = self._reports.inventory.find(namespace, name)
            if pod is None or pod.uid != uid or pod.finished:
                unknown.append(f"{namespace}/{name}")
            else:
                self._reports.receive(pod, report, at)
        return Response(200, {"content-type": JSON}, json.dumps({"unknown": unknown}).encode())


def _encoded(pod: Pod, report: Report, received: float) -> bytes:
    """One report for the leader, without its log lines, which the leader does not use."""
    value = encode(report)
    del value["logs"]
    for task in value["tasks"].values():
        task["error"] = task["error"][:TASK_ERROR_WIDTH]
    item = {
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
        "received": received,
        "report": value,
    }
    part = _json(item)
    if len(part) > MAX_BATCH_BYTES:
        value["tasks"] = {
            name: {"state": task["state"], "runs": task["runs"]} for name, task in value["tasks"].items()
        }
        part = _json(item)
    if len(part) <= MAX_BATCH_BYTES:
        return part
    omitted = len(report.tasks) + report.omitted
    return _json({**item, "report": {**value, "tasks": {}, "left": [], OMITTED: omitted}})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _decoded(body: bytes) -> Iterator[tuple[NamespacedName, str, float, Report]]:
    """The name, uid, time and report of each pod. Raises ``ReportError`` and ``PeerError``."""
    try:
        value = loads(body)
    except ValueError as error:
        raise PeerError(f"not JSON: {error}") from error
    pods = value.get("pods") if isinstance(value, dict) else None
    if not isinstance(pods, list):
        raise PeerError("pods: expected a list")

    for item in pods:
        match item:
            case {
                "namespace": str(namespace),
                "name": str(name),
                "uid": str(uid),
                "received": int(at) | float(at),
            }:
                yield (namespace, name), uid, min(at, time.time()), reports.of(item.get("report"))
            case _:
                raise PeerError("pods: expected namespace, name, uid and received of each")


def _unknown(answer: Response) -> frozenset[NamespacedName]:
    """The pods that the leader does not know. Raises ``PeerError`` for any answer that a leader does not give."""
    if answer.status != 200:
        raise PeerError(f"answered {answer.status} {' '.join(answer.text.split())[:200]}")
    try:
        names = loads(answer.body)["unknown"]
        return frozenset((namespace, name) for namespace, _, name in (text.partition("/") for text in names))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PeerError("answered something else than a replica does") from error
