"""The CA that all replicas share, and what each of them serves with, against a fake API server."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import trio
from trio.testing import MockClock

from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.resources import SECRETS
from pidone_controller.repo import ca, certificates
from pidone_controller.repo.certificates import Pair
from tests.controller.kubernetes.fake import FakeAPIServer, fake_server

HOME = "pidone-system"
NAMES = ["pidone-repo", "10.0.0.1"]


@dataclass
class Replica:
    used: list[Pair] = field(default_factory=list)
    read: list[ca.Shared] = field(default_factory=list)
    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def log(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))

    def told(self, event: str) -> int:
        return sum(told == event for told, _ in self.lines)


class Calendar:
    """The wall clock, which goes with Trio's and can be moved."""

    def __init__(self) -> None:
        self.moved = timedelta()

    def __call__(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=trio.current_time()) + self.moved


@asynccontextmanager
async def keeping(client: Client, calendar: Calendar, *replicas: Replica) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for one in replicas:
            keep = partial(
                ca.keep,
                client,
                HOME,
                NAMES,
                one.used.append,
                one.log,
                clock=calendar,
                use_shared=one.read.append,
            )
            nursery.start_soon(keep)
        yield
        nursery.cancel_scope.cancel()


async def secret(client: Client) -> dict[str, bytes]:
    data = (await client.get(SECRETS, ca.SECRET_NAME, HOME))["data"]
    return {name: base64.b64decode(value) for name, value in data.items()}


def put(server: FakeAPIServer, certificate: bytes, key: bytes) -> None:
    data = {
        name: base64.b64encode(value).decode()
        for name, value in {"tls.crt": certificate, "tls.key": key}.items()
    }
    server.put(SECRETS, ca.SECRET_NAME, HOME, data=data, type="kubernetes.io/tls")


async def test_replicas_that_begin_together_have_one_authority(autojump_clock: MockClock) -> None:
    a, b = Replica(), Replica()
    async with fake_server() as (_, client, _), keeping(client, Calendar(), a, b):
        await trio.sleep(60)
        data = await secret(client)
    shared = Pair(data["tls.crt"], data["tls.key"])
    assert a.told("authority") + b.told("authority") == 1
    assert data["ca.crt"] == data["tls.crt"]
    assert all(data["ca.crt"] in one.trusted for one in (*a.read, *b.read))
    for one in (a, b):
        assert len(one.used) == 1
        assert certificates.fits(one.used[0], shared, NAMES)
    assert a.used != b.used, "a key never leaves its replica"


async def test_a_certificate_is_made_anew_in_time_and_by_the_same_authority(
    autojump_clock: MockClock,
) -> None:
    one, calendar = Replica(), Calendar()
    async with fake_server() as (_, client, _), keeping(client, calendar, one):
        await trio.sleep(60)
        before = await secret(client)
        calendar.moved = certificates.LIFE * 0.7
        await trio.sleep(ca.CHECK_SECONDS + 1)
        assert await secret(client) == before
    assert len(one.used) == 2


async def test_an_authority_is_made_anew_in_time_and_the_old_one_is_still_to_be_trusted(
    autojump_clock: MockClock,
) -> None:
    one, calendar = Replica(), Calendar()
    async with fake_server() as (_, client, _), keeping(client, calendar, one):
        await trio.sleep(60)
        old = (await secret(client))["tls.crt"]
        calendar.moved = certificates.CA_LIFE * 0.7
        await trio.sleep(ca.CHECK_SECONDS + 1)
        data = await secret(client)
    assert data["tls.crt"] != old
    assert data["ca.crt"] == data["tls.crt"] + old
    assert data["ca.crt"] in one.read[-1].trusted
    assert certificates.fits(one.used[-1], Pair(data["tls.crt"], data["tls.key"]), NAMES)


async def test_an_authority_of_somebody_s_own_is_used(autojump_clock: MockClock) -> None:
    one, calendar = Replica(), Calendar()
    async with fake_server() as (server, client, _), keeping(client, calendar, one):
        await trio.sleep(60)
        theirs = certificates.make_ca(calendar(), "theirs")
        put(server, theirs.certificate, theirs.key)
        await trio.sleep(ca.CHECK_SECONDS + 1)
    assert certificates.fits(one.used[-1], theirs, NAMES)
    assert theirs.certificate in one.read[-1].trusted
    certificates.trusting(one.read[-1].trusted)


async def test_a_secret_that_is_none_is_told_and_what_is_served_stays(autojump_clock: MockClock) -> None:
    one, calendar = Replica(), Calendar()
    async with fake_server() as (server, client, _), keeping(client, calendar, one):
        await trio.sleep(60)
        put(server, b"no certificate", b"no key")
        await trio.sleep(ca.CHECK_SECONDS + 1)
        assert one.told("certificate-failed")
        assert len(one.used) == 1
        server.drop(SECRETS, ca.SECRET_NAME, HOME)
        await trio.sleep(ca.RETRY_SECONDS + 1)
    assert len(one.used) == 2


async def test_all_replicas_have_one_key_of_digests_and_keep_it(autojump_clock: MockClock) -> None:
    one, other, calendar = Replica(), Replica(), Calendar()

    def keys(since: int = 0) -> list[bytes]:
        return [shared.key for replica in (one, other) for shared in replica.read[since:]]

    async with fake_server() as (server, client, _), keeping(client, calendar, one, other):
        await trio.sleep(60)
        assert len(set(keys())) == 1
        assert len(keys()[0]) == ca.DIGEST_KEY_BYTES
        # neither a new authority nor one of an administrator's own takes it away for long
        calendar.moved = certificates.CA_LIFE * 0.7
        await trio.sleep(ca.CHECK_SECONDS + 1)
        assert len(set(keys())) == 1
        theirs = certificates.make_ca(calendar(), "theirs")
        put(server, theirs.certificate, theirs.key)
        before = len(one.read)
        await trio.sleep(2 * ca.CHECK_SECONDS + 1)
        assert set(keys(before)) == {(await secret(client))[ca.DIGEST_KEY]}
