"""The address that a registration names: what is chosen, and what the kernel says."""

import json
import shutil
import socket
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidone.actions import Setting, _address, register
from pidone.actions._address import Address, addresses, choose, problem, read
from pidone.counters import Counters
from pidone.errors import Refused
from pidone.pid1.reaper import Reaper
from pidone.plan.fields import Fields
from pidone.plan.model import Pod

POD = Pod("web", "shop", "uid", "10.42.0.18")
PRESENT = [
    Address("eth0", "fd00::18"),
    Address("eth0", "10.42.0.18"),
    Address("net1", "192.168.7.2"),
    Address("net1", "2001:db8::2"),
]
EUREKA = {"url": "http://e/eureka", "app": "web", "port": 80}


@pytest.mark.parametrize(
    ("wanted", "address"),
    [
        (["pod.ip"], "10.42.0.18"),
        (["net1"], "192.168.7.2"),
        (["net2", "net1"], "192.168.7.2"),
        (["eth0"], "10.42.0.18"),
        (["inet"], "10.42.0.18"),
        (["inet6"], "fd00::18"),
        (["192.168.0.0/16"], "192.168.7.2"),
        (["192.168.7.2/32"], "192.168.7.2"),
        (["172.16.0.0/12", "2001:db8::/32"], "2001:db8::2"),
        (["0.0.0.0/0"], "10.42.0.18"),
        (["::/0"], "fd00::18"),
        (["static:web.example.com"], "web.example.com"),
        (["static:fd00::1"], "fd00::1"),
        (["192.0.2.7"], "192.0.2.7"),
        (["net2", "10.0.0.0/16"], ""),
        (["net2", "pod.ip"], "10.42.0.18"),
    ],
)
def test_the_first_that_fits_is_taken(wanted: list[str], address: str) -> None:
    assert choose(wanted, POD.ip, PRESENT) == address
    assert not any(map(problem, wanted))


@pytest.mark.parametrize(
    "wanted",
    ["", "static:", "static:a/b", "10.42.0.0/33", "fd00::/129", "10.42/16", "10.42.0.0/", "/16", "10.42.0.0/x",
     "env:POD_IP", "a name", "an-interface-that-is-too-long", "eth\u00e9", "10.0.0.0/16 "],
)  # fmt: skip
def test_what_fits_no_address_is_refused_with_the_same_words_everywhere(wanted: str) -> None:
    assert problem(wanted)
    with pytest.raises(Refused, match="address"):
        registry({"address": [wanted]})


def registry(config: dict[str, Any]) -> Any:
    setting = Setting(POD, None, Reaper(), Counters(), lambda: ())
    return register.build(Fields({"eureka": EUREKA, **config}, "register"), setting).targets[0].registry


def test_the_chosen_address_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_address, "addresses", lambda: PRESENT)
    assert registry({}).address == "10.42.0.18"
    assert registry({"address": ["eth7", "2001:db8::/32", "pod.ip"]}).address == "2001:db8::2"
    with pytest.raises(Refused, match=r"no address for eth7; it has eth0 fd00::18, eth0 10\.42\.0\.18, net1"):
        registry({"address": ["eth7"]})
    setting = Setting(POD, None, Reaper(), Counters(), lambda: ())
    to = [{"eureka": EUREKA}, {"eureka": EUREKA | {"app": "other"}, "address": ["net1"]}]
    several = register.build(Fields({"to": to, "address": ["inet6"]}, "register"), setting)
    assert [target.registry.address for target in several.targets] == ["fd00::18", "192.168.7.2"]


@pytest.mark.parametrize(
    ("wanted", "address"),
    [
        (["inet6"], "fd00::18"),
        (["net1", "fd00::/8"], "fd00::18"),
        (["net1"], "10.42.0.18"),
        (["static:192.0.2.1"], "192.0.2.1"),
        (["10.0.0.0/8"], "10.42.0.18"),
    ],
)
def test_the_controller_knows_the_addresses_that_kubernetes_has(wanted: list[str], address: str) -> None:
    config = {"eureka": EUREKA, "address": wanted}
    assert register.instance_of(config, POD, ("10.42.0.18", "fd00::18")).address == address


def test_the_kernel_says_which_addresses_there_are() -> None:
    found = addresses()
    assert not any(one.text.startswith(("127.", "fe80:")) or one.text == "::1" for one in found)
    for one in found:
        family = socket.AF_INET6 if ":" in one.text else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind((one.text, 0))
    assert set(found) == set(addresses())


@pytest.mark.skipif(shutil.which("ip") is None, reason="apt-get install iproute2")
def test_ip_says_the_same() -> None:
    done = subprocess.run(["ip", "-j", "address"], capture_output=True, check=True)
    expected = {
        Address(interface["ifname"], address["local"])
        for interface in json.loads(done.stdout)
        for address in interface.get("addr_info", ())
        if address.get("scope") in {"global", "site"} and not address.get("deprecated")
    }
    assert set(addresses()) == expected


@given(st.binary(max_size=200))
def test_any_answer_is_read_to_its_end(data: bytes) -> None:
    read(data)
