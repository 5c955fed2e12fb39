"""Whose plan is served: kube2iam's and kiam's list of what went wrong, and more, against the repo itself.

Each test says who asks, from where, with what, and that nobody's plan but its own comes out, at any moment.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http.message import Request
from pidone.plan.format import decode_bundle
from pidone_controller.kubernetes.tokens import (
    ADDRESS_REVIEWS,
    MAX_ADDRESSES,
    MAX_BAD,
    MAX_CACHED,
    Tokens,
)
from pidone_controller.repo.callers import STRANGER_HOLDS
from tests.controller.factories import pod
from tests.controller.fakes import TOKENS, fake_review
from tests.controller.repo.requests import CHECKED, Background, get, post, repo_of, served

# The start race (kube2iam 46, 80): the address is not known yet


async def test_whoever_is_too_early_gets_no_default_and_then_its_own(nursery: trio.Nursery) -> None:
    repo = repo_of(pod("other", "127.0.0.3", labels=CHECKED))
    held = Background(nursery, repo.handle(get(peer="127.0.0.2", prefer="wait=55")))
    await wait_all_tasks_blocked()
    repo.plans.put(pod("web", "", phase="Pending", labels=CHECKED))  # scheduled, and no address yet
    await wait_all_tasks_blocked()
    assert held.response is None
    repo.plans.put(pod("web", "127.0.0.2", labels=CHECKED))
    assert served(await held.answer()) == "web"


# The address is used again (kiam 499, kube2iam 215)


@pytest.mark.parametrize("between", ["nobody", "both", "finished"])
async def test_an_address_that_is_used_again_serves_its_new_pod_alone(between: str) -> None:
    repo = repo_of(pod("old", labels=CHECKED))
    old = await repo.handle(get())
    if between == "both":  # the new one is seen before the old one's end
        repo.plans.put(pod("new", labels=CHECKED))
        assert served(await repo.handle(get())) == 409
        assert served(await repo.handle(get(pidone_pod_uid="uid-new"))) == "new"
        assert served(await repo.handle(get(pidone_pod_uid="uid-old"))) == "old"
    if between == "finished":
        repo.plans.put(pod("old", phase="Failed", labels=CHECKED))
        assert served(await repo.handle(get())) == 404
    repo.plans.drop(("shop", "old"))
    repo.plans.put(pod("new", labels=CHECKED))
    assert served(await repo.handle(get())) == "new"
    # a late request of the old pod, with what it knows of itself
    late = await repo.handle(get(pidone_pod_uid="uid-old", if_none_match=old.headers["etag"]))
    assert served(late) == 409


async def test_a_pod_of_the_same_name_is_another_pod(nursery: trio.Nursery) -> None:
    repo = repo_of(pod("db-0", labels=CHECKED))
    await repo.handle(post({"state": "applied"}))
    etag = (await repo.handle(get())).headers["etag"]
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    successor = pod("db-0", labels=CHECKED, uid="uid-next")
    repo.plans.put(successor)  # as a StatefulSet does, with the deletion and the creation seen as one change
    assert served(await held.answer()) == 409
    assert repo.plans.report(successor) is None


# Missed deletions (kube2iam 17): a list replaces


async def test_what_a_list_does_not_have_is_gone() -> None:
    repo = repo_of(pod("gone", labels=CHECKED), pod("stays", "127.0.0.3", labels=CHECKED))
    repo.plans.replace([pod("stays", "127.0.0.3", labels=CHECKED)])
    assert served(await repo.handle(get())) == 404
    assert served(await repo.handle(get(peer="127.0.0.3"))) == "stays"


# Two pods with one address (kube2iam 244, kiam 249)


async def test_an_address_of_two_and_then_of_one() -> None:
    repo = repo_of(pod("one", labels=CHECKED), pod("two", labels=CHECKED))
    assert served(await repo.handle(get())) == 409
    for claimed, expected in (("uid-one", "one"), ("uid-two", "two"), ("uid-three", 409)):
        assert served(await repo.handle(get(pidone_pod_uid=claimed))) == expected
    repo.plans.put(pod("one", phase="Succeeded", labels=CHECKED))
    assert served(await repo.handle(get())) == "two"


# Addresses of both families, and of nodes


async def test_all_addresses_of_a_pod_are_its_own() -> None:
    repo = repo_of(pod("web", "10.1.0.2", ips=["fd00::2"], labels=CHECKED))
    for peer in ("10.1.0.2", "::ffff:10.1.0.2", "fd00::2", "FD00:0::2"):
        assert served(await repo.handle(get(peer=peer))) == "web"
    repo.plans.put(pod("web", "10.1.0.2", labels=CHECKED))
    assert served(await repo.handle(get(peer="fd00::2"))) == 404


async def test_a_node_is_one_as_long_as_any_pod_is_on_it() -> None:
    repo = repo_of(pod("a", "10.1.0.2"), pod("b", "10.1.0.3", phase="Succeeded"))
    assert served(await repo.handle(get(peer="10.0.0.1"))) == 403
    repo.plans.drop(("shop", "a"))
    assert served(await repo.handle(get(peer="10.0.0.1"))) == 403
    repo.plans.drop(("shop", "b"))
    assert served(await repo.handle(get(peer="10.0.0.1"))) == 404


async def test_no_claim_makes_a_host_network_pod_served_by_its_node_s_address() -> None:
    agent = pod("agent", "10.0.0.1", spec={"hostNetwork": True}, labels=CHECKED)
    repo = repo_of(agent)
    for claims in ({}, {"pidone_pod_uid": "uid-agent"}):
        assert served(await repo.handle(get(peer="10.0.0.1", **claims))) == 403


# Strangers


async def test_an_address_that_stays_unknown_is_sent_away_for_minutes(autojump_clock: MockClock) -> None:
    repo = repo_of()
    pauses = []
    for _ in range(STRANGER_HOLDS + 2):
        began = trio.current_time()
        response = await repo.handle(get(prefer="wait=55"))
        pauses.append((round(trio.current_time() - began), int(response.headers["retry-after"])))
        assert response.status == 404
    assert pauses[0] == (55, 1)
    assert [held for held, _ in pauses] == [55, 55, 0, 0]
    assert all(120 <= pause <= 300 for _, pause in pauses[1:])
    assert len({pause for _, pause in pauses[1:]}) > 1
    repo.plans.put(pod(labels=CHECKED))
    assert served(await repo.handle(get(prefer="wait=55"))) == "web"
    repo.plans.drop(("shop", "web"))
    began = trio.current_time()
    await repo.handle(get(prefer="wait=55"))
    assert trio.current_time() - began == 55  # the next who has the address is no stranger yet


# Tokens: of sidecars


@pytest.mark.parametrize(
    ("token", "peer", "claims", "expected"),
    [
        ("web", "127.0.0.2", {}, "web"),
        ("web", "10.0.0.1", {}, "web"),  # behind address translation
        ("web", "127.0.0.3", {}, "web"),  # the token decides
        ("agent", "10.0.0.1", {}, "agent"),  # on the host's network
        ("web", "127.0.0.2", {"pidone_pod_uid": "uid-db"}, 409),  # claims narrow tokens too
        ("gone", "127.0.0.2", {}, 404),  # the pod of that name before
        ("elsewhere", "127.0.0.2", {}, 404),
        ("person", "127.0.0.2", {}, 403),
        ("job", "127.0.0.2", {}, 403),  # made for no pod
        ("forged", "127.0.0.2", {}, 401),  # and not: then the address
        ("broken", "127.0.0.2", {}, 503),
    ],
)
async def test_a_token_decides(token: str, peer: str, claims: dict[str, str], expected: str | int) -> None:
    agent = pod("agent", "10.0.0.1", spec={"hostNetwork": True}, labels=CHECKED)
    repo = repo_of(
        pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED), agent, review=fake_review(**TOKENS)
    )
    request = get(peer=peer, authorization=f"Bearer {token}", **claims)
    assert served(await repo.handle(request, secure=True)) == expected
    report = Request("POST", "/v1/status", request.headers, b'{"state": "applied"}', peer)
    assert (await repo.handle(report, secure=True)).status == (204 if isinstance(expected, str) else expected)


async def test_a_change_wakes_whoever_came_with_a_token(nursery: trio.Nursery) -> None:
    repo = repo_of(pod(labels=CHECKED), review=fake_review(**TOKENS))
    ask = {"peer": "10.0.0.1", "authorization": "Bearer web"}
    etag = (await repo.handle(get(**ask), secure=True)).headers["etag"]
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag, **ask), secure=True))
    await wait_all_tasks_blocked()
    repo.plans.put(pod(labels=CHECKED, terminating=True))
    assert decode_bundle((await held.answer()).body, ["probe"]).phase == "Terminating"


async def test_a_token_is_asked_about_once_a_minute(autojump_clock: MockClock) -> None:
    reviewing = fake_review(**TOKENS)
    repo = repo_of(pod(labels=CHECKED), review=reviewing)
    for _ in range(3):
        await repo.handle(get(authorization="Bearer web"), secure=True)
        await repo.handle(get(authorization="bearer forged"), secure=True)
    assert reviewing.asked == ["web", "forged"]
    await trio.sleep(61)
    await repo.handle(get(authorization="Bearer web"), secure=True)
    assert reviewing.asked == ["web", "forged", "web"]
    for _ in range(2):
        await repo.handle(get(authorization="Bearer broken"), secure=True)
    assert reviewing.asked[3:] == ["broken", "broken"]  # what could not be asked is not remembered


async def test_a_token_in_the_clear_is_refused_and_reviewed_by_nobody() -> None:
    async def may_read(user: Mapping[str, Any], namespace: str, name: str) -> bool:
        return True

    reviewing = fake_review(**TOKENS)
    repo = repo_of(pod(labels=CHECKED), review=reviewing, may_read=may_read)
    for request in (
        get(authorization="Bearer web"),
        Request("POST", "/v1/status", {"authorization": "Bearer web"}, b"{}", "127.0.0.2"),
        get("/v1/pods", peer="10.7.0.1", authorization="Bearer web"),
        get("/v1/prometheus/targets", peer="10.7.0.1", authorization="Bearer web"),
    ):
        answer = await repo.handle(request)
        assert (answer.status, "over https only" in answer.text) == (403, True)
    refused = await repo.refuse(
        Request("POST", "/v1/status", {"authorization": "Bearer web"}, b"", "127.0.0.2")
    )
    assert refused
    assert refused.status == 403
    assert reviewing.asked == []


async def test_unknown_tokens_of_a_stranger_delay_no_remembered_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    reviewing = fake_review(**TOKENS)

    async def review(token: str) -> Mapping[str, Any]:
        if token != "web":
            await trio.sleep(1)
        result: Mapping[str, Any] = await reviewing(token)
        return result

    repo = repo_of(pod(labels=CHECKED), review=review)
    assert (await repo.handle(get(authorization="Bearer web"), secure=True)).status == 200
    flood = [
        Background(nursery, repo.handle(get(peer=peer, authorization=f"Bearer {peer}-{number}"), secure=True))
        for number in range(300)
        for peer in ("10.6.0.1", "::ffff:10.6.0.1")
    ]
    flood += [
        Background(
            nursery,
            repo.handle(get(peer=f"2001:db8::{number:x}", authorization=f"Bearer {number}"), secure=True),
        )
        for number in range(300)
    ]
    await wait_all_tasks_blocked()
    began = trio.current_time()
    assert (await repo.handle(get(authorization="Bearer web"), secure=True)).status == 200
    assert trio.current_time() == began
    answers = [await request.answer() for request in flood]
    assert (
        sum(answer.status == 401 for answer in answers)
        == len(reviewing.asked) - 1
        <= 2 * (ADDRESS_REVIEWS + 1)
    )
    assert {answer.status for answer in answers} == {401, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status == 429)
    # another address is not affected, and this one only for a while
    assert (await repo.handle(get(peer="10.6.0.2", authorization="Bearer new"), secure=True)).status == 401
    await trio.sleep(60)
    assert (await repo.handle(get(peer="10.6.0.1", authorization="Bearer newer"), secure=True)).status == 401


async def test_bad_tokens_push_no_good_one_out_of_memory() -> None:
    asked = list[str]()

    async def review(token: str) -> Mapping[str, Any]:
        asked.append(token)
        return {"authenticated": True, "user": TOKENS["web"]} if token == "web" else {"authenticated": False}

    tokens = Tokens(review)
    assert await tokens.bearer("web", "10.0.0.1")
    for number in range(2 * MAX_CACHED):
        assert await tokens.bearer(f"bad-{number}", f"10.1.{number >> 8}.{number & 255}") is None
    assert await tokens.bearer("web", "10.0.0.1")
    assert asked.count("web") == 1
    assert len(tokens._bad) == MAX_BAD
    assert len(tokens._limits) == MAX_ADDRESSES


async def test_one_review_answers_all_that_wait_for_the_same_token(nursery: trio.Nursery) -> None:
    go, asked = trio.Event(), list[str]()

    async def review(token: str) -> Mapping[str, Any]:
        asked.append(token)
        await go.wait()
        return {"authenticated": True, "user": TOKENS["web"]}

    repo = repo_of(pod(labels=CHECKED), review=review)
    requests = [
        Background(nursery, repo.handle(get(authorization="Bearer web"), secure=True)) for _ in range(9)
    ]
    await wait_all_tasks_blocked()
    go.set()
    assert [(await request.answer()).status for request in requests] == [200] * 9
    assert asked == ["web"]
