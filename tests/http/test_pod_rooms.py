"""Room at the servers of a pod: no neighbour keeps the kubelet, the scraper or the pod itself out."""

from pathlib import Path

import pytest
import trio

from pidone.http.message import Request, Response, text_response
from pidone.http.pod_rooms import assign_in_pod, default_gateways
from tests.http.serving import flood_and_ask, http_server

ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ROUTE6 = """\
{subnet} 40 {none} 00 {none} 00000100 00000001 00000000 00000001     eth0
{none} 00 {none} 00 {gateway} 00000400 00000002 00000000 00000003     eth0
{none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200       lo
""".format(none="0" * 32, subnet="fd00000a00f40001" + "0" * 16, gateway="fd00000a00f40001" + "0" * 15 + "1")


def test_the_default_gateways_are_read_from_the_routing_tables(tmp_path: Path) -> None:
    assert default_gateways(str(tmp_path)) == frozenset()
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "ipv6_route").write_text(ROUTE6)
    assert default_gateways(str(tmp_path)) == {"10.244.1.1", "fd00:a:f4:1::1"}
    (tmp_path / "route").write_text("no table\nof routes")
    assert default_gateways(str(tmp_path)) == {"fd00:a:f4:1::1"}


@pytest.mark.parametrize(
    ("addresses", "together"),
    [
        (("10.244.1.1", "::ffff:10.244.1.1"), True),
        (("10.244.1.1", "10.244.1.2"), False),
        (("fd00:a:f4:1::1", "fd00:a:f4:1::2"), False),  # the gateway is told from its /64
        (("fd00:a:f4:1::2", "fd00:a:f4:1::3"), True),
        (("127.0.0.1", "::1"), True),
        (("127.0.0.1", "127.0.0.2"), False),
    ],
)
def test_the_node_and_the_pod_itself_have_rooms_of_their_own(
    addresses: tuple[str, str], *, together: bool
) -> None:
    assign = assign_in_pod(frozenset({"10.244.1.1", "fd00:a:f4:1::1"}))
    one, other = map(assign, addresses)
    assert (one[0] is other[0]) is together
    assert len({id(assign(address)[0]) for address in ("127.0.0.1", "10.244.1.1", "10.9.9.9")}) == 3


async def hold(request: Request) -> Response:
    if request.path == "/drain":
        await trio.sleep_forever()
    return text_response(200, "ok")


SILENT = b""
SLOW = b"GET /status HT"
BODY = b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
KEPT = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
DRAIN = b"GET /drain HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [SILENT, SLOW, BODY, KEPT, DRAIN])
@pytest.mark.parametrize("sources", ["127.9.0.1", "127.9.0.{}"])
async def test_many_connections_keep_nobody_from_the_status(
    sent: bytes, sources: str, nursery: trio.Nursery
) -> None:
    port = await http_server(nursery, hold, body=0, assign=assign_in_pod(frozenset({"127.7.0.1"})))
    await flood_and_ask(port, "/status", sent, sources, ["127.0.0.1", "127.7.0.1"])
    if sent != DRAIN:
        await flood_and_ask(
            port, "/status", sent, sources, ["127.0.0.1", "127.7.0.1", "127.8.0.1", "127.9.0.1"]
        )
    nursery.cancel_scope.cancel()
