"""Generated probes and answers: the kubelet's verdict, and the same requests."""

from typing import Any

import trio
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.probes import test_grpc
from tests.probes.comparing import Behaviour, Outcome, Server, Steps, of_kubelet, of_pidone, pod_with
from tests.probes.kubelet import Kubelet
from tests.probes.test_http import EMPTY, HEADS, LOCATIONS, OK, PATHS

ONE_BY_ONE = settings(max_examples=120, suppress_health_check=[*HealthCheck])

PARTS = ["/", "//", ".", "..", ":", "?", "#", "%", "%2F", "%zz", "[", "]", "@", "a", "b c", "ü", "\\", "*", "&", "=", "+", "\n", "\t", '"', "<", "~", "'", "http:", "127.0.0.1", "$(pod.name)"]  # fmt: skip  # noqa: E501
paths = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.tuples(st.sampled_from(PATHS), st.sampled_from(PATHS)).map("".join),
)
names = st.one_of(
    st.sampled_from(
        ["Host", "User-Agent", "Accept", "Connection", "Upgrade", "Referer", "x-a", "X-B", "Cookie"]
    ),
    st.from_regex(r"[-A-Za-z0-9]{1,6}", fullmatch=True),
)
values = st.one_of(
    st.sampled_from(
        ["", " ", "a", "close", "upgrade", "a,close", "keep-alive", "[::1]:80", "a b", "ü", "a\tb", "a\nb"]
    ),
    st.text(st.characters(max_codepoint=0x2FF), max_size=8),
)
headers = st.lists(st.tuples(names, values).map(lambda pair: {"name": pair[0], "value": pair[1]}), max_size=5)
lines = st.sampled_from(
    ["Content-Length: 0", "Content-Length: 2", "Content-Length: 3", "Content-Length:", "Transfer-Encoding: chunked",
     "Transfer-Encoding: gzip", "Location: /", "Location: /end", "Location: http://example.com/", "Trailer: A",
     "A", " A: b", "A: b", "A :b", ": b", "Connection: close", "Connection: keep-alive", "A: \x01", "A: ä", "\tb"]
)  # fmt: skip
bodies = st.sampled_from(
    ["", "ok", "okok", "0\r\n\r\n", "2\r\nok\r\n0\r\n\r\n", "2\r\nok\r\n0\r\nA: b\r\n\r\n",
     "2\r\nok", "g\r\n", "1;x\r\nk\r\n0\r\n\r\n"]
)  # fmt: skip
statuses = st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.1 204 x", "HTTP/1.1 302 x", "HTTP/1.1 304 x", "HTTP/1.1 404 x", "HTTP/1.0 200 OK", "HTTP/1.0 500 x", "HTTP/1.1 103 x", "HTTP/1.1 2000", "HTTP/1.1"])  # fmt: skip  # noqa: E501


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))
    text = end.join([draw(statuses), *draw(st.lists(lines, max_size=4)), "", ""]) + draw(bodies)
    data = text.encode()
    cut = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return data[:cut]


async def asked(
    kubelet: Kubelet, behaviour: Behaviour, **http_get: Any
) -> tuple[Outcome | None, Outcome | None]:
    async with trio.open_nursery() as nursery:
        server = Server(behaviour)
        await server.start(nursery, "127.0.0.1")
        pod = pod_with({"httpGet": {"port": server.port} | http_get, "timeoutSeconds": 60}, "127.0.0.1")
        expected = await of_kubelet(kubelet, pod, server)
        outcome = await of_pidone(pod, server) if expected else None
        nursery.cancel_scope.cancel()
    return expected, outcome


def compare(kubelet: Kubelet, behaviour: Behaviour, **http_get: Any) -> None:
    async def one() -> tuple[Outcome | None, Outcome | None]:
        return await asked(kubelet, behaviour, **http_get)

    expected, outcome = trio.run(one)
    assert outcome == expected, f"{outcome and outcome.why} / {expected and expected.why}"


@ONE_BY_ONE
@given(path=paths, pairs=headers)
def test_requests(kubelet: Kubelet, path: str, pairs: list[dict[str, str]]) -> None:
    assume(
        not any(pair["name"].lower() == "host" and not pair["value"].isascii() for pair in pairs)
    )  # docs/probes.md
    compare(kubelet, lambda _head, _port: [OK], path=path, httpHeaders=pairs)


@ONE_BY_ONE
@given(answer=answers(), more=st.sampled_from([b"", *HEADS.values()]))
def test_answers(kubelet: Kubelet, answer: bytes, more: bytes) -> None:
    compare(kubelet, lambda head, _port: [OK] if b"Referer" in head else [answer + more])


@ONE_BY_ONE
@given(path=paths, hops=st.lists(st.one_of(paths, st.sampled_from(LOCATIONS)), max_size=4), pairs=headers)
def test_redirects(kubelet: Kubelet, path: str, hops: list[str], pairs: list[dict[str, str]]) -> None:
    assume(not any(pair["name"].lower() == "host" and not pair["value"].isascii() for pair in pairs))
    left: list[str] = []

    def behaviour(head: bytes, port: int) -> Steps:
        if b"Referer" not in head or not left:
            left[:] = [hop.replace("{port}", str(port)) for hop in hops]
        if not left:
            return [OK]
        line = left.pop().replace("\n", "").replace("\r", "")
        return [f"HTTP/1.1 307 x\r\nLocation: {line}\r\n{EMPTY}\r\n\r\n".encode() if left else OK]

    compare(kubelet, behaviour, path=path, httpHeaders=[pair for pair in pairs if pair["name"] != "Referer"])


calls = st.lists(
    st.tuples(
        st.sampled_from(["grpc-status", "content-type", "grpc-message", "x-a", "x-b-bin", "grpc-encoding"]),
        st.sampled_from(
            ["0", "2", "00", "", "application/grpc", "application/grpc+x", "text/html", "identity", "AAE"]
        ),
    ),
    max_size=3,
)
fields = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\x08\x01", b"\x08\x02", b"\x08", b"\x10\x01", b"\x1a\x01a", b"\x13", b"\x14", b"\x08\x81\x00"]
        ),
        st.binary(max_size=3),
    ),
    max_size=4,
).map(b"".join)


@ONE_BY_ONE
@given(head=calls, end=calls, message=st.one_of(st.just(b"\x08\x01"), fields), good=st.booleans())
def test_calls(
    kubelet: Kubelet, head: list[tuple[str, str]], end: list[tuple[str, str]], message: bytes, good: bool
) -> None:
    trailers = [*end, *test_grpc.GOOD] if good else end
    answer = test_grpc.says([*test_grpc.HEAD, *head], test_grpc.framed(message), end=trailers or None)
    trio.run(test_grpc.compare, kubelet, answer)
