"""The policies, asked as people with tokens of their own ask: what is refused, and what passes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pidone import __version__
from tests.cluster.apiserver import APPLY, MERGE, Cluster, Object
from tests.cluster.process import until
from tests.k3d.folders import INSTALLATION
from tests.k3d.test_installation import overlay

SYSTEM = "pidone-system"
ALL = {"matchExpressions": [{"key": "pidone.dev/ignore", "operator": "DoesNotExist"}]}
EXEC: Object = {"name": "clean", "exec": {"command": ["/opt/clean"]}}
PROBE: Object = {"name": "ready", "probe": {"exec": {"command": ["/opt/ask"]}}}
HARMLESS: Object = {"name": "ready", "probe": {"httpGet": {"port": 8080}}}


@dataclass(frozen=True)
class Person:
    """Somebody with a token, and one namespace to work in."""

    cluster: Cluster
    token: str
    namespace: str

    def ask(self, method: str, path: str, body: Any = None, kind: str = MERGE) -> str:
        """What is said against it; empty where it is done."""
        answer = self.cluster.http.request(
            method,
            path,
            content=body and json.dumps(body),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind},
        )
        return "" if answer.is_success else f"{answer.json()['message']}"

    def path(self, one: Object) -> str:
        group = one["apiVersion"]
        where = "" if one["kind"].startswith("Cluster") else f"/namespaces/{self.namespace}"
        return f"/apis/{group}{where}/{one['kind'].lower()}s/{one['metadata']['name']}"

    def apply(self, one: Object) -> str:
        return self.ask("PATCH", f"{self.path(one)}?fieldManager=person&force=true", one, APPLY)

    def create(self, one: Object) -> str:
        return self.ask("POST", self.path(one).rpartition("/")[0], one, "application/json")

    def replace(self, one: Object) -> str:
        return self.ask("PUT", self.path(one), one, "application/json")

    def merge(self, one: Object, patch: Object, subresource: str = "") -> str:
        return self.ask("PATCH", self.path(one) + subresource, patch)

    def delete(self, one: Object) -> str:
        return self.ask("DELETE", self.path(one))


def person(cluster: Cluster, namespace: str, name: str, *roles: str) -> Person:
    cluster.account(namespace, name, *(rule for role in roles for rule in rules(cluster, role)))
    return Person(cluster, cluster.token(namespace, name), namespace)


@pytest.fixture
def editor(installed: Cluster, shop: str) -> Person:
    """May edit in the namespace (and in others: roles are bound to all here)."""
    return person(installed, shop, "editor", "pidone-view", "pidone-edit")


@pytest.fixture
def administrator(installed: Cluster, shop: str) -> Person:
    return person(installed, shop, "administrator", "pidone-cluster-edit")


@pytest.fixture
def controller(installed: Cluster, shop: str) -> Person:
    return Person(installed, installed.token(SYSTEM, "pidone-controller"), shop)


def rules(cluster: Cluster, role: str) -> list[Object]:
    found: list[Object] = cluster.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")[
        "rules"
    ]
    return found


def task_set(*tasks: Object, kind: str = "TaskSet", **spec: Any) -> Object:
    return {
        "apiVersion": "pidone.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "set"},
        "spec": {**spec, **({"tasks": list(tasks)} if tasks else {})},
    }


def binding(selector: Object, kind: str = "TaskBinding") -> Object:
    spec = {"podSelector": selector, "taskSets": ["set"]}
    return {"apiVersion": "pidone.dev/v1alpha1", "kind": kind, "metadata": {"name": "set"}, "spec": spec}


@pytest.mark.parametrize(
    "tasks",
    [[EXEC], [PROBE], [HARMLESS, EXEC], [{"name": "clean", "override": "merge", "exec": {"runAsUser": 0}}]],
)
def test_programs_in_a_namespace_take_its_label(
    installed: Cluster, shop: str, editor: Person, tasks: list[Object]
) -> None:
    said = editor.apply(task_set(*tasks))
    assert f'task "{tasks[-1]["name"]}" runs a program, which is not allowed in namespace {shop}' in said
    assert "pidone.dev/exec=allowed" in said
    allow(installed, shop, "no")
    assert "not allowed" in editor.apply(task_set(*tasks))
    allow(installed, shop, "allowed")
    assert not editor.apply(task_set(*tasks))


@pytest.mark.parametrize("spec", [task_set(HARMLESS), task_set(extends=["base"])])
def test_other_sets_take_no_label(editor: Person, spec: Object) -> None:
    assert not editor.apply(spec)


def test_a_program_is_not_added_to_a_set_later(editor: Person) -> None:
    assert not editor.apply(task_set(HARMLESS))
    assert "not allowed" in editor.apply(task_set(HARMLESS, EXEC))
    assert "not allowed" in editor.merge(task_set(), {"spec": {"tasks": [EXEC]}})


def test_what_was_there_before_the_label_was_taken_away_stays_and_is_not_changed(
    installed: Cluster, shop: str, editor: Person
) -> None:
    allow(installed, shop, "allowed")
    assert not editor.apply(task_set(EXEC))
    allow(installed, shop, None)
    assert not editor.merge(task_set(), {"metadata": {"labels": {"team": "a"}}})
    assert "not allowed" in editor.apply(task_set(EXEC | {"timeout": "5s"}))
    assert not editor.apply(task_set(HARMLESS))


def test_the_label_is_not_in_the_hands_of_who_edits_there(shop: str, editor: Person) -> None:
    patch = {"metadata": {"labels": {"pidone.dev/exec": "allowed"}}}
    assert "forbidden" in editor.ask("PATCH", f"/api/v1/namespaces/{shop}", patch)


def test_sets_of_the_cluster_are_for_who_has_the_role(editor: Person, administrator: Person) -> None:
    cluster_set = task_set(EXEC, kind="ClusterTaskSet")
    assert "forbidden" in editor.apply(cluster_set)
    assert not administrator.apply(cluster_set)
    assert not editor.apply(task_set(extends=["set"]))
    assert not administrator.delete(cluster_set)


@pytest.mark.parametrize(
    "selector",
    [{}, {"matchLabels": {}}, {"matchExpressions": []}, {"matchLabels": {}, "matchExpressions": []}],
)
@pytest.mark.parametrize("kind", ["TaskBinding", "ClusterTaskBinding"])
def test_a_selector_that_says_nothing_is_refused(
    editor: Person, administrator: Person, kind: str, selector: Object
) -> None:
    who = administrator if kind.startswith("Cluster") else editor
    refusal = "spec.podSelector is empty, which would choose every pod"
    assert refusal in who.apply(binding(selector, kind))
    for good in (ALL, {"matchLabels": {"app": "a"}}):
        assert not who.apply(binding(good, kind))
        emptied = [{"op": "replace", "path": "/spec/podSelector", "value": selector}]
        path = who.path(binding(good, kind))
        assert refusal in who.ask("PATCH", path, emptied, "application/json-patch+json")
        assert not who.delete(binding(ALL, kind))


def test_the_controller_writes_status_and_no_spec(editor: Person, controller: Person) -> None:
    for one in (binding(ALL), task_set(HARMLESS)):
        assert not editor.apply(one)
        assert not controller.merge(one, {"status": {"matched": 1}}, "/status")
        assert "forbidden" in controller.merge(one, {"spec": {"params": {}}})


def revision(name: str, kind: str, api: str) -> Object:
    owner = {"apiVersion": api, "kind": kind, "name": "set", "uid": "1"}
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "revision": 1,
        "data": {},
    }


@pytest.mark.parametrize("kind", ["TaskSet", "ClusterTaskSet"])
def test_the_controller_keeps_versions_of_task_sets(controller: Person, kind: str) -> None:
    ours = revision("ours", kind, "pidone.dev/v1alpha1")
    assert not controller.create(ours)
    assert not controller.replace(ours | {"revision": 2})
    assert not controller.delete(ours)


def test_and_no_others(installed: Cluster, shop: str, controller: Person) -> None:
    theirs = revision("theirs", "DaemonSet", "apps/v1")
    refusal = "the controller keeps versions of TaskSets and ClusterTaskSets alone"
    assert refusal in controller.create(theirs)
    installed.kubectl("create", "-n", shop, "-f", "-", stdin=json.dumps(theirs))
    assert refusal in controller.replace(theirs | {"revision": 2})
    assert refusal in controller.delete(theirs)
    # nor are they made its own first
    assert refusal in controller.replace(revision("theirs", "TaskSet", "pidone.dev/v1alpha1"))
    installed.kubectl("delete", "controllerrevision", "theirs", "-n", shop)


def test_a_label_brings_the_sidecar_and_nothing_else_does(installed: Cluster, shop: str) -> None:
    installed.kubectl("apply", "-f", INSTALLATION / "components" / "sidecar" / "injection.yaml")
    label = {"pidone.dev/inject": "sidecar"}

    def injected() -> bool:
        probe = {
            "metadata": {"name": "probe", "labels": label},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        }
        made = installed.request("POST", f"/api/v1/namespaces/{shop}/pods?dryRun=All", probe)
        return bool(made["spec"].get("initContainers"))

    until(injected)
    first = {"name": "first", "image": "first"}
    pod = installed.make_pod(shop, "with", labels=label, initContainers=[first])
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["pidone", "first"]
    sidecar = pod["spec"]["initContainers"][0]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["image"] == f"localhost/pidone:{__version__}"
    uid = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert sidecar["env"] == [
        {"name": "PIDONE_POD_UID", "valueFrom": uid},
        {"name": "PIDONE_TOKEN", "value": token},
    ]
    # the API server's own part that mounts the account's token looked once more
    assert token.rpartition("/")[0] in [one["mountPath"] for one in sidecar["volumeMounts"]]
    assert "initContainers" not in installed.make_pod(shop, "without")["spec"]
    own = installed.make_pod(shop, "own", labels=label, initContainers=[{"name": "pidone", "image": "own"}])
    assert [one["image"] for one in own["spec"]["initContainers"]] == ["own"]


SHARING = INSTALLATION / "components" / "process-sharing"


def sharing(installed: Cluster, shop: str) -> None:
    """Install the component and wait until the API server acts on it."""
    for part in ("sharing.yaml", "warnings.yaml"):
        installed.kubectl("apply", "-f", SHARING / part)

    def active() -> bool:
        made = create(installed, shop, {"pidone.dev/processes": "true"})
        warned = create(installed, shop, {"pidone.dev/processes": "true"}, hostPID=True)
        return bool(made[0]["spec"].get("shareProcessNamespace")) and bool(warned[1])

    until(active)


def create(cluster: Cluster, namespace: str, labels: Object, **spec: Any) -> tuple[Object, str]:
    """The pod that would be made with these labels, and the warnings of its author."""
    body = {
        "metadata": {"generateName": "shared-", "labels": labels},
        "spec": {"containers": [{"name": "a", "image": "a"}], **spec},
    }
    answer = cluster.http.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", json=body)
    answer.raise_for_status()
    return answer.json(), " ".join(answer.headers.get_list("warning"))


@pytest.mark.parametrize("label", ["pidone.dev/processes", "pidone.dev/idle"])
def test_a_label_shares_the_process_namespace(installed: Cluster, shop: str, label: str) -> None:
    sharing(installed, shop)
    pod, warnings = create(installed, shop, {label: "true", "app": "web"})
    assert (pod["spec"].get("shareProcessNamespace"), warnings) == (True, "")
    for labels in ({}, {"app": "web"}, {label: "false"}, {f"{label}s": "true"}):
        pod, warnings = create(installed, shop, labels, hostPID=True)
        assert ("shareProcessNamespace" in pod["spec"], warnings) == (False, "")
    pod, warnings = create(installed, shop, {label: "true"}, shareProcessNamespace=True)
    assert (pod["spec"]["shareProcessNamespace"], warnings) == (True, "")


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ({"hostPID": True}, "with hostPID: true process 1 sees the processes of the whole node"),
        ({"shareProcessNamespace": False}, "with shareProcessNamespace: false process 1 does not see"),
        ({"hostPID": True, "shareProcessNamespace": False}, "with hostPID: true"),
    ],
)
def test_a_pod_that_decides_otherwise_is_left_alone_and_its_author_is_told(
    installed: Cluster, shop: str, spec: Object, warning: str
) -> None:
    sharing(installed, shop)
    pod, warnings = create(installed, shop, {"pidone.dev/processes": "true"}, **spec)
    assert {field: pod["spec"].get(field) for field in spec} == spec
    assert "shareProcessNamespace" in spec or "shareProcessNamespace" not in pod["spec"]
    assert warning in warnings
    assert warnings.count("Validation failed") == 1
    template = {"metadata": {"labels": {"pidone.dev/processes": "true", "app": "a"}}, "spec": pod["spec"]}
    deployment = {
        "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template},
    }
    path = f"/apis/apps/v1/namespaces/{shop}/deployments?dryRun=All"
    answer = installed.http.post(path, json=deployment)
    assert answer.is_success, answer.text
    assert warning in " ".join(answer.headers.get_list("warning"))


def test_the_component_of_older_versions_does_the_same(installed: Cluster, shop: str, tmp_path: Path) -> None:
    sharing(installed, shop)
    for part in ("sharing.yaml", "warnings.yaml"):
        installed.kubectl("delete", "-f", SHARING / part)
    until(
        lambda: "shareProcessNamespace" not in create(installed, shop, {"pidone.dev/idle": "true"})[0]["spec"]
    )
    older = [
        one
        for one in overlay(tmp_path, "process-sharing-v1beta1")
        if "process-sharing" in one["metadata"]["name"]
    ]
    versions = {one["kind"]: one["apiVersion"].rpartition("/")[2] for one in older}
    assert versions == {
        "MutatingAdmissionPolicy": "v1beta1",
        "MutatingAdmissionPolicyBinding": "v1beta1",
        "ValidatingAdmissionPolicy": "v1",
        "ValidatingAdmissionPolicyBinding": "v1",
    }
    installed.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": older})
    )
    until(
        lambda: create(installed, shop, {"pidone.dev/idle": "true"})[0]["spec"].get("shareProcessNamespace")
    )


def allow(cluster: Cluster, namespace: str, word: str | None) -> None:
    labels = {"metadata": {"labels": {"pidone.dev/exec": word}}}
    cluster.request("PATCH", f"/api/v1/namespaces/{namespace}", labels, kind=MERGE)
