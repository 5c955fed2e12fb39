"""The calls of CRI v1 that the tests make, and as much of their messages as they need.

Numbers and names are those of ``runtime/v1/api.proto`` in Kubernetes' cri-api.
"""

from enum import IntEnum
from typing import NamedTuple

from tests.cri.protobuf import MAP, NUMBER, TEXT, Shape


class Mode(IntEnum):
    """With whom a namespace is shared: the pod (shareProcessNamespace), nobody, or the node (hostPID)."""

    POD = 0
    CONTAINER = 1
    NODE = 2


class SandboxState(IntEnum):
    READY = 0
    NOTREADY = 1


class ContainerState(IntEnum):
    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


VALUE: Shape = {"value": (1, NUMBER)}
NAMESPACES: Shape = {"network": (1, NUMBER), "pid": (2, NUMBER), "ipc": (3, NUMBER)}
SECCOMP: Shape = {"profile_type": (1, NUMBER)}  # 0: the runtime's default, which the kubelet always asks for
IMAGE: Shape = {"image": (1, TEXT)}

POD_METADATA: Shape = {
    "name": (1, TEXT),
    "uid": (2, TEXT),
    "namespace": (3, TEXT),
    "attempt": (4, NUMBER),
}
POD_SECURITY: Shape = {
    "namespace_options": (1, NAMESPACES),
    "run_as_user": (3, VALUE),
    "run_as_group": (8, VALUE),
    "seccomp": (9, SECCOMP),
}
POD: Shape = {
    "metadata": (1, POD_METADATA),
    "hostname": (2, TEXT),
    "log_directory": (3, TEXT),
    "linux": (8, {"cgroup_parent": (1, TEXT), "security_context": (2, POD_SECURITY)}),
}
POD_STATUS: Shape = {"id": (1, TEXT), "metadata": (2, POD_METADATA), "state": (3, NUMBER)}

CONTAINER_METADATA: Shape = {"name": (1, TEXT), "attempt": (2, NUMBER)}
CONTAINER: Shape = {
    "metadata": (1, CONTAINER_METADATA),
    "image": (2, IMAGE),
    "command": (3, [TEXT]),
    "log_path": (11, TEXT),
    "linux": (
        15,
        {"security_context": (2, {"namespace_options": (3, NAMESPACES), "run_as_user": (5, VALUE)})},
    ),
}
CONTAINER_STATUS: Shape = {"id": (1, TEXT), "state": (3, NUMBER), "exit_code": (7, NUMBER)}

SANDBOX_ID: Shape = {"pod_sandbox_id": (1, TEXT)}
CONTAINER_ID: Shape = {"container_id": (1, TEXT)}
NOTHING: Shape = {}


class Call(NamedTuple):
    path: str
    request: Shape
    response: Shape


def _call(name: str, request: Shape, response: Shape, service: str = "Runtime") -> Call:
    return Call(f"/runtime.v1.{service}Service/{name}", request, response)


VERSION = _call("Version", NOTHING, {"runtime_name": (2, TEXT), "runtime_version": (3, TEXT)})
RUN_SANDBOX = _call("RunPodSandbox", {"config": (1, POD)}, SANDBOX_ID)
STOP_SANDBOX = _call("StopPodSandbox", SANDBOX_ID, NOTHING)
REMOVE_SANDBOX = _call("RemovePodSandbox", SANDBOX_ID, NOTHING)
SANDBOX_STATUS = _call(
    "PodSandboxStatus",
    {**SANDBOX_ID, "verbose": (2, NUMBER)},
    {"status": (1, POD_STATUS), "info": (2, MAP)},
)
LIST_SANDBOXES = _call("ListPodSandbox", NOTHING, {"items": (1, [POD_STATUS])})
CREATE_CONTAINER = _call(
    "CreateContainer", {**SANDBOX_ID, "config": (2, CONTAINER), "sandbox_config": (3, POD)}, CONTAINER_ID
)
START_CONTAINER = _call("StartContainer", CONTAINER_ID, NOTHING)
STOP_CONTAINER = _call("StopContainer", {**CONTAINER_ID, "timeout": (2, NUMBER)}, NOTHING)
CONTAINER_STATUS_OF = _call(
    "ContainerStatus",
    {**CONTAINER_ID, "verbose": (2, NUMBER)},
    {"status": (1, CONTAINER_STATUS), "info": (2, MAP)},
)
IMAGE_STATUS = _call("ImageStatus", {"image": (1, IMAGE)}, {"image": (1, {"id": (1, TEXT)})}, service="Image")
