"""The kinds that the controller reads and writes, and their paths on the API server."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: its group ("" is core), version and plural; ``namespaced``: its objects have a namespace."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The apiVersion of its objects: ``v1``, ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return ``/api/v1/namespaces/shop/pods/web/status``; without a namespace the path for all namespaces."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [self.plural, name, subresource]
        return "/" + "/".join(quote(part, safe="") for part in parts if part)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PIDONE = "pidone.dev"

PODS = Resource("", "v1", "pods", "Pod")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
TASK_SETS = Resource(PIDONE, "v1alpha1", "tasksets", "TaskSet")
CLUSTER_TASK_SETS = Resource(PIDONE, "v1alpha1", "clustertasksets", "ClusterTaskSet", namespaced=False)
TASK_BINDINGS = Resource(PIDONE, "v1alpha1", "taskbindings", "TaskBinding")
CLUSTER_TASK_BINDINGS = Resource(
    PIDONE, "v1alpha1", "clustertaskbindings", "ClusterTaskBinding", namespaced=False
)
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
EVENTS = Resource("", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
SELF_SUBJECT_REVIEWS = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False
)
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
SECRETS = Resource("", "v1", "secrets", "Secret")


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A reference to one object. One that is deleted and created again has another uid."""

    resource: Resource
    namespace: str  # "" for cluster kinds
    name: str
    uid: str

    @property
    def value(self) -> dict[str, Any]:
        """Return the fields of the object that identify it: apiVersion, kind and metadata."""
        return {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": {"namespace": self.namespace, "name": self.name, "uid": self.uid},
        }

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}".replace(" /", " ")
