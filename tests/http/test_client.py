import gzip
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pidone.errors import ConnectError, ProtocolError, TransferError, TransferTimeout
from pidone.http.client import redacted, request
from pidone.http.message import Request, Response
from tests.http.serving import http_server, raw_server, says
from tests.patience import PATIENCE_SECONDS

OK = b"HTTP/1.1 200 OK\r\n"


async def get(port: int, *, limit: int = 1 << 20, accept_encoding: str = "gzip") -> Response:
    headers = {"accept-encoding": accept_encoding}
    return await request(
        "GET", f"http://127.0.0.1:{port}/x", timeout=PATIENCE_SECONDS, limit=limit, headers=headers
    )


async def refusal(port: int, *, limit: int = 1 << 20) -> TransferError:
    with pytest.raises(TransferError) as raised:
        await get(port, limit=limit)
    return raised.value


async def test_a_request_arrives_as_it_was_given_and_the_answer_comes_back(nursery: trio.Nursery) -> None:
    got: list[Request] = []

    async def handler(request: Request) -> Response:
        got.append(request)
        return Response(418, {"X-Kind": "tea"}, b"short and stout")

    port = await http_server(nursery, handler)
    answer = await request(
        "PUT",
        f"http://127.0.0.1:{port}/a%20b?c=d#e",
        timeout=PATIENCE_SECONDS,
        headers={"X-Who": "me"},
        body=b"milk",
    )
    assert (answer.status, answer.headers["x-kind"], answer.body) == (418, "tea", b"short and stout")
    assert (got[0].method, got[0].target, got[0].path, got[0].body) == (
        "PUT",
        "/a%20b?c=d",
        "/a%20b",
        b"milk",
    )
    assert got[0].headers["x-who"] == "me"
    assert got[0].headers["host"] == f"127.0.0.1:{port}"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 20",
        OK + b"Content-Length: 9\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    ],
)
async def test_an_end_before_the_answers_end_is_no_answer(sent: bytes, nursery: trio.Nursery) -> None:
    error = await refusal(await raw_server(nursery, says(sent)))
    assert isinstance(error, ConnectError)
    assert "before the answer did" in str(error) or "Connection reset" in str(error)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "sent", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 two OK\r\n\r\n", b"\0" * 99 + b"\r\n\r\n"]
)
async def test_what_is_not_http_is_a_protocol_error(sent: bytes, nursery: trio.Nursery) -> None:
    assert isinstance(await refusal(await raw_server(nursery, says(sent))), ProtocolError)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "head", [b"Content-Length: 11\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\nb\r\n"]
)
async def test_a_body_larger_than_the_limit_is_refused(head: bytes, nursery: trio.Nursery) -> None:
    port = await raw_server(nursery, says(OK + head + b"12345678901\r\n0\r\n\r\n"))
    error = await refusal(port, limit=10)
    assert isinstance(error, ProtocolError)
    assert "larger than 10 bytes" in str(error)
    nursery.cancel_scope.cancel()


def zipped(body: bytes, *, cut: int = 0) -> bytes:
    data = gzip.compress(body, mtime=0)
    data = data[: len(data) - cut]
    return OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data


async def test_gzip_is_unpacked_up_to_the_limit(nursery: trio.Nursery) -> None:
    body = b"x" * 1000
    port = await raw_server(nursery, says(zipped(body)))
    assert (await get(port, limit=1000)).body == body
    assert "larger than 999 bytes" in str(await refusal(port, limit=999))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (zipped(bytes(50_000_000)), "larger than 1048576 bytes"),
        (zipped(b"half a letter", cut=10), "ends early"),
        (zipped(b"all but its check", cut=8), "ends early"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nplain", "not gzip"),
    ],
)
async def test_gzip_bombs_and_gzip_that_is_none_are_refused(
    sent: bytes, message: str, nursery: trio.Nursery
) -> None:
    error = await refusal(await raw_server(nursery, says(sent)))
    assert isinstance(error, ProtocolError)
    assert message in str(error)
    nursery.cancel_scope.cancel()


async def test_an_answer_may_have_less_time_than_all_of_it(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    async def nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def end(stream: trio.SocketStream) -> None:
        """The server got the request, and does not answer."""

    url = f"http://127.0.0.1:{await raw_server(nursery, nothing)}/x"
    with pytest.raises(TransferTimeout, match=r"no answer within 0\.05 s") as raised:
        await request("PUT", url, timeout=60, answer_timeout=0.05)
    assert raised.value.sent
    for port, sent in ((await raw_server(nursery, end), True), (free_port(), False)):
        with pytest.raises(ConnectError) as refused:
            await request("PUT", f"http://127.0.0.1:{port}/x", timeout=60)
        assert refused.value.sent is sent
    nursery.cancel_scope.cancel()


async def test_an_answer_that_does_not_come_is_a_timeout(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    async def nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    errors: list[TransferError] = []

    async def ask() -> None:
        errors.append(await refusal(port))

    port = await raw_server(nursery, nothing)
    nursery.start_soon(ask)
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(PATIENCE_SECONDS - 0.1)
    await wait_all_tasks_blocked(0.01)
    assert errors == []
    mock_clock.jump(0.2)
    await wait_all_tasks_blocked(0.01)
    assert isinstance(errors[0], TransferTimeout)
    assert str(errors[0]) == f"GET http://127.0.0.1:{port}/x: no answer within {PATIENCE_SECONDS:g} s"
    nursery.cancel_scope.cancel()


async def test_connecting_may_take_five_seconds_of_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def no_route(*args: object, **options: object) -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(trio, "open_tcp_stream", no_route)
    with pytest.raises(ConnectError, match="no connection within 5 s"):
        await request("GET", "http://192.0.2.1/", timeout=60)
    assert trio.current_time() == pytest.approx(5)


async def test_why_there_is_no_connection_is_said_in_words(free_port: Callable[[], int]) -> None:
    with pytest.raises(ConnectError, match="Connection refused"):
        await get(free_port())
    with pytest.raises(ConnectError, match="the name does not resolve"):
        await request("GET", "http://nobody.invalid/", timeout=PATIENCE_SECONDS)
    with pytest.raises(ConnectError, match=r"192\.0\.2\.1"):
        await request("GET", f"http://127.0.0.1:{free_port()}/", timeout=PATIENCE_SECONDS, source="192.0.2.1")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/",
        "host:8080",
        "http://",
        "http://host:x/",
        "http://host:99999/",
        f"http://{'n' * 70}.test/",
        "http://127.0.0.1:1/\N{SNOWMAN}",
        "http://127.0.0.1:1/a b",
    ],
)
async def test_a_url_that_cannot_be_asked_is_a_transfer_error(url: str, nursery: trio.Nursery) -> None:
    with pytest.raises(TransferError):
        await request("GET", url, timeout=PATIENCE_SECONDS)


async def test_what_http_cannot_carry_is_a_protocol_error(nursery: trio.Nursery) -> None:
    port = await raw_server(nursery, says(OK + b"\r\n"))
    for headers in ({"x": "\N{SNOWMAN}"}, {"x": "a\r\nb"}):
        with pytest.raises(ProtocolError):
            await request("GET", f"http://127.0.0.1:{port}/", timeout=PATIENCE_SECONDS, headers=headers)
    nursery.cancel_scope.cancel()


async def test_the_user_in_the_url_is_sent_and_never_shown(
    nursery: trio.Nursery, free_port: Callable[[], int]
) -> None:
    got: list[Request] = []

    async def handler(request: Request) -> Response:
        got.append(request)
        return Response(200)

    port = await http_server(nursery, handler)
    await request("GET", f"http://me:p%40ss%2Fw@127.0.0.1:{port}/", timeout=PATIENCE_SECONDS)
    assert got[0].headers["authorization"] == "Basic bWU6cEBzcy93"  # me:p@ss/w
    assert got[0].headers["host"] == f"127.0.0.1:{port}"
    for url in (
        f"http://me:hun%40ter@127.0.0.1:{free_port()}/",
        "ftp://me:hun%40ter@host/",
        "http://me:hun@ter@nobody.invalid/",
        "http://me:hun/ter@host/",
    ):
        with pytest.raises(TransferError) as raised:
            await request("GET", url, timeout=PATIENCE_SECONDS)
        assert "ter" not in str(raised.value)
        assert "me:" not in str(raised.value)
    nursery.cancel_scope.cancel()


def test_only_the_user_is_taken_out_of_a_url() -> None:
    assert redacted("https://u:p@q@host:1/a@b?c") == "https://host:1/a@b?c"
    assert redacted("http://host/") == "http://host/"


async def test_the_source_address_is_the_one_asked_for(nursery: trio.Nursery) -> None:
    peers: list[str] = []

    async def handler(request: Request) -> Response:
        peers.append(request.peer)
        return Response(204)

    port = await http_server(nursery, handler)
    await request("GET", f"http://127.0.0.1:{port}/", timeout=PATIENCE_SECONDS, source="127.0.0.7")
    assert peers == ["127.0.0.7"]
    nursery.cancel_scope.cancel()


async def test_a_redirect_is_an_answer_and_interim_answers_are_not(nursery: trio.Nursery) -> None:
    port = await raw_server(
        nursery, says(b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n")
    )
    answer = await get(port)
    assert (answer.status, answer.headers["location"]) == (302, "/login")
    nursery.cancel_scope.cancel()


async def test_cancelling_closes_the_connection(nursery: trio.Nursery) -> None:
    asked, closed = trio.Event(), trio.Event()

    async def hold(stream: trio.SocketStream) -> None:
        asked.set()
        assert await stream.receive_some() == b""
        closed.set()

    port = await raw_server(nursery, hold)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as inner:
            inner.start_soon(get, port)
            await asked.wait()
            inner.cancel_scope.cancel()
        await closed.wait()
    nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    path = tmp_path_factory.mktemp("tls") / "self-signed.pem"
    words = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {path} -days 2"
    )
    subprocess.run(
        [
            *words.split(),
            "-subj",
            "/CN=self",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-out",
            f"{path}.crt",
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


async def test_a_self_signed_server_is_refused_unless_it_is_trusted(
    certificate: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def hello(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(OK + b"Content-Length: 5\r\n\r\nhello")
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)  # refused by the client

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    secure = [trio.SSLListener(listener, context, https_compatible=True) for listener in listeners]
    await nursery.start(trio.serve_listeners, hello, secure)
    url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    with pytest.raises(ConnectError, match="certificate verify failed: self-signed certificate"):
        await request("GET", url, timeout=PATIENCE_SECONDS)
    monkeypatch.setenv("PIDONE_CA", f"{certificate}.crt")
    assert (await request("GET", url, timeout=PATIENCE_SECONDS)).body == b"hello"
    with pytest.raises(ConnectError, match=r"Hostname mismatch|not valid for"):
        await request("GET", url.replace("127.0.0.1", "localhost"), timeout=PATIENCE_SECONDS)
    (tmp_path / "empty.pem").touch()
    for file, why in (
        ("/no/such.pem", "No such file"),
        (str(tmp_path / "empty.pem"), "no certificate in it"),
    ):
        monkeypatch.setenv("PIDONE_CA", file)
        with pytest.raises(ConnectError, match=f"PIDONE_CA={file}: {why}.*; it names"):
            await request("GET", url, timeout=PATIENCE_SECONDS)
    nursery.cancel_scope.cancel()


async def test_https_to_a_server_that_speaks_none_fails_in_words(nursery: trio.Nursery) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, plain, listeners)
    with pytest.raises(ConnectError, match="SSL"):
        await request(
            "GET", f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/", timeout=PATIENCE_SECONDS
        )
    nursery.cancel_scope.cancel()
