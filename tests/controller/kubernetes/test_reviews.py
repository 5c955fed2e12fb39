"""Whose token is it, and for whom. What a SubjectAccessReview says is tested on the real one alone."""

from typing import Any

import pytest
from trio.testing import MockClock

from pidone_controller.kubernetes.errors import ServerError
from pidone_controller.kubernetes.reviews import review_token
from tests.controller.kubernetes.fake import fake_server, refused

POD: dict[str, Any] = {
    "audiences": ["pidone-repo"],
    "user": {
        "username": "system:serviceaccount:shop:web",
        "uid": "1",
        "groups": ["system:serviceaccounts"],
        "extra": {"authentication.kubernetes.io/pod-name": ["web-0"]},
    },
}


async def test_a_good_token_says_whose_it_is(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.tokens["good"] = POD
        status = await review_token(client, "good", ["pidone-repo"])
        assert status["authenticated"] is True
        assert status["user"] == POD["user"]


async def test_a_token_for_somebody_else_is_not_for_us(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.tokens["good"] = POD
        assert not (await review_token(client, "good", ["another"])).get("authenticated")


async def test_an_authenticator_that_knows_no_audiences_is_not_enough(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server._review = lambda body: {"status": {"authenticated": True, "user": POD["user"]}}  # type: ignore[method-assign]
        assert (await review_token(client, "good", ["pidone-repo"]))["authenticated"] is False
        assert (await review_token(client, "good"))["authenticated"] is True


async def test_a_bad_token_is_nobodys(autojump_clock: MockClock) -> None:
    async with fake_server() as (_, client, _):
        assert not (await review_token(client, "bad")).get("authenticated")


async def test_a_review_that_fails_is_no_no(autojump_clock: MockClock) -> None:
    async with fake_server() as (server, client, _):
        server.fail("/tokenreviews", refused(500, "InternalError"))
        with pytest.raises(ServerError):
            await review_token(client, "good")
