"""The fake says what the real API server was heard to say: the same dialogue with it, compared."""

from collections.abc import Mapping

import pytest
from trio.testing import MockClock

from pidone_controller.kubernetes.resources import PODS
from tests.controller.kubernetes.dialogue import (
    AUDIENCE,
    SPACE,
    Exchange,
    Object,
    converse,
    differences,
    read_all,
)
from tests.controller.kubernetes.fake import FakeAPIServer
from tests.controller.kubernetes.wires import Request

USER = {
    "username": f"system:serviceaccount:{SPACE}:default",
    "uid": "1",
    "groups": ["system:serviceaccounts", f"system:serviceaccounts:{SPACE}", "system:authenticated"],
    "extra": {
        f"authentication.kubernetes.io/{key}": ["x"]
        for key in ("credential-id", "node-name", "pod-name", "pod-uid")
    },
}


class Fake:
    """The fake, as the dialogue talks with it."""

    def __init__(self) -> None:
        self.server = FakeAPIServer()
        for name in "abc":
            pod = {"spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"}}
            self.server.put(PODS, name, SPACE, metadata={"labels": {"app": name}}, **pod)

    async def ask(self, said: Exchange, headers: Mapping[str, str], body: bytes, lines: int) -> None:
        self.server.token = "good" if "authorization" in headers else ""  # the dialogue knows no good one
        answer = await self.server.handle(Request(said.method, said.path, said.query, headers, body))
        said.status = answer.status
        said.content_type = answer.headers.get("content-type", "application/json")
        text = answer.body
        if answer.pieces is not None:
            async for piece in answer.pieces:
                text += piece
                if lines and text.count(b"\n") >= lines:
                    break
            await answer.pieces.aclose()
        said.read(text)

    async def lose_history(self) -> None:
        self.server.compact()

    async def token(self) -> str:
        self.server.tokens["good"] = {"audiences": [AUDIENCE], "user": USER}
        return "good"


async def test_it_says_what_the_real_one_was_heard_to_say(autojump_clock: MockClock) -> None:
    recorded = read_all()
    said = await converse(Fake())
    assert said.keys() == recorded.keys(), "python -m tests.cluster.record"
    told = [
        line
        for name, real in recorded.items()
        for line in differences(_without_query(real), _without_query(said[name]), name)
    ]
    assert not told, "\n".join(told)


def _without_query(exchange: Object) -> Object:
    """Versions and tokens in it are each server's own."""
    return exchange | {"asked": exchange["asked"].partition("?")[0]}


@pytest.mark.parametrize(
    ("real", "other", "told"),
    [
        ({"kind": "Pod"}, {"kind": "Pods"}, [".kind: 'Pods' and not 'Pod'"]),
        ({"name": "a"}, {"name": "b"}, []),
        ({"name": "a"}, {"name": 1}, [".name: 1 and not 'a'"]),
        ({"name": "a"}, {}, [".name: missing"]),
        ({"phase": "a"}, {}, []),
        ({}, {"phase": "a"}, [".phase: only here"]),
        ({"items": [1]}, {"items": []}, [".items: 0 and not 1"]),
        ({"items": [{"name": 1}]}, {"items": [{}]}, [".items[0].name: missing"]),
    ],
)
def test_differences_are_found(real: Object, other: Object, told: list[str]) -> None:
    assert differences(real, other) == told
