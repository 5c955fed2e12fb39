"""What the pod can tell of itself without being told: only ever used to refuse, never to grant.

The repo knows a pod by its address. These claims catch the cases in which the address misleads: an address
that was given to another pod, or a connection that the node translated. Built-in modules only: the stage
that asks whether there is a plan at all sends them too.
"""

import posix

from pidone.protocol import HOSTNAME_HEADER, NAMESPACE_HEADER, POD_UID_HEADER


def claims() -> dict[str, str]:
    """The claim headers, from the environment (sidecar) or from what the kernel and the kubelet left in files."""
    said = posix.environ.get(b"PIDONE_POD_UID")
    uid = pod_uid(_read("/proc/self/cgroup")) if said is None else said.decode("utf-8", "replace")
    return claim_headers(uid, posix.uname().nodename, namespace(_read("/etc/resolv.conf")))


def claim_headers(uid: str, hostname: str, pod_namespace: str) -> dict[str, str]:
    """Only what is known; a claim that is missing claims nothing."""
    headers = {POD_UID_HEADER: uid, HOSTNAME_HEADER: hostname, NAMESPACE_HEADER: pod_namespace}
    return {
        name: value for name, value in headers.items() if value and value.isascii() and value.isprintable()
    }


def pod_uid(cgroup: str) -> str:
    """The uid in ``/proc/self/cgroup``; the systemd driver writes underscores, static pods a bare hash."""
    for part in cgroup.replace("\n", "/").split("/"):
        _, pod, rest = part.removesuffix(".slice").rpartition("pod")
        uid = rest.replace("_", "-")
        shape = [len(group) for group in uid.split("-")]
        if pod and shape in ([8, 4, 4, 4, 12], [32]) and all(sign in "0123456789abcdef-" for sign in uid):
            return uid
    return ""


def namespace(resolv_conf: str) -> str:
    """The namespace in the first search domain, ``<namespace>.svc.<zone>``; there with dnsPolicy ClusterFirst."""
    for line in resolv_conf.splitlines():
        words = line.split()
        if words[:1] == ["search"] and len(words) > 1:
            first, service, _ = words[1].partition(".svc.")
            return first if service and "." not in first else ""
    return ""


def processes() -> int:
    """How many ``/proc`` shows, this one too; 0 where it shows nothing."""
    try:
        return sum(name.isdecimal() for name in posix.listdir("/proc"))
    except OSError:
        return 0


def _read(path: str) -> str:
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return posix.read(descriptor, 16384).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        posix.close(descriptor)
