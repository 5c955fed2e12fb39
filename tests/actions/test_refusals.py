"""What a registry refuses for good, and what somebody in between answers: told apart, and never a deregistration."""

from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from pidone.errors import RegistryError, RegistryRefused
from pidone.http.message import Response
from tests.actions.test_register import Bench, Pod, bench, start
from tests.registries.between import FOREIGN

__all__ = ["bench", "start"]

REFUSAL = Response(400, {}, b"Missing hostname")  # in Eureka's own words


async def test_a_refusal_before_the_registration_is_said_once_and_again_when_it_changes(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.registry.trouble["register"] = RegistryRefused("answered 401: it wants a user")
    bench.apply()
    await trio.sleep(600)
    assert len(bench.registry.calls) > 10
    assert sum("it wants a user" in line for line in bench.journal.lines) == 1
    bench.registry.trouble["register"] = RegistryRefused("answered 400: Missing hostname")
    await trio.sleep(600)
    assert sum("Missing hostname" in line for line in bench.journal.lines) == 1
    bench.registry.trouble.clear()
    await trio.sleep(30)
    assert bench.state("web") == "registered"


async def test_what_may_pass_is_said_each_time(bench: Bench, autojump_clock: MockClock) -> None:
    bench.registry.trouble["register"] = RegistryError("answered 503")
    bench.apply()
    await trio.sleep(60)
    assert sum("answered 503" in line for line in bench.journal.lines) == len(bench.registry.calls)


async def test_a_refusal_after_the_registration_is_said_once_and_tried_again_within_the_lease(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.apply()
    await bench.when(lambda: "heartbeat" in bench.registry.calls)
    bench.forget_calls()
    refusal = RegistryRefused("answered 403: the token has been revoked")
    bench.registry.trouble = dict.fromkeys(("register", "heartbeat"), refusal)
    for _ in range(60):
        await trio.sleep(10)
        assert bench.state("web") == "registered", "the lease goes on, as far as anybody knows"
    gaps = [later - earlier for earlier, later in pairwise(bench.registry.times)]
    assert max(gaps) <= bench.registry.lease / 3 + 0.1
    assert "deregister" not in bench.registry.calls
    assert sum("event=registry-refused" in line for line in bench.journal.lines) == 1
    bench.registry.trouble.clear()
    await trio.sleep(bench.registry.interval + 1)
    bench.registry.trouble = dict.fromkeys(("register", "heartbeat"), refusal)
    await trio.sleep(60)
    assert sum("event=registry-refused" in line for line in bench.journal.lines) == 2, "it is another one"


async def test_a_document_that_the_registry_refuses_costs_no_lease(
    start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    node = pod.network.nodes["a"]
    node.foreign, node.methods = REFUSAL, ("POST",)
    pod.ready.say("unhealthy")
    for _ in range(60):
        await trio.sleep(10)
        assert pod.status() == "UP"
    assert (pod.state("web"), pod.state("beat")) == ("registered", "started")
    said = [line for line in pod.journal.lines if "does not accept the document" in line]
    assert len(said) == 1
    assert "event=registry-refused" in said[0]
    posts = [at for at, _, method in pod.network.calls if method == "POST"]
    assert max(later - earlier for earlier, later in pairwise(posts)) <= 31
    node.foreign = None
    await trio.sleep(31)
    assert pod.status() == "DOWN"
    assert "DELETE" not in pod.network.methods()


@pytest.mark.parametrize("answer", FOREIGN)
async def test_what_somebody_in_between_answers_is_no_refusal_after_a_registration(
    answer: str, start: Callable[..., Awaitable[Pod]], autojump_clock: MockClock
) -> None:
    pod = await start()
    pod.network.nodes["a"].foreign = FOREIGN[answer]
    pod.ready.say("unhealthy")
    await trio.sleep(60)
    assert not any("refused" in line for line in pod.journal.lines)
    assert "DELETE" not in pod.network.methods()
    pod.network.nodes["a"].foreign = None
    await trio.sleep(31)
    assert pod.status() == "DOWN", "the health of then"
