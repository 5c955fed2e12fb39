"""etcd 3, through its JSON gateway (``/v3/...``; etcd 3.4 and newer).

An instance is one key with a lease. Rules that are not obvious, all observed on the server:

- Keys and values are base64. Numbers of 64 bits are strings in answers, and fields that are zero, false or empty are
  left out. So a keepalive of a lease that is dead is answered 200 without a ``TTL``.
- A keepalive is one POST: the gateway answers only when the request's body ends.
- We choose the lease's number. A grant that is repeated is answered "lease already exists", and is then ours.
- A put moves the key to our lease. The lease of a predecessor then ends without it.
- A put with a revoked lease is refused, however late it arrives. So a lease with a put that was never answered is
  revoked before the key is to be absent or to have another value.
- etcd has no status. An instance that is not UP has no key, and keeps its lease.
- A member forgets its tokens when it restarts, and those that were not used for five minutes: 401. A token is also
  refused after a change of users or roles. Then we authenticate again, once. The number in a token is an index of the
  log: an etcd that was restored from a backup does not answer before its log has that index. So a token is also
  given up if a request and then a patient look are not answered.
- Answers of etcd have a ``header`` with the number of the cluster. An ingress' do not.
"""

import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

import trio

from pidone.errors import (
    PidoneError,
    RegistryError,
    TransferError,
)
from pidone.http.client import redacted
from pidone.http.message import Response
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries._etcd_fields import instance_of
from pidone.registries._etcd_layouts import LAYOUTS, Instance, address_in
from pidone.registries._etcd_messages import (
    AUTH_OFF,
    INVALID_ARGUMENT,
    LEASE_EXISTS,
    LEASE_NOT_FOUND,
    NO_TOKEN,
    OUT_OF_RANGE,
    OWN_WORDS,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    STALE_TOKEN,
    WRONG_PASSWORD,
    Held,
    Reply,
    held_in,
    number,
    range_in,
    reply_of,
)
from pidone.registries._files import Credentials, credentials_in
from pidone.registries._servers import (
    ANSWER_SECONDS,
    Remedies,
    Served,
    Servers,
    Trouble,
    base_urls,
    printable,
)

PUT, RANGE, TXN = "v3/kv/put", "v3/kv/range", "v3/kv/txn"
NEED_TOKEN = frozenset({PUT, RANGE, TXN})
KEEPALIVE = "v3/lease/keepalive"  # needs no token
LOOK_UP_SECONDS = 30.0  # for a look at whether a slow server has carried out what it did not answer
MAX_TOKEN = 8192  # characters; a JWT has some hundred
CHANGES = 3  # of the key by others, while we delete it
DEADLINE_SHARE = 0.7  # of a call for the request, if a look may follow it

REMEDIES = Remedies(
    "etcd",
    url="It ends before /v3, as http://etcd:2379, and etcd 3.4 or newer must have its JSON gateway on",
    credentials="what is in between? etcd itself asks for user and password in other words",
)


class Etcd(Served):
    """One instance in one etcd. Of its members, one is used at a time.

    A call of several requests takes longer than the lease only while members are slow: each request has its time.
    """

    def __init__(
        self,
        endpoints: list[str],
        layout: str,
        instance: Instance,
        *,
        credentials: Credentials | None = None,
        source: str | None = None,
        namespace: str = "",
        start: str = "",
        new_lease: Callable[[], str] | None = None,
    ) -> None:
        self._token: dict[str, str] = {}  # the header, as the servers get it
        self._servers = Servers(
            endpoints, source, self._token, namespace=namespace, start=start, patient=True
        )
        self._layout, self._instance = layout, instance
        self._key = LAYOUTS[layout].key(instance)
        self._value = LAYOUTS[layout].value(instance)
        self._credentials = credentials
        self._new_lease = new_lease or _random_lease
        self._lease = self._new_lease()
        self._granted = False  # etcd has the lease, as far as is known
        self._shown = False  # the key is there, as far as is known
        self._is_guarded = True  # authentication is on, as far as is known
        self._accepted = False  # etcd has answered us
        self._asked_for = False  # etcd may have the lease
        self._late = set[str]()  # values of puts with our lease that may be carried out later
        self._former = set[str]()  # leases that the key has left
        self._fence = False  # the lease must be revoked before the next registration
        self._renewed_until = 0.0  # time at which the lease ends if it is not renewed
        self._look_at = 0.0  # time at which a heartbeat looks at the key too

    @property
    def instance(self) -> str:
        return self._key

    @property
    def address(self) -> str:
        return self._instance.address

    @property
    def interval(self) -> float:
        return self._instance.ttl / 3

    @property
    def lease(self) -> float:
        return float(self._instance.ttl)

    async def prepare(self) -> None:
        """Authenticate: etcd hashes the password with bcrypt, which is slow on purpose."""
        if self._credentials is not None and not self._token:
            await self._authenticate(trio.current_time() + self.lease)

    async def register(self, status: Status) -> str:
        """Put the key if the status is UP, else delete it; the lease is there in both cases."""
        until = trio.current_time() + self.lease
        if self._fence or self._late - ({self._value} if status is Status.UP else set()):
            await self._revoke(self._lease, until)
            self._forget_lease()
        if status is Status.UP:
            await self._put(until)
        else:
            await self._delete(until)
            await self._grant(until)
        self._look_at = trio.current_time() + self.lease
        await self._revoke_former(until)
        return status.value

    async def heartbeat(self) -> bool:
        began, before = trio.current_time(), self._renewed_until
        self._servers.spread()
        try:
            reply = await self._ask(KEEPALIVE, {"ID": self._lease}, DEADLINE_SHARE * self.lease)
        except PidoneError:
            left = await self._ttl_of_slow(self._lease)
            if not left or left <= before - trio.current_time() + 1:
                raise
            self._renewed_until = trio.current_time() + left
            return True
        if number(reply.fields.get("ID")) != int(self._lease):
            raise RegistryError(f"{self.where}: an answer for another lease; what is in between?")
        if not number(reply.fields.get("TTL")):
            self._forget_lease()
            self._token.clear()  # this etcd has none of before, and may wait for the one we have
            return False
        now = trio.current_time()
        self._renewed_until = now + self.lease
        is_slow = now - began > self.interval / 3  # a look would delay the next heartbeat
        if not self._shown or now < self._look_at or is_slow:
            return True
        return await self._is_in_place(now + self.interval)

    async def read(self) -> Entry | None:
        held = await self._held(trio.current_time() + self.lease)
        return None if held is None else Entry(Status.UP.value, self._address_in(held.value))

    async def deregister(self) -> None:
        """Revoke the lease, which deletes the key, and see that it is gone."""
        until = trio.current_time() + self.lease
        revoked = self._asked_for and await self._revoke(self._lease, until)
        if self._asked_for:
            self._forget_lease()
        try:
            await self._delete(until)
        except PidoneError:
            if not revoked:
                raise
        await self._revoke_former(until)

    def succeeds(self, previous: Registry) -> bool:
        return (
            isinstance(previous, Etcd)
            and previous.instance == self.instance
            and not self.places.isdisjoint(previous.places)
        )

    def take_over(self, previous: Registry) -> None:
        """Go on with the lease of ``previous``; if that has another duration, the key leaves it."""
        assert isinstance(previous, Etcd)
        self._servers.go_on_as(previous._servers)
        self._accepted, self._shown = previous._accepted, previous._shown
        self._former, self._late = previous._former, previous._late
        if self._credentials == previous._credentials:
            self._token.update(previous._token)
        self._fence = previous._fence or (self.lease != previous.lease and bool(self._late))
        if self.lease == previous.lease or self._fence:
            self._lease, self._granted = previous._lease, previous._granted
            self._asked_for, self._renewed_until = previous._asked_for, previous._renewed_until
        elif previous._asked_for:
            self._former.add(previous._lease)

    # Parts of calls. ``until`` is the time at which the call must have ended.

    async def _put(self, until: float) -> None:
        put = {"key": _base64(self._key), "value": _base64(self._value)}
        for _ in range(2):
            await self._grant(until)
            self._late.add(self._value)
            try:
                body = {**put, "lease": self._lease}
                reply = await self._ask(PUT, body, self._part(until), LEASE_NOT_FOUND)
            except PidoneError:
                found = await self._range_of_slow()
                held = None if found is None else held_in(found)
                if held is None or (held.value, held.lease) != (self._value, self._lease):
                    raise
                reply = Reply({})
            if not reply.error:
                if not self._servers.unanswered:
                    self._late.discard(self._value)
                self._granted = self._shown = True
                return
            self._forget_lease()
        raise RegistryError(f"{self.where}: etcd has lost a lease that it has just granted")

    async def _grant(self, until: float) -> None:
        """Get the lease, if it is not known to be there."""
        if self._granted:
            return
        self._asked_for = True
        body = {"ID": self._lease, "TTL": str(self._instance.ttl)}
        try:
            await self._ask("v3/lease/grant", body, self._part(until), LEASE_EXISTS)
        except PidoneError:
            if not await self._ttl_of_slow(self._lease):
                raise
        self._granted = True
        self._renewed_until = trio.current_time() + self.lease

    async def _delete(self, until: float) -> None:
        """Delete the key, unless another pod has it."""
        key = {"key": _base64(self._key)}
        compare = {"target": "LEASE", "lease": self._lease}
        for _ in range(CHANGES):
            body = {
                "compare": [{**key, **compare}],
                "success": [{"request_delete_range": key}],
                "failure": [{"request_range": key}],
            }
            try:
                reply = await self._ask(TXN, body, self._part(until))
            except PidoneError:
                found = await self._range_of_slow()
                if found is None or held_in(found) is not None:
                    raise
                reply = Reply({"succeeded": True})
            held = None if reply.fields.get("succeeded") is True else held_in(range_in(reply))
            if held is None or not self._is_ours(held):
                self._shown = False
                return
            compare = {"target": "MOD", "mod_revision": held.revision}
        raise RegistryError(f'{self.where}: others change the key "{self._key}" all the time')

    async def _revoke(self, lease: str, until: float) -> bool:
        """Revoke a lease. Returns False if etcd did not have it."""
        try:
            reply = await self._ask("v3/lease/revoke", {"ID": lease}, self._part(until), LEASE_NOT_FOUND)
        except PidoneError:
            if not self._servers.unanswered or await self._ttl_of_slow(lease, unknown=1):
                self._token.clear()  # a question that needs no token may have been answered, and this was not
                raise
            return True
        return not reply.error

    async def _revoke_former(self, until: float) -> None:
        """Revoke leases that the key has left. They end by themselves too, so an error is none."""
        for lease in sorted(self._former):
            try:
                await self._revoke(lease, until)
            except PidoneError:
                return
            self._former.discard(lease)

    async def _is_in_place(self, until: float) -> bool:
        """True if etcd has our key with our value and lease. A person may have deleted it, or another pod have it."""
        try:
            with trio.move_on_at(until) as look:
                held = await self._held(until)
        except PidoneError:
            return True  # the lease was renewed
        if look.cancelled_caught:
            return True
        if held is not None and held.lease != self._lease and not self._is_ours(held):
            raise RegistryError(
                f'{self.where}: the key "{self._key}" has another lease, and the value '
                f'"{printable(held.value)[:80]}": another pod registers the same key'
            )
        self._look_at = trio.current_time() + self.lease
        return held is not None and (held.value, held.lease) == (self._value, self._lease)

    def _is_ours(self, held: Held) -> bool:
        """True if the key has our lease, or our address: then a process before us has left it."""
        return held.lease == self._lease or self._address_in(held.value) == self.address

    def _address_in(self, value: str) -> str:
        return address_in(self._layout, value, self._instance)

    def _forget_lease(self) -> None:
        """Use another lease from now on. The one before is dead, and with it all that was done with it."""
        self._lease, self._granted, self._shown, self._asked_for = self._new_lease(), False, False, False
        self._late, self._fence = set(), False

    def _part(self, until: float) -> float:
        """Return the seconds for a request of a call that a look may follow."""
        least = min(ANSWER_SECONDS, DEADLINE_SHARE * self.lease)  # also if the requests before were slow
        return max(least, DEADLINE_SHARE * (until - trio.current_time()))

    # Questions

    async def _held(self, until: float) -> Held | None:
        """Return the key as etcd has it; None if etcd itself says that there is none."""
        try:
            return held_in(await self._ask(RANGE, {"key": _base64(self._key)}, self._part(until)))
        except TransferError:
            reply = await self._range_of_slow()
            if reply is None:
                raise
            return held_in(reply)

    async def _range_of_slow(self) -> Reply | None:
        """Ask the servers for the key that did not answer the last request; None if they do not answer this either.

        Then the token is given up: it may be one of before the etcd was restored from a backup.
        """
        reply = await self._ask_slow(RANGE, {"key": _base64(self._key)})
        if reply is None and self._servers.unanswered:
            self._token.clear()
        return reply

    async def _ttl_of_slow(self, lease: str, unknown: int = 0) -> int:
        """Return the seconds that a lease has left, in the same way; 0 if it is dead."""
        reply = await self._ask_slow("v3/lease/timetolive", {"ID": lease})
        return unknown if reply is None else number(reply.fields.get("TTL"))

    async def _ask_slow(self, path: str, body: Mapping[str, Any]) -> Reply | None:
        """Ask all servers at once that did not answer the last request, with more patience than that had.

        Returns the first answer; None if there is none, or no success.
        """
        within, replies = min(LOOK_UP_SECONDS, self.lease), list[Reply]()

        async def ask(server: str) -> None:
            try:
                answer = await self._servers.ask_one(
                    server, "POST", path, within=within, patience=within, body=_json(body)
                )
            except (TransferError, RegistryError):
                return
            reply = reply_of(answer)
            if reply is not None and not reply.error:
                replies.append(reply)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for server in self._servers.unanswered:
                nursery.start_soon(ask, server)
        return replies[0] if replies else None

    async def _ask(self, path: str, body: Mapping[str, Any], within: float, *expected: str) -> Reply:
        """Send a request to one member after another until etcd itself answers it.

        Returns its answer, also if it is an error with one of the ``expected`` texts. Authenticates if etcd wants that.
        Raises ``RegistryRefused``, ``RegistryError`` and ``TransferError``.
        """
        until = trio.current_time() + within
        wanted = {*STALE_TOKEN, NO_TOKEN} if self._credentials is not None else set[str]()
        if wanted and not self._token and self._is_guarded and path in NEED_TOKEN:
            await self._authenticate(until)
            wanted = set()
        reply = await self._ask_once(path, body, within, {*expected, *wanted})
        if reply.error in wanted:
            await self._authenticate(until)
            left = max(within / 2, until - trio.current_time())
            reply = await self._ask_once(path, body, left, set(expected))
        self._accepted = True
        return reply

    async def _ask_once(self, path: str, body: Mapping[str, Any], within: float, expected: set[str]) -> Reply:
        async def judge(server: str, answer: Response) -> Trouble | None:
            reply = reply_of(answer)
            if reply is not None and (not reply.error or reply.error in expected):
                return None
            return self._trouble(server, answer, reply)

        reply = reply_of(await self._servers.ask("POST", path, judge, within=within, body=_json(body)))
        assert reply is not None
        return reply

    async def _authenticate(self, until: float) -> None:
        """Get a token. Without one, authentication is off."""
        assert self._credentials is not None
        self._token.pop("authorization", None)
        body = {"name": self._credentials.user, "password": self._credentials.read()}
        within = max(self.lease / 2, until - trio.current_time())
        reply = await self._ask_once("v3/auth/authenticate", body, within, {AUTH_OFF})
        self._is_guarded = reply.error != AUTH_OFF
        token = reply.fields.get("token")
        if isinstance(token, str) and token.isascii() and token.isprintable() and 0 < len(token) <= MAX_TOKEN:
            self._token["authorization"] = token  # without "Bearer"

    def _trouble(self, server: str, answer: Response, reply: Reply | None) -> Trouble:
        """Return the reason and the remedy for an answer that is no success."""
        if reply is not None and reply.error.startswith(OWN_WORDS):
            return self._trouble_of_etcd(reply)
        if answer.status == 400 and "HTTP request to an HTTPS server" in answer.text:
            return Trouble(f"the server wants TLS; write https:// for {redacted(server)}")
        return REMEDIES.foreign(answer, accepted=self._accepted)

    def _trouble_of_etcd(self, reply: Reply) -> Trouble:
        code = reply.fields.get("code")
        if reply.error == WRONG_PASSWORD:
            return Trouble("are user and password right?", refused=True)
        if reply.error in {NO_TOKEN, *STALE_TOKEN}:
            if self._credentials is None:
                remedy = "set user, and password or passwordFile (a user in the URL is for a proxy)"
                return Trouble(f"it wants a user; {remedy}", refused=True)
            return Trouble("etcd does not take the token that it has just given")
        if code == PERMISSION_DENIED:
            what = f'grant its role readwrite on "{self._key}"'
            return Trouble(f"the user may not do this; {what}", refused=True)
        if code == RESOURCE_EXHAUSTED and "space" in reply.error:
            return Trouble("etcd is full; compact and defragment it, and disarm the alarm")
        if code in {INVALID_ARGUMENT, OUT_OF_RANGE}:
            return Trouble("etcd does not accept this", refused=True)
        return Trouble("etcd cannot do this at present")


def _random_lease() -> str:
    """Return a number for a lease, of 63 bits."""
    # CoreDNS took the lower 32 bits for a ttl until 1.12.3, if they were a smaller number than the value's.
    return str(int.from_bytes(os.urandom(8)) >> 1 | 1 << 31)


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def build(fields: Fields, pod: Pod, source: str | None) -> Etcd:
    """Build the driver from ``register: etcd``. Raises ``Refused``."""
    endpoints = base_urls(fields, "endpoints", "that end before /v3")
    layout, instance = instance_of(fields, pod)
    credentials = credentials_in(fields, "user")
    fields.done()
    return Etcd(
        endpoints,
        layout,
        instance,
        credentials=credentials,
        source=source,
        namespace=pod.namespace,
        start=pod.uid,
    )
