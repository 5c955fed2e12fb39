"""The repo's CA: its certificates are judged by OpenSSL, over real sockets, and time is an argument."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from pidone.errors import ConnectError
from pidone.http.client import request
from pidone.http.message import Request, Response, text_response
from pidone.http.server import serve
from pidone_controller.repo.certificates import CertificateError, Pair, context, due, fits, issue, make_ca
from pidone_controller.repo.listeners import Tls
from tests.patience import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ["pidone-repo.pidone-system.svc", "localhost", "127.0.0.1", "::1"]
CA = make_ca(NOW)


def test_it_is_due_when_two_thirds_of_its_life_are_over() -> None:
    pair = issue(CA, NAMES, NOW)
    assert not due(pair, NOW)
    assert not due(pair, NOW + timedelta(days=59))
    assert due(pair, NOW + timedelta(days=61))
    assert due(pair, NOW - timedelta(days=1))  # a clock that was wrong when it was made
    assert not due(CA, NOW + timedelta(days=6 * 365))


def test_no_certificate_outlives_its_ca() -> None:
    late = NOW + timedelta(days=3649)
    assert due(issue(CA, NAMES, late), late + timedelta(days=1))


def test_what_fits_is_of_this_ca_and_for_all_names() -> None:
    pair = issue(CA, NAMES, NOW)
    assert fits(pair, CA, NAMES[1:])
    assert not fits(pair, CA, [*NAMES, "pidone-repo.elsewhere.svc"])
    assert not fits(pair, make_ca(NOW), NAMES)
    assert not fits(Pair(b"", b""), CA, NAMES)
    assert not fits(Pair(pair.certificate, CA.key), CA, NAMES)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Pair(b"nothing", b"nothing"), "not a certificate and its key in PEM"),
        (Pair(CA.certificate, make_ca(NOW).key), "the key is not that of the certificate"),
    ],
)
def test_what_is_no_pair_is_said_so(pair: Pair, said: str) -> None:
    with pytest.raises(CertificateError, match=said):
        issue(pair, NAMES, NOW)


def test_a_certificate_without_its_key_is_not_served() -> None:
    pair = issue(CA, NAMES, NOW)
    with pytest.raises(CertificateError, match="do not fit"):
        context(Pair(pair.certificate, CA.key))


async def ok(request: Request) -> Response:
    return text_response(200, f"{request.method} of {request.peer}")


async def test_the_pod_s_client_believes_the_repo_s_ca_and_a_new_certificate_is_served_at_once(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    ca, stranger = make_ca(now), make_ca(now)
    (tmp_path / "ca.crt").write_bytes(ca.certificate)
    monkeypatch.setenv("PIDONE_CA", str(tmp_path / "ca.crt"))
    tls = Tls(issue(stranger, NAMES, now))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(
        lambda task_status: serve(
            ok, listeners, max_connections=9, secure=tls.secure, task_status=task_status
        )
    )
    url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    with pytest.raises(ConnectError, match="certificate verify failed"):
        await request("GET", url, timeout=PATIENCE_SECONDS)
    tls.use(issue(ca, NAMES, now))
    for name in ("127.0.0.1", "localhost"):
        answer = await request("GET", url.replace("127.0.0.1", name), timeout=PATIENCE_SECONDS)
        assert (answer.status, answer.text) == (200, "GET of 127.0.0.1\n")
    tls.use(issue(ca, ["elsewhere"], now))
    with pytest.raises(ConnectError, match="certificate verify failed"):
        await request("GET", url, timeout=PATIENCE_SECONDS)
    tls.use(issue(ca, NAMES, now - timedelta(days=91)))
    with pytest.raises(ConnectError, match="certificate has expired"):
        await request("GET", url, timeout=PATIENCE_SECONDS)
    nursery.cancel_scope.cancel()


async def test_who_speaks_no_tls_ends_its_own_connection_alone(nursery: trio.Nursery) -> None:
    tls = Tls(issue(CA, NAMES, NOW))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(
        lambda task_status: serve(
            ok, listeners, max_connections=1, secure=tls.secure, task_status=task_status
        )
    )
    port = listeners[0].socket.getsockname()[1]
    with trio.fail_after(PATIENCE_SECONDS):
        for _ in range(3):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                while await stream.receive_some():
                    pass
    nursery.cancel_scope.cancel()
