"""Finds the pod's uid, hostname and namespace, which it sends to the repo as claims.

The repo identifies a pod by its address. Claims can only lead to a refusal, never to a grant: they show that an
address has passed to another pod, or that the node translated the connection. This module imports built-in modules
only, because ``pidone.pid1.ask`` sends claims too.
"""

import posix

from pidone.protocol import HOSTNAME_HEADER, NAMESPACE_HEADER, POD_UID_HEADER


def claims() -> dict[str, str]:
    """Return the claim headers, from the environment (sidecar), or from files of the kernel and the kubelet."""
    variable = posix.environ.get(b"PIDONE_POD_UID")
    uid = pod_uid(_read("/proc/self/cgroup")) if variable is None else variable.decode("utf-8", "replace")
    return claim_headers(uid, posix.uname().nodename, namespace(_read("/etc/resolv.conf")))


def claim_headers(uid: str, hostname: str, pod_namespace: str) -> dict[str, str]:
    """Return the headers of the claims that are known; a missing claim is not checked."""
    headers = {POD_UID_HEADER: uid, HOSTNAME_HEADER: hostname, NAMESPACE_HEADER: pod_namespace}
    return {
        name: value for name, value in headers.items() if value and value.isascii() and value.isprintable()
    }


def pod_uid(cgroup: str) -> str:
    """Return the pod's uid in ``/proc/self/cgroup``, or "".

    The kubelet's systemd driver writes underscores for hyphens. Static pods have a hash of 32 digits.
    """
    for part in cgroup.replace("\n", "/").split("/"):
        _, pod, rest = part.removesuffix(".slice").rpartition("pod")
        uid = rest.replace("_", "-")
        shape = [len(group) for group in uid.split("-")]
        if pod and shape in ([8, 4, 4, 4, 12], [32]) and all(sign in "0123456789abcdef-" for sign in uid):
            return uid
    return ""


def namespace(resolv_conf: str) -> str:
    """Return the namespace in the first search domain, ``<namespace>.svc.<zone>``, or "".

    The kubelet writes it for pods with the dnsPolicy ClusterFirst.
    """
    for line in resolv_conf.splitlines():
        words = line.split()
        if words[:1] == ["search"] and len(words) > 1:
            first, service, _ = words[1].partition(".svc.")
            return first if service and "." not in first else ""
    return ""


def processes() -> int:
    """Return the number of processes in ``/proc``, with this one; 0 if there is no ``/proc``."""
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
