"""The address that a registration names: the first of an ordered list that the pod has.

    pod.ip          the pod's address as Kubernetes has it
    eth0            the first address of this interface, IPv4 before IPv6
    10.42.0.0/16    the first address in this network
    inet, inet6     the first IPv4 address, the first IPv6 address
    static:web.example.com   this name or address, without a look; a bare address is the same

Addresses of loopback and link-local addresses are never taken.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

POD_IP, STATIC = "pod.ip", "static:"
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_SIZES = {socket.AF_INET: 4, socket.AF_INET6: 16}  # bytes of an address

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_HEADER, _ADDRESS, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=HH")
_RTM_NEWADDR, _RTM_GETADDR, _NLM_F_REQUEST_DUMP = 20, 22, 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_LINK = 253
_UNUSABLE = 0x08 | 0x20  # IFA_F_DADFAILED, IFA_F_DEPRECATED
_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """An address of the pod."""

    interface: str  # empty: unknown
    text: str


def problem(wanted: str) -> str:
    """Return why an item of the list can fit no address; empty if it can."""
    if wanted in {POD_IP, *_FAMILIES}:
        return ""
    if wanted.startswith(STATIC):
        rest = wanted.removeprefix(STATIC)
        return (
            ""
            if rest and not set(rest) & set("/ \t,")
            else f'"{wanted}" has no name or address after static:'
        )
    if "/" in wanted:
        return "" if _network(wanted) else f'"{wanted}" is no network; write it like 10.42.0.0/16 or fd00::/8'
    if _packed(wanted) or (
        wanted.isascii() and wanted.isprintable() and 0 < len(wanted) < 16 and " " not in wanted
    ):
        if ":" in wanted and not _packed(wanted):
            return f'"{wanted}" is not known here; write pod.ip, eth0, 10.42.0.0/16, inet, inet6 or static:ADDRESS'
        return ""
    return f'"{wanted}" is no name of an interface; it has at most 15 characters, as eth0'


def choose(wanted: Sequence[str], own: str, addresses: Sequence[Address]) -> str:
    """Return the address for the first item of ``wanted`` that fits; empty if none does. ``own`` is ``pod.ip``."""
    return next(filter(None, (_fitting(item, own, addresses) for item in wanted)), "")


def addresses() -> list[Address]:
    """Return the addresses of this network namespace, in the order of the kernel; none if it does not tell them.

    The kernel answers a request for a dump from its memory, so this does not wait.
    """
    request = _HEADER.pack(_HEADER.size + _ADDRESS.size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0)
    found: list[Address] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as kernel:
            kernel.send(request + _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
            while part := read(kernel.recv(_BUFFER_BYTES)):
                found += [Address(socket.if_indextoname(index), text) for index, text in part]
    except OSError:  # BlockingIOError after the last part; no netlink in this sandbox
        pass
    return found


def read(data: bytes) -> list[tuple[int, str]]:
    """Return the index of the interface and the address, for each usable address in a part of a dump."""
    found = []
    while len(data) >= _HEADER.size + _ADDRESS.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if kind != _RTM_NEWADDR or length < _HEADER.size + _ADDRESS.size:
            break
        family, _, flags, scope, index = _ADDRESS.unpack_from(data, _HEADER.size)
        attributes = _attributes(data[_HEADER.size + _ADDRESS.size : length])
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        usable = scope < _RT_SCOPE_LINK and not flags & _UNUSABLE
        if usable and _SIZES.get(family) == len(packed):
            found.append((index, socket.inet_ntop(family, packed)))
        data = data[-(-length // 4) * 4 :]
    return found


def _attributes(data: bytes) -> dict[int, bytes]:
    attributes = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = data[_ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]
    return attributes


def _fitting(item: str, own: str, addresses: Sequence[Address]) -> str:
    if item == POD_IP:
        return own
    if item.startswith(STATIC):
        return item.removeprefix(STATIC)
    if _packed(item):
        return item
    if item in _FAMILIES:
        fitting = [one.text for one in addresses if (":" in one.text) is (item == "inet6")]
    elif "/" in item:
        fitting = [one.text for one in addresses if _contains(item, one.text)]
    else:
        fitting = sorted(
            (one.text for one in addresses if one.interface == item), key=lambda text: ":" in text
        )
    return next(iter(fitting), "")


def _packed(text: str) -> bytes:
    """Return the bytes of an address; empty if the text is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return b""


def _network(text: str) -> tuple[bytes, int] | None:
    """Return the first address of a network and the length of its prefix; None if the text is no network."""
    address, _, length = text.partition("/")
    packed = _packed(address)
    if not packed or not (length.isascii() and length.isdecimal()) or int(length) > 8 * len(packed):
        return None
    return packed, int(length)


def _contains(network: str, address: str) -> bool:
    parsed, packed = _network(network), _packed(address)
    if parsed is None or len(parsed[0]) != len(packed):
        return False
    shift = 8 * len(packed) - parsed[1]
    return int.from_bytes(parsed[0]) >> shift == int.from_bytes(packed) >> shift
