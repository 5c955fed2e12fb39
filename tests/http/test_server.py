import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.http.admission import Room, one_room
from pidone.http.message import MAX_FIELDS, Held, Request, Response, text_response
from pidone.http.server import serve
from tests.http.serving import http_server
from tests.patience import PATIENCE_SECONDS


async def echo(request: Request) -> Response:
    if request.path == "/bug":
        raise ZeroDivisionError("a bug")
    if request.path == "/split":
        return Response(200, {"location": "a\r\nset-cookie: b"})
    if request.path == "/unchanged":
        return Response(304, {"etag": '"1"'}, b"a body that 304 has not")
    return text_response(200, f"{request.method} {request.target} {request.body.decode()}")


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def read(stream: trio.SocketStream, until: bytes = b"") -> bytes:
    """What comes until these bytes have come; without them, until the connection is closed."""
    received = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (until and until in received):
            part = await stream.receive_some()
            if not part:
                assert not until, received
                break
            received += part
    return received


async def converse(port: int, sent: bytes) -> bytes:
    """Everything the server says to this until it closes the connection."""
    async with await connect(port) as stream:
        await stream.send_all(sent)
        return await read(stream)


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


LAST = "Connection: close"


async def test_a_connection_serves_one_request_after_the_other(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo, connections=1)
    async with await connect(port) as stream:
        for number in range(3):
            await stream.send_all(get(f"/{number}"))
            assert b"200" in await read(stream, b"GET /%d " % number)
    nursery.cancel_scope.cancel()


async def test_a_head_with_very_many_fields_is_refused(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    for number, status in ((MAX_FIELDS - 2, b"200"), (MAX_FIELDS, b"431")):  # with Host and Connection
        fields = [f"a{each}: b" for each in range(number)]
        assert (await converse(port, get("/", *fields, LAST))).startswith(b"HTTP/1.1 " + status)
    nursery.cancel_scope.cancel()


async def test_requests_sent_together_are_answered_in_order(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    body = get("/one", "Content-Length: 4", method="POST") + b"body"
    answers = await converse(port, body + get("/two?x") + get("/three", LAST))
    places = [answers.index(text) for text in (b"POST /one body", b"GET /two?x ", b"GET /three ")]
    assert places == sorted(places)
    assert answers.count(b"HTTP/1.1 200") == 3
    nursery.cancel_scope.cancel()


async def test_head_has_the_length_and_no_body(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    answer = await converse(port, get("/x", LAST, method="HEAD"))
    assert b"content-length: 9" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")
    nursery.cancel_scope.cancel()


async def test_not_modified_has_no_body_and_the_connection_goes_on(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    answer = await converse(port, get("/unchanged") + get("/next", LAST))
    assert answer.startswith(b"HTTP/1.1 304")
    assert b"a body" not in answer
    assert b"GET /next" in answer
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "sent",
    [
        get("/", "Content-Length: 1000", method="POST") + bytes(1000),
        get("/", "Transfer-Encoding: chunked", method="POST") + b"3e8\r\n" + bytes(1000) + b"\r\n0\r\n\r\n",
        get("/", "Content-Length: 900000", method="POST") + bytes(900000),
    ],
)
async def test_a_body_that_is_too_large_is_413_and_the_answer_arrives(
    sent: bytes, nursery: trio.Nursery
) -> None:
    answer = await converse(await http_server(nursery, echo, body=999), sent)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 999 bytes" in answer
    nursery.cancel_scope.cancel()


async def test_a_client_may_ask_whether_its_body_is_welcome(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    async with await connect(port) as stream:
        await stream.send_all(get("/", "Expect: 100-continue", "Content-Length: 2", method="POST"))
        await read(stream, b"HTTP/1.1 100 \r\n\r\n")
        await stream.send_all(b"ok")
        await read(stream, b"POST / ok")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),  # a TLS client
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no host
        (get("/", "Content-Length: many"), b"400"),
        (get("/", "X: " + "x" * 70_000), b"431"),
    ],
)
async def test_what_is_no_request_is_told_so(sent: bytes, status: bytes, nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    assert (await converse(port, sent)).startswith(b"HTTP/1.1 " + status)
    assert b"GET /after" in await converse(port, get("/after", LAST))
    nursery.cancel_scope.cancel()


async def test_a_bug_in_the_handler_costs_its_own_request_alone(nursery: trio.Nursery) -> None:
    port = await http_server(nursery, echo)
    answers = await converse(port, get("/bug") + get("/split") + get("/next", LAST))
    assert answers.count(b"HTTP/1.1 500") == 2
    assert b"ZeroDivisionError: a bug" in answers
    assert b"\nset-cookie" not in answers.lower()
    assert b"GET /next" in answers
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", get("/", "Content-Length: 9", method="POST"), get("/")])
async def test_the_longest_silent_connection_makes_room_for_another(
    sent: bytes, nursery: trio.Nursery
) -> None:
    port = await http_server(nursery, echo, connections=2)
    async with await connect(port) as first, await connect(port) as second:
        await first.send_all(sent)
        await wait_all_tasks_blocked(0.01)
        await second.send_all(get("/in"))
        await read(second, b"GET /in")
        assert b"GET /more" in await converse(port, get("/more", LAST))
        assert (
            not (await read(first)).replace(b"GET / ", b"").count(b"GET")
        )  # closed, after its own answer if any
        await second.send_all(get("/still"))
        await read(second, b"GET /still")
    nursery.cancel_scope.cancel()


async def test_connections_that_are_being_answered_stay_and_another_is_closed(nursery: trio.Nursery) -> None:
    held, go = trio.Event(), trio.Event()

    async def hold(request: Request) -> Response:
        held.set()
        await go.wait()
        return await echo(request)

    port = await http_server(nursery, hold, connections=1)
    async with await connect(port) as first:
        await first.send_all(get("/in"))
        await held.wait()
        assert await converse(port, b"") == b""
        go.set()
        await read(first, b"GET /in")
    nursery.cancel_scope.cancel()


async def test_the_answer_to_an_unwelcome_body_comes_after_the_head(nursery: trio.Nursery) -> None:
    async def refuse(head: Request) -> Response | None:
        assert head.body == b""
        if head.path == "/bug":
            raise ZeroDivisionError("a bug")
        return None if head.path == "/welcome" else text_response(403, "not yours")

    port = await http_server(nursery, echo, refuse=refuse)
    for path, status in {"/": b"403", "/bug": b"500"}.items():
        for length in ("Content-Length: 5", "Transfer-Encoding: chunked"):
            sent = get(path, length, "Expect: 100-continue", method="POST")
            assert (await converse(port, sent)).startswith(b"HTTP/1.1 " + status)
    answers = await converse(
        port, get("/welcome", "Content-Length: 2", method="POST") + b"ok" + get("/x", LAST)
    )
    assert b"POST /welcome ok" in answers
    assert b"GET /x" in answers  # nothing to refuse: it has no body
    nursery.cancel_scope.cancel()


async def test_all_bytes_in_flight_have_one_bound(nursery: trio.Nursery) -> None:
    room = Room(9, 9, received=1000)
    port = await http_server(nursery, echo, assign=one_room(room))
    async with await connect(port) as first, await connect(port) as second, await connect(port) as third:
        for stream in (first, second):
            await stream.send_all(get("/", "Content-Length: 900", method="POST") + bytes(500))
            await wait_all_tasks_blocked(0.01)
        assert await read(first) == b""  # the longest silent of them
        await third.send_all(get("/third"))
        await read(third, b"GET /third")
        await second.send_all(bytes(400))
        await read(second, b"POST /")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Length: 5", "Transfer-Encoding: chunked"], b"400"),
        (["Transfer-Encoding: chunked", "Content-Length: 0"], b"400"),
        (["Content-Length: 5", "Content-Length: 6"], b"400"),
        (["Content-Length: 5, 6"], b"400"),
        (["Content-Length: +5"], b"400"),
        (["Content-Length: -5"], b"400"),
        (["Content-Length: 0x5"], b"400"),
        (["Content-Length: 5_0"], b"400"),
        (["Content-Length: \xb2"], b"400"),
        (["Content-Length: " + "9" * 5000], b"400"),
        (["Content-Length: 99999999999999999999"], b"413"),
        (["Transfer-Encoding: gzip, chunked"], b"501"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"501"),
        (["Transfer-Encoding : chunked"], b"400"),
        (["X: a\x00b"], b"400"),
        (["Host: y"], b"400"),
    ],
)
async def test_an_ambiguous_head_is_refused_and_the_connection_is_closed(
    headers: list[str], status: bytes, nursery: trio.Nursery
) -> None:
    port = await http_server(nursery, echo)
    sent = get("/", *headers, method="POST").decode().encode("latin-1") + b"0\r\n\r\n" + get("/smuggled")
    answer = await converse(port, sent)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"smuggled" not in answer
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", get("/", "Content-Length: 9", method="POST"), get("/")])
async def test_who_falls_silent_is_dropped_after_a_while(
    sent: bytes, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    port = await http_server(nursery, echo)
    async with await connect(port) as stream:
        await stream.send_all(sent)
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(14.9)
        await wait_all_tasks_blocked(0.01)
        ended = trio.Event()

        async def wait_for_the_end() -> None:
            await read(stream)
            ended.set()

        nursery.start_soon(wait_for_the_end)
        await wait_all_tasks_blocked(0.01)
        assert not ended.is_set()
        mock_clock.jump(0.2)
        await ended.wait()
    nursery.cancel_scope.cancel()


async def test_who_does_not_read_gives_up_its_place(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    async def huge(request: Request) -> Response:
        return Response(200, {}, b"x" if request.path == "/small" else bytes(50_000_000))

    port = await http_server(nursery, huge, connections=1)
    async with await connect(port) as stream:
        await stream.send_all(get("/huge"))
        await wait_all_tasks_blocked(0.01)
        assert await converse(port, get("/small", LAST)) == b""
        mock_clock.jump(16)
        await wait_all_tasks_blocked(0.01)
        assert (await converse(port, get("/small", LAST))).endswith(b"x")
    nursery.cancel_scope.cancel()


async def test_a_client_that_left_while_it_was_held_frees_its_place_at_the_answer(
    nursery: trio.Nursery,
) -> None:
    held, change = trio.Event(), trio.Event()

    async def hold(request: Request) -> Response:
        held.set()
        await change.wait()
        return Response(200, {}, bytes(1_000_000))

    port = await http_server(nursery, hold, connections=1)
    async with await connect(port) as stream:
        await stream.send_all(get("/"))
        await held.wait()
    change.set()
    await wait_all_tasks_blocked(0.01)
    assert len(await converse(port, get("/", LAST))) > 1_000_000
    nursery.cancel_scope.cancel()


async def test_a_handler_that_holds_a_request_is_cancelled_when_the_peer_goes(nursery: trio.Nursery) -> None:
    held, released = trio.Event(), trio.Event()

    async def hold(request: Request) -> Response:
        held.set()
        try:
            await trio.sleep_forever()
        finally:
            released.set()
        raise AssertionError

    port = await http_server(nursery, hold, connections=1)
    async with await connect(port) as stream:
        await stream.send_all(get("/"))
        await held.wait()
    with trio.fail_after(PATIENCE_SECONDS):
        await released.wait()
    nursery.cancel_scope.cancel()


async def test_a_request_that_was_sent_ahead_of_a_held_answer_is_answered_after_it(
    nursery: trio.Nursery,
) -> None:
    go, held = trio.Event(), trio.Event()

    async def hold(request: Request) -> Response:
        if request.path == "/held":
            held.set()
            await go.wait()
        return text_response(200, f"this is {request.path}")

    port = await http_server(nursery, hold)
    async with await connect(port) as stream:
        await stream.send_all(get("/held"))
        await held.wait()
        await stream.send_all(get("/next", LAST))
        await wait_all_tasks_blocked()
        go.set()
        said = await read(stream)
    assert said.index(b"this is /held") < said.index(b"this is /next")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("closes", [True, False])
async def test_the_last_words_of_a_peer_that_dies_are_told(nursery: trio.Nursery, *, closes: bool) -> None:
    held, go, told = trio.Event(), trio.Event(), list[tuple[str, str]]()

    async def hold(request: Request) -> Response:
        held.set()
        await go.wait()
        return Response(204)

    port = await http_server(nursery, hold, fatal=lambda peer, words: told.append((peer, words)))
    words = b"Fatal Python error: Segmentation fault\n\n  File ..."
    async with await connect(port) as stream:
        await stream.send_all(get("/"))
        await held.wait()
        await stream.send_all(words)
        if closes:
            await stream.send_eof()
        else:
            await wait_all_tasks_blocked()
            go.set()
        await read(stream)
    assert told == [("127.0.0.1", words.decode())]
    nursery.cancel_scope.cancel()


# Requests that are held without a task


class Bench(Held):
    """Held until somebody says the words, or a second is over."""

    def __init__(self) -> None:
        self.words = ""
        self.calls: list[Callable[[], object]] = []
        self.end = trio.current_time() + 1

    @property
    def deadline(self) -> float:
        return self.end

    def look(self) -> Response | None:
        if self.words == "bug":
            raise ZeroDivisionError("a bug")
        if self.words:
            return text_response(200, self.words)
        return text_response(200, "late") if trio.current_time() >= self.end else None

    def subscribe(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def unsubscribe(self, call: Callable[[], object]) -> None:
        self.calls.remove(call)

    def say(self, words: str) -> None:
        self.words = words
        for call in list(self.calls):
            call()


class Benches:
    """Holds what asks for /held, and sends the head of /bell; the last of them is ``bench``."""

    def __init__(self) -> None:
        self.bench: Bench
        self.deaths: list[tuple[str, str]] = []

    async def handle(self, request: Request) -> Response | Held:
        if request.path not in {"/held", "/bell"}:
            return await echo(request)
        self.bench = Bench()
        self.bench.end += 1000 * (request.target != "/held?soon")
        return Response(200, later=self.bench) if request.path == "/bell" else self.bench

    async def start(self, nursery: trio.Nursery, connections: int = 9) -> int:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(
            partial(
                serve, self.handle, listeners,
                max_connections=connections, fatal=lambda *words: self.deaths.append(words),
            )
        )  # fmt: skip
        port: int = listeners[0].socket.getsockname()[1]
        return port


async def parked(benches: Benches) -> Bench:
    with trio.fail_after(PATIENCE_SECONDS):
        while not (hasattr(benches, "bench") and benches.bench.calls):
            await trio.lowlevel.checkpoint()
    return benches.bench


async def test_a_held_request_is_answered_when_there_is_an_answer_and_the_connection_goes_on(
    nursery: trio.Nursery,
) -> None:
    benches = Benches()
    async with await connect(await benches.start(nursery)) as stream:
        for words in ("one", "bug", "two"):
            # what is sent ahead waits for its turn
            await stream.send_all(get("/held") + get("/next"))
            bench = await parked(benches)
            bench.say("")  # a call without news
            bench = await parked(benches)
            bench.say(words)
            answers = await read(stream, b"GET /next ")
            assert (b"internal error: ZeroDivisionError" if words == "bug" else words.encode()) in answers
            assert bench.calls == []
            del benches.bench
    nursery.cancel_scope.cancel()


async def test_a_held_request_is_answered_at_its_deadline(nursery: trio.Nursery) -> None:
    benches = Benches()
    port = await benches.start(nursery)
    async with await connect(port) as late, await connect(port) as soon:
        await late.send_all(get("/held"))
        await parked(benches)
        await soon.send_all(get("/held?soon", LAST))
        assert b"late" in await read(soon)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", ["/held", "/bell"])
async def test_who_goes_away_while_held_makes_room(path: str, nursery: trio.Nursery) -> None:
    benches = Benches()
    port = await benches.start(nursery, connections=1)
    for reset in (False, True):
        stream = await connect(port)
        await stream.send_all(get(path))
        bench = await parked(benches)
        assert await converse(port, get("/x", LAST)) == b""  # it is full
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            while bench.calls:
                await trio.lowlevel.checkpoint()
        assert b"GET /x" in await converse(port, get("/x", LAST))
    nursery.cancel_scope.cancel()


async def test_last_words_of_a_peer_that_is_held_are_told(nursery: trio.Nursery) -> None:
    benches = Benches()
    stream = await connect(await benches.start(nursery))
    await stream.send_all(get("/held"))
    bench = await parked(benches)
    await stream.send_all(b"Fatal Python error: as if\n")
    await stream.aclose()
    with trio.fail_after(PATIENCE_SECONDS):
        while bench.calls:
            await trio.lowlevel.checkpoint()
    assert benches.deaths == [("127.0.0.1", "Fatal Python error: as if\n")]
    nursery.cancel_scope.cancel()


async def test_a_bell_rings_with_its_body_alone(nursery: trio.Nursery) -> None:
    benches = Benches()
    async with await connect(await benches.start(nursery)) as stream:
        await stream.send_all(get("/bell"))
        assert (await read(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        (await parked(benches)).say("!")
        assert await read(stream) == b"!\n"
    nursery.cancel_scope.cancel()


async def test_the_end_closes_what_is_held() -> None:
    benches = Benches()
    async with trio.open_nursery() as life:
        stream = await connect(await benches.start(life))
        await stream.send_all(get("/held"))
        bench = await parked(benches)
        life.cancel_scope.cancel()
    assert bench.calls == []
    assert await read(stream) == b""
    await stream.aclose()
