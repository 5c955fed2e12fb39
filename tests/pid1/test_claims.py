import pytest

from pidone.pid1.claims import claim_headers, namespace, pod_uid

UID = "0f3c8b1a-1d2e-4f56-8a9b-0123456789ab"
STATIC = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("cgroup", "uid"),
    [
        (f"0::/kubepods/burstable/pod{UID}/0a1b2c\n", UID),
        (f"0::/kubepods/pod{UID}/0a1b2c\n", UID),
        (f"12:memory:/kubepods/besteffort/pod{UID}/c\n11:cpu:/kubepods/besteffort/pod{UID}/c\n", UID),
        (
            f"0::/kubepods.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-0a1b2c.scope\n",
            UID,
        ),
        (f"0::/kubepods/burstable/pod{STATIC}/0a1b2c\n", STATIC),
        (f"0::/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-0a1b2c.scope\n", STATIC),
        ("0::/\n", ""),  # a cgroup namespace of its own shows nothing
        ("0::/user.slice/user-1000.slice/session-1.scope\n", ""),
        ("0::/kubepods/burstable/podman-12\n", ""),
        ("", ""),
    ],
)
def test_the_uid_is_read_from_the_path_of_either_driver(cgroup: str, uid: str) -> None:
    assert pod_uid(cgroup) == uid


@pytest.mark.parametrize(
    ("resolv_conf", "expected"),
    [
        ("search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\n", "shop"),
        ("nameserver 10.43.0.10\nsearch\tteam-a.svc.corp.example corp.example\noptions ndots:5\n", "team-a"),
        ("nameserver 1.1.1.1\nsearch corp.example\n", ""),  # dnsPolicy Default: the node's own
        ("# search shop.svc.cluster.local\n", ""),
        ("search svc.cluster.local\n", ""),
        ("", ""),
    ],
)
def test_the_namespace_is_that_of_the_first_search_domain(resolv_conf: str, expected: str) -> None:
    assert namespace(resolv_conf) == expected


def test_what_is_not_known_is_not_claimed() -> None:
    assert claim_headers(UID, "web-7d9c", "shop") == {
        "pidone-pod-uid": UID,
        "pidone-hostname": "web-7d9c",
        "pidone-namespace": "shop",
    }
    assert claim_headers("", "web\r\nx: y", "\N{SNOWMAN}") == {}
