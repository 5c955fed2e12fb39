"""The cluster's DNS, as far as pods need it: a Service's name has its address. CoreDNS would be an image of its own."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.cluster.apiserver import Cluster, Refused

DOMAIN = "cluster.local"
A, IN = 1, 1
NO_SUCH_NAME = 3
ANSWER = 0x8580  # a response, of who knows, to somebody who asked for recursion, which is there


@contextmanager
def names(cluster: Cluster, address: str) -> Iterator[None]:
    """Answer on port 53 of an address until the end of the block."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        thread = threading.Thread(target=_serve, args=(server, cluster), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):  # it is not connected, says Linux, and wakes who reads
                server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket, cluster: Cluster) -> None:
    known: dict[str, str] = {}  # as a cluster's own DNS has them in memory; an address stays with its Service
    while True:
        try:
            asked, peer = server.recvfrom(4096)
        except OSError:
            return
        if not asked:
            return
        server.sendto(answer(asked, cluster, known), peer)


def answer(asked: bytes, cluster: Cluster, known: dict[str, str]) -> bytes:
    """One question, and the address of the Service that it names; there are no others, and no IPv6."""
    labels, at = [], 12
    while length := asked[at]:
        labels.append(asked[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", asked, at + 1)
    question = asked[12 : at + 5]
    name = ".".join(labels)
    found = known.get(name) or _address(cluster, labels)
    if found:
        known[name] = found
    records = b""
    if found and kind == A:
        records = struct.pack("!HHHIH", 0xC00C, A, IN, 1, 4) + socket.inet_aton(found)
    flags = ANSWER if found else ANSWER | NO_SUCH_NAME
    return asked[:2] + struct.pack("!HHHHH", flags, 1, bool(records), 0, 0) + question + records


def _address(cluster: Cluster, labels: list[str]) -> str:
    if len(labels) != 5 or labels[2:] != ["svc", *DOMAIN.split(".")]:
        return ""
    try:
        service = cluster.request("GET", f"/api/v1/namespaces/{labels[1]}/services/{labels[0]}")
    except Refused:
        return ""
    return str(service["spec"]["clusterIP"])
