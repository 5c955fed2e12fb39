"""Answers of receivers that are no success, or hostile: each is bounded, and said with the remedy."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis.strategies import integers

from pidone.actions._destination import MAX_ANSWER, MAX_WORDS, WAIT_MAX_SECONDS, retry_after
from pidone.actions._otlp import PERIOD_SECONDS
from pidone.errors import TransferTimeout
from pidone.http.message import Response
from tests.actions.test_report import Bench, metrics
from tests.http.serving import Talk, raw_server, says
from tests.patience import PATIENCE_SECONDS

KINDS = ("webhook", "pushgateway", "otlp")
PAGE = b"<!DOCTYPE html><html><body>Log in</body></html>"
NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"content-length": str(len(body))} | headers
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says_what_is_read(sent: bytes) -> Talk:
    """Send this until the other end closes the connection."""

    async def talk(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
        await stream.aclose()

    return talk


async def error_after(nursery: trio.Nursery, kind: str, talk: Any, state: str = "failing") -> str:
    """Return the error of a report to a server that does this, without its beginning: method and URL."""
    port = await raw_server(nursery, talk)
    bench = Bench()
    async with trio.open_nursery() as inner:
        await inner.start(bench.engine.run)
        bench.apply(
            {kind: {"url": f"http://user:secret@127.0.0.1:{port}"}},
            {"name": "m", "probe": {"tcpSocket": {"port": 1}}},
        )
        with trio.fail_after(PATIENCE_SECONDS):
            while bench.state("r") != state or (state == "reporting" and not bench.error("r")):
                await bench.engine._state_changed.wait()
        error = bench.error("r")
        inner.cancel_scope.cancel()
    assert "secret" not in error
    assert len(error) < 600
    assert error.isprintable()
    nursery.cancel_scope.cancel()
    return error.partition(": ")[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            "400 Bad",
            b"no such\x1b[31m field\n" * 9,
            'answered 400 "no such\N{REPLACEMENT CHARACTER}[31m field',
        ),
        (
            "401 No",
            b'{"code": 16, "message": "who are you?"}',
            'answered 401 "who are you?"; does the receiver need',
        ),
        ("403 No", b'{"error": {"message": "not you"}}', 'answered 403 "not you"; are the token in headers'),
        (
            "404 Not Found",
            b"404 page not found\n",
            'answered 404 "404 page not found"; is the path of the URL right?',
        ),
        ("413 Large", b"x" * (1 << 20), 'answered 413 "xxx'),
        ("418 Tea", b"", "answered 418"),
        ("429 Slow", b"\xff\xfe", 'answered 429 "\N{REPLACEMENT CHARACTER}'),
        ("503 Away", b"{" * 9999, 'answered 503 "{{{'),
        (
            "502 Bad",
            PAGE,
            "answered 502 with an HTML page; is that the receiver, or a login page or proxy before it?",
        ),
    ],
)
async def test_an_answer_is_said_in_the_receivers_words(
    nursery: trio.Nursery, kind: str, status: str, body: bytes, words: str
) -> None:
    said = await error_after(nursery, kind, says_what_is_read(answer(status, body)))
    assert said.startswith(words)
    assert len(said) < MAX_WORDS + 200


@pytest.mark.parametrize("kind", KINDS)
async def test_a_redirect_is_not_followed(nursery: trio.Nursery, kind: str) -> None:
    asked = []

    async def elsewhere(stream: trio.SocketStream) -> None:
        asked.append(stream)

    port = await raw_server(nursery, elsewhere)
    location = f"http://me:secret@127.0.0.1:{port}/login?next=%2F"
    said = await error_after(nursery, kind, says(answer("302 Found", PAGE, location=location)))
    assert said == (
        f"answered 302, a redirect to http://127.0.0.1:{port}/login?next=%2F, which is not followed; "
        "if that is the receiver, write its URL"
    )
    assert not asked


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_without_an_end_is_read_to_a_bound(nursery: trio.Nursery, kind: str) -> None:
    sent = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"1000\r\n" + b"e" * 0x1000 + b"\r\n")
                sent += 0x1000

    said = await error_after(nursery, kind, flood)
    assert said.startswith('answered 500 "eee')
    assert sent < 100 * MAX_ANSWER, "what the system buffers, and not more"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "the connection ended before the answer did"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "the connection ended before the answer did"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9999, "Receive buffer too long"),
        (answer("200 OK", b"x" * 99, content_encoding="gzip"), "the answer is not gzip"),
    ],
)
async def test_what_is_no_answer(nursery: trio.Nursery, kind: str, sent: bytes, words: str) -> None:
    assert words in await error_after(nursery, kind, says(sent))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_is_reset(nursery: trio.Nursery, kind: str) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()

    assert "Connection reset by peer" in await error_after(nursery, kind, reset)


async def test_a_login_page_is_no_success(nursery: trio.Nursery) -> None:
    words = "answered 200 with an HTML page; is that the receiver, or a login page or proxy before it?"
    for kind, state in (("webhook", "reporting"), ("pushgateway", "failing"), ("otlp", "failing")):
        async with trio.open_nursery() as inner:
            assert await error_after(inner, kind, says(answer("200 OK", PAGE)), state) == words


@pytest.mark.parametrize(
    ("body", "state", "words"),
    [
        (b"thanks", "reporting", "answered 200 with what is no JSON; is this a receiver of OTLP?"),
        (b"[1]", "reporting", "answered 200 with what is no JSON; is this a receiver of OTLP?"),
        (
            b'{"partialSuccess": {"rejectedDataPoints": "3", "errorMessage": "too\\u001b old"}}',
            "failing",
            'the receiver rejected 3 data points: "too\N{REPLACEMENT CHARACTER} old"; its limits or its rules',
        ),
        (b'{"partialSuccess": {"rejectedDataPoints": 1}}', "failing", "the receiver rejected 1 data points"),
        (
            b'{"partialSuccess": {"errorMessage": "use gzip"}}', "reporting", 'the receiver says "use gzip"'
        ),
        (
            b'{"partialSuccess": {"rejectedDataPoints": [], "errorMessage": {"a": 1}}}',
            "reporting",
            "the receiver says \"{'a': 1}\"",
        ),
    ],
)  # fmt: skip
async def test_what_a_receiver_of_otlp_says_of_a_success(
    nursery: trio.Nursery, body: bytes, state: str, words: str
) -> None:
    assert (await error_after(nursery, "otlp", says(answer("200 OK", body)), state)).startswith(words)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("1.5", 0),
        ("soon", 0),
        ("9" * 400, WAIT_MAX_SECONDS),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0),
        ("Sun, 06 Nov 9994 08:48:37 GMT", WAIT_MAX_SECONDS),
        ("Sun, 06 Nov 1994 08:49:60 GMT", 23),
        ("Sun, 99 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov", 0),
        ("\N{SUPERSCRIPT TWO}", 0),
    ],
)
def test_the_time_that_a_receiver_asks_for(value: str, seconds: float) -> None:
    assert retry_after(Response(429, {"retry-after": value}), NOW) == seconds


@given(integers(0, 2**33))
def test_every_date_is_read_as_the_standard_library_writes_it(moment: int) -> None:
    answer = Response(503, {"retry-after": formatdate(moment, usegmt=True)})
    assert retry_after(answer, moment - 5.0) == 5


class Script:
    """What ``exchange`` does in its next calls instead of a request; then it succeeds. ``times`` are those of calls."""

    def __init__(self, *steps: Response | float) -> None:
        self.steps = list(steps)
        self.times: list[float] = []
        self.bodies: list[bytes] = []

    async def exchange(self, method: str, url: str, headers: Any, body: bytes, source: Any) -> Response:
        del method, headers, source
        self.times.append(trio.current_time())
        self.bodies.append(body)
        step = self.steps.pop(0) if self.steps else Response(200)
        if isinstance(step, Response):
            await trio.lowlevel.checkpoint()
            return step
        await trio.sleep(step)
        raise TransferTimeout(f"{url}: no answer within {step:g} s")

    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    for kind in KINDS:
        monkeypatch.setattr(f"pidone.actions._{kind}.exchange", script.exchange)
    return script


async def run(kind: str, script: Script, calls: int, free_port: Any, **common: Any) -> Bench:
    """Report to the script until it was called so often."""
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.apply({kind: {"url": "http://x"}}, metrics(free_port()), **common)
        while len(script.times) < calls:
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return bench


async def test_otlp_is_sent_each_minute_without_a_change(
    script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    await run("otlp", script, 6, free_port)
    assert script.gaps()[2:] == pytest.approx([PERIOD_SECONDS] * 3)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_time_of_retry_after_is_waited(
    kind: str, script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script.steps = [Response(429, {"retry-after": "300"})]
    await run(kind, script, 2, free_port)
    assert 300 <= script.gaps()[0] <= 303


async def test_a_receiver_that_is_away_is_tried_with_a_growing_random_wait(
    script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script.steps = [10.0] * 30
    await run("otlp", script, 31, free_port)
    assert all(1 <= gap - 10 <= 60 for gap in script.gaps())
    assert max(script.gaps()) > 30


@pytest.mark.parametrize("kind", ["otlp", "pushgateway"])
async def test_a_refused_message_is_not_sent_before_the_next_period(
    kind: str, script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script.steps = [Response(400)] * 3
    await run(kind, script, 4, free_port, every=120.0)
    assert all(gap >= 120 for gap in script.gaps())


async def test_a_webhook_that_refuses_is_failing_until_it_accepts_something(
    script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script.steps = [Response(404)] * 2  # the start of the other task, and its state
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.apply({"webhook": {"url": "http://x"}}, metrics(free_port()))
        await trio.sleep(1000)
        assert (bench.state("r"), len(script.times)) == ("failing", 2)
        bench.apply({"webhook": {"url": "http://x"}})
        await trio.sleep(10)
        assert (bench.state("r"), len(script.times)) == ("reporting", 3)
        nursery.cancel_scope.cancel()


async def test_a_slow_receiver_holds_no_other_task_and_gets_the_last_message_in_time(
    script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script.steps = [10.0, 1e9]
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.apply({"otlp": {"url": "http://x"}}, metrics(free_port()), stopTimeout=3)
        await trio.sleep(1)
        assert bench.state("m") == "listening"
        began = trio.current_time()
        await bench.engine.drain(8)
        assert trio.current_time() - began <= 3.1
        assert len(script.times) == 2, "the last one"
        nursery.cancel_scope.cancel()


async def test_a_webhook_gets_a_change_that_comes_just_before_the_end(
    script: Script, free_port: Any, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.engine.run)
        bench.apply({"webhook": {"url": "http://x"}}, metrics(free_port()))
        while bench.state("m") != "listening":
            await bench.engine._state_changed.wait()
        await bench.engine.drain(8)
        nursery.cancel_scope.cancel()
    results = [result for body in script.bodies for result in json.loads(body)["results"]]
    assert ("m", "listening") in [(result["task"], result["state"]) for result in results]
    numbers = [result["number"] for result in results]
    assert numbers == sorted(set(numbers)), "each once, in order"
