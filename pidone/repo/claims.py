"""What the pod can tell of itself without being told: only ever used to refuse, never to grant.

The repo knows a pod by its address. These claims catch the cases in which the address misleads: an address
that was given to another pod, or a connection that the node translated.
"""

import os
import re
import socket

_POD_UID = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
)
_SEARCH = re.compile(r"^search\s+([a-z0-9-]+)\.svc\.", re.MULTILINE)


def read_claims(environment_uid: str | None) -> dict[str, str]:
    """The claim headers, from the environment (sidecar) or from what the kernel and the kubelet left in files."""
    uid = environment_uid if environment_uid is not None else pod_uid(_read("/proc/self/cgroup"))
    return claim_headers(uid, socket.gethostname(), namespace(_read("/etc/resolv.conf")))


def claim_headers(uid: str, hostname: str, pod_namespace: str) -> dict[str, str]:
    """Only what is known; a claim that is missing claims nothing."""
    claims = {"pidone-pod-uid": uid, "pidone-hostname": hostname, "pidone-namespace": pod_namespace}
    return {
        name: value for name, value in claims.items() if value and value.isascii() and value.isprintable()
    }


def pod_uid(cgroup: str) -> str:
    """The uid in ``/proc/self/cgroup``; the systemd driver writes underscores, static pods a bare hash."""
    found = _POD_UID.search(cgroup)
    return found[1].replace("_", "-") if found else ""


def namespace(resolv_conf: str) -> str:
    """The namespace in the first search domain, ``<namespace>.svc.<zone>``; there with dnsPolicy ClusterFirst."""
    found = _SEARCH.search(resolv_conf)
    return found[1] if found else ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(os.sysconf("SC_PAGE_SIZE") * 4)
    except OSError:
        return ""
