"""HashiCorp Consul, by the HTTP API of an agent, with a check that has a TTL.

Rules that are not obvious, all observed on agents (``agent/agent_endpoint.go`` in Consul's source):

- Only the agent that has a registration can renew it. So there is one agent, and no list of them.
- The document's decoder is strict. A check gets no CheckID: two services with the same one steal it from each other.
- ``replace-existing-checks`` removes the checks of an earlier document, and also those of maintenance. It goes with the
  first document alone, and not while there is maintenance.
- The status in a document can be wrong at once: an agent with a data directory restores the status that it had saved.
  So the check is read back, and set if it differs.
- A renewal has the status: pass or fail. ``Unknown check`` (404) and ``does not have associated TTL`` (500, Consul 1.7
  and older) mean that the agent does not have the instance.
- Maintenance is a check of its own, which survives renewals and documents. Its note tells ours from an operator's.
- A deregistration is answered 200 also where nothing was. The last word is a GET with 404 and Consul's own words; an
  ingress' 404 is none.
- A check that is critical for ``DeregisterCriticalServiceAfter`` takes the instance out, also if that pod lives. Then
  the next renewal is answered as above, and the document is sent again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any
from urllib.parse import quote

import trio

from pidone.errors import Refused, RegistryError, TransferError
from pidone.http.client import redacted
from pidone.http.message import JSON, Response
from pidone.http.urls import segment
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries._consul_names import consul_id, consul_key, consul_meta, dns_label, trimmed
from pidone.registries._files import secret
from pidone.registries._servers import (
    MAX_SHOWN,
    Judge,
    Remedies,
    Servers,
    Trouble,
    base_urls,
    is_page,
    json_object,
    printable,
)

NOTES = "set by pidone"
MAINTENANCE_REASON = "maintenance by pidone"  # the note that tells our maintenance from an operator's
LOOK_UP_SECONDS = 30.0  # for a look at whether a slow agent has carried out a request; at most the TTL
PASSING, CRITICAL, MAINTENANCE = "passing", "critical", "maintenance"
_CHECKS = {Status.UP: PASSING, Status.DOWN: CRITICAL, Status.STARTING: CRITICAL}
_REMARKS = {Status.UP: "healthy", Status.DOWN: "not healthy", Status.STARTING: "starting"}
_ABSENT = "unknown service ID"  # Consul's word in an answer 404 to a GET
# Consul's words where it does not have the instance; which of them depends on version, call and ACLs
_GONE = (
    "Unknown check",
    "does not have associated TTL",
    "Unknown service",
    "No service registered with ID",
    _ABSENT,
)
_DENIED = ("Permission denied", "ACL not found")
# The beginnings of refusals of a document
_REFUSALS = ("Request decode failed", "Missing ", "Invalid ", "Status ", "Check ", "Service ")
_PLAIN_HTTP = "Client sent an HTTP request to an HTTPS server"
REMEDIES = Remedies(
    "a Consul agent",
    url="It ends before /v1, as http://host:8500",
    credentials="this is not Consul's refusal of a token; does a proxy want a user (http://user:password@host)?",
)


@dataclass(frozen=True, slots=True)
class Instance:
    """Our document, ``api.AgentServiceRegistration``. Durations are in seconds."""

    name: str
    id: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    passing_weight: int
    warning_weight: int
    ttl: float
    deregister_after: float

    @property
    def resource(self) -> str:
        return f"service/{segment(self.id)}"

    @property
    def check(self) -> str:
        """The identifier of the check, which the agent makes."""
        return f"service:{self.id}"

    def document(self, status: Status) -> dict[str, Any]:
        """Return the body of a registration. What does not pass yet begins critical, so that no client gets it."""
        return {
            "ID": self.id,
            "Name": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Weights": {"Passing": self.passing_weight, "Warning": self.warning_weight},
            "Check": {
                "Name": "pidone",
                "Notes": NOTES,
                "TTL": _go_duration(self.ttl),
                "Status": PASSING if status is Status.UP else CRITICAL,
                "DeregisterCriticalServiceAfter": _go_duration(self.deregister_after),
            },
        }


@dataclass(frozen=True, slots=True)
class Copy:
    """The agent's copy of our instance, as far as it is needed. Texts are bounded and printable."""

    address: str
    document: tuple[Any, ...]  # what ``_essence`` makes of it
    check: str  # the status of our check; empty if the agent does not have it
    aggregate: str  # the status of the instance, of all its checks and those of the node
    maintenance: bool
    ours: bool  # maintenance of the instance that was set by pidone

    def status(self, wanted: Status) -> str:
        """Return the status that clients see: ``wanted`` if they see that."""
        if self.maintenance:
            return Status.OUT_OF_SERVICE
        if self.aggregate == CRITICAL and wanted is Status.STARTING:
            return wanted
        return {PASSING: str(Status.UP), CRITICAL: str(Status.DOWN)}.get(self.aggregate, self.aggregate)


class Consul:
    """One instance at one agent."""

    def __init__(
        self,
        server: str,
        instance: Instance,
        *,
        source: str | None,
        token: str = "",
        token_file: str = "",
        namespace: str = "",
    ) -> None:
        self._servers = Servers([f"{server.rstrip('/')}/v1/agent"], source, {}, namespace=namespace)
        self._server = server
        self._instance = instance
        self._token, self._token_file = token, token_file
        self._status = Status.UP  # UP, DOWN or STARTING: what renewals say
        self._accepted = False  # the agent has accepted a document
        self._until = 0.0  # the deadline of the present call

    @property
    def where(self) -> str:
        return redacted(self._server)

    @property
    def endpoint(self) -> str:
        return self.where

    @property
    def places(self) -> frozenset[str]:
        return self._servers.places

    @property
    def instance(self) -> str:
        return self._instance.resource

    @property
    def address(self) -> str:
        return self._instance.address

    @property
    def interval(self) -> float:
        """Two thirds of the TTL, and a second before its end at least, as Spring Cloud Consul has it."""
        ttl = self._instance.ttl
        return max(1.0, min(2 * ttl / 3, ttl - 1))

    @property
    def lease(self) -> float:
        return self._instance.ttl

    async def register(self, status: Status) -> str:
        self._begin()
        maintenance = status is Status.OUT_OF_SERVICE
        if not maintenance:
            self._status = status
        await self._send_document(status)
        # Maintenance begins before the check may pass, and ends after it fails: no client gets what is not UP.
        present = not maintenance or await self._maintain(on=True)
        present = present and await self._set_check()
        copy = await self._look() if present else None
        if copy is not None and copy.ours and not maintenance:
            await self._maintain(on=False)
            copy = await self._look()
        if copy is None:
            raise RegistryError(
                f"{self.where}: the agent has accepted the instance, and does not have it; is this one agent?"
            )
        return copy.status(status)

    async def heartbeat(self) -> bool:
        self._begin()
        return await self._set_check()

    async def read(self) -> Entry | None:
        self._begin()
        copy = await self._look()
        return None if copy is None else Entry(copy.status(self._status), copy.address)

    async def deregister(self) -> None:
        self._begin()
        try:
            path = f"service/deregister/{segment(self._instance.id)}"
            await self._ask("PUT", path, self._judge_deregistration)
        except TransferError as error:
            if not error.sent:
                raise
            self._begin(LOOK_UP_SECONDS)
            if await self._is_absent():  # carried out all the same
                return
            raise
        if not await self._is_absent():
            raise RegistryError(f"{self.where}: the agent has deregistered the instance, and still has it")

    def succeeds(self, previous: Registry) -> bool:
        return (
            isinstance(previous, Consul)
            and previous.instance == self.instance
            and not self.places.isdisjoint(previous.places)
        )

    def take_over(self, previous: Registry) -> None:
        assert isinstance(previous, Consul)
        self._accepted, self._status = previous._accepted, previous._status

    async def _send_document(self, status: Status) -> None:
        """Send the whole document. Raises unless the agent has it."""
        replaces = False
        if not self._accepted:
            before = await self._look()
            replaces = before is not None and not before.maintenance
        body = json.dumps(self._instance.document(status)).encode()
        query = "?replace-existing-checks=true" if replaces else ""
        try:
            await self._ask("PUT", "service/register", self._judge_done, query=query, body=body)
        except TransferError as error:
            if not error.sent:
                raise
            self._begin(LOOK_UP_SECONDS)
            copy = await self._look()
            if copy is None or not copy.check or copy.document != _essence(self._instance.document(status)):
                raise
        self._accepted = True

    async def _set_check(self) -> bool:
        """Renew the lease with the present status. Returns False if the agent does not have the instance."""
        verb = "pass" if self._status is Status.UP else "fail"
        path = f"check/{verb}/{segment(self._instance.check)}"
        query = f"?note={quote(_REMARKS[self._status])}"
        return not _is_gone(await self._ask("PUT", path, self._judge_or_gone, query=query))

    async def _maintain(self, *, on: bool) -> bool:
        """Begin or end maintenance. Returns False if the agent does not have the instance.

        Where there is maintenance already, to begin it has no effect, and its note stays.
        """
        path = f"service/maintenance/{segment(self._instance.id)}"
        query = f"?enable={str(on).lower()}" + (f"&reason={quote(MAINTENANCE_REASON)}" if on else "")
        return not _is_gone(await self._ask("PUT", path, self._judge_or_gone, query=query))

    async def _look(self) -> Copy | None:
        """Return the agent's copy; None if the agent itself says that it has none."""

        async def judge(server: str, answer: Response) -> Trouble | None:
            if answer.status == 404 or _copy(answer, self._instance) is not None:
                return None
            return self._foreign(server, answer)

        answer = await self._ask("GET", f"health/service/id/{segment(self._instance.id)}", judge)
        copy = _copy(answer, self._instance)
        if copy is None and not await self._is_absent():
            raise RegistryError(f"{self.where}: the agent has the instance, and does not show its status")
        return copy

    async def _is_absent(self) -> bool:
        """True if the agent itself says that it does not have the instance. Raises for the answers of others."""

        async def judge(server: str, answer: Response) -> Trouble | None:
            if answer.status == 404 and _ABSENT in answer.text:
                return None
            if answer.status == 200 and json_object(answer).get("ID") == self._instance.id:
                return None
            return self._foreign(server, answer)

        return (await self._ask("GET", self._instance.resource, judge)).status == 404

    def _begin(self, most: float = float("inf")) -> None:
        """Begin a call, or its part that looks after a failure. It has a lease's time, or ``most`` s."""
        self._until = trio.current_time() + min(self.lease, most)

    async def _ask(
        self, method: str, path: str, judge: Judge, *, query: str = "", body: bytes = b""
    ) -> Response:
        within = max(0.1, self._until - trio.current_time())
        token = secret(self._token_file) if self._token_file else self._token
        self._servers.headers = {"accept": JSON} | ({"x-consul-token": token} if token else {})
        return await self._servers.ask(method, path, judge, query=query, body=body, within=within)

    async def _judge_done(self, server: str, answer: Response) -> Trouble | None:
        return None if _is_done(answer) else self._foreign(server, answer)

    async def _judge_or_gone(self, server: str, answer: Response) -> Trouble | None:
        return None if _is_done(answer) or _is_gone(answer) else self._foreign(server, answer)

    async def _judge_deregistration(self, server: str, answer: Response) -> Trouble | None:
        # Any 404 will do: what is said then is asked for once more.
        return None if answer.status == 404 else await self._judge_or_gone(server, answer)

    def _foreign(self, server: str, answer: Response) -> Trouble:
        """Return the reason and the remedy for an answer that is no success."""
        del server
        status, text = answer.status, answer.text
        if status == 403 and any(word in text for word in _DENIED):
            name = self._instance.name
            return Trouble(
                f'the token is unknown, or it has no service:write on "{name}"'
                if self._token or self._token_file
                else f'set token or tokenFile to a token with service:write on "{name}"',
                refused=True,
            )
        if status == 400 and text.startswith(_REFUSALS):
            return Trouble("the registry does not accept the document", refused=True)
        if status == 400 and _PLAIN_HTTP in text and not self._accepted:
            return Trouble("the agent wants https; write https:// in the URL", refused=True)
        return REMEDIES.foreign(answer, accepted=self._accepted)


def _is_done(answer: Response) -> bool:
    """True if this 200 is Consul's, which has no body."""
    return answer.status == 200 and not answer.body.strip()


def _is_gone(answer: Response) -> bool:
    """True if Consul says that it does not have the instance."""
    return answer.status in {404, 500} and not is_page(answer) and any(word in answer.text for word in _GONE)


def _copy(answer: Response, instance: Instance) -> Copy | None:
    """Return the agent's copy in an answer to ``GET health/service/id``; None if there is none.

    The answer's status depends on that of the instance: 200 passing, 429 warning, 503 critical or maintenance.
    Values of a wrong type are left out.
    """
    if answer.status not in {200, 429, 503}:
        return None
    found = json_object(answer)
    service, aggregate, checks = (found.get(name) for name in ("Service", "AggregatedStatus", "Checks"))
    if not isinstance(service, dict) or service.get("ID") != instance.id or not isinstance(aggregate, str):
        return None
    by_id = {
        str(check.get("CheckID", "")): check
        for check in (checks if isinstance(checks, list) else ())
        if isinstance(check, dict)
    }
    maintenance = by_id.get(f"_service_maintenance:{instance.id}", {})
    return Copy(
        address=_shown_text(service.get("Address")),
        document=_essence(service),
        check=_shown_text(by_id.get(instance.check, {}).get("Status")),
        aggregate=_shown_text(aggregate),
        maintenance=aggregate == MAINTENANCE,
        ours=maintenance.get("Notes") == MAINTENANCE_REASON,
    )


def _essence(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a document, of those that we send and of those that an agent shows."""
    name = document.get("Name", document.get("Service"))
    return (name, *(document.get(key) or None for key in ("Address", "Port", "Tags", "Meta", "Weights")))


def _shown_text(value: object) -> str:
    return printable(value)[:MAX_SHOWN] if isinstance(value, str) else ""


def _go_duration(seconds: float) -> str:
    """Return seconds as Go reads durations: ``30s``, ``1500ms``."""
    milliseconds = floor(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def build(fields: Fields, pod: Pod, source: str | None) -> Consul:
    """Build the driver from ``register: consul``. Raises ``Refused``."""
    path, servers = fields.path, base_urls(fields, "url", "that end before /v1")
    if len(servers) > 1:
        raise Refused(f"{path}.url: one URL; a registration belongs to its agent, and no other can renew it")
    name, port = fields.text("name"), fields.integer("port", least=1, most=65535)
    weights = fields.object("weights") if "weights" in fields else Fields({}, f"{path}.weights")
    instance = Instance(
        name=name,
        id=fields.text("id", "-".join(filter(None, (name, pod.namespace, pod.name, str(port))))),
        address=fields.text("address", pod.ip),
        port=port,
        tags=fields.texts("tags"),
        meta=fields.table("meta"),
        passing_weight=weights.integer("passing", 1, least=1, most=65535),
        warning_weight=weights.integer("warning", 1, least=0, most=65535),
        ttl=fields.seconds("ttl", 30.0, least=2, most=86400),
        deregister_after=fields.seconds("deregisterCriticalServiceAfter", 600.0, least=60, most=31_536_000),
    )
    weights.done()
    token, token_file = fields.text("token", ""), fields.text("tokenFile", "")
    fields.done()
    for place, wrong in (
        ("name", dns_label(name)),
        ("id", consul_id(instance.id)),
        *((f"tags[{index}]", trimmed(tag)) for index, tag in enumerate(instance.tags)),
        *((f"meta.{key}", consul_key(key) or consul_meta(value)) for key, value in instance.meta.items()),
    ):
        if wrong:
            raise Refused(f"{path}.{place}: {wrong}")
    if len(instance.meta) > 64:
        raise Refused(f"{path}.meta: Consul takes 64 pairs, not {len(instance.meta)}; remove some")
    if token and token_file:
        raise Refused(f"{path}: token or tokenFile, not both")
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise Refused(f"{path}.token: expected one line of printable ASCII without blanks at its ends")
    if token_file and not token_file.startswith("/"):
        raise Refused(f"{path}.tokenFile: expected an absolute path")
    return Consul(
        servers[0], instance, source=source, token=token, token_file=token_file, namespace=pod.namespace
    )
