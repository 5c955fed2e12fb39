"""Pods, TaskSets and bindings that the tests share."""

from textwrap import dedent
from typing import Any

from pidone.language.binding import Rules, collect
from pidone.language.checking import check_text
from pidone_controller.pods.inventory import Inventory
from pidone_controller.pods.model import Pod
from pidone_controller.pods.projection import project


def manifest(
    name: str = "web",
    ip: str = "127.0.0.2",
    *,
    namespace: str = "shop",
    labels: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A Pod as ``kubectl get -o json`` prints it, as far as it matters."""
    deleted = {"deletionTimestamp": "2026-01-02T03:04:05Z"} if more.pop("terminating", False) else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": more.pop("uid", f"uid-{name}"),
            "labels": labels or {},
            "annotations": more.pop("annotations", {}),
            **deleted,
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "app", "image": "app:1"}],
            **more.pop("spec", {}),
        },
        "status": {
            "phase": more.pop("phase", "Running"),
            "hostIP": "10.0.0.1",
            "podIP": ip,
            "podIPs": [{"ip": ip}, *({"ip": other} for other in more.pop("ips", ()))],
            "conditions": [{"type": "Ready", "status": "True", **more}],
        },
    }


def pod(*args: Any, **more: Any) -> Pod:
    return project(manifest(*args, **more))


def inventory(*pods: Pod) -> Inventory:
    return Inventory(pods)


def rules(*texts: str) -> Rules:
    """Rules from the texts of files; none of them has findings."""
    files = []
    for index, text in enumerate(texts):
        checked = check_text(dedent(text), f"{index}.yaml")
        assert not checked.findings, "\n".join(map(str, checked.findings))
        files.append((f"{index}.yaml", checked.objects))
    found, complaints = collect(files)
    assert not complaints
    return found


def task_set(
    name: str = "check", *, task: str = "ready", period: int = 5, namespace: str = "", cluster: bool = False
) -> str:
    """One probe, of a port that a param gives."""
    return f"""\
apiVersion: pidone.dev/v1alpha1
kind: {"Cluster" if cluster else ""}TaskSet
metadata: {{name: {name}{f", namespace: {namespace}" if namespace else ""}}}
spec:
  params:
    - {{name: port, type: integer, default: 8080}}
  tasks:
    - name: {task}
      probe:
        tcpSocket: {{port: $(params.port)}}
        periodSeconds: {period}
"""


def binding(
    name: str = "checked",
    *,
    sets: str = "check",
    labels: str = "check: 'yes'",
    params: str = "",
    namespace: str = "",
    cluster: bool = False,
) -> str:
    return f"""\
apiVersion: pidone.dev/v1alpha1
kind: {"Cluster" if cluster else ""}TaskBinding
metadata: {{name: {name}{f", namespace: {namespace}" if namespace else ""}}}
spec:
  podSelector:
    matchLabels: {{{labels}}}
  taskSets: [{sets}]
  params: {{{params}}}
"""
