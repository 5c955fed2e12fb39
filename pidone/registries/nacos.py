"""Alibaba Nacos by its HTTP API: v1 and v2 of Nacos 2.x, and v3 of Nacos 3.x.

Rules that are not obvious, all observed on servers (2.3.2 and 3.1.0), with the API in ``_nacos``:

- A server is asked which API it has, and asked again when it does not know that API any more, as after an upgrade.
- ``ok`` to a DELETE says nothing: a server says it for any instance. A heartbeat is asked whether the instance is gone.
  It is forwarded to the server that is responsible for the instance, and creates nothing.
- DOWN is a DELETE, and not ``enabled=false``: what an operator has set in the console overrides ``enabled`` until the
  instance is away for a minute, so it could keep an instance that is DOWN visible.
- STARTING and OUT_OF_SERVICE are ``enabled=false``; clients do not get such an instance, and operators see it. If an
  operator's setting keeps it visible, it is deregistered instead.
- A list is up to half a second old, and of another server of a cluster up to two. A first registration does not wait
  for it; an operator can have set nothing before.
- A token is asked for when the server wants one, again when 90 % of its time are over, and once after a 403.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any, TypeVar

import trio

from pidone.errors import (
    PidoneError,
    ProtocolError,
    Refused,
    RegistryError,
    RegistryRefused,
    TransferError,
)
from pidone.http.client import CONNECT_SECONDS, redacted
from pidone.http.message import JSON, Response
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries import _nacos as protocol
from pidone.registries import _nacos_names as names
from pidone.registries._files import Credentials, credentials_in
from pidone.registries._nacos import Api, Call, Instance
from pidone.registries._servers import ANSWER_SECONDS, Remedies, Served, Servers, Trouble, base_urls

INTERVAL_SECONDS, UNHEALTHY_SECONDS, REMOVED_SECONDS = 5.0, 15.0, 30.0  # defaults of the server
LEAST_INTERVAL_SECONDS = 1.0
# For a look at whether a slow server has carried out a request that it did not answer; at most the lease.
LOOK_UP_SECONDS = 30.0
LIST_BYTES = 1 << 16  # of a list of instances that is read; of a larger one nothing is known
SYNC_SECONDS = (0.5, 1.0, 2.0)  # between looks at a server that may not show yet what has been accepted
DELETE_AGAIN_SECONDS = (0.2, 0.5, 1.0)  # between deletions of an instance that is still there
REFRESH = 0.9  # of a token's time
# ``preserved.*`` keys of the metadata, by the fields that set them; com.alibaba.nacos.api.naming.PreservedMetadataKeys
PRESERVED = {
    "heartBeatInterval": "preserved.heart.beat.interval",
    "heartBeatTimeout": "preserved.heart.beat.timeout",
    "ipDeleteTimeout": "preserved.ip.delete.timeout",
}
ACCEPT = {"accept": JSON}
DISABLED = "OUT_OF_SERVICE"  # what a registered instance is that clients do not get

REMEDIES = Remedies(
    "Nacos",
    url="It ends before v1, v2 or v3, as http://host:8848/nacos",
    credentials="it wants a user; set username, and password or passwordFile",
)

T = TypeVar("T")


class Nacos(Served):
    """One instance in one Nacos. Of its servers, one is used at a time."""

    def __init__(
        self,
        servers: list[str],
        instance: Instance,
        *,
        api: Api | None,
        credentials: Credentials | None,
        interval: float,
        lease: float,
        source: str | None,
        namespace: str = "",
        start: str = "",
    ) -> None:
        self._servers = Servers(servers, source, ACCEPT, namespace=namespace, start=start)
        self._instance = instance
        self._pinned = api
        self._apis = dict[str, Api]()  # by server
        self._credentials = credentials
        self._refresh_at = self._valid_until = inf  # of the token in the headers, if there is one
        self._interval = interval
        self._lease = lease
        self._accepted = False  # the registry has accepted us before
        self._present = False  # we have registered, and not deregistered since
        self._broken = False  # the server knows the instance, and not its service
        self._unanswered = set[str]()  # servers that may carry out an unanswered registration later

    @property
    def instance(self) -> str:
        return self._instance.id

    @property
    def address(self) -> str:
        return self._instance.ip

    @property
    def interval(self) -> float:
        return self._interval

    @property
    def lease(self) -> float:
        return self._lease

    async def prepare(self) -> None:
        """Find out the server's API, and log in: the server needs 60 to 130 ms to compare a password, by bcrypt."""
        await self._ask(partial(self._instance.listing, cluster=protocol.UNUSED_CLUSTER), protocol.hosts)

    async def register(self, status: Status) -> str:
        if status is Status.DOWN or self._broken:
            await self._leave()
        if status is not Status.DOWN:
            visible = status is Status.UP
            await self._post(visible=visible)
            first, self._accepted, self._present = not self._accepted, True, True
            shown = await self._shown(visible=visible, first=first)
            if visible and shown is not None:
                return shown
            if shown not in {DISABLED, None}:
                # an operator's setting overrides ours, and clients must not get the instance
                await self._leave()
        self._accepted = True
        return status.value

    async def heartbeat(self) -> bool:
        self._servers.spread()
        beat = await self._ask(self._instance.beat, protocol.beat)
        if beat.broken:
            self._broken = True
            return False
        if beat.interval is not None:
            self._interval = max(LEAST_INTERVAL_SECONDS, min(beat.interval, self._lease / 2))
        # What we have deregistered is there again if a server has carried out a late registration.
        return beat.known is self._present

    async def read(self) -> Entry | None:
        async def attempt(server: str, seconds: float) -> Entry | None:
            until = trio.current_time() + seconds
            status = await self._look(server, until)
            return None if status is None else Entry(status, self._instance.ip)

        return await self._servers.attempt("GET instance", attempt, within=self._lease)

    async def deregister(self) -> None:
        await self._leave()

        async def delete(server: str, seconds: float) -> None:
            until = trio.current_time() + seconds
            await self._ask_server(server, until, self._instance.deregistration, _done)

        await self._servers.deregister_late(self._unanswered, delete)

    def succeeds(self, previous: Registry) -> bool:
        return (
            isinstance(previous, Nacos)
            and previous.instance == self.instance
            and not self.places.isdisjoint(previous.places)
        )

    def take_over(self, previous: Registry) -> None:
        assert isinstance(previous, Nacos)
        self._servers.go_on_as(previous._servers)
        self._accepted, self._present = previous._accepted, previous._present
        self._unanswered, self._broken = previous._unanswered, previous._broken
        # how a token is sent depends on the URL
        if (self._credentials, self._servers.current) == (previous._credentials, previous._servers.current):
            self._servers.headers = previous._servers.headers
            self._refresh_at, self._valid_until = previous._refresh_at, previous._valid_until
        if self._pinned is None:
            self._apis.update(previous._apis)

    async def _leave(self) -> None:
        """Deregister at one server. It returns when that server says that the instance is not there."""
        try:
            await self._ask(self._instance.deregistration, _done)
        except PidoneError:
            for server in self._servers.unanswered:
                if await self._is_absent(server):
                    break
            else:
                raise
        else:
            server = self._servers.current
            for pause in (*DELETE_AGAIN_SECONDS, None):
                if await self._is_absent(server):
                    break
                if pause is None:
                    raise RegistryError(f"{redacted(server)}: ok to DELETE, but the instance is still there")
                await trio.sleep(pause)
                await self._ask(self._instance.deregistration, _done)
        self._present = self._broken = False

    async def _is_absent(self, server: str) -> bool:
        """True if the server says that it does not have the instance. Raises if it does not answer that."""
        seconds = min(LOOK_UP_SECONDS, self._lease)
        until = trio.current_time() + seconds
        beat = await self._ask_server(server, until, self._instance.beat, protocol.beat, patience=seconds)
        return not beat.known

    async def _post(self, *, visible: bool) -> None:
        """Send the whole document. After an error it looks whether a server has got it all the same."""

        def registration(api: Api) -> Call:
            return self._instance.registration(api, enabled=visible)

        try:
            await self._ask(registration, _done)
        except PidoneError:
            self._unanswered.update(self._servers.unanswered)
            for server in self._servers.unanswered:
                if visible and await self._has_document(server):
                    return
            raise
        self._unanswered.update(self._servers.unanswered)
        self._unanswered.discard(self._servers.current)

    async def _has_document(self, server: str) -> bool:
        """True if the server shows what we have registered; False also if it does not answer."""
        seconds = min(LOOK_UP_SECONDS, self._lease)
        try:
            host = await self._listed(server, trio.current_time() + seconds, patience=seconds)
        except (TransferError, RegistryError):
            return False
        return host is not None and self._instance.is_current(host)

    async def _shown(self, *, visible: bool, first: bool) -> str | None:
        """Return what the server shows of an instance that it has accepted; None if that is not known."""
        server = self._servers.current
        until = trio.current_time() + min(CONNECT_SECONDS + ANSWER_SECONDS, self._lease)
        try:
            if first and visible:
                host = await self._listed(server, until)
                return None if host is None else _status(host)
            status = await self._look(server, until)
            for pause in SYNC_SECONDS:
                if status is None or (status != DISABLED) is visible:
                    break
                await trio.sleep(pause)
                status = await self._look(server, until)
        except (TransferError, RegistryError) as error:
            if self._apis.get(server, self._pinned) is Api.V1 and not isinstance(error, ProtocolError):
                # "ok" was the whole answer of somebody, and now it is clear that this was not Nacos
                self._apis.pop(server, None)
                raise
            return None
        return status

    async def _look(self, server: str, until: float) -> str | None:
        """Return UP, UNHEALTHY or OUT_OF_SERVICE, as the server has the instance; None if it has none.

        A heartbeat tells whether the server has an instance that is not in the list.
        """
        try:
            host = await self._listed(server, until)
            unlisted = DISABLED
        except ProtocolError:  # the list is too long to be read, so the instance is taken to be in it
            host, unlisted = None, Status.UP.value
        if host is not None:
            return _status(host)
        beat = await self._ask_server(server, until, self._instance.beat, protocol.beat)
        return unlisted if beat.known else None

    async def _listed(
        self, server: str, until: float, *, patience: float = ANSWER_SECONDS
    ) -> Mapping[str, Any] | None:
        """Return our instance in the list that clients get; None if it is not in it."""
        hosts = await self._ask_server(
            server, until, self._instance.listing, protocol.hosts, patience=patience
        )
        return next(filter(self._instance.is_ours, hosts), None)

    async def _ask(self, call: Callable[[Api], Call], meaning: Callable[[Api, Response], T | None]) -> T:
        """Send a request to one server after another until ``meaning`` understands an answer, and return that."""

        async def attempt(server: str, seconds: float) -> T:
            return await self._ask_server(server, trio.current_time() + seconds, call, meaning)

        example = call(self._apis.get(self._servers.current, self._pinned or Api.V3))
        return await self._servers.attempt(f"{example.method} {example.path}", attempt, within=self._lease)

    async def _ask_server(
        self,
        server: str,
        until: float,
        call: Callable[[Api], Call],
        meaning: Callable[[Api, Response], T | None],
        *,
        patience: float = ANSWER_SECONDS,
    ) -> T:
        """Do the same with one server, with ``patience`` seconds for an answer.

        Raises ``TransferError`` and ``RegistryError``.
        """
        api = await self._api_of(server, until)
        sent, answer = call(api), await self._send(server, api, call(api), until, patience)
        value = meaning(api, answer)
        if value is None and protocol.is_unknown_api(answer) and self._pinned is None:
            api = await self._discover(server, until)
            sent, answer = call(api), await self._send(server, api, call(api), until, patience)
            value = meaning(api, answer)
        if value is None:
            raise self._foreign(answer).error(f"{sent.method} {redacted(server)}{sent.path}", answer)
        return value

    async def _api_of(self, server: str, until: float) -> Api:
        return self._pinned or self._apis.get(server) or await self._discover(server, until)

    async def _discover(self, server: str, until: float) -> Api:
        """Return the newest API that the server has."""
        for api in Api:
            call = self._instance.listing(api, protocol.UNUSED_CLUSTER)
            answer = await self._exchange(server, call, until)
            wants_user = answer.status in {401, 403} and protocol.is_answer(answer)
            if wants_user or protocol.hosts(api, answer) is not None:
                self._apis[server] = api
                return api
            if not protocol.is_unknown_api(answer):
                break
        raise self._foreign(answer).error(f"GET {redacted(server)}{call.path}", answer)

    async def _send(self, server: str, api: Api, call: Call, until: float, patience: float) -> Response:
        """Send a request with a valid token, if the server wants one."""
        if trio.current_time() >= self._refresh_at:
            await self._refresh(server, api, until)
        answer = await self._exchange(server, call, until, patience)
        if answer.status in {401, 403} and self._credentials is not None and protocol.is_answer(answer):
            await self._log_in(server, api, until)
            answer = await self._exchange(server, call, until, patience)
        return answer

    async def _refresh(self, server: str, api: Api, until: float) -> None:
        """Get a new token. If that fails, the old one is used as long as the server accepts it."""
        before = self._servers.headers
        try:
            await self._log_in(server, api, until)
        except (TransferError, RegistryError):
            self._servers.headers = before
            now = trio.current_time()
            self._refresh_at = max(now + (self._valid_until - now) / 2, now + LEAST_INTERVAL_SECONDS)

    async def _log_in(self, server: str, api: Api, until: float) -> None:
        """Get a token, which all servers of a cluster accept. Raises ``TransferError`` and ``RegistryError``."""
        assert self._credentials is not None
        user, password = self._credentials.user, self._credentials.read()
        self._servers.headers = ACCEPT  # the server would look at an old token, and not at the password
        for version in (
            api,
            Api.V1,
        ):  # 3.x has both; the old one lasts longer than the API to which it belonged
            call = protocol.login(version, user, password)
            try:
                answer = await self._exchange(server, call, until)
            except ProtocolError as error:
                # 2.3.2 answers a wrong password with a status that HTTP does not have
                raise RegistryRefused(f'{error}; is the password of the user "{user}" right?') from error
            if not protocol.is_unknown_api(answer):
                break
        token = protocol.token(answer)
        if token is None:
            trouble = REMEDIES.foreign(answer, accepted=self._accepted)
            if protocol.is_answer(answer):
                # 3.1.0 answers a wrong password with 500
                text = f'the registry does not accept the user "{user}" with this password'
                trouble = Trouble(text, refused=answer.status < 500)
            raise trouble.error(f"POST {redacted(server)}{call.path}", answer)
        # a user in the URL is for somebody in between, who takes the other header
        text, seconds = token
        header = {"accesstoken": text} if "@" in server else {"authorization": f"Bearer {text}"}
        self._servers.headers = ACCEPT | header
        now = trio.current_time()
        self._refresh_at, self._valid_until = now + REFRESH * seconds, now + seconds

    async def _exchange(
        self, server: str, call: Call, until: float, patience: float = ANSWER_SECONDS
    ) -> Response:
        """Send one request to a server and return its answer, whatever it is."""
        return await self._servers.ask_one(
            server,
            call.method,
            call.path,
            within=max(0.1, until - trio.current_time()),
            patience=patience,
            query=call.query,
            body=call.body,
            content_type=protocol.FORM,
            limit=LIST_BYTES,
        )

    def _foreign(self, answer: Response) -> Trouble:
        """Return the reason and the remedy for an answer that is no success."""
        status = answer.status
        if protocol.is_answer(answer):
            if status in {401, 403} and self._credentials is not None:
                user, namespace = self._credentials.user, self._instance.namespace
                return Trouble(
                    f'the user "{user}" has no right to write to the namespace "{namespace}"',
                    refused=True,
                )
            if status in {401, 403}:
                return Trouble(REMEDIES.credentials, refused=True)
            if self._pinned is not None and protocol.is_unknown_api(answer):
                return Trouble(f"the server does not have the API {self._pinned}; remove api", refused=True)
            if status == 400:
                return Trouble("the registry does not accept the instance", refused=True)
        return REMEDIES.foreign(answer, accepted=self._accepted)


def _status(host: Mapping[str, Any]) -> str:
    """Return the status of an instance in a list."""
    return "UNHEALTHY" if host.get("healthy") is False else Status.UP.value


def _done(api: Api, answer: Response) -> bool | None:
    """Return True if Nacos has carried out the request, else None."""
    return protocol.is_done(api, answer) or None


def build(fields: Fields, pod: Pod, source: str | None) -> Nacos:
    """Build the driver from ``register: nacos``. Raises ``Refused``."""
    servers = base_urls(fields, "url", "that end before v1, v2 or v3, as http://host:8848/nacos")
    pinned = fields.text("api", None)
    seconds = {name: fields.seconds(name, None, least=1, most=86400) for name in PRESERVED}
    metadata = fields.table("metadata")
    for name, key in PRESERVED.items():
        if key in metadata:
            raise Refused(f"{fields.path}.metadata: {key} is written by the field {name}; use that")
        if (value := seconds[name]) is not None:
            metadata[key] = str(round(value * 1000))
    instance = Instance(
        service=fields.text("serviceName"),
        group=fields.text("groupName", protocol.DEFAULT_GROUP),
        namespace=fields.text("namespaceId", protocol.PUBLIC),
        ip=fields.text("ip", pod.ip),
        port=fields.integer("port", least=1, most=65535),
        cluster=fields.text("clusterName", protocol.DEFAULT_CLUSTER),
        weight=fields.number("weight", 1.0, least=0, most=10_000),
        metadata=metadata,
    )
    for name, problem in (
        ("serviceName", names.service(instance.service)),
        ("groupName", names.group(instance.group)),
        ("namespaceId", names.namespace(instance.namespace)),
        ("clusterName", names.cluster(instance.cluster)),
        ("metadata", names.metadata(metadata)),
    ):
        if problem:
            raise Refused(f"{fields.path}.{name}: {problem}")
    interval = seconds["heartBeatInterval"] or INTERVAL_SECONDS
    unhealthy = seconds["heartBeatTimeout"] or UNHEALTHY_SECONDS
    removed = seconds["ipDeleteTimeout"] or REMOVED_SECONDS
    if interval >= min(unhealthy, removed):
        # com.alibaba.nacos.api.naming.utils.NamingUtils.checkInstanceIsLegal
        raise Refused(
            f"{fields.path}: heartBeatInterval must be less than heartBeatTimeout and ipDeleteTimeout"
        )
    credentials = credentials_in(fields, "username")
    fields.done()
    if pinned is not None and pinned not in set(Api):
        raise Refused(f"{fields.path}.api: expected {', '.join(sorted(Api))}, not {pinned}")
    return Nacos(
        servers,
        instance,
        api=Api(pinned) if pinned is not None else None,
        credentials=credentials,
        interval=interval,
        lease=min(unhealthy, removed),
        source=source,
        namespace=pod.namespace,
        start=pod.uid,
    )
