"""An httpGet has the kubelet's verdict, and the application sees the kubelet's bytes."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.probes.comparing import (
    KEEP_OPEN,
    PAUSE,
    Behaviour,
    Outcome,
    Server,
    Steps,
    of_kubelet,
    of_pidone,
    pod_with,
)
from tests.probes.kubelet import Kubelet

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def compare(
    kubelet: Kubelet,
    behaviour: Behaviour,
    *,
    ip: str = "127.0.0.1",
    certificate: ssl.SSLContext | None = None,
    **http_get: Any,
) -> Outcome:
    """Put the probe to both, and return the outcome if it is the same."""
    async with trio.open_nursery() as nursery:
        server = Server(behaviour)
        await server.start(nursery, ip, certificate)
        pod = pod_with({"httpGet": {"port": server.port} | http_get, "timeoutSeconds": 60}, ip)
        expected = await of_kubelet(kubelet, pod, server)
        assert expected
        outcome = await of_pidone(pod, server)
        assert outcome == expected, f"{outcome.why} / {expected.why}"
        nursery.cancel_scope.cancel()
    return expected


def says(*steps: bytes | str) -> Behaviour:
    return lambda _head, _port: steps


def status(code: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code}", *headers, "", ""]).encode() + body


EMPTY = "Content-Length: 0"


@pytest.mark.parametrize(
    "code",
    [
        "200 OK", "200", "200 ", "201 Created", "202 Accepted", "204 No Content", "206 Partial", "226 IM Used",
        "299 x", "300 Multiple Choices", "301 Moved", "302 Found", "303 See Other", "304 Not Modified", "305 x",
        "307 x", "308 x", "399 x", "400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found",
        "418 x", "429 Too Many Requests", "499 x", "500 x", "502 x", "503 x", "504 x", "599 x", "600 x", "999 x",
        "000 x", "099 x", "101 Switching Protocols",
        "20 x", "2000 x", "2xx x", "-20 x", "+20 x", "2 00", " 200 OK", "  200", "x", "",
    ],
)  # fmt: skip
async def test_status(kubelet: Kubelet, code: str) -> None:
    await compare(kubelet, says(status(code, EMPTY)))


CHUNKED = "Transfer-Encoding: chunked"
HEADS = {
    "no length": status("200 OK", body=b"to the end"),
    "no body": status("200 OK"),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "HTTP/1.0 without an end": b"HTTP/1.0 200 OK\r\n",
    "HTTP/1.0 with chunks": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot chunks",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/0.0": b"HTTP/0.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1": b"HTTP/1 200 OK\r\n\r\n",
    "HTTP/1.10": b"HTTP/1.10 200 OK\r\n\r\n",
    "HTTP/a.1": b"HTTP/a.1 200 OK\r\n\r\n",
    "http/1.1": b"http/1.1 200 OK\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "a page alone": b"<html>hello</html>",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "an empty line first": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a status line alone": b"HTTP/1.1 200 OK",
    "a status line with its end": b"HTTP/1.1 200 OK\r\n",
    "no end of the head": b"HTTP/1.1 200 OK\r\nA: b\r\n",
    "LF alone": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "LF and CRLF": b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
    "CR alone": b"HTTP/1.1 200 OK\rA: b\r\r",
    "two CR": b"HTTP/1.1 200 OK\r\nA: b\r\r\n\r\n",
    "two CR at the end": b"HTTP/1.1 200 OK\r\n\r\r\n",
    "a CR within": b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
    "two blanks": b"HTTP/1.1  200 OK\r\n\r\n",
    "a tab": b"HTTP/1.1\t200 OK\r\n\r\n",
    "a reason in UTF-8": "HTTP/1.1 200 süß\r\n\r\n".encode(),
    "a reason with a NUL": b"HTTP/1.1 200 \0\r\n\r\n",
    "a name without a colon": status("200 OK", "Hello"),
    "an empty name": status("200 OK", ": b"),
    "a blank before the colon": status("200 OK", "A : b"),
    "a blank in a name": status("200 OK", "A b: c"),
    "a tab in a name": status("200 OK", "A\tb: c"),
    "a bracket in a name": status("200 OK", "A(b): c"),
    "a name in UTF-8": "HTTP/1.1 200 OK\r\nÄ: b\r\n\r\n".encode(),
    "an empty value": status("200 OK", "A:"),
    "a value in UTF-8": "HTTP/1.1 200 OK\r\nA: ä\r\n\r\n".encode(),
    "a value in latin-1": "HTTP/1.1 200 OK\r\nA: ä\r\n\r\n".encode("latin-1"),
    "a value with a NUL": status("200 OK", "A: b\0c"),
    "a value with ESC": status("200 OK", "A: \x1b[31m"),
    "a value with DEL": status("200 OK", "A: \x7f"),
    "a value with a tab": status("200 OK", "A: b\tc"),
    "a first line folded": status("200 OK", " A: b"),
    "a first line folded by a tab": status("200 OK", "\tA: b"),
    "a folded value": status("200 OK", "A: b", "  c", EMPTY),
    "a folded length": status("200 OK", "Content-Length:", " 2", body=b"ok"),
    "a fold that is empty": status("200 OK", "A: b", " ", EMPTY),
    "a fold without a colon": status("200 OK", "A", " : b"),
    "a length": status("200 OK", "Content-Length: 2", body=b"ok"),
    "a length in other letters": status("200 OK", "CONTENT-length: 2", body=b"ok"),
    "a length with blanks": status("200 OK", "Content-Length:  2 ", body=b"ok"),
    "a length with a zero": status("200 OK", "Content-Length: 02", body=b"ok"),
    "a length with a plus": status("200 OK", "Content-Length: +2", body=b"ok"),
    "a length below zero": status("200 OK", "Content-Length: -1"),
    "a length in hex": status("200 OK", "Content-Length: 0x2", body=b"ok"),
    "a length with an underline": status("200 OK", "Content-Length: 1_0", body=b"0123456789"),
    "a length of arabic digits": "HTTP/1.1 200 OK\r\nContent-Length: ٢\r\n\r\nok".encode(),
    "an empty length": status("200 OK", "Content-Length:"),
    "two equal lengths": status("200 OK", "Content-Length: 2", "Content-Length: 2", body=b"ok"),
    "many equal lengths and another": status("200 OK", *["Content-Length: 2"] * 20, "Content-Length: 3", body=b"ok"),
    "two equal lengths in a list": status("200 OK", "Content-Length: 2, 2", body=b"ok"),
    "two lengths": status("200 OK", "Content-Length: 2", "Content-Length: 3", body=b"ok"),
    "a length and a zero": status("200 OK", "Content-Length: 2", "Content-Length: 02", body=b"ok"),
    "a length of 2^63": status("200 OK", "Content-Length: 9223372036854775808", body=b"ok"),
    "a length of 5000 digits": status("200 OK", f"Content-Length: {'0' * 5000}2", body=b"ok"),
    "a length with a blank name": status("200 OK", "Content-Length : 5", body=b"ok"),
    "more than its length": status("200 OK", "Content-Length: 2", body=b"okokok"),
    "less than its length": status("200 OK", "Content-Length: 9", body=b"ok"),
    "less than its length, 404": status("404 x", "Content-Length: 9", body=b"ok"),
    "a wrong length and no body": status("204 x", "Content-Length: x"),
    "204 with a length": status("204 x", "Content-Length: 9"),
    "304 with a length": status("304 x", "Content-Length: 9"),
    "304 with chunks": status("304 x", CHUNKED),
    "chunks": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n"),
    "chunks with extensions": status("200 OK", CHUNKED, body=b'2;a="b"\r\nok\r\n0;x\r\n\r\n'),
    "chunks with blanks": status("200 OK", CHUNKED, body=b"2 \t\r\nok\r\n0\r\n\r\n"),
    "chunks with a blank first": status("200 OK", CHUNKED, body=b" 2\r\nok\r\n0\r\n\r\n"),
    "a blank before an extension": status("200 OK", CHUNKED, body=b"2 ;a\r\nok\r\n0\r\n\r\n"),
    "chunks in capitals": status("200 OK", CHUNKED, body=b"0A\r\n0123456789\r\n0\r\n\r\n"),
    "chunks with 16 digits": status("200 OK", CHUNKED, body=b"0000000000000002\r\nok\r\n0\r\n\r\n"),
    "chunks with 17 digits": status("200 OK", CHUNKED, body=b"00000000000000002\r\nok\r\n0\r\n\r\n"),
    "chunks with 0x": status("200 OK", CHUNKED, body=b"0x2\r\nok\r\n0\r\n\r\n"),
    "chunks with an empty size": status("200 OK", CHUNKED, body=b"\r\nok\r\n0\r\n\r\n"),
    "chunks with LF": status("200 OK", CHUNKED, body=b"2\nok\n0\n\n"),
    "chunks with a CR": status("200 OK", CHUNKED, body=b"2;\r \r\nok\r\n0\r\n\r\n"),
    "a chunk without its end": status("200 OK", CHUNKED, body=b"2\r\nokok\r\n0\r\n\r\n"),
    "a chunk that is too short": status("200 OK", CHUNKED, body=b"9\r\nok"),
    "no last chunk": status("200 OK", CHUNKED, body=b"2\r\nok\r\n"),
    "a last chunk without its end": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\n"),
    "no chunks": status("200 OK", CHUNKED),
    "trailers": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\nA: b\r\n\r\n"),
    "trailers without an end": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\nA: b\r\n"),
    "trailers that are none": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\nAb\r\n\r\n"),
    "trailers with LF": status("200 OK", CHUNKED, body=b"2\r\nok\r\n0\r\nA: b\n\n"),
    "long trailers": status("200 OK", CHUNKED, body=b"0\r\nA: " + b"b" * 50_000 + b"\r\n\r\n"),
    "an announced trailer": status("200 OK", CHUNKED, "Trailer: A", body=b"0\r\nA: b\r\n\r\n"),
    "a forbidden trailer": status("200 OK", CHUNKED, "Trailer: A, content-length", body=b"0\r\n\r\n"),
    "a forbidden trailer without chunks": status("200 OK", EMPTY, "Trailer: content-length"),
    "a long line of a chunk": status("200 OK", CHUNKED, body=b"2;" + b"a" * 50_000 + b"\r\nok\r\n0\r\n\r\n"),
    "extensions without data": status("200 OK", CHUNKED, body=b"1;" + b"a" * 999 + b"\r\na\r\n" * 1)
    + (b"1;" + b"a" * 999 + b"\r\na\r\n") * 20
    + b"0\r\n\r\n",
    "chunks and a length": status("200 OK", CHUNKED, "Content-Length: 1", body=b"2\r\nok\r\n0\r\n\r\n"),
    "chunks and a wrong length": status("200 OK", CHUNKED, "Content-Length: x", body=b"0\r\n\r\n"),
    "chunks in capital letters": status("200 OK", "transfer-encoding: CHUNKED", body=b"0\r\n\r\n"),
    "chunks twice": status("200 OK", CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "gzip and chunks": status("200 OK", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "identity": status("200 OK", "Transfer-Encoding: identity", body=b"ok"),
    "an empty transfer encoding": status("200 OK", "Transfer-Encoding:", body=b"ok"),
    "gzip that is none": status("200 OK", "Content-Encoding: gzip", "Content-Length: 2", body=b"ok"),
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "103 with headers": status("103 Early Hints", "Link: </a>; rel=preload") + OK,
    "six of 1xx": status("102 Processing") * 6 + OK,
    "a hundred of 1xx": status("102 Processing") * 100 + OK,
    "1xx with a wrong length": status("102 Processing", "Content-Length: x") + OK,
    "1xx alone": status("100 Continue"),
    "199 first": status("199 x") + OK,
    "101 and more": status("101 x", "Connection: x") + OK,
    "101 to another protocol": status("101 x", "Upgrade: x", "Connection: a, Upgrade", body=b"x" * 20_000),
    "101 to another protocol, in part": status("101 x", "Upgrade: x", "Connection: keep-alive", body=b"x"),
    "a big head": status("200 OK", *[f"X-{number}: {'x' * 1000}" for number in range(300)], EMPTY),
    "a big line": status("200 OK", f"X: {'x' * 200_000}", EMPTY),
    "many names": status("200 OK", *[f"X-{number}: x" for number in range(3000)], EMPTY),
    "close": status("200 OK", "Connection: close", body=b"ok"),
    "keep-alive": status("200 OK", "Connection: keep-alive", "Content-Length: 2", body=b"ok"),
    "a second answer": OK + status("500 x", EMPTY),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
async def test_answer(kubelet: Kubelet, name: str) -> None:
    await compare(kubelet, says(HEADS[name]))


@pytest.mark.parametrize(
    "name", ["a big head", "chunks", "trailers", "a folded length", "100 first", "two CR"]
)
async def test_answer_in_segments(kubelet: Kubelet, name: str) -> None:
    answer = HEADS[name]
    size = max(1, len(answer) // 9)
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    await compare(kubelet, says(*[step for piece in pieces for step in (piece, PAUSE)]))


@pytest.mark.parametrize(
    "name", ["a length", "chunks", "204 with a length", "304 with chunks", "keep-alive", "trailers"]
)
async def test_answer_on_a_connection_that_stays_open(kubelet: Kubelet, name: str) -> None:
    outcome = await compare(kubelet, says(HEADS[name], KEEP_OPEN))
    assert outcome.healthy


@pytest.mark.parametrize("size", [100, 5_000, 100_000, 3_000_000])
@pytest.mark.parametrize("code", ["200 OK", "404 Not Found"])
@pytest.mark.parametrize("framing", ["length", "chunks", "end"])
async def test_body(kubelet: Kubelet, size: int, code: str, framing: str) -> None:
    headers = {"length": [f"Content-Length: {size}"], "chunks": [CHUNKED], "end": []}[framing]
    body = b"x" * size
    if framing == "chunks":
        body = (
            b"".join(b"3e8\r\n" + body[at : at + 1000] + b"\r\n" for at in range(0, size, 1000))
            + b"0\r\n\r\n"
        )
        body = body.replace(b"3e8\r\n", b"64\r\n") if size < 1000 else body
    outcome = await compare(kubelet, says(status(code, *headers, body=body)))
    assert outcome.healthy == (code == "200 OK")
    assert outcome.requests[0][1] == ("end" if size < 10_000 else "reset")


@pytest.mark.parametrize("size", [10_239, 10_240, 10_241])
async def test_body_that_breaks_off_after_ten_kilobytes(kubelet: Kubelet, size: int) -> None:
    outcome = await compare(kubelet, says(status("200 OK", "Content-Length: 50000", body=b"x" * size)))
    assert outcome.healthy == (size >= 10_240)
    assert len(outcome.requests) == (1 if outcome.healthy else 3)


LOCATIONS = [
    "/end", "end", "./end", "../end", "/a/../end", "/a/./b/../../end", "//127.0.0.1:{port}/end", "?q=1", "#f",
    "/end#f", "/end?q", "/end?", "/end?a b", "/end?%zz", "/a b", "/%zz", "/ü", "/%C3%BC", "/a%2Fb", "/a[b]",
    "/a'b(c)!*", "/a\"b<c>", "", " ", " /end", "http://127.0.0.1:{port}/end", "HTTP://127.0.0.1:{port}/end",
    "http://127.0.0.1:{port}", "http://127.0.0.1:{port}?q", "http://user:word@127.0.0.1:{port}/end",
    "http://us%20er@127.0.0.1:{port}/end", "http://127.0.0.1:1/end", "http://127.0.0.1:99999/end",
    "http://127.0.0.1:/end", "http://127.0.0.1:x/end", "https://127.0.0.1:{port}/end", "ftp://127.0.0.1:{port}/end",
    "ws://127.0.0.1:{port}/", "mailto:a@b", "http:end", "http:/end", "http:///end", "//", "///end", ":end", "a:b",
    "1a:b", "http://[::1]:{port}/", "http://[::1/", "http://localhost:{port}/end", "http://127.1:{port}/end",
    "http://example.com/", "//example.com/end", "http://127.0.0.1.:{port}/", "http://ho st/", "http://ho%20st/",
    "http://127.0.0.1:{port}\\@x/", "/\\end", "\\\\x\\end", "*", "/*", "/end/..", "/end/.", "..", ".", "/../../x",
    "//../x", "/a//../b", "http://a:b:c/", "http://[127.0.0.1]:{port}/", "http://@127.0.0.1:{port}/end",
    "javascript:x", "/" + "l" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("path", ["/", "/a/b?c=d#e"])
async def test_redirect(kubelet: Kubelet, location: str, path: str) -> None:
    def behaviour(head: bytes, port: int) -> Steps:
        if b"Referer" in head:
            return [OK]
        line = f"HTTP/1.1 302 Found\r\nLocation: {location.format(port=port)}\r\n{EMPTY}\r\n\r\n"
        return [line.encode()]

    await compare(kubelet, behaviour, path=path)


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 305, 306, 307, 308, 309])
@pytest.mark.parametrize("end", [200, 404, 500])
async def test_redirect_to_a_status(kubelet: Kubelet, code: int, end: int) -> None:
    def behaviour(head: bytes, _port: int) -> Steps:
        if head.startswith(b"GET /end "):
            return [status(f"{end} x", EMPTY)]
        return [status(f"{code} x", "Location: /end", EMPTY)]

    outcome = await compare(kubelet, behaviour)
    assert outcome.healthy == (code in {300, 304, 305, 306, 309} or end == 200)


@pytest.mark.parametrize("hops", [1, 2, 9, 10, 11, 99])
async def test_redirects(kubelet: Kubelet, hops: int) -> None:
    def behaviour(head: bytes, _port: int) -> Steps:
        number = int(head.split()[1][1:] or b"0")
        return [OK] if number == hops else [status("302 x", f"Location: /{number + 1}", EMPTY)]

    outcome = await compare(kubelet, behaviour)
    assert outcome.healthy == (hops < 10)


async def test_redirect_away_after_ten(kubelet: Kubelet) -> None:
    def behaviour(head: bytes, _port: int) -> Steps:
        number = int(head.split()[1][1:] or b"0")
        target = "http://example.com/" if number == 9 else f"/{number + 1}"
        return [status("302 x", f"Location: {target}", EMPTY)]

    assert (await compare(kubelet, behaviour)).healthy


@pytest.mark.parametrize(
    "answer",
    [
        status("302 x", "Location: /end", "Content-Length: 100", body=b"x" * 100),
        status("302 x", "Location: /end", "Content-Length: 5000", body=b"x" * 5000),
        status("302 x", "Location: /end", "Content-Length: 5000", body=b"x"),
        status("302 x", "Location: /end", "Content-Length: 500", body=b"x"),
        status("302 x", "Location: /end", CHUNKED, body=b"2\r\nok\r\n0\r\n\r\n"),
        status("302 x", "Location: /end", CHUNKED, body=b"not chunks"),
        status("302 x", "Location: /end", body=b"x" * 100_000),
        status("302 x", "Location: /end", "Location: /other", EMPTY),
        status("302 x", "Location:", "Location: /end", EMPTY),
        status("302 x", "location:/end", EMPTY),
        status("302 x", "Location : /end", EMPTY),
        status("302 x", "Location: http://example.com/", "Content-Length: 500", body=b"x"),
        status("302 x", "Location: http://example.com/", body=b"x" * 100_000),
        status("302 x", "Set-Cookie: a=b", "Location: /end", EMPTY),
        status("302 x", "Refresh: 0; url=/end", EMPTY),
        status("200 OK", "Location: /end", EMPTY),
        status("201 x", "Location: /end", EMPTY),
        status("404 x", "Location: /end", EMPTY),
    ],
)
async def test_answer_with_a_location(kubelet: Kubelet, answer: bytes) -> None:
    await compare(kubelet, lambda head, _port: [OK if head.startswith(b"GET /end ") else answer])


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "shop.example")],
        [("Referer", "http://a/")],
        [("Referer", "")],
        [("Authorization", "Basic x"), ("Cookie", "a=b"), ("X", "y")],
        [("Host", "127.0.0.1:{port}")],
    ],
)
@pytest.mark.parametrize("location", ["/end", "http://127.0.0.1:{port}/end", "//127.0.0.1:{port}/end"])
async def test_headers_after_a_redirect(
    kubelet: Kubelet, headers: list[tuple[str, str]], location: str
) -> None:
    def behaviour(head: bytes, port: int) -> Steps:
        if not head.startswith(b"GET /a"):
            return [OK]
        target = location.format(port=port) if b"/a2" in head else "/a2"
        return [status("302 x", f"Location: {target}", EMPTY)]

    given = [{"name": name, "value": value} for name, value in headers]
    await compare(kubelet, behaviour, path="/a1", httpHeaders=given)


PATHS = [
    "/", "", "healthz", "/healthz", "/a/b?c=d&e=f", "/a?", "/a??", "/a?b?c", "?a", "/a#b", "#b", "/a?b#c", "/a#%zz",
    "/a b", "/a%20b", "/a?b c", "/a?%zz", "/%", "/%zz", "/%zz?a", "/%2", "/a%2Fb", "/a%2fb", "/%41", "/ü",
    "/prüfung?ä=ö", "/%C3%BC", "/%ff", "/a%2Fb ü", "/snow\N{SNOWMAN}", "//a/b", "///a", "////", "//",
    "//user:word@a/b", "//u%40@a/b", "//a:80/b", "//a:x/b", "//a b/c", "//[::1]/b", "//[::1/b", "http://a/b",
    "https://a/b?c", "mailto:a", "a:b/c", "a:/b", "1a:b/c", "a/b:c", ":a", "/:a", "*", "/*", "/a*", "/../a",
    "/a/./b", "..", ".", "/.", "/a;b=c", "/a,b", "/a+b", "/a=b&c", "/a@b", "/$a", "/a!b", "/a'b", "/(a)", "/[a]",
    "/{a}", "/a|b", "/a\\b", "/a^b", "/a`b", "/a\"b", "/<a>", "/~a", "/a_b-c.d", "/a\tb", "/a\nb", "/a\r\nX: y",
    "/a?b\nc", "/a\x00b", "/\x7f", "/a?\x7f", " /a", "/a ", "/a?ü", "/a?'\"<>", "/$(pod.name)/a b",
    "/" + "l" * 5000, "http:", "http://", "http:///x", "//@a/b", "/a#b c", "/a#ü", "/\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_path(kubelet: Kubelet, path: str) -> None:
    await compare(kubelet, says(OK), path=path)


HEADERS = [
    [("X", "y")],
    [("x-y", "z"), ("X-Y", "w")],
    [("b", "1"), ("a", "2"), ("B", "3")],
    [("X", "")],
    [("X", " y ")],
    [("X", "\ty\t")],
    [("X", "  ")],
    [("X", "a  b")],
    [("X", "ü")],
    [("X", "\N{SNOWMAN}")],
    [("X", "a\nb")],
    [("X", "a\r\nY: z")],
    [("X", "a\0b")],
    [("X", "a\x7fb")],
    [("X", "a\tb")],
    [("X", "$(pod.name) $$(x)")],
    [("X", "l" * 5000)],
    [("Host", "shop.example")],
    [("host", "shop.example:8080")],
    [("Host", "first"), ("Host", "second")],
    [("Host", ""), ("Host", "second")],
    [("Host", "")],
    [("Host", " ")],
    [("Host", " a ")],
    [("Host", "a b")],
    [("Host", "a/b")],
    [("Host", "a@b")],
    [("Host", "a?b")],
    [("Host", "[::1]:80")],
    [("Host", "[fe80::1%25eth0]:80")],
    [("Host", "[fe80::1%eth0]")],
    [("Host", "a_b")],
    [("Host", "a\nb")],
    [("User-Agent", "mine")],
    [("user-agent", "mine"), ("User-Agent", "other")],
    [("User-Agent", "")],
    [("User-Agent", " ")],
    [("User-Agent", ""), ("User-Agent", "other")],
    [("Accept", "text/html")],
    [("Accept", "text/html"), ("Accept", "*/*")],
    [("Accept", "")],
    [("Accept", ""), ("Accept", "text/html")],
    [("accept", "")],
    [("Accept", " ")],
    [("Accept-Encoding", "gzip")],
    [("Accept-Encoding", "")],
    [("Connection", "keep-alive")],
    [("Connection", "close")],
    [("Connection", "Close")],
    [("Connection", "x, close")],
    [("Connection", "xclose")],
    [("Connection", "keep-alive"), ("Connection", "close")],
    [("Connection", "Upgrade"), ("Upgrade", "websocket")],
    [("Connection", "a, upgrade"), ("Upgrade", "h2c")],
    [("Upgrade", "websocket")],
    [("Content-Length", "5")],
    [("Content-Type", "text/plain")],
    [("Transfer-Encoding", "chunked")],
    [("Trailer", "x")],
    [("TE", "trailers")],
    [("Expect", "100-continue")],
    [("Authorization", "Basic eDp5")],
    [("Cookie", "a=b"), ("Cookie", "c=d")],
    [("If-None-Match", '"x"')],
    [("Range", "bytes=0-1")],
    [("Proxy-Connection", "keep-alive")],
    [("-", "x")],
    [("a--b", "x")],
    [("1-a", "x")],
    [(f"X-{number}", "y") for number in range(60)],
]


@pytest.mark.parametrize("headers", HEADERS, ids=str)
async def test_headers(kubelet: Kubelet, headers: list[tuple[str, str]]) -> None:
    given = [{"name": name, "value": value} for name, value in headers]
    await compare(kubelet, says(OK), httpHeaders=given)


async def test_a_user_in_the_path_is_not_sent_beside_an_authorization(kubelet: Kubelet) -> None:
    given = [{"name": "Authorization", "value": "x"}]
    await compare(kubelet, says(OK), path="//user:word@a/b", httpHeaders=given)


@pytest.mark.parametrize("ip", ["::1", "127.0.0.1"])
async def test_addresses(kubelet: Kubelet, ip: str) -> None:
    assert (await compare(kubelet, says(OK), ip=ip)).healthy


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "", "[127.0.0.1]", "no.such.invalid", "a b", "127.0.0.1/x", "[::1]"]
)
async def test_host(kubelet: Kubelet, host: str) -> None:
    await compare(kubelet, says(OK), host=host)


EC = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"


def self_signed(path: Path, key: str = EC) -> Path:
    """Write a certificate for another name, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    words = ["openssl", "req", "-x509", *key.split(), "-nodes", "-days", "1", "-subj", "/CN=other.example"]
    subprocess.run([*words, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "certificate.pem")


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize(
    "name", ["a length", "chunks", "no length", "less than its length", "a page alone", "two CR"]
)
@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_https(kubelet: Kubelet, certificate: Path, name: str, ip: str) -> None:
    await compare(kubelet, says(HEADS[name]), ip=ip, certificate=tls(certificate), scheme="HTTPS")


@pytest.mark.parametrize("size", [5_000, 500_000])
async def test_body_over_https(kubelet: Kubelet, certificate: Path, size: int) -> None:
    body = status("200 OK", f"Content-Length: {size}", body=b"x" * size)
    await compare(kubelet, says(body), certificate=tls(certificate), scheme="HTTPS")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_redirect_from_https(kubelet: Kubelet, certificate: Path, scheme: str) -> None:
    def behaviour(head: bytes, port: int) -> Steps:
        if head.startswith(b"GET /end"):
            return [OK]
        return [status("302 x", f"Location: {scheme}://127.0.0.1:{port}/end", EMPTY)]

    outcome = await compare(kubelet, behaviour, certificate=tls(certificate), scheme="HTTPS")
    assert outcome.healthy == (scheme == "https")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("wanted", [ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
async def test_versions_and_certificates_of_clients(
    kubelet: Kubelet, certificate: Path, version: ssl.TLSVersion, wanted: ssl.VerifyMode
) -> None:
    context = tls(certificate)
    context.minimum_version = context.maximum_version = version
    context.verify_mode = wanted
    outcome = await compare(kubelet, says(OK), certificate=context, scheme="HTTPS")
    assert outcome.healthy == (wanted != ssl.CERT_REQUIRED)


KEYS = {
    "RSA": "-newkey rsa:2048",
    "RSA 1024": "-newkey rsa:1024",
    "RSA with SHA-1": "-newkey rsa:2048 -sha1",
    "Ed25519": "-newkey ed25519",
    "P-521": "-newkey ec -pkeyopt ec_paramgen_curve:secp521r1",
    "secp256k1": "-newkey ec -pkeyopt ec_paramgen_curve:secp256k1",
}
CIPHERS = {
    "AES128-GCM-SHA256": False,
    "AES128-SHA": False,
    "DHE-RSA-AES128-GCM-SHA256": False,
    "ECDHE-RSA-AES128-SHA": True,
    "ECDHE-RSA-AES256-SHA": True,
    "ECDHE-RSA-AES128-SHA256": False,
    "ECDHE-RSA-AES256-SHA384": False,
    "ECDHE-RSA-AES256-GCM-SHA384": True,
    "ECDHE-RSA-CHACHA20-POLY1305": True,
}


def lenient(certificate: Path) -> ssl.SSLContext:
    """Return a context that allows the server what is weak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("key", KEYS)
async def test_key_of_the_server(kubelet: Kubelet, tmp_path: Path, key: str) -> None:
    context = lenient(self_signed(tmp_path / "key.pem", KEYS[key]))
    outcome = await compare(kubelet, says(OK), certificate=context, scheme="HTTPS")
    assert outcome.healthy == (key != "secp256k1")


@pytest.mark.parametrize("cipher", CIPHERS)
async def test_cipher_of_the_server(kubelet: Kubelet, tmp_path: Path, cipher: str) -> None:
    context = lenient(self_signed(tmp_path / "key.pem", "-newkey rsa:2048"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    outcome = await compare(kubelet, says(OK), certificate=context, scheme="HTTPS")
    assert outcome.healthy == CIPHERS[cipher]


async def test_https_without_the_end_of_tls(kubelet: Kubelet, certificate: Path) -> None:
    async with trio.open_nursery() as nursery:
        outcomes = []
        for answer in (HEADS["no length"], HEADS["a length"], HEADS["less than its length"]):

            async def serve(stream: trio.SocketStream, answer: bytes = answer) -> None:
                secure = trio.SSLStream(stream, tls(certificate), server_side=True)
                await secure.receive_some()
                await secure.send_all(answer)
                await trio.aclose_forcefully(stream)

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            pod = pod_with({"httpGet": {"port": port, "scheme": "HTTPS"}, "timeoutSeconds": 60}, "127.0.0.1")
            expected = await of_kubelet(kubelet, pod)
            assert expected
            assert (await of_pidone(pod)).healthy == expected.healthy
            outcomes.append(expected.healthy)
        assert outcomes == [True, True, False]
        nursery.cancel_scope.cancel()


async def test_https_at_a_server_of_http(kubelet: Kubelet) -> None:
    assert not (await compare(kubelet, says(status("400 x", EMPTY)), scheme="HTTPS")).healthy


async def test_https_needs_no_file_of_authorities(
    kubelet: Kubelet, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDONE_CA", "/no/such")
    assert (await compare(kubelet, says(OK), certificate=tls(certificate), scheme="HTTPS")).healthy
