"""What kubectl apply -k k3d installs, as a real API server takes it, and what the controller may do then."""

import json
from pathlib import Path
from typing import Any

import pytest

from pidone import __version__
from pidone.protocol import IN_CLUSTER
from tests.cluster.apiserver import Cluster, Object
from tests.k3d.folders import INSTALLATION, built

SYSTEM = "pidone-system"
CONTROLLER = f"system:serviceaccount:{SYSTEM}:pidone-controller"
KINDS = ["tasksets", "clustertasksets", "taskbindings", "clustertaskbindings"]
READ = ["get", "list", "watch"]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return built(INSTALLATION)


def the(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = [one for one in objects if one["kind"] == kind and name in {"", one["metadata"]["name"]}]
    return found


def test_it_has_no_webhook_and_no_certificate_manager(objects: list[Object]) -> None:
    groups = {one["apiVersion"].rpartition("/")[0] for one in objects}
    assert groups == {
        "",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apps",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
    }
    assert not [one["kind"] for one in objects if "Webhook" in one["kind"]]


def test_the_image_asks_the_service_that_is_installed(objects: list[Object]) -> None:
    service = the(objects, "Service")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    port = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "http")
    assert f"http://{name}.{namespace}.svc:{port}" == IN_CLUSTER
    selector = service["spec"]["selector"].items()
    pod = the(objects, "Deployment")["spec"]["template"]
    assert selector <= pod["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert [named[port["targetPort"]] for port in service["spec"]["ports"]] == [6060, 6443]


def test_images_have_the_version_of_the_project(objects: list[Object]) -> None:
    container = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"localhost/pidone-controller:{__version__}"
    injected = (INSTALLATION / "components/sidecar/injection.yaml").read_text()
    assert f'"localhost/pidone:{__version__}"' in injected


def test_every_namespaced_object_says_where_it_is(objects: list[Object]) -> None:
    everywhere = ("Cluster", "Custom", "Namespace", "Validating")
    for one in objects:
        expected = None if one["kind"].startswith(everywhere) else SYSTEM
        assert one["metadata"].get("namespace") == expected, one["kind"]


def test_applied_once_more_nothing_changes(installed: Cluster) -> None:
    """Nothing stands in the files otherwise than the API server keeps it."""
    versions = ("get", "-k", INSTALLATION, "--output=jsonpath={..metadata.resourceVersion}")
    before = installed.kubectl(*versions)
    assert len(before.split()) > 20
    installed.kubectl("apply", "-k", INSTALLATION)
    assert installed.kubectl(*versions) == before


def test_its_pods_are_admitted_where_only_restricted_ones_are(installed: Cluster) -> None:
    labels = installed.request("GET", f"/api/v1/namespaces/{SYSTEM}")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    template = installed.request("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/pidone-controller")[
        "spec"
    ]["template"]
    pod = {"metadata": {"name": "probe", **template["metadata"]}, "spec": template["spec"]}
    made = installed.request("POST", f"/api/v1/namespaces/{SYSTEM}/pods?dryRun=All", pod)
    mounted = [one["mountPath"] for one in made["spec"]["containers"][0]["volumeMounts"]]
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounted


def rules_of(cluster: Cluster, namespace: str) -> set[tuple[str, str, str, str]]:
    """Group, resource, name ("" for all) and verb of all that the controller may do there."""
    config = cluster.kubeconfig_of(cluster.token(SYSTEM, "pidone-controller"))
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    said = cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(review), kubeconfig=config)
    status = json.loads(said)["status"]
    assert not status["incomplete"]
    return {
        (group, resource, name, verb)
        for rule in status["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
        if not resource.startswith("selfsubject")  # which everybody may ask
    }


def allowed(
    group: str, resources: list[str], verbs: list[str], name: str = ""
) -> set[tuple[str, str, str, str]]:
    return {(group, resource, name, verb) for resource in resources for verb in verbs}


EVERYWHERE = (
    allowed("", ["pods"], READ)
    | allowed("", ["namespaces"], ["list", "watch"])
    | allowed("", ["events"], ["create", "patch"])
    | allowed("pidone.dev", KINDS, READ)
    | allowed("pidone.dev", [f"{kind}/status" for kind in KINDS], ["patch"])
    | allowed("apps", ["controllerrevisions"], [*READ, "create", "update", "delete"])
    | allowed("authentication.k8s.io", ["tokenreviews"], ["create"])
    | allowed("authorization.k8s.io", ["subjectaccessreviews"], ["create"])
)
AT_HOME = (
    allowed("coordination.k8s.io", ["leases"], ["create"])
    | allowed("coordination.k8s.io", ["leases"], ["get", "update"], "pidone-controller")
    | allowed("", ["serviceaccounts/token"], ["create"], "pidone-controller")
    | allowed("", ["secrets"], ["create"])
    | allowed("", ["secrets"], ["get", "update"], "pidone-ca")
)


def test_the_controller_may_do_what_it_does_and_nothing_else(installed: Cluster, shop: str) -> None:
    assert rules_of(installed, shop) == EVERYWHERE
    assert rules_of(installed, SYSTEM) == EVERYWHERE | AT_HOME


@pytest.mark.parametrize(
    ("verb", "what", "answer"),
    [
        ("watch", "pods", "yes"),
        ("patch", "pods", "no"),
        ("delete", "pods", "no"),
        ("get", "pods/exec", "no"),
        ("create", "pods/exec", "no"),
        ("get", "pods/log", "no"),
        ("get", "secrets", "no"),
        ("list", "secrets", "no"),
        ("get", "configmaps", "no"),
        ("list", "nodes", "no"),
        ("patch", "namespaces", "no"),
        ("patch", "tasksets.pidone.dev", "no"),
        ("create", "taskbindings.pidone.dev", "no"),
        ("impersonate", "serviceaccounts", "no"),
        ("create", "serviceaccounts/token", "no"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io", "no"),
    ],
)
def test_can_i(installed: Cluster, verb: str, what: str, answer: str) -> None:
    resource, _, subresource = what.partition("/")
    more = [f"--subresource={subresource}"] if subresource else []
    words = ("auth", "can-i", verb, resource, *more, f"--as={CONTROLLER}", "--all-namespaces")
    assert installed.try_kubectl(*words).stdout.strip() == answer


def test_view_edit_and_admin_are_given_the_namespaced_kinds_alone(objects: list[Object]) -> None:
    """A controller of the cluster adds roles to those that their labels name; none runs here."""
    given: dict[str, set[tuple[str, str]]] = {"view": set(), "edit": set(), "admin": set()}
    for one in objects:
        if one["kind"] != "ClusterRole":
            continue
        for name, found in given.items():
            if one["metadata"].get("labels", {}).get(f"rbac.authorization.k8s.io/aggregate-to-{name}"):
                found |= {
                    (kind, verb)
                    for rule in one["rules"]
                    for kind in rule["resources"]
                    for verb in rule["verbs"]
                }
    write = ["create", "update", "patch", "delete", "deletecollection"]
    view = {(kind, verb) for kind in KINDS for verb in READ}
    edit = view | {(kind, verb) for kind in ("tasksets", "taskbindings") for verb in write}
    assert given == {"view": view, "edit": edit, "admin": edit}


def test_the_fixed_address_is_one_line_of_a_kustomization(tmp_path: Path) -> None:
    service = the(overlay(tmp_path, "cluster-ip"), "Service")
    assert service["spec"]["clusterIP"] == "10.43.0.60"
    assert "clusterIP" not in the(built(INSTALLATION), "Service")["spec"]


def test_sidecars_are_a_component_and_their_image_one_patch(tmp_path: Path, objects: list[Object]) -> None:
    said = (INSTALLATION / "components/sidecar/kustomization.yaml").read_text()
    (operation,) = [line.removeprefix("#   ") for line in said.splitlines() if line.startswith("#   {op")]
    patch = {"target": {"kind": "MutatingAdmissionPolicy"}, "patch": f"- {operation}"}
    found = the(overlay(tmp_path, "sidecar", patches=[patch]), "MutatingAdmissionPolicy")
    assert found["spec"]["variables"] == [{"name": "image", "expression": '"registry.example/pidone:0.1.0"'}]
    assert not [one for one in objects if one["kind"].startswith("Mutating")]


def test_a_namespace_that_denies_everything_gets_its_rule(installed: Cluster, shop: str) -> None:
    installed.kubectl("apply", "-n", shop, "-f", INSTALLATION / "network" / "allow-repo.yaml")
    path = f"/apis/networking.k8s.io/v1/namespaces/{shop}/networkpolicies/allow-pidone-repo"
    repo = installed.request("GET", path)["spec"]["egress"][0]
    namespace = installed.request("GET", f"/api/v1/namespaces/{SYSTEM}")
    assert (
        repo["to"][0]["namespaceSelector"]["matchLabels"].items() <= namespace["metadata"]["labels"].items()
    )
    deployment = installed.request("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/pidone-controller")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert repo["to"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def overlay(folder: Path, *components: str, **more: Any) -> list[Object]:
    """A kustomization of one's own, as docs/install.md says; kustomize wants relative paths below no other root."""
    kustomization: dict[str, Any] = {
        **more,
        "resources": ["k3d"],
        "components": [f"k3d/components/{name}" for name in components],
    }
    (folder / "k3d").symlink_to(INSTALLATION)
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return built(folder)
