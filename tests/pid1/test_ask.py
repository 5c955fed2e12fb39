"""The question whether there is a plan, on sockets of this process."""

import _signal
import _socket
import os
import posix
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pidone.pid1 import ask
from tests import pidns
from tests.patience import PATIENCE_SECONDS
from tests.pid1.test_process_one import wait_for

DOZE = Path(__file__).parents[2] / "build/doze"
real_processes = [
    pytest.mark.pidns,
    pytest.mark.skipif(not DOZE.exists(), reason="doze is not built: make doze"),
    pytest.mark.skipif(pidns.missing() is not None, reason=str(pidns.missing())),
]


def test_a_name_with_several_addresses_is_asked_at_the_first_that_answers(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def getaddrinfo(*_given: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
            stream = socket.SOCK_STREAM
            return [
                (socket.AF_INET6, stream, 6, "", ("::1", free_port(), 0, 0)),
                (socket.AF_INET, stream, 6, "", ("127.0.0.1", free_port())),
                (socket.AF_INET, stream, 6, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(_socket, "getaddrinfo", getaddrinfo)
        bell = ask._connect("repo.example", port)
        assert bell.getpeername() == ("127.0.0.1", port)
        bell.close()


def test_a_name_without_an_address_that_answers_is_an_error(free_port: Callable[[], int]) -> None:
    with pytest.raises(OSError, match="refused"):
        ask._connect("127.0.0.1", free_port())


@pytest.mark.parametrize(
    ("host", "expected"),
    [("fd00::27", b"[fd00::27]:6060"), ("10.0.0.5", b"10.0.0.5:6060"), ("repo", b"repo:6060")],
)
def test_the_host_header_has_the_port_and_the_brackets_of_an_address(host: str, expected: bytes) -> None:
    bell, repo = socket.socketpair()
    with bell, repo:
        repo.sendall(b"HTTP/1.1 303 See Other\r\n\r\n")
        ask._ask(bell, ask._request(host, 6060))
        assert b"\r\nHost: " + expected + b"\r\n" in repo.recv(4096)


class Server:
    """Sends the next of ``answers`` to each connection, the last one for ever, and keeps the requests."""

    def __init__(self, port: int, answers: list[bytes], *, closing: bool = True) -> None:
        self.requests: list[bytes] = []
        self._answers, self._closing = answers, closing
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                connection.settimeout(PATIENCE_SECONDS)
                self.requests.append(connection.recv(16384))
                connection.sendall(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
                if self._closing:
                    connection.close()
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for opened in (self._listener, *self._open):
            opened.close()


@contextmanager
def serving(*answers: bytes, port: int = 0, closing: bool = True) -> Iterator[Server]:
    server = Server(port, list(answers), closing=closing)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def asking(monkeypatch: pytest.MonkeyPatch, **env: str) -> Iterator[socket.socket]:
    """Set the environment of the stage; give the end of the socket that doze reads."""
    for name in list(posix.environ):
        if name.startswith(b"PIDONE_"):
            monkeypatch.delitem(posix.environ, name)
    for key, value in env.items():
        monkeypatch.setitem(posix.environ, key.encode(), value.encode())
    monkeypatch.setattr(_signal, "alarm", lambda _seconds: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(ask, "DOZE_DESCRIPTOR", os.dup(theirs.fileno()))
    with ours, theirs:
        yield ours


@pytest.mark.parametrize(
    "urls",
    [
        "garbage",
        "http://",
        "http://:80",
        "http://repo:99999",
        "http://repo:0",
        "ftp://repo",
        "repo:6060",
        ",,x",
        "http//r",
    ],
)
def test_without_a_repo_it_says_so_with_the_remedy_and_is_not_asked_again(
    urls: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(monkeypatch, PIDONE_REPO=urls):
        assert ask.main() == ask.NO_REPO
    said = capfd.readouterr().err
    assert said.startswith("event=nothing-to-do repo=")
    assert "PIDONE_REPO has no http:// or https:// URL" in said
    assert "set PIDONE_REPO to" in said
    assert said.count("\n") == 1


def test_a_password_and_control_characters_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(monkeypatch, PIDONE_REPO="htp://user:secret@re\x1bpo"):
        assert ask.main() == ask.NO_REPO
    said = capfd.readouterr().err
    assert "repo=re?po " in said
    assert "secret" not in said


@pytest.mark.parametrize("doorbell", ["", "garbage"])
def test_an_https_repo_without_a_doorbell_is_polled_by_the_engine(
    doorbell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asking(monkeypatch, PIDONE_REPO="https://repo:6443", PIDONE_DOORBELL=doorbell):
        assert ask.main() == ask.PLAN


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with asking(monkeypatch, PIDONE_REPO=""):
        assert ask.repos() == [("pidone-repo.pidone-system.svc", 6060)]


@pytest.mark.parametrize("refusal", [b"HTTP/1.1 431 Too Large\r\n\r\n", b"HTTP/1.1 400 Bad\r\n\r\n", b""])
def test_last_words_do_not_keep_a_pod_from_its_plan(refusal: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(refusal, b"HTTP/1.1 303 See Other\r\n\r\n") as server,
        asking(monkeypatch, PIDONE_REPO=f"http://127.0.0.1:{server.port}", PIDONE_LAST_WORDS="x" * 6000),
    ):
        assert ask.main() == ask.PLAN
    assert [b"pidone-last-words" in request for request in server.requests] == [True, False]


def test_one_repos_pause_does_not_hold_for_another(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    dead = free_port()
    busy = b"HTTP/1.1 503 Busy\r\nPidone-Repo: a\r\nRetry-After: 3000\r\n\r\n"
    with (
        serving(busy) as server,
        asking(monkeypatch, PIDONE_REPO=f"http://127.0.0.1:{server.port},http://127.0.0.1:{dead}") as doze,
    ):
        assert ask.main() == ask.NO_ANSWER
        pause, host, port, text, end = doze.recv(4096).split(b"\0")
    assert (pause, host, port, end) == (b"0", b"127.0.0.1", str(dead).encode(), b"")
    assert text.startswith(b"GET /v1/doorbell HTTP/1.1\r\n")
    assert text.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("head", "least", "most"),
    [
        (b"503 Busy\r\nPidone-Repo: a\r\nRetry-After: 300", 300, 376),
        (b"404 No\r\nPidone-Repo: a", 1, 1.3),
        (b"404 No\r\nPidone-Repo: a\r\nRetry-After: 0", 1, 1.3),
        (b"503 Away\r\nRetry-After: 3600", 60, 76),  # a proxy's word holds for a minute
    ],
)
def test_a_pause_is_obeyed_and_spread(
    head: bytes, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serving(b"HTTP/1.1 " + head + b"\r\n\r\n") as server,
        asking(monkeypatch, PIDONE_REPO=f"http://127.0.0.1:{server.port}") as doze,
    ):
        assert ask.main() == 0
        assert least <= int(doze.recv(4096).rstrip(b"\0")) / 1000 <= most


@pytest.mark.parametrize(
    "head", [b"404 Not Found", b"500 Oops", b"302 Found\r\nLocation: /login", b"abc def"]
)
def test_what_is_no_repos_answer_is_a_place_to_knock_at(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(b"HTTP/1.1 " + head + b"\r\n\r\n") as server,
        asking(monkeypatch, PIDONE_REPO=f"http://127.0.0.1:{server.port}") as doze,
    ):
        assert ask.main() == ask.NO_ANSWER
        assert doze.recv(4096).split(b"\0")[2] == str(server.port).encode()


def test_places_that_doze_has_no_room_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with asking(monkeypatch) as doze:
        ask.answer_doze(0.0, (("a", "1", "x" * 1900), ("b", "2", "y" * 200), ("c", "3", "z")))
        assert doze.recv(4096).split(b"\0")[1::3] == [b"a", b"c", b""]


@contextmanager
def pod(url: str, log: Path) -> Iterator[pidns.ProcessOne]:
    env = {"PIDONE_REPO": url, "PIDONE_DOZE": str(DOZE), "PIDONE_POD_UID": "u"}
    with (
        log.open("wb") as output,
        pidns.process_one([sys.executable, "-m", "pidone"], env=env, output=output) as process,
    ):
        yield process


REPO = b"HTTP/1.1 200 OK\r\nPidone-Repo: a\r\n\r\n"


@pytest.mark.parametrize(
    "before", [None, b"HTTP/1.1 503 Away\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n", b"\x16\x03\x01"]
)
@pytest.mark.parametrize("_", [pytest.param(None, marks=real_processes)])
def test_a_repo_that_comes_later_is_found_by_knocking(
    before: bytes | None, _: None, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Something else may answer at its place before. Only the answer of a repo makes doze start Python."""
    log, port = tmp_path / "log", free_port()
    with pod(f"http://127.0.0.1:{port}", log) as process:
        if before is not None:
            with serving(before, port=port) as stranger:
                wait_for(lambda: len(stranger.requests) >= 4)
        wait_for(lambda: b"event=repo-away" in log.read_bytes())
        with serving(REPO, port=port, closing=False) as repo:
            wait_for(lambda: b"event=waiting" in log.read_bytes())
            assert len(repo.requests) == 2, "a knock, then the question"
            assert repo.requests[0] == repo.requests[1]
            wait_for(process.alone)
            assert process.same()
    assert log.read_text().count("event=repo-away") == 1, "the rest was asked by doze alone"
