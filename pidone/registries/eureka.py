"""Netflix Eureka, as Spring Cloud serves it.

Rules that are not obvious, all observed on the server (com.netflix.eureka.registry.AbstractInstanceRegistry):

- ``lastDirtyTimestamp`` is the version number of our document. A POST with an older one than the registry
  holds is answered 204 and ignored, so it never goes back, whatever the wall clock does, and after each
  POST the instance is read back: a predecessor's clock may have been ahead, or an operator's.
- The status in a heartbeat is ignored. UP and DOWN are told by POST. OUT_OF_SERVICE belongs to operators
  (PUT .../status) and is never POSTed; an override survives our documents, and is only reported.
- 404 to a heartbeat: the registry does not have our latest document; it is sent again at once.
- What stands in between answers 404 too, and 401, 403, 405, 200. Each call has one or two answers that are
  Eureka's own; with any other the next server is asked, as the Java client does (its ``ServerStatusEvaluator``).
  Beyond it, a 404 to a DELETE is believed only from what proves to be an Eureka.
- A stock server that is not UP answers 307 without a location (com.netflix.eureka.StatusFilter).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any
from urllib.parse import urlsplit

from pidone.errors import PidoneError, Refused, RegistryError, TransferError
from pidone.http.client import CONNECT_TIMEOUT, redacted
from pidone.http.message import JSON, Response
from pidone.http.urls import authority, has_dot_segments, origin, segment
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries._servers import (
    ANSWER_SECONDS,
    WORDS_WIDTH,
    Judge,
    Servers,
    Trouble,
    is_page,
    printable,
    shown,
)

LOOK_UP_SECONDS = (
    30.0  # for a server that was too slow to say whether it did what it was asked; the lease at most
)
NONSENSE = 10 * 365 * 86_400_000  # ms by which no clock is ahead: such a version is removed, and not outdone
NOBODY = "pidone-is-this-eureka"  # a name that no application is looked up by
# How a refusal of com.netflix.eureka.resources.ApplicationResource begins, and one of its JSON parser
REFUSALS = (
    "Missing ",
    "Mismatched appName",
    "dataCenterInfo of type",
    '{"error": "cannot parse request body"',
)


@dataclass(frozen=True, slots=True)
class Instance:
    """What we say of ourselves; ``com.netflix.appinfo.InstanceInfo``. Durations are in whole seconds."""

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

    def document(self, status: Status, dirty: int) -> dict[str, Any]:
        """The body of a registration; what the Java client reads back completely. ``dirty``: ms since the epoch."""
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
                "metadata": dict(self.metadata),
                "homePageUrl": f"{base}/{self.home.removeprefix('/')}",
                "statusPageUrl": f"{base}/{self.status_page.removeprefix('/')}",
                "healthCheckUrl": f"{base}/{health}",
                **secure_health,
                "lastUpdatedTimestamp": str(dirty),
                "lastDirtyTimestamp": str(dirty),
            }
        }


class Eureka:
    """One instance in one Eureka, which may have several servers (peers): one is talked to at a time."""

    def __init__(
        self,
        servers: list[str],
        instance: Instance,
        *,
        source: str | None,
        namespace: str = "",
        clock: Callable[[], float] = time,
    ) -> None:
        # A stock Netflix server answers 406 to whoever cannot take gzip.
        self._servers = Servers(
            servers, source, {"accept": JSON, "accept-encoding": "gzip"}, namespace=namespace
        )
        self._instance = instance
        self._clock = clock
        self._dirty = 0  # the version of our document,
        self._status: Status | None = None  # and its status
        self._accepted: tuple[Status, int] | None = None  # the last one that the registry took
        self._renewed = 0  # the server's time of the last renewal that we know of

    @property
    def where(self) -> str:
        return self._servers.shown

    @property
    def places(self) -> frozenset[str]:
        return self._servers.places

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
        """POST the document; returns the status that the registry then shows."""
        if status is not self._status:
            self._status, self._dirty = status, max(self._dirty + 1, self._now())
        copy = await self._post(status)
        if copy is not None and copy.dirty > self._dirty:
            # The registry keeps the newer document, whose version a clock ahead of ours has made
            if copy.dirty - self._now() > NONSENSE:
                await self.deregister()
                self._status = status
            else:
                self._dirty = copy.dirty + 1
            copy = await self._post(status)
        return copy.status if copy is not None and copy.status else status.value

    async def heartbeat(self) -> bool:
        # a newer document than it has would be a 404: what it could not be given yet is not its fault
        status, dirty = self._accepted or (Status.UP, 0)
        query = f"?status={status}&lastDirtyTimestamp={dirty}"
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
        async def judge(server: str, answer: Response) -> Trouble | None:
            if answer.status == 404:
                return await self._why_not_absent(server)
            return None if _copy(answer) is not None else self._foreign(server, answer)

        copy = _copy(await self._ask("GET", self._instance.resource, judge))
        return None if copy is None else Entry(copy.status, copy.ip)

    async def deregister(self) -> None:
        try:
            await self._ask("DELETE", self._instance.resource, self._judge_deregistration)
        except PidoneError:
            for server in self._servers.unanswered:
                if await self._why_not_absent(server, self._look_up_seconds) is None:
                    break
            else:
                raise
        self._status = None

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

    async def _post(self, status: Status) -> "_Copy | None":
        """Register, and read back what the registry has then; None where it would not tell."""
        body = json.dumps(self._instance.document(status, self._dirty)).encode()
        path = self._instance.resource.rpartition("/")[0]
        try:
            await self._ask("POST", path, self._judge_registration, body=body)
        except PidoneError:
            copy = await self._look_up()
            if copy is None or copy.dirty != self._dirty:
                raise
        else:
            copy = await self._read_back(self._servers.current, CONNECT_TIMEOUT + ANSWER_SECONDS)
        self._accepted = (status, self._dirty)
        return copy

    @property
    def _look_up_seconds(self) -> float:
        return min(LOOK_UP_SECONDS, self.lease)

    async def _look_up(self) -> "_Copy | None":
        """What those servers have that did not say whether they did what was asked; they have more time for it."""
        for server in self._servers.unanswered:
            copy = await self._read_back(server, self._look_up_seconds)
            if copy is not None:
                return copy
        return None

    async def _read_back(self, server: str, within: float) -> "_Copy | None":
        """The registry's copy of our document; None where it has none, or would not tell.

        A server that waits for its peers answers 403, one that limits fetches 503, and writes go on.
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

    # Which answers are Eureka's own

    async def _judge_registration(self, server: str, answer: Response) -> Trouble | None:
        return None if answer.status == 204 else self._foreign(server, answer)

    async def _judge_heartbeat(self, server: str, answer: Response) -> Trouble | None:
        # 404 may be anybody's. The registration that follows tells: nobody but Eureka answers 204 to it.
        return None if answer.status == 404 or _is_done(answer) else self._foreign(server, answer)

    async def _judge_deregistration(self, server: str, answer: Response) -> Trouble | None:
        if answer.status == 404:
            return await self._why_not_absent(server)
        return None if _is_done(answer) else self._foreign(server, answer)

    async def _why_not_absent(self, server: str, patience: float = ANSWER_SECONDS) -> Trouble | None:
        """None if a 404 can be believed: what answers is an Eureka, and does not have the instance.

        An ingress without a route answers 404 to everything. Eureka answers any ``vips/NAME`` with a list, of no
        instances for a name that nobody has (com.netflix.eureka.resources.AbstractVIPResource).
        """
        within = CONNECT_TIMEOUT + patience
        vip = f"vips/{NOBODY}"
        answer = await self._servers.ask_one(server, "GET", vip, within=within, patience=patience)
        if "applications" not in _object(answer):
            return Trouble(f"this is not the registry's word: {shown(answer)} to GET {vip}")
        path = self._instance.resource
        answer = await self._servers.ask_one(server, "GET", path, within=within, patience=patience)
        if answer.status == 404:
            return None
        return Trouble("the instance is still there" if _copy(answer) is not None else shown(answer))

    def _foreign(self, server: str, answer: Response) -> Trouble:
        """What to do about an answer that is not Eureka's yes."""
        status = answer.status
        if status == 400 and answer.text.startswith(REFUSALS):
            return Trouble("the registry does not accept the document", refused=True)
        if status == 429 or status >= 500:
            return Trouble("the server is in trouble")
        if status == 307:
            return Trouble("a server that is starting or out of service answers so")
        if self._accepted:
            return Trouble(
                "this is not the registry's answer, which has registered us before; what is in between?"
            )
        if status in {401, 403}:
            return Trouble(
                "it wants a user (http://user:password@host), or its CSRF protection covers the Eureka paths"
            )
        shown_server = redacted(server).rstrip("/")
        if shown_server.endswith("/apps"):
            return Trouble(
                f'the URL ends in "apps", which is added to it; write {shown_server.removesuffix("/apps")}'
            )
        return Trouble(
            "this is not an answer of Eureka; is the URL right? It ends before apps, as http://host:8761/eureka/"
        )

    def _now(self) -> int:
        return int(self._clock() * 1000)


@dataclass(frozen=True, slots=True)
class _Copy:
    """What we want to know of the registry's copy of our document. Times are in ms since the epoch."""

    dirty: int
    status: str
    ip: str
    renewed: int


def _is_done(answer: Response) -> bool:
    """Eureka's 200 has no body, or the instance in JSON or XML; a page or a proxy's "OK" is somebody else's."""
    start = answer.body.lstrip()[:1]
    return answer.status == 200 and (not start or start == b"{" or (start == b"<" and not is_page(answer)))


def _copy(answer: Response) -> _Copy | None:
    """The registry's document, if this is one. Nothing in it is trusted to be what it should be."""
    instance = _object(answer).get("instance") if answer.status == 200 else None
    if not isinstance(instance, dict):
        return None
    lease = instance.get("leaseInfo")
    renewed = lease.get("lastRenewalTimestamp") if isinstance(lease, dict) else 0
    return _Copy(
        dirty=_number(instance.get("lastDirtyTimestamp")),
        status=printable(str(instance.get("status", "")))[:WORDS_WIDTH],
        ip=printable(str(instance.get("ipAddr", "")))[:WORDS_WIDTH],
        renewed=_number(renewed),
    )


def _object(answer: Response) -> dict[str, Any]:
    """The JSON object of an answer; empty where it is none."""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int:
    """A Java long, which JSON has as a number or a string; 0 where it is none."""
    text = (
        str(value)[:20] if isinstance(value, str) or (type(value) is int and value.bit_length() < 64) else ""
    )
    return int(text) if text.isascii() and text.isdecimal() and int(text) < 1 << 63 else 0


def build(fields: Fields, pod: Pod, source: str | None) -> Eureka:
    """Read ``register: eureka``. Raises ``Refused``."""
    servers = [part.strip() for part in fields.text("url").split(",") if part.strip()]
    for server in servers:
        _check_url(server, f"{fields.path}.url")
    if not servers:
        raise Refused(f"{fields.path}.url: expected http:// or https:// URLs that end before apps")
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


def _check_url(url: str, path: str) -> None:
    """Raises ``Refused`` where our path behind it would not be what is asked for."""
    if not url.startswith(("http://", "https://")):
        raise Refused(f"{path}: expected http:// or https:// URLs that end before apps")
    if any(mark in url for mark in "?#"):
        # the controller calls it too, after the pod: nothing may come between the path and ours
        raise Refused(f"{path}: a URL that goes on with a path has no ? and no # (%3F, %23)")
    try:
        origin(url)
        dots = has_dot_segments(urlsplit(url).path)
    except ValueError:
        # not shown: what stands in the place of the port may be the end of a password
        raise Refused(f"{path}: not a URL; are / ? # @ in its password written as %2F %3F %23 %40?") from None
    if dots:
        raise Refused(f'{path}: a path without "." and ".."')
