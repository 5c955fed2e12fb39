"""The demo's manifests fit each other, and its scripts do what they say."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from pidone import __version__
from pidone.cli.main import run
from tests.cluster.apiserver import Cluster
from tests.eureka.real import RealEureka
from tests.k3d.folders import INSTALLATION, built

Object = dict[str, Any]
SCRIPTS = ["up", "demo"]
EXPECTED = ["BOOKINFO-RATINGS", "CONFIG-SERVICE", "STATIC-SERVER"]
SET = INSTALLATION.parent / "tasks" / "eureka.yaml"


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return built(INSTALLATION / "apps")


def plans(objects: list[Object], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Object]:
    """By Deployment the plan of its pods: the tasks by name."""
    (binding,) = [one for one in objects if one["kind"] == "TaskBinding"]
    (folder / "binding.json").write_text(json.dumps(binding))
    found = {}
    for one in objects:
        if one["kind"] == "Deployment":
            template = one["spec"]["template"]
            metadata = {"name": "pod", "namespace": one["metadata"]["namespace"], **template["metadata"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            (folder / "pod.json").write_text(json.dumps(pod))
            words = ["render", str(SET), str(folder / "binding.json"), "--pod", str(folder / "pod.json")]
            assert run(words) == 0
            tasks = json.loads(capsys.readouterr().out)["tasks"]
            found[one["metadata"]["name"]] = {task["name"]: task for task in tasks}
    return found


def test_all_but_the_registry_get_a_plan_that_fits_their_containers(
    objects: list[Object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plans(objects, tmp_path, capsys)
    assert not found.pop("discovery-server")
    names = {plan["registration"]["register"]["eureka"]["app"].upper() for plan in found.values()}
    assert sorted(names) == EXPECTED
    deployments = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    services = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Service"}
    for name, plan in found.items():
        (container,) = deployments[name]["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        eureka = plan["registration"]["register"]["eureka"]
        assert eureka["port"] == plan["ready"]["probe"]["httpGet"]["port"] == port["containerPort"]
        assert plan["ready"]["probe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"]
        host, _, rest = eureka["url"].removeprefix("http://").partition(".demo.svc:")
        assert rest == f"{services[host]['ports'][0]['port']}/eureka"
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert services[name]["selector"].items() <= labels
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.startswith("localhost/pidone-")
        assert image.endswith(f":{__version__}")


def test_the_api_server_takes_it_without_a_warning(installed: Cluster) -> None:
    installed.make_namespace("demo")
    done = installed.try_kubectl("apply", "--server-side", "-k", INSTALLATION / "apps")
    assert (done.returncode, done.stderr) == (0, "")
    installed.kubectl("apply", "--namespace", "demo", "-f", SET)
    installed.remove_namespace("demo")


def test_the_cluster_file_names_the_image_that_is_made() -> None:
    said = YAML(typ="safe").load((INSTALLATION / "cluster.yaml").read_text())
    (found,) = said["options"]["k3s"]["extraArgs"]
    assert found == {
        "arg": f"--pause-image=localhost/pidone:{__version__}",
        "nodeFilters": ["server:*", "agent:*"],
    }


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean(name: str) -> None:
    subprocess.run(["bash", "-n", INSTALLATION / name], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", INSTALLATION / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Tools:
    """Programs on the PATH that write down how they are called, and answer what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()

    def add(self, name: str, answer: str = "") -> None:
        tool = self.folder / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{answer}\n')
        tool.chmod(0o755)

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [INSTALLATION / script, *words],
            env=os.environ | {"PATH": f"{self.folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def instance(app: str, status: str = "UP") -> Object:
    return {
        "instance": {
            "instanceId": f"pod:{app.lower()}:80",
            "app": app,
            "hostName": "10.42.0.18",
            "ipAddr": "10.42.0.18",
            "status": status,
            "port": {"$": 80, "@enabled": "true"},
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                "name": "MyOwn",
            },
        }
    }


@pytest.mark.eureka
@pytest.mark.parametrize("kind", ["application/json", "application/xml"])
def test_the_demo_waits_until_all_are_up_in_eureka(tools: Tools, spring: RealEureka, kind: str) -> None:
    tools.add("kubectl", f'[ "$1 $2" != "get --raw" ] || exec curl -sf -H "Accept: {kind}" {spring.url}apps')
    last = EXPECTED[2]
    (tools.folder / "up.json").write_text(json.dumps(instance(last)))
    post = f"-H 'Content-Type: application/json' -d @{tools.folder}/up.json {spring.url}apps/{last}"
    tools.add("sleep", f'[ "$(grep -c ^sleep {tools.log})" != 3 ] || exec curl -sf {post}')
    try:
        for app in EXPECTED:
            document = instance(app, "DOWN" if app == last else "UP")
            httpx.post(f"{spring.url}apps/{app}", json=document).raise_for_status()
        done = tools.run("demo")
        assert done.returncode == 0, done.stderr
        assert "in Eureka: BOOKINFO-RATINGS CONFIG-SERVICE STATIC-SERVER" in done.stdout
        assert tools.calls().count("sleep 1") == 3
    finally:
        for app in EXPECTED:
            httpx.delete(f"{spring.url}apps/{app}/pod:{app.lower()}:80")


def test_the_demo_says_who_is_not_there(tools: Tools) -> None:
    answer = "<instance><app>STATIC-SERVER</app><status>UP</status></instance>"
    tools.add("kubectl", f'[ "$1 $2" != "get --raw" ] || echo "{answer}"')
    tools.add("sleep")  # sixty looks without a second between them
    done = tools.run("demo")
    assert done.returncode == 1
    assert done.stderr == "not UP in Eureka: BOOKINFO-RATINGS, CONFIG-SERVICE\n"


def test_up_has_the_image_on_the_nodes_before_a_pod_starts(tools: Tools, tmp_path: Path) -> None:
    """With fakes for Docker and k3d: the order, and that each file that is named is one that make makes."""
    tools.add("docker", 'case "$1 $2" in "version "*) echo amd64;; "exec "*) echo 3;; esac')
    tools.add("k3d", '[ "$1 $2" != "node list" ] || echo "k3d-pidone-server-0 server pidone 1/1 true"')
    tools.add("make")
    tools.add("sleep")
    applications = "".join(f"<instance><app>{app}</app><status>UP</status></instance>" for app in EXPECTED)
    tools.add("kubectl", f'[ "$1 $2" != "get --raw" ] || echo "{applications}"')
    done = tools.run("up")
    assert done.returncode == 0, done.stderr
    calls = tools.calls()
    order = [
        next(number for number, call in enumerate(calls) if call.startswith(start))
        for start in (
            "k3d cluster create --config k3d/cluster.yaml",
            "k3d image import --cluster pidone",
            "kubectl apply -k k3d",
            "kubectl apply -k k3d/apps",
            "kubectl get --raw",
            "docker exec k3d-pidone-server-0",
        )
    ]
    assert order == sorted(order)
    create = calls[order[0]]
    assert "build/image.oci.tar:/var/lib/rancher/k3s/agent/images/" in create
    assert create.endswith("@server:*;agent:*")
    assert "k3d-pidone-server-0: 1 pods, 3 with pidone as process 1, 3 with pause" in done.stdout
    makefile = (INSTALLATION.parent / "Makefile").read_text()
    for made in ("build/controller", "build/apps.oci.tar"):
        assert made in calls[order[1]]
        assert f"--out {made}" in makefile


def test_up_says_what_is_missing(tools: Tools) -> None:
    for name in ("bash", "sed", "dirname", "env"):
        found = shutil.which(name)
        assert found
        (tools.folder / name).symlink_to(found)
    done = subprocess.run(
        [tools.folder / "bash", INSTALLATION / "up"],
        env={"PATH": str(tools.folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "k3d/up needs docker, which is not on the PATH\n"
