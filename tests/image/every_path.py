"""Runs inside the image, as ``python -c``: every module, every action's errors, what only failures import.

Prints "all right" at its end. Nothing of the standard library is imported here that pidone could not need.
"""

import os
import sys
import types

if "eager" in sys.argv:
    # Each import at its place, whether or not anybody uses it: a hole in the list is an error here. But for
    # what is imported and not used in pods: names of threads, names of hosts that are not ASCII, locales, DTLS,
    # and Trio's files, paths, subprocesses and pipes.
    class Absent(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            return lambda *given: None

    unused = [
        "dtls",
        "file_io",
        "path",
        "subprocess",
        "subprocess_platform",
        "unix_pipes",
        "core._mock_clock",
    ]
    unused = [f"trio._{name}" for name in [*unused, "highlevel_open_unix_stream"]]
    for absent in ["idna", "ctypes", "ctypes.util", "locale", *unused]:
        sys.modules[absent] = Absent(absent)
    sys.modules["ctypes"].util = sys.modules["ctypes.util"]  # type: ignore[attr-defined]
    import trio

    del sys.modules["ctypes"], sys.modules["ctypes.util"]
    # Not for the platforms' own and for what modules try and can do without.
    for top in ("/pidone", f"/usr/lib/python3.{sys.version_info.minor}"):
        for folder, _, files in os.walk(top):
            for name in sorted(files):
                path = f"{folder}/{name}"[len(top) + 1 :]
                module = (
                    path.partition(".")[0]
                    .replace("/", ".")
                    .removesuffix(".__init__")
                    .replace("lib-dynload.", "")
                )
                if module not in {"__main__", "site", "antigravity", "this"} and path.endswith(
                    (".pyc", ".so")
                ):
                    __import__(module)

import socket
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Optional, Protocol, runtime_checkable

import h11
import trio

from pidone.actions import names, privileged
from pidone.errors import PidoneError, last_words
from pidone.http import client, probing, references
from pidone.http.connect import Lookups
from pidone.pid1 import claims, stages, subreaper
from pidone.pid1.reaper import Reaper
from pidone.plan.format import decode_bundle

ANSWERS = {
    "/ok": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "/gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "/garbage": b"\xff\xfe\x00 what\r\n\r\n",
    "/short": b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok",
    "/redirect": b"HTTP/1.1 302 Found\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n",
    "/silence": b"",
}


def replaced_modules() -> None:
    """Use what attrs, contextlib, dataclasses and typing take from inspect and annotationlib."""

    @dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: "Point | None" = None
        z: Optional["Point"] = None

        @property
        def base(self) -> object:
            return super().__repr__()

    class Pair(NamedTuple):
        a: "Point"
        b: list["Point"] | None = None

    @runtime_checkable
    class Walks(Protocol):
        def walk(self) -> object: ...

    class Walker:
        def walk(self) -> None:
            pass

    assert Point(1) == Point(1, None)
    assert (Point(1).base is None, Point.__doc__) == (False, "Point")
    assert Pair(Point(1))._fields == ("a", "b")
    assert (isinstance(Walker(), Walks), isinstance(Point(1), Walks)) == (True, False)
    with ExitStack() as stack:
        stack.enter_context(open("/proc/self/stat", "rb"))


async def requests(port: int) -> None:
    here = f"http://127.0.0.1:{port}"
    urls = [here + path for path in ANSWERS]
    urls += [f"http://user:p%40ss@127.0.0.1:{port}/ok", f"https://127.0.0.1:{port}/ok", "http://127.0.0.1:1/"]
    urls += [
        "http://no-such-name.invalid/",
        "http://b\u00fccher.invalid/",
        "http://xn--zz-.invalid:80/",
        "http://[::1]:1/",
    ]
    urls += [
        "http://[127.0.0.1]:1/",
        "https://no-such-name.invalid/",
        "ftp://a/",
        "http://a:b/",
        f"http://localhost:{port}/ok",
        "http://" + "a" * 70 + "/",
    ]
    for url in urls:
        try:
            answer = await client.request("GET", url, timeout=1.0)
            print(url, answer.status)
        except PidoneError as error:
            print(url, error)
        try:
            probed = references.parse(references.as_bytes(url))
        except ValueError as error:
            print(url, error)
        else:
            print(await probing.get(probed, probing.canonical_headers([]), timeout=1.0, source=None))


async def serve(stream: trio.SocketStream) -> None:
    try:
        data = bytes(await stream.receive_some())
        answer = ANSWERS.get(data.split(b" ")[1].decode() if b" " in data else "", b"")
        if answer:
            await stream.send_all(answer)
        else:
            await trio.sleep(1)
        await stream.aclose()
    except (trio.BrokenResourceError, UnicodeDecodeError):
        pass


async def children(reaper: Reaper) -> None:
    child = reaper.spawn(["/usr/bin/python3.15", "-S", "-c", "pass"], env={})
    while child.returncode is None:
        reaper.sweep()
        await trio.sleep(0.01)
    assert child.returncode == 0, child.returncode
    try:
        reaper.spawn(["/no/such/program"], env={})
    except PidoneError as error:
        print(error)


async def main() -> None:
    trio.socket.set_custom_hostname_resolver(Lookups())
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=b"127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, serve, listeners)
        await children(Reaper())
        await requests(port)
        nursery.cancel_scope.cancel()


def failures() -> None:
    assert names() == ["exec", "heartbeat", "metrics", "probe", "register", "report"], names()
    assert privileged("exec")
    for data in (b"", b"{", b"\xff", b"[]", b'{"format": 99}', b"9" * 5000):
        try:
            decode_bundle(data, names())
        except PidoneError as error:
            print(error)
    subreaper.become_subreaper()
    stages.doze_program()
    print(claims.claims())
    try:
        try:
            raise ExceptionGroup(
                "two",
                [
                    ValueError("\u2028 \udcff"),
                    OSError(2, "no"),
                    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
                ],
            )
        except ExceptionGroup as group:
            raise SyntaxError("wrong", ("<x>", 1, 2, "a b")) from group
    except SyntaxError as error:
        print(last_words(error))
        print(len("".join(traceback.format_exception(error))))
        sys.excepthook(type(error), error, error.__traceback__)
    through = ""
    try:  # code that has no line numbers
        trio.run(print, "no coroutine")  # type: ignore[arg-type]
    except TypeError as error:
        through = "".join(traceback.format_exception(error))
        print(last_words(error))
    assert "trio/_core/_run.py" in through
    replaced_modules()
    warnings.warn("shown", ResourceWarning, stacklevel=1)
    for word in (
        "ascii",
        "latin-1",
        "utf-8",
        "utf-8-sig",
        "utf-16",
        "utf-32",
        "cp437",
        "iso8859-15",
        "unicode_escape",
        "no-such",
    ):
        try:
            "abc".encode(word)
        except LookupError as error:
            print(error)
    for one in (
        socket.gaierror(-2, "unknown"),
        h11.RemoteProtocolError("x"),
        trio.TooSlowError(),
        MemoryError(),
    ):
        print(last_words(one))
    try:
        socket.getaddrinfo(b"no-such-name.invalid", 80)
    except OSError as error:
        print(error)


if __name__ == "__main__":
    failures()
    trio.run(main)
    print("all right")
