"""Pods, TaskSets, TaskBindings and rules for tests."""

from textwrap import dedent
from typing import Any

from pidone.language.binding import Rules, collect
from pidone.language.checking import check_text
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
    """The fields of a Pod, as ``kubectl get -o json`` prints them, that tests need."""
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


def rules(*texts: str) -> Rules:
    """Rules from the texts of files without findings."""
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
    """The text of a TaskSet with one probe, whose port is a param."""
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
    """The text of a TaskBinding."""
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


def set_spec(period: int = 5, *, task: str = "ready", extends: list[str] | None = None) -> dict[str, Any]:
    """The spec of a TaskSet with one probe."""
    spec: dict[str, Any] = {
        "tasks": [{"name": task, "probe": {"tcpSocket": {"port": 1}, "periodSeconds": period}}]
    }
    return {**spec, "extends": extends} if extends else spec


def binding_spec(
    sets: str = "check", *, rollout: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The spec of a TaskBinding."""
    spec = {"podSelector": {"matchLabels": {"check": "yes"}}, "taskSets": sets.split(), **more}
    return spec if rollout is None else {**spec, "rollout": rollout}
