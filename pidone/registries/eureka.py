"""Netflix Eureka, as Spring Cloud serves it.

Rules that are not obvious, all observed on the server (com.netflix.eureka.registry.AbstractInstanceRegistry):

- ``lastDirtyTimestamp`` is the version number of our document. A POST with an older one than the registry
  holds is answered 204 and ignored, so it never goes back, whatever the wall clock does, and after each
  POST the instance is read back: a predecessor's clock may have been ahead, or an operator's.
- The status in a heartbeat is ignored. UP and DOWN are told by POST. OUT_OF_SERVICE belongs to operators
  (PUT .../status) and is never POSTed; an override survives our documents, and is only reported.
- 404 to a heartbeat: the registry does not have our latest document; it is sent again at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import trio

from pidone.errors import Refused, RegistryError, RegistryRefused, TransferError
from pidone.http.client import redacted, request
from pidone.http.message import JSON, Response
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Status

CALL_TIMEOUT = 5.0  # seconds for one operation, all servers that it tries taken together
MAX_SERVERS = 3  # tried for one operation, as the Java client does
MAX_REDIRECTS = 3


@dataclass(frozen=True, slots=True)
class Instance:
    """What we say of ourselves; ``com.netflix.appinfo.InstanceInfo``. Durations are in whole seconds."""

    app: str
    id: str
    host: str
    ip: str
    port: int
    secure_port: int | None
    vip: str
    renewal: int
    lease: int
    metadata: Mapping[str, str]
    home: str
    status_page: str
    health: str

    @property
    def resource(self) -> str:
        return f"apps/{quote(self.app, safe='')}/{quote(self.id, safe='')}"

    def document(self, status: Status, dirty: int) -> dict[str, Any]:
        """The body of a registration; what the Java client reads back completely. ``dirty``: ms since the epoch."""
        base = (
            f"https://{self.host}:{self.secure_port}"
            if self.secure_port
            else f"http://{self.host}:{self.port}"
        )
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
                "port": {"$": self.port, "@enabled": "false" if self.secure_port else "true"},
                "securePort": {
                    "$": self.secure_port or 443,
                    "@enabled": "true" if self.secure_port else "false",
                },
                "countryId": 1,
                "dataCenterInfo": {
                    "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                    "name": "MyOwn",
                },
                "leaseInfo": {"renewalIntervalInSecs": self.renewal, "durationInSecs": self.lease},
                "metadata": dict(self.metadata),
                "homePageUrl": f"{base}/{self.home.removeprefix('/')}",
                "statusPageUrl": f"{base}/{self.status_page.removeprefix('/')}",
                "healthCheckUrl": f"{base}/{self.health.removeprefix('/')}",
                "lastUpdatedTimestamp": str(dirty),
                "lastDirtyTimestamp": str(dirty),
            }
        }


class Eureka:
    """One instance in one Eureka, which may have several servers (peers): one is talked to at a time."""

    def __init__(
        self, servers: list[str], instance: Instance, *, source: str | None, clock: Callable[[], float] = time
    ) -> None:
        self._servers = servers
        self._instance = instance
        self._source = source
        self._clock = clock
        self._current = 0
        self._dirty = 0
        self._status: Status | None = None

    @property
    def where(self) -> str:
        return ",".join(map(redacted, self._servers))

    @property
    def instance(self) -> str:
        return self._instance.resource

    async def register(self, status: Status) -> str:
        """POST the document; returns the status that the registry then shows."""
        if status is not self._status:
            self._status, self._dirty = status, max(self._dirty + 1, int(self._clock() * 1000))
        await self._post(status)
        newer, shown = await self._read_back()
        if newer > self._dirty:
            self._dirty = newer + 1
            await self._post(status)
            _, shown = await self._read_back()
        return shown or status.value

    async def heartbeat(self) -> bool:
        status = self._status.value if self._status else Status.UP.value
        query = f"?status={status}&lastDirtyTimestamp={self._dirty}"
        answer = await self._call("PUT", self._instance.resource, query=query)
        if answer.status == 404:
            return False
        _expect(answer, 200, "heartbeat")
        return True

    async def deregister(self) -> None:
        answer = await self._call("DELETE", self._instance.resource)
        if answer.status != 404:
            _expect(answer, 200, "deregistration")
        self._status = None

    async def _post(self, status: Status) -> None:
        body = json.dumps(self._instance.document(status, self._dirty)).encode()
        answer = await self._call("POST", self._instance.resource.rpartition("/")[0], body=body)
        _expect(answer, 204, "registration")

    async def _read_back(self) -> tuple[int, str]:
        """Version and status of the registry's copy; 0 and nothing where it would not tell.

        A server that waits for its peers answers 403, one that limits fetches 503, and writes go on.
        """
        try:
            answer = await self._call("GET", self._instance.resource)
            instance = json.loads(answer.body)["instance"]
            return int(instance["lastDirtyTimestamp"]), str(instance["status"])
        except (TransferError, RegistryError, ValueError, LookupError, TypeError):
            return 0, ""

    async def _call(self, method: str, path: str, *, query: str = "", body: bytes = b"") -> Response:
        """Ask the current server, and on trouble the next ones; the first that answers stays the current one."""
        tries = min(len(self._servers), MAX_SERVERS)
        until = trio.current_time() + CALL_TIMEOUT
        trouble: Exception = RegistryError("no server")
        for left in range(tries, 0, -1):
            timeout = max(0.1, (until - trio.current_time()) / left)
            try:
                answer = await self._ask(self._servers[self._current] + path, method, query, body, timeout)
            except TransferError as error:
                trouble = error
            else:
                if answer.status < 500 and answer.status != 429:
                    return answer
                trouble = RegistryError(
                    f"{method} {redacted(self._servers[self._current])}{path}: {_shown(answer)}"
                )
            self._current = (self._current + 1) % len(self._servers)
        raise trouble

    async def _ask(self, url: str, method: str, query: str, body: bytes, timeout: float) -> Response:
        """One request; redirects are followed by hand, since old servers pin their clients with a 302 to a PUT."""
        # A stock Netflix server answers 406 to whoever cannot take gzip.
        headers = {"accept": JSON, "accept-encoding": "gzip"} | ({"content-type": JSON} if body else {})
        resource = unquote(url.partition("/apps/")[2])
        for _ in range(MAX_REDIRECTS):
            answer = await request(
                method, url + query, headers=headers, body=body, timeout=timeout, source=self._source
            )
            location = answer.headers.get("location", "")
            if answer.status not in {301, 302, 303, 307, 308} or not location:
                return answer
            location = urljoin(url, location)
            if unquote(urlsplit(location).path.partition("/apps/")[2]) != resource:
                raise RegistryRefused(
                    f"{method} {redacted(url)}: redirected to {redacted(location)}; "
                    "is the URL right, and does it need a user (http://user:password@host)?"
                )
            url = location.partition("?")[0]
        raise RegistryError(f"{method} {redacted(url)}: more than {MAX_REDIRECTS} redirects")


def _expect(answer: Response, status: int, what: str) -> None:
    """Nothing where the answer is the one that Eureka gives for yes; else the error that says whether to retry."""
    if answer.status == status:
        return
    match answer.status:
        case 401 | 403:
            remedy = (
                "it wants a user (http://user:password@host), or its CSRF protection covers the Eureka paths"
            )
        case 404:
            remedy = "is the URL right? It ends before apps, as http://host:8761/eureka/"
        case 200:
            remedy = "this is not an answer of Eureka; is the URL right?"
        case 400:
            remedy = "the registry does not accept the document"
        case _:
            raise RegistryError(f"{what}: {_shown(answer)}")
    raise RegistryRefused(f"{what}: {_shown(answer)}: {remedy}")


def _shown(answer: Response) -> str:
    words = " ".join(answer.text.split())[:120]
    return f"answered {answer.status}" + (f' "{words}"' if words and not words.startswith("<") else "")


def build(fields: Fields, pod: Pod, source: str | None) -> Eureka:
    """Read ``register: eureka``. Raises ``Refused``."""
    servers = [part.strip().rstrip("/") + "/" for part in fields.text("url").split(",") if part.strip()]
    if not servers or not all(server.startswith(("http://", "https://")) for server in servers):
        raise Refused(f"{fields.path}.url: expected http:// or https:// URLs that end before apps")
    if any(mark in server for server in servers for mark in "?#"):
        # the controller calls it too, after the pod: nothing may come between the path and ours
        raise Refused(f"{fields.path}.url: a URL that goes on with a path has no ? and no # (%3F, %23)")
    app = fields.text("app").upper()
    port = fields.integer("port", least=1, most=65535)
    instance = Instance(
        app=app,
        id=fields.text("instanceId", f"{pod.name}:{app.lower()}:{port}"),
        host=fields.text("hostName", pod.ip),
        ip=fields.text("ipAddr", pod.ip),
        port=port,
        secure_port=fields.integer("securePort", None, least=1, most=65535),
        vip=fields.text("vipAddress", app.lower()),
        renewal=round(fields.seconds("renewalInterval", 30.0, least=1, most=3600)),
        lease=round(fields.seconds("leaseDuration", 90.0, least=1, most=86400)),
        metadata=fields.table("metadata"),
        home=fields.text("homePagePath", "/"),
        status_page=fields.text("statusPagePath", "/info"),
        health=fields.text("healthCheckPath", "/health"),
    )
    if "/" in instance.id:
        # Tomcat refuses %2F in a path: such an instance can be registered, and never renewed or taken out
        raise Refused(f'{fields.path}.instanceId: "{instance.id}" has a slash, which Eureka cannot address')
    fields.done()
    return Eureka(servers, instance, source=source)
