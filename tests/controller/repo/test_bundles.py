"""What a pod is served, as bytes."""

import json
from math import inf, nan
from typing import Any

import pytest

from pidone.language.binding import BindingError, derive
from pidone.plan.format import decode_bundle
from pidone.plan.model import Container
from pidone_controller.pods.projection import project
from pidone_controller.repo.bundles import encode, entry
from tests.controller.factories import binding, manifest, pod, rules, task_set

CHECKED = {"check": "yes"}
GOOD = rules(task_set(), binding())
BROKEN = rules(binding())


def test_the_same_content_gives_the_same_bytes() -> None:
    texts = [task_set(), binding()]
    one, other = (
        entry(pod(labels=CHECKED), rules(*order), None, derive).bundle for order in (texts, texts[::-1])
    )
    assert one == other
    assert one is not None
    assert one.etag.startswith('"sha256-')


def test_a_plan_that_cannot_be_derived_leaves_the_last_good_one() -> None:
    good = entry(pod(labels=CHECKED), GOOD, None, derive)
    broken = entry(pod(labels=CHECKED), BROKEN, good, derive)
    assert broken.bundle == good.bundle
    assert '"check"' in broken.error
    assert [one.name for fault in broken.faults for one in fault.bindings] == ["checked"]
    # and its end reaches it all the same, with the tasks it had
    ended = entry(pod(labels=CHECKED, terminating=True), BROKEN, broken, derive)
    assert ended.bundle == encode(pod(labels=CHECKED, terminating=True), derive(pod(labels=CHECKED), GOOD))


def test_without_a_last_good_plan_none_is_invented() -> None:
    found = entry(pod(labels=CHECKED), BROKEN, None, derive)
    assert found.bundle is None
    assert found.answer(fresh=False) is None
    ending = entry(pod(labels=CHECKED, terminating=True), BROKEN, None, derive).bundle
    assert ending is not None
    assert ending.phase == "Terminating"


def test_a_pod_without_a_plan_gets_what_the_other_bindings_bring() -> None:
    found = rules(
        task_set("one", task="one"), task_set("two", task="two"),
        binding("a", sets="one"), binding("b", sets="two"), binding("c", sets="gone"),
    )  # fmt: skip
    rest = entry(pod(labels=CHECKED), found, None, derive).answer(fresh=True)
    assert rest is not None
    assert [task["name"] for task in rest.tasks] == ["one", "two"]


def test_a_bug_in_a_derivation_is_an_error_of_that_pod() -> None:
    def bug(_pod: object, _rules: object) -> list[dict[str, object]]:
        raise KeyError("web")

    assert entry(pod(), GOOD, None, bug).error == "internal error: KeyError: 'web'"


STATUS = {
    "containerStatuses": [
        {"name": "app", "containerID": "containerd://" + "ab" * 32, "state": {"running": {}}},
        {"name": "late", "containerID": "", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
    ],
    "initContainerStatuses": [
        {"name": "setup", "containerID": "cri-o://not-hexadecimal", "state": {"terminated": {"exitCode": 0}}},
    ],
}  # fmt: skip


def test_the_containers_are_told_where_somebody_reads_them() -> None:
    once = manifest(spec={
        "restartPolicy": "Never", "initContainers": [{"name": "setup"}],
        "containers": [{"name": name} for name in ("app", "late", "new")],
    })  # fmt: skip
    once["status"] |= STATUS
    probe, metrics = {"name": "a", "probe": {}}, {"name": "m", "metrics": {}}
    body = encode(project(once), [probe]).body
    told = decode_bundle(encode(project(once), []).body, ["probe"]), json.loads(body)
    assert told[0].pod.restart_policy == told[1]["pod"]["restartPolicy"] == "Never"
    assert told[0].containers == {}
    assert told[1]["containers"] == {
        "setup": {"id": "cri-o://not-hexadecimal", "started": True},
        "app": {"id": "containerd://" + "ab" * 32, "started": True},
        "late": {"id": "", "started": False},
        "new": {"id": "", "started": False},
    }
    # elsewhere a restarted container is no news
    always, restarted = manifest(), manifest()
    always["status"] |= STATUS
    restarted["status"] |= {
        "containerStatuses": [{"name": "app", "containerID": "containerd://" + "cd" * 32}]
    }
    assert encode(project(always), [probe]) == encode(project(restarted), [probe])
    assert encode(project(always), [metrics]) != encode(project(restarted), [metrics])
    started = {"name": "s", "exec": {"command": ["/bin/true"]}, "runOn": ["pod.containersStarted"]}
    assert encode(project(always), [started]) != encode(project(restarted), [started])


def test_the_containers_of_an_inventory_without_statuses_are_unknown() -> None:
    metrics = {"name": "m", "metrics": {}}
    running = manifest(spec={"containers": [{"name": "app"}]})
    pending = manifest(spec={"containers": [{"name": "app"}]})
    pending["status"]["phase"] = "Pending"
    assert "containers" not in json.loads(encode(project(running), [metrics]).body)
    assert json.loads(encode(project(pending), [metrics]).body)["containers"] == {
        "app": {"id": "", "started": False}
    }


@pytest.mark.parametrize(
    ("fields", "port"),
    [({}, 19100), ({"port": 9200}, 9200), ({"address": "pod"}, 19100), ({"address": "loopback"}, None)],
)
def test_the_port_that_prometheus_reaches(fields: dict[str, Any], port: int | None) -> None:
    assert encode(pod(), [{"name": "m", "metrics": fields}]).metrics == port


@pytest.mark.parametrize(("value", "on"), [("true", True), ("false", False), ("", False), ("yes", False)])
def test_the_annotation_of_maintenance_is_sent_and_is_no_part_of_the_plan(value: str, on: bool) -> None:
    probe = {"name": "p", "probe": {"tcpSocket": {"port": 1}}}
    plain, annotated = pod(), pod(annotations={"pidone.dev/maintenance": value})
    bundle = encode(annotated, [probe])
    assert decode_bundle(bundle.body, ["probe"]).maintenance is on
    assert bundle.digest == encode(plain, [probe]).digest
    assert (bundle.etag != encode(plain, [probe]).etag) is on
    assert encode(annotated, []).etag == encode(plain, []).etag, (
        "nothing is registered that it would matter to"
    )


def test_a_container_that_waits_to_be_started_again_has_run() -> None:
    crashed = manifest()
    crashed["status"]["containerStatuses"] = [
        {"name": "app", "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}}
    ]
    assert project(crashed).containers == {"app": Container("", started=True)}


def test_what_needs_a_repo_that_proved_who_it_is() -> None:
    probe = {"name": "p", "probe": {"tcpSocket": {"port": 1}}}
    assert encode(pod(), [probe]).privileged == ""
    hook = {"name": "hook", "exec": {"command": ["/bin/true"]}}
    assert encode(pod(), [probe, hook]).privileged == 'task "hook": exec'


@pytest.mark.parametrize("value", [nan, inf, -inf, "\ud800"], ids=repr)
def test_a_value_that_json_has_not_is_an_error_of_its_pod_and_no_bug(value: Any) -> None:
    def derive(*_: object) -> list[dict[str, Any]]:
        return [{"name": "ready", "probe": {"periodSeconds": value}}]

    made = entry(pod(labels=CHECKED), GOOD, None, derive)
    assert made.bundle is None
    assert made.error.startswith("the plan cannot be written as JSON: ")


def test_the_other_bindings_are_served_only_if_json_has_their_values() -> None:
    def derive(*_: object) -> list[dict[str, Any]]:
        raise BindingError([], rest=[{"name": "ready", "probe": {"periodSeconds": nan}}])

    assert entry(pod(labels=CHECKED), GOOD, None, derive).rest is None
