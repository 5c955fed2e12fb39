"""Netflix Eureka, as Spring Cloud serves it.

Rules that are not obvious, all observed on the server (com.netflix.eureka.registry.AbstractInstanceRegistry):

- ``lastDirtyTimestamp`` is the version number of our document. A POST with an older one than the registry
  holds is answered 204 and ignored, so it never goes back, whatever the wall clock does, and after each
  POST the instance is read back: the clock of an earlier pod or of an operator may have been ahead.
- The status in a heartbeat is ignored. UP and DOWN are told by POST. OUT_OF_SERVICE is an override (PUT .../status)
  and is never POSTed; the override of an operator survives our documents, and is only reported.
- The registry does not say who has set an override. Our document has ``MARK`` among its metadata while the override is
  ours, so that a program that starts again lifts it too. It is STARTING meanwhile, so that no client sees UP before the
  override.
- 404 to a heartbeat: the registry does not have our latest document; it is sent again at once.
- An ingress or a proxy answers 404 too, and 401, 403, 405, 200. Each call has one or two answers that are
  Eureka's own; with any other the next server is asked, as the Java client does (its ``ServerStatusEvaluator``).
  Other than with that client, a 404 to a DELETE is confirmed: see ``_why_not_absent``.
- A server that was too slow to answer a POST may carry it out at any time, even after a DELETE at another server.
- A stock server that is not UP answers 307 without a location (com.netflix.eureka.StatusFilter).
"""

import json
from collections.abc import Callable, Mapping
from time import time
from typing import Any, NamedTuple

from pidone.errors import PidoneError, Refused, RegistryError, TransferError
from pidone.http.client import CONNECT_SECONDS, redacted
from pidone.http.message import JSON, Response
from pidone.http.urls import authority, segment
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries._servers import (
    ANSWER_SECONDS,
    MAX_SHOWN,
    Judge,
    Remedies,
    Served,
    Servers,
    Trouble,
    base_urls,
    is_page,
    json_object,
    printable,
    shown,
)

# For a look at whether a slow server has carried out a request that it did not answer; at most the lease.
LOOK_UP_SECONDS = 30.0
# No clock is this far ahead. The instance with a later version is deregistered first: such a number has no successor.
MAX_CLOCK_AHEAD_MS = 10 * 365 * 86_400_000
MARK = "pidone.maintenance"  # the key in the metadata; the registry's XML has it as the name of an element
UNUSED_VIP = "pidone-is-this-eureka"  # a vipAddress that no application has
# The beginnings of refusals by com.netflix.eureka.resources.ApplicationResource, and by its JSON parser
REFUSALS = (
    "Missing ",
    "Mismatched appName",
    "dataCenterInfo of type",
    '{"error": "cannot parse request body"',
)

REMEDIES = Remedies(
    "Eureka",
    url="It ends before apps, as http://host:8761/eureka/",
    credentials="it wants a user (http://user:password@host), or its CSRF protection covers the Eureka paths",
)


class Instance(NamedTuple):
    """Our document, ``com.netflix.appinfo.InstanceInfo``. Durations are in whole seconds."""

    app: str
    id: str
    host: str
    ip: str
    port: int
    port_enabled: bool
    secure_port: int
    secure_port_enabled: bool
    vip: str
    renewal: int
    lease: int
    metadata: Mapping[str, str]
    home: str
    status_page: str
    health: str

    @property
    def resource(self) -> str:
        return f"apps/{segment(self.app)}/{segment(self.id)}"

    def document(self, status: Status, dirty: int, *, marked: bool = False) -> dict[str, Any]:
        """Return the body of a registration. The Java client reads all of it. ``dirty``: ms since the epoch."""
        mark = {MARK: "true"} if marked else {}
        secure = f"https://{authority(self.host, self.secure_port)}"
        base = f"http://{authority(self.host, self.port)}" if self.port_enabled else secure
        health = self.health.removeprefix("/")
        secure_health = {"secureHealthCheckUrl": f"{secure}/{health}"} if self.secure_port_enabled else {}
        return {
            "instance": {
                "instanceId": self.id,
                "app": self.app,
                "hostName": self.host,
                "ipAddr": self.ip,
                "vipAddress": self.vip,
                "secureVipAddress": self.vip,
                "status": status.value,
                "overriddenstatus": "UNKNOWN",
                "port": {"$": self.port, "@enabled": str(self.port_enabled).lower()},
                "securePort": {"$": self.secure_port, "@enabled": str(self.secure_port_enabled).lower()},
                "countryId": 1,
                "dataCenterInfo": {
                    "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                    "name": "MyOwn",
                },
                "leaseInfo": {"renewalIntervalInSecs": self.renewal, "durationInSecs": self.lease},
                "metadata": {**self.metadata, **mark},
                "homePageUrl": f"{base}/{self.home.removeprefix('/')}",
                "statusPageUrl": f"{base}/{self.status_page.removeprefix('/')}",
                "healthCheckUrl": f"{base}/{health}",
                **secure_health,
                "lastUpdatedTimestamp": str(dirty),
                "lastDirtyTimestamp": str(dirty),
            }
        }


class Eureka(Served):
    """One instance in one Eureka. Of its servers (peers), one is used at a time."""

    def __init__(
        self,
        servers: list[str],
        instance: Instance,
        *,
        source: str | None,
        namespace: str = "",
        clock: Callable[[], float] = time,
    ) -> None:
        # A stock Netflix server answers 406 to clients that do not accept gzip.
        self._servers = Servers(
            servers, source, {"accept": JSON, "accept-encoding": "gzip"}, namespace=namespace
        )
        self._instance = instance
        self._clock = clock
        self._dirty = 0  # the version of our document
        self._status: Status | None = None  # the status in it
        self._accepted: tuple[Status, int] | None = None  # status and version that the registry accepted last
        self._renewed = 0  # the last known time of a renewal, by the server's clock
        self._maintenance = False  # the override of the status is ours
        self._unanswered = set[str]()  # servers that may carry out an unanswered registration later

    @property
    def instance(self) -> str:
        return self._instance.resource

    @property
    def address(self) -> str:
        return self._instance.ip

    @property
    def interval(self) -> float:
        return float(self._instance.renewal)

    @property
    def lease(self) -> float:
        return float(self._instance.lease)

    async def register(self, status: Status) -> str:
        """POST the document, override the status or lift our override, and return the status shown then."""
        if status is Status.OUT_OF_SERVICE:
            return await self._override()
        if self._maintenance:
            await self._lift(status)
        return await self._register(status)

    async def _override(self) -> str:
        """Override the status, unless somebody else does, and return the status that the registry shows then."""
        copy = await self._read()
        ours = self._maintenance or (copy is not None and copy.marked)
        if copy is not None and copy.override and not (ours and copy.override == Status.OUT_OF_SERVICE):
            self._maintenance = False
            return await self._register(self._status or Status.STARTING)
        if not self._maintenance:
            self._maintenance, self._status = True, None  # the document changes, if only by its mark
        await self._register(Status.STARTING)
        query = f"?value={Status.OUT_OF_SERVICE}"
        await self._ask("PUT", f"{self._instance.resource}/status", self._judge_override, query=query)
        copy = await self._read_back(self._servers.current, CONNECT_SECONDS + ANSWER_SECONDS)
        return copy.status if copy is not None and copy.status else Status.OUT_OF_SERVICE.value

    async def _lift(self, status: Status) -> None:
        """Lift our override, unless somebody has changed it. The registry shows ``status`` at once."""
        copy = await self._read()
        if copy is not None and copy.override == Status.OUT_OF_SERVICE:
            path = f"{self._instance.resource}/status"
            await self._ask("DELETE", path, self._judge_deregistration, query=f"?value={status}")
        self._maintenance, self._status = False, None

    async def _register(self, status: Status) -> str:
        """POST the document, and return the status that the registry shows then."""
        if status is not self._status:
            self._status, self._dirty = status, max(self._dirty + 1, self._now())
        copy = await self._post(status)
        if copy is not None and copy.dirty > self._dirty:
            # The registry has kept a newer document, from a clock that is ahead of ours.
            if copy.dirty - self._now() > MAX_CLOCK_AHEAD_MS:
                marked = self._maintenance
                await self.deregister()
                self._status, self._maintenance = status, marked
            else:
                self._dirty = copy.dirty + 1
            copy = await self._post(status)
        return copy.status if copy is not None and copy.status else status.value

    async def heartbeat(self) -> bool:
        # The version of the accepted document: with a newer one, which was not accepted yet, the answer is 404.
        status, dirty = self._accepted or (Status.UP, 0)
        query = f"?status={status}&lastDirtyTimestamp={dirty}"
        self._servers.spread()
        try:
            answer = await self._ask("PUT", self._instance.resource, self._judge_heartbeat, query=query)
        except PidoneError:
            before = self._renewed
            copy = await self._look_up()
            if copy is None or copy.renewed == before:
                raise
            return True
        return answer.status == 200

    async def read(self) -> Entry | None:
        copy = await self._read()
        return None if copy is None else Entry(copy.status, copy.ip)

    async def _read(self) -> "_Copy | None":
        """Return the registry's copy; None if the registry itself says that it has none."""

        async def judge(server: str, answer: Response) -> Trouble | None:
            if answer.status == 404:
                return await self._why_not_absent(server)
            return None if _copy(answer) is not None else self._foreign(server, answer)

        return _copy(await self._ask("GET", self._instance.resource, judge))

    async def deregister(self) -> None:
        try:
            await self._ask("DELETE", self._instance.resource, self._judge_deregistration)
        except PidoneError:
            for server in self._servers.unanswered:
                if await self._why_not_absent(server, self._look_up_seconds) is None:
                    break
            else:
                raise
        self._status, self._maintenance = None, False

        async def delete(server: str, seconds: float) -> None:
            await self._servers.ask_one(server, "DELETE", self._instance.resource, within=seconds)

        await self._servers.deregister_late(self._unanswered, delete)

    def succeeds(self, previous: Registry) -> bool:
        return (
            isinstance(previous, Eureka)
            and previous.instance == self.instance
            and not self.places.isdisjoint(previous.places)
        )

    def take_over(self, previous: Registry) -> None:
        assert isinstance(previous, Eureka)
        self._servers.go_on_as(previous._servers)
        self._dirty, self._renewed, self._accepted = previous._dirty, previous._renewed, previous._accepted
        self._unanswered, self._maintenance = previous._unanswered, previous._maintenance

    async def _post(self, status: Status) -> "_Copy | None":
        """Register, and read the registry's copy back. Returns None if it could not be read."""
        document = self._instance.document(status, self._dirty, marked=self._maintenance)
        body = json.dumps(document).encode()
        path = self._instance.resource.rpartition("/")[0]
        try:
            await self._ask("POST", path, self._judge_registration, body=body)
        except PidoneError:
            self._unanswered.update(self._servers.unanswered)
            copy = await self._look_up()
            if copy is None or copy.dirty != self._dirty:
                raise
        else:
            self._unanswered.update(self._servers.unanswered)
            self._unanswered.discard(self._servers.current)
            copy = await self._read_back(self._servers.current, CONNECT_SECONDS + ANSWER_SECONDS)
        self._accepted = (status, self._dirty)
        return copy

    @property
    def _look_up_seconds(self) -> float:
        return min(LOOK_UP_SECONDS, self.lease)

    async def _look_up(self) -> "_Copy | None":
        """Read the copy of the servers that did not answer the last request, with more time than that had."""
        for server in self._servers.unanswered:
            copy = await self._read_back(server, self._look_up_seconds)
            if copy is not None:
                return copy
        return None

    async def _read_back(self, server: str, within: float) -> "_Copy | None":
        """Return a server's copy of our document; None if it has none or could not be read.

        A server that waits for its peers answers 403, and one that limits fetches 503; both accept registrations.
        """
        try:
            answer = await self._servers.ask_one(
                server, "GET", self._instance.resource, within=within, patience=within
            )
        except (TransferError, RegistryError):
            return None
        copy = _copy(answer)
        if copy is not None:
            self._renewed = copy.renewed
        return copy

    async def _ask(
        self, method: str, path: str, judge: Judge, *, query: str = "", body: bytes = b""
    ) -> Response:
        return await self._servers.ask(method, path, judge, query=query, body=body, within=self.lease)

    async def _judge_registration(self, server: str, answer: Response) -> Trouble | None:
        return None if answer.status == 204 else self._foreign(server, answer)

    async def _judge_heartbeat(self, server: str, answer: Response) -> Trouble | None:
        # An ingress may have answered 404 too. The POST that follows shows it: only Eureka answers it with 204.
        return None if answer.status == 404 or _is_done(answer) else self._foreign(server, answer)

    async def _judge_override(self, server: str, answer: Response) -> Trouble | None:
        return None if _is_done(answer) else self._foreign(server, answer)

    async def _judge_deregistration(self, server: str, answer: Response) -> Trouble | None:
        if answer.status == 404:
            return await self._why_not_absent(server)
        return None if _is_done(answer) else self._foreign(server, answer)

    async def _why_not_absent(self, server: str, patience: float = ANSWER_SECONDS) -> Trouble | None:
        """Return None if the server is an Eureka that does not have the instance, else the reason for doubt.

        An ingress without a route answers 404 to everything. Eureka answers any ``vips/NAME`` with a list, which is
        empty for an unknown name (com.netflix.eureka.resources.AbstractVIPResource).
        """
        within = CONNECT_SECONDS + patience
        vip = f"vips/{UNUSED_VIP}"
        answer = await self._servers.ask_one(server, "GET", vip, within=within, patience=patience)
        if "applications" not in json_object(answer):
            return Trouble(f"this is not the registry's word: {shown(answer)} to GET {vip}")
        path = self._instance.resource
        answer = await self._servers.ask_one(server, "GET", path, within=within, patience=patience)
        if answer.status == 404:
            return None
        return Trouble("the instance is still there" if _copy(answer) is not None else shown(answer))

    def _foreign(self, server: str, answer: Response) -> Trouble:
        """Return the reason and the remedy for an answer that is no success."""
        status = answer.status
        if status == 400 and answer.text.startswith(REFUSALS):
            return Trouble("the registry does not accept the document", refused=True)
        if status == 307:
            return Trouble("a server that is starting or out of service answers so")
        shown_server = redacted(server).rstrip("/")
        if status in {200, 400, 404, 405} and shown_server.endswith("/apps") and not self._accepted:
            return Trouble(
                f'the URL ends in "apps", which is added to it; write {shown_server.removesuffix("/apps")}'
            )
        return REMEDIES.foreign(answer, accepted=self._accepted is not None)

    def _now(self) -> int:
        return int(self._clock() * 1000)


class _Copy(NamedTuple):
    """The registry's copy of our document, as far as it is needed. Times are in ms since the epoch."""

    dirty: int
    status: str
    ip: str
    renewed: int
    override: str  # empty if there is none
    marked: bool  # the document has ``MARK``


def _is_done(answer: Response) -> bool:
    """True if this 200 is Eureka's: without a body, or with the instance in JSON or XML. A page or "OK" is not."""
    start = answer.body.lstrip()[:1]
    return answer.status == 200 and (not start or start == b"{" or (start == b"<" and not is_page(answer)))


def _copy(answer: Response) -> _Copy | None:
    """Return the document in an answer; None if it has none. Values of a wrong type or size are 0 or empty."""
    instance = json_object(answer).get("instance") if answer.status == 200 else None
    if not isinstance(instance, dict):
        return None
    lease = instance.get("leaseInfo")
    renewed = lease.get("lastRenewalTimestamp") if isinstance(lease, dict) else 0
    metadata = instance.get("metadata")
    # older servers write the second name
    override = instance.get("overriddenStatus", instance.get("overriddenstatus", ""))
    return _Copy(
        dirty=_number(instance.get("lastDirtyTimestamp")),
        status=printable(str(instance.get("status", "")))[:MAX_SHOWN],
        ip=printable(str(instance.get("ipAddr", "")))[:MAX_SHOWN],
        renewed=_number(renewed),
        override="" if override == "UNKNOWN" else printable(str(override))[:MAX_SHOWN],
        marked=isinstance(metadata, dict) and metadata.get(MARK) == "true",
    )


def _number(value: object) -> int:
    """Return a Java long, which is a number or a string in JSON; 0 if it is none."""
    text = (
        str(value)[:20] if isinstance(value, str) or (type(value) is int and value.bit_length() < 64) else ""
    )
    return int(text) if text.isascii() and text.isdecimal() and int(text) < 1 << 63 else 0


def build(fields: Fields, pod: Pod, source: str | None) -> Eureka:
    """Build the driver from ``register: eureka``. Raises ``Refused``."""
    servers = base_urls(fields, "url", "that end before apps")
    app = fields.text("app").upper()
    port = fields.integer("port", least=1, most=65535)
    secure_port: int | None = fields.integer("securePort", None, least=1, most=65535)
    instance = Instance(
        app=app,
        id=fields.text("instanceId", f"{pod.name}:{app.lower()}:{port}"),
        host=fields.text("hostName", pod.ip),
        ip=fields.text("ipAddr", pod.ip),
        port=port,
        port_enabled=fields.flag("portEnabled", secure_port is None),
        secure_port=secure_port or 443,
        secure_port_enabled=fields.flag("securePortEnabled", secure_port is not None),
        vip=fields.text("vipAddress", app.lower()),
        renewal=round(fields.seconds("renewalInterval", 30.0, least=1, most=3600)),
        lease=round(fields.seconds("leaseDuration", 90.0, least=1, most=86400)),
        metadata=fields.table("metadata"),
        home=fields.text("homePagePath", "/"),
        status_page=fields.text("statusPagePath", "/info"),
        health=fields.text("healthCheckPath", "/health"),
    )
    for name, value in (("app", instance.app), ("instanceId", instance.id)):
        try:
            segment(value)
        except ValueError as error:
            # Tomcat refuses %2F in a path: such an instance can be registered, and never renewed or taken out
            raise Refused(f"{fields.path}.{name}: {error}, so that Eureka cannot address it") from error
    if not instance.port_enabled and not instance.secure_port_enabled:
        raise Refused(f"{fields.path}: portEnabled or securePortEnabled; without a port nobody can call it")
    fields.done()
    return Eureka(servers, instance, source=source, namespace=pod.namespace)
