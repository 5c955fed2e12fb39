"""Whose token is it."""

from typing import Any

import pytest
from trio.testing import MockClock

from pidone_controller.kubernetes.errors import ServerError
from pidone_controller.kubernetes.tokens import Bearer, review
from tests.controller.kubernetes.standin import refused, standing_in

POD: dict[str, Any] = {
    "audiences": ["pidone-repo"],
    "user": {
        "username": "system:serviceaccount:shop:web",
        "uid": "1",
        "groups": ["system:serviceaccounts"],
        "extra": {
            "authentication.kubernetes.io/pod-name": ["web-0"],
            "authentication.kubernetes.io/pod-uid": ["u-1"],
        },
    },
}


async def test_a_pods_token_names_the_pod(autojump_clock: MockClock) -> None:
    async with standing_in() as (server, client, _):
        server.tokens["good"] = POD
        bearer = await review(client, "good", ["pidone-repo"])
        assert bearer == Bearer("system:serviceaccount:shop:web", ("system:serviceaccounts",), "web-0", "u-1")
        assert bearer.service_account == ("shop", "web")


async def test_a_token_for_somebody_else_is_not_for_us(autojump_clock: MockClock) -> None:
    async with standing_in() as (server, client, _):
        server.tokens["good"] = POD
        assert await review(client, "good", ["another"]) is None


async def test_an_authenticator_that_knows_no_audiences_is_not_enough(autojump_clock: MockClock) -> None:
    async with standing_in() as (server, client, _):
        server._review = lambda body: {"status": {"authenticated": True, "user": POD["user"]}}  # type: ignore[method-assign]
        assert await review(client, "good", ["pidone-repo"]) is None
        assert await review(client, "good") is not None


async def test_a_bad_token_is_nobodys(autojump_clock: MockClock) -> None:
    async with standing_in() as (_, client, _):
        assert await review(client, "bad") is None


async def test_a_user_is_no_service_account(autojump_clock: MockClock) -> None:
    assert Bearer("admin").service_account == ("", "")
    assert Bearer("admin:x").service_account == ("", "")


async def test_a_review_that_fails_is_no_no(autojump_clock: MockClock) -> None:
    async with standing_in() as (server, client, _):
        server.fail("/tokenreviews", refused(500, "InternalError"))
        with pytest.raises(ServerError):
            await review(client, "good")
