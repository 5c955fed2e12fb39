"""A Kubernetes API server for tests: a real one of our own, with etcd, or the one that a kubeconfig names.

All of it blocks: a call for some milliseconds, what restarts servers for seconds. A test whose own loop should go on
meanwhile calls it by ``trio.to_thread.run_sync``. Pods run nowhere: their status is written here, as a kubelet would.
"""

import ipaddress
import itertools
import json
import os
import shutil
import ssl
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import program
from tests.cluster.process import Process, until
from tests.ports import free_port

CRDS = Path(__file__).parents[2] / "k3d" / "crds"
FOREIGN = "PIDONE_TEST_KUBECONFIG"
ADMIN = "admin-of-the-tests"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
OURS = "/apis/pidone.dev/v1alpha1"
SERVICES = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"
Object = dict[str, Any]


class Refused(Exception):
    """The API server's answer is an error; ``status`` is its Status object, ``code`` the HTTP status."""

    def __init__(self, code: int, status: Object) -> None:
        super().__init__(f"{code} {status.get('reason')}: {status.get('message')}")
        self.code = code
        self.status = status


@dataclass
class Cluster:
    """An API server and who may do everything there."""

    folder: Path  # what is written for it, kubeconfigs too
    kubeconfig: Path  # of somebody who may do everything
    http: httpx.Client  # of the same
    server: str  # its URL
    certificate: Path | None  # of who signed the API server's; None where the URL needs none
    alone: bool  # no controllers: nobody else makes accounts, or empties namespaces
    _addresses: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def kubectl(self, *words: str | Path, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """What kubectl printed.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = self.try_kubectl(*words, stdin=stdin, kubeconfig=kubeconfig)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, words))}: {done.stderr}{done.stdout}"
        return done.stdout

    def try_kubectl(
        self, *words: str | Path, stdin: str = "", kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same where failure is an answer. ``kubectl wait`` and the like end after two minutes at the latest."""
        return subprocess.run(
            [*kubectl_words(), "--kubeconfig", kubeconfig or self.kubeconfig, *words],
            env=os.environ | {"HOME": str(self.folder)},  # what it caches of the API server goes there
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def request(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Object:
        """A call as it is, e.g. PATCH of ``/api/v1/namespaces/shop/pods/web-0`` with ``kind=MERGE``.

        Raises:
            Refused: the answer is no success.
            httpx.HTTPError: there is no answer.
        """
        content = None if body is None else json.dumps(body)
        answer = self.http.request(method, path, content=content, headers={"Content-Type": kind})
        try:
            found: Object = answer.json()
        except ValueError:
            found = {"message": answer.text}
        if not answer.is_success:
            raise Refused(answer.status_code, found)
        return found

    def apply(self, *objects: Object, manager: str = "tests") -> None:
        """As ``kubectl apply --server-side`` of the four kinds, quicker: metadata.namespace says where."""
        for one in objects:
            plural = f"{one['kind'].lower()}s"
            name, namespace = one["metadata"]["name"], one["metadata"].get("namespace")
            path = (
                f"{OURS}/namespaces/{namespace}/{plural}/{name}" if namespace else f"{OURS}/{plural}/{name}"
            )
            self.request(
                "PATCH", f"{path}?fieldManager={manager}&force=true&fieldValidation=Strict", one, kind=APPLY
            )

    @contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """One that nobody else has, until the end of the block; then it and what is in it are gone."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.make_namespace(name)
        try:
            yield name
        finally:
            self.remove_namespace(name)

    def make_namespace(self, name: str) -> None:
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        try:
            self.request(
                "POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}}
            )
        except Refused as error:  # the controller for accounts was quicker
            if error.code != 409:
                raise

    def remove_namespace(self, name: str) -> None:
        inside = f"namespaces/{name}"
        self.request("DELETE", f"/api/v1/{inside}/pods?gracePeriodSeconds=0")
        for plural in ("taskbindings", "tasksets"):
            try:
                self.request("DELETE", f"{OURS}/{inside}/{plural}")
            except Refused as error:  # where the CRDs are not
                if error.code != 404:
                    raise
        self.request("DELETE", f"/api/v1/{inside}")
        if self.alone:
            found = self.request("GET", f"/api/v1/{inside}")
            self.request("PUT", f"/api/v1/{inside}/finalize", found | {"spec": {"finalizers": []}})

    # accounts

    def account(self, namespace: str, name: str, *rules: Object) -> Path:
        """A kubeconfig of a service account that may do what ``rules`` say in all namespaces, and nothing else.

        Where it is there already it stays, with what it is allowed: no rules are needed then.
        """
        objects: list[Object] = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}]
        if rules:
            rbac = "rbac.authorization.k8s.io"
            unique = {"name": f"{namespace}-{name}"}
            role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": unique, "rules": rules}
            binding = {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": unique,
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": unique["name"]},
                "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
            }
            objects += [role, binding]
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--namespace", namespace, "-f", "-", stdin=items)
        return self.kubeconfig_of(self.token(namespace, name))

    def token(
        self,
        namespace: str,
        account: str,
        *,
        audience: str = "",
        pod: Object | None = None,
        seconds: int = 3600,
    ) -> str:
        """Of a service account; with ``pod`` bound to that pod, as the projected ones are."""
        spec: Object = {"audiences": [audience] if audience else [], "expirationSeconds": seconds}
        if pod:
            about = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", **about}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token: str = self.request("POST", path, {"spec": spec})["status"]["token"]
        return token

    def kubeconfig_of(self, token: str, server: str = "") -> Path:
        """One for this API server, or for ``server`` where something stands between (``wire.py``)."""
        view = self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json")
        cluster: Object = json.loads(view)["clusters"][0]["cluster"]
        path = self.folder / f"kubeconfig-{uuid.uuid4().hex[:8]}"
        path.write_text(kubeconfig({"server": server} if server else cluster, {"token": token}))
        return path

    # pods

    def address(self) -> str:
        """One that no pod had yet."""
        return str(ipaddress.ip_address("10.77.0.0") + next(self._addresses))

    def make_pod(
        self,
        namespace: str,
        name: str,
        *,
        labels: Mapping[str, str] = {},
        annotations: Mapping[str, str] = {},
        containers: Sequence[Object] = ({"name": "app", "image": "app"},),
        node: str = "node-of-nobody",
        **spec: Any,
    ) -> Object:
        """As a scheduler leaves it: Pending, on a node, without an address. ``spec`` are more fields of the pod's spec.

        Without a node (``node=""``) the API server would delete it at once instead of with grace.
        """
        metadata = {"name": name, "labels": dict(labels), "annotations": dict(annotations)}
        spec = {"containers": list(containers), **spec} | ({"nodeName": node} if node else {})
        return self.request(
            "POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec}
        )

    def run_pod(
        self,
        namespace: str,
        name: str,
        *,
        ips: Sequence[str] = (),
        host: str = "192.168.77.1",
        ready: bool = True,
        **made: Any,
    ) -> Object:
        """One that runs: made as ``make_pod`` makes it, with ``made``, then with addresses and started containers."""
        pod = self.make_pod(namespace, name, **made)
        return self.tell(namespace, name, running(pod, ips or (self.address(),), host, ready=ready))

    def tell(self, namespace: str, name: str, status: Object) -> Object:
        """Change the pod's status; lists are replaced."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        return self.request("PATCH", path, {"status": status}, kind=MERGE)

    def label(self, namespace: str, name: str, labels: Mapping[str, str | None]) -> Object:
        """Change its labels; None takes one away."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        return self.request("PATCH", path, {"metadata": {"labels": dict(labels)}}, kind=MERGE)

    def end_pod(self, namespace: str, name: str, phase: str = "Succeeded") -> Object:
        """Its containers have ended and will not be started again; the addresses stay in the status, as they do."""
        status: Object = {"phase": phase, "conditions": conditions(ready=False), "containerStatuses": []}
        return self.tell(namespace, name, status)

    def delete_pod(self, namespace: str, name: str, seconds: int = 30) -> Object:
        """Delete with grace: it has a deletionTimestamp from now on, until ``finish_pod``."""
        return self.request(
            "DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds={seconds}"
        )

    def finish_pod(self, namespace: str, name: str) -> None:
        """What the kubelet does when all of the pod has ended: it is gone."""
        self.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0")

    def install_crds(self) -> None:
        self.kubectl("apply", "--server-side", "-f", CRDS)
        self.kubectl("wait", "--for=condition=Established", "--timeout=120s", "-f", CRDS)


@dataclass(kw_only=True)
class ControlPlane(Cluster):
    """An API server that may be broken: each part ends and starts alone, on the same ports, with the same data."""

    etcd_url: str
    parts: dict[str, Process]

    @property
    def etcd(self) -> Process:
        return self.parts["etcd"]

    @property
    def apiserver(self) -> Process:
        return self.parts["apiserver"]

    def revision(self) -> int:
        """Of etcd, which is the newest resourceVersion."""
        answer = httpx.post(f"{self.etcd_url}/v3/maintenance/status", json={}, timeout=30)
        return int(answer.raise_for_status().json()["header"]["revision"])

    def compact(self) -> int:
        """Forget all history before now; what a list would say stays. The API server still has some of it itself."""
        revision = self.revision()
        body = {"revision": str(revision), "physical": True}
        httpx.post(f"{self.etcd_url}/v3/kv/compaction", json=body, timeout=30).raise_for_status()
        return revision

    def lose_history(self) -> None:
        """Restart the API server without a past: each resourceVersion that was heard before is too old (410)."""
        with self.down():
            # the present itself may still be watched from: move on, then forget
            key = {"key": "bW92ZWQ=", "value": ""}
            httpx.post(f"{self.etcd_url}/v3/kv/put", json=key, timeout=30).raise_for_status()
            self.compact()

    @contextmanager
    def down(self) -> Iterator[None]:
        """The API server is killed; at the end of the block it is there again."""
        self.apiserver.kill()
        try:
            yield
        finally:
            self.apiserver.start()


def running(pod: Object, ips: Sequence[str], host: str, *, ready: bool = True) -> Object:
    """The status that a kubelet writes when all containers of ``pod`` have started."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "phase": "Running",
        "startTime": now,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
        "conditions": conditions(ready=ready),
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "containerID": f"containerd://{uuid.uuid4().hex * 2}",
                "started": True,
                "ready": ready,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in pod["spec"]["containers"]
        ],
    }


def conditions(*, ready: bool) -> list[Object]:
    kinds = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
    return [{"type": kind, "status": str(value)} for kind, value in kinds.items()]


def kubeconfig(cluster: Object, user: Object) -> str:
    """The text of one; JSON is YAML."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "tests", "user": user}],
        },
        indent=1,
    )


def kubectl_words() -> list[str]:
    """Ours, which is of the API server's version; without it the machine's."""
    found = program.find()
    return [str(found), "kubectl"] if found.exists() else ["kubectl"]


def missing() -> str | None:
    """Why there is no API server for tests, with the remedy; None where there is."""
    if os.environ.get(FOREIGN):
        return None if program.find().exists() or shutil.which("kubectl") else "no kubectl on the PATH"
    reason = program.missing()
    return reason and f"{reason}, or {FOREIGN}=/path/to/a/kubeconfig"


@contextmanager
def foreign(folder: Path) -> Iterator[Cluster]:
    """The API server that the kubeconfig in the environment names; kubectl proxy knows all ways to log in."""
    config = Path(os.environ[FOREIGN]).absolute()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [*kubectl_words(), "--kubeconfig", str(config), "proxy", f"--port={port}"]
    proxy = Process(words, folder / "proxy.log", lambda: answers(url))
    proxy.start()
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            yield Cluster(folder, config, http, url, None, alone=False)
    finally:
        proxy.kill()


@contextmanager
def control_plane(
    folder: Path, *more: str, address: str = "127.0.0.1", tokens: Sequence[str] = ()
) -> Iterator[ControlPlane]:
    """etcd and an API server, until the end of the block. Ready in 5 s.

    ``more`` are flags of the API server, ``tokens`` lines of its token file. Without controllers, as it is here,
    nobody makes the things that controllers make: Deployments stay without pods.
    """
    folder.mkdir(parents=True, exist_ok=True)
    binary = str(program.find())
    etcd_url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    port = free_port()
    server = f"https://{address}:{port}"
    certificate, key = folder / "certificates" / "apiserver.crt", folder / "accounts.key"
    key.write_bytes(subprocess.run([binary, "key"], check=True, capture_output=True).stdout)
    (folder / "tokens.csv").write_text("\n".join([f"{ADMIN},admin,admin,system:masters", *tokens]))
    config = folder / "kubeconfig"
    config.write_text(
        kubeconfig({"server": server, "certificate-authority": str(certificate)}, {"token": ADMIN})
    )
    etcd = Process(
        [binary, "etcd", "--data", str(folder / "etcd"), "--client", etcd_url, "--peer", peer],
        folder / "etcd.log",
        lambda: answers(f"{etcd_url}/readyz"),
    )
    flags = {
        "bind-address": address,
        "secure-port": port,
        "etcd-servers": etcd_url,
        "cert-dir": certificate.parent,
        "token-auth-file": folder / "tokens.csv",
        "service-account-issuer": ISSUER,
        "service-account-key-file": key,
        "service-account-signing-key-file": key,
        "authorization-mode": "Node,RBAC",
        "allow-privileged": "true",
        "service-cluster-ip-range": SERVICES,
        # pods cannot reach it on loopback: then there are no endpoints of the Service kubernetes
        "endpoint-reconciler-type": "none" if ipaddress.ip_address(address).is_loopback else "lease",
    }
    apiserver = Process(
        [binary, "apiserver", *(f"--{name}={value}" for name, value in flags.items()), *more],
        folder / "apiserver.log",
        lambda: certificate.exists() and answers(f"{server}/readyz", certificate),
    )
    with ExitStack() as stack:
        for part in (etcd, apiserver):
            stack.callback(part.kill)
            part.start()
        verify = ssl.create_default_context(cafile=certificate)
        authorization = {"Authorization": f"Bearer {ADMIN}"}
        http = httpx.Client(
            base_url=server, headers=authorization, verify=verify, timeout=60, trust_env=False
        )
        stack.enter_context(http)
        parts = {"etcd": etcd, "apiserver": apiserver}
        plane = ControlPlane(
            folder,
            config,
            http,
            alone=True,
            server=server,
            certificate=certificate,
            etcd_url=etcd_url,
            parts=parts,
        )
        # the controller that makes accounts is not there, and neither are the pods' root certificates
        until(lambda: _made_default(plane))
        yield plane


def _made_default(plane: ControlPlane) -> bool:
    """Whether the namespace default has its account; the API server makes that namespace when it finds time."""
    try:
        plane.request("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
    except Refused as error:
        return error.code == 409
    return True


def answers(url: str, certificate: Path | None = None) -> bool:
    """Whether this says 200, to somebody with the token of the one who may do everything."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    try:
        # while it is being written, the certificate is none
        verify = ssl.create_default_context(cafile=certificate) if certificate else False
        return httpx.get(url, headers=headers, verify=verify, timeout=5, trust_env=False).is_success
    except (httpx.HTTPError, OSError):
        return False
