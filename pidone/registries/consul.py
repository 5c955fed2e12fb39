"""HashiCorp Consul, by the HTTP API of an agent, with a check that has a TTL.

Rules that are not obvious, all observed on agents (``agent/agent_endpoint.go`` in Consul's source):

- Only the agent that has a registration can renew it. So there is one agent, and no list of them.
- The document's decoder is strict. A check gets no CheckID: two services with the same one steal it from each other.
- ``replace-existing-checks`` removes the checks of an earlier document, and also those of maintenance. It goes with the
  first document alone, and not while there is maintenance.
- The status in a document can be wrong at once: an agent with a data directory restores the status that it had saved.
  So the check is set after each document, and read back.
- A renewal has the status: pass or fail. ``Unknown check`` (404) and, of older agents such as 1.8, ``does not have
  associated TTL`` (500) mean that the agent does not have the instance.
- Maintenance is a check of its own, which survives renewals and documents. Its note tells ours from an operator's.
- A deregistration is answered 200 also where nothing was. The last word is a GET with 404 and Consul's own words; an
  ingress' 404 is none.
- A check that is critical for ``DeregisterCriticalServiceAfter`` takes the instance out, also if that pod lives. Then
  the next renewal is answered as above, and the document is sent again.
"""

import json
from collections.abc import Callable
from urllib.parse import quote

import trio

from pidone.errors import Refused, RegistryError, TransferError
from pidone.http.client import redacted
from pidone.http.message import JSON, Response
from pidone.http.urls import segment
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries._consul_messages import (
    MAINTENANCE_REASON,
    Copy,
    Instance,
    copy_of,
    essence,
    is_absent,
    is_done,
    is_done_or_gone,
    is_gone,
    trouble,
)
from pidone.registries._consul_names import consul_id, consul_key, consul_meta, dns_label, trimmed
from pidone.registries._files import secret
from pidone.registries._servers import Servers, Trouble, base_urls, json_object

LOOK_UP_SECONDS = 30.0  # for a look at whether a slow agent has carried out a request; at most the TTL
_REMARKS = {Status.UP: "healthy", Status.DOWN: "not healthy", Status.STARTING: "starting"}


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
            # Any 404 will do: what is said then is asked for once more.
            await self._ask("PUT", path, lambda answer: answer.status == 404 or is_done_or_gone(answer))
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
            await self._ask("PUT", "service/register", is_done, query=query, body=body)
        except TransferError as error:
            if not error.sent:
                raise
            self._begin(LOOK_UP_SECONDS)
            copy = await self._look()
            if copy is None or not copy.check or copy.document != essence(self._instance.document(status)):
                raise
        self._accepted = True

    async def _set_check(self) -> bool:
        """Renew the lease with the present status. Returns False if the agent does not have the instance."""
        verb = "pass" if self._status is Status.UP else "fail"
        path = f"check/{verb}/{segment(self._instance.check)}"
        query = f"?note={quote(_REMARKS[self._status])}"
        return not is_gone(await self._ask("PUT", path, is_done_or_gone, query=query))

    async def _maintain(self, *, on: bool) -> bool:
        """Begin or end maintenance. Returns False if the agent does not have the instance.

        Where there is maintenance already, to begin it has no effect, and its note stays.
        """
        path = f"service/maintenance/{segment(self._instance.id)}"
        query = f"?enable={str(on).lower()}" + (f"&reason={quote(MAINTENANCE_REASON)}" if on else "")
        return not is_gone(await self._ask("PUT", path, is_done_or_gone, query=query))

    async def _look(self) -> Copy | None:
        """Return the agent's copy; None if the agent itself says that it has none."""

        def succeeds(answer: Response) -> bool:
            return answer.status == 404 or copy_of(answer, self._instance) is not None

        answer = await self._ask("GET", f"health/service/id/{segment(self._instance.id)}", succeeds)
        copy = copy_of(answer, self._instance)
        if copy is None and not await self._is_absent():
            raise RegistryError(f"{self.where}: the agent has the instance, and does not show its status")
        return copy

    async def _is_absent(self) -> bool:
        """True if the agent itself says that it does not have the instance. Raises for the answers of others."""

        def succeeds(answer: Response) -> bool:
            return is_absent(answer) or json_object(answer).get("ID") == self._instance.id

        return is_absent(await self._ask("GET", self._instance.resource, succeeds))

    def _begin(self, most: float = float("inf")) -> None:
        """Begin a call, or its part that looks after a failure. It has a lease's time, or ``most`` s."""
        self._until = trio.current_time() + min(self.lease, most)

    async def _ask(
        self,
        method: str,
        path: str,
        succeeds: Callable[[Response], bool],
        *,
        query: str = "",
        body: bytes = b"",
    ) -> Response:
        """Send a request with the token, and return the answer, which ``succeeds``. Raises for any other."""
        within = max(0.1, self._until - trio.current_time())
        token = secret(self._token_file) if self._token_file else self._token
        self._servers.headers = {"accept": JSON} | ({"x-consul-token": token} if token else {})

        async def judge(_server: str, answer: Response) -> Trouble | None:
            return None if succeeds(answer) else self._foreign(answer)

        return await self._servers.ask(method, path, judge, query=query, body=body, within=within)

    def _foreign(self, answer: Response) -> Trouble:
        """Return the reason and the remedy for an answer that is no success."""
        with_token = bool(self._token or self._token_file)
        return trouble(answer, name=self._instance.name, with_token=with_token, accepted=self._accepted)


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
