"""Files that people edit. A look is a call, so nothing here waits."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pidone.errors import LanguageError
from pidone.language.binding import derive
from pidone.language.pods import read_inventory, read_pods
from pidone_controller.standalone.files import MAX_PROBLEMS, InventoryFile, TaskFiles, listed_pods
from tests.controller.factories import binding, manifest, pod, task_set

CHECKED = {"check": "yes"}


class FakeLog:
    """A fake log that also keeps the findings which are printed in full."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, event: str, **values: object) -> None:
        self.lines.append(" ".join([event, *(f"{value}" for value in values.values())]))

    def take(self) -> str:
        text = "\n".join(self.lines)
        self.lines.clear()
        return text


class Desk:
    """A folder with tasks, and what a controller sees in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = FakeLog()
        self.files = TaskFiles([folder], self.log.log, self.log.lines.append)

    def write(self, name: str, text: str) -> None:
        """As an editor does: another inode, so that no two versions look the same."""
        new = self.folder / f".{name}"
        new.write_text(text)
        new.rename(self.folder / name)

    def look(self) -> str:
        self.files.look()
        self.files.look()
        return self.log.take()

    def period(self) -> object:
        tasks = derive(pod(labels=CHECKED), self.files.rules)
        return tasks[0]["probe"]["periodSeconds"] if tasks else None


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.write("check.yaml", task_set(period=5))
    desk.write("binding.yml", binding())
    desk.look()
    assert desk.period() == 5
    return desk


def test_what_stays_the_same_is_the_same_rules(desk: Desk) -> None:
    before = desk.files.rules
    assert desk.look() == ""
    desk.write("check.yaml", task_set(period=5) + "# only a comment\n")
    desk.look()
    assert desk.files.rules is before


def test_a_file_in_the_middle_of_being_written_is_not_read(desk: Desk) -> None:
    path = desk.folder / "check.yaml"
    text = task_set(period=7)
    for end in (20, 80, 200, len(text)):
        path.write_text(text[:end])
        os.utime(path, ns=(end, end))  # clocks of file systems are coarse
        desk.files.look()
        assert desk.files.pending
        assert desk.period() == 5
    desk.files.look()
    assert not desk.files.pending
    assert desk.period() == 7
    assert "broken" not in desk.log.take()


def test_a_mistake_keeps_the_version_before_and_is_told_once(desk: Desk) -> None:
    desk.write("check.yaml", task_set(period=9).replace("periodSeconds", "periodSecond"))
    said = desk.look()
    assert "check.yaml:11:9: " in said
    assert 'did you mean "periodSeconds"?' in said
    assert "^~" in said
    assert "the version before stays in force" in said
    assert desk.period() == 5
    assert desk.look() == ""
    desk.write("check.yaml", task_set(period=9))
    assert "read" in desk.look()
    assert desk.period() == 9


@pytest.mark.parametrize("text", ["", "\n\n", "# all gone\n", "---\n", "\ufeff", "{{", "a: [1\n", "\t"])
def test_what_an_accident_leaves_withdraws_nothing(desk: Desk, text: str) -> None:
    desk.write("check.yaml", text)
    assert "broken" in desk.look()
    assert desk.period() == 5


def test_bytes_that_are_no_text_withdraw_nothing(desk: Desk) -> None:
    (desk.folder / "check.yaml").write_bytes(b"\xff\xfe\x00binary")
    assert "broken" in desk.look()
    assert desk.period() == 5


def test_a_file_that_was_never_good_is_left_out_alone(desk: Desk) -> None:
    desk.write("new.yaml", "kind: TaskSet\n")
    assert "nothing of it is in force" in desk.look()
    assert desk.period() == 5


def test_a_removed_file_withdraws_its_objects(desk: Desk) -> None:
    (desk.folder / "binding.yml").unlink()
    desk.files.look()
    assert desk.period() == 5  # an editor may be between two renames
    desk.files.look()
    assert desk.period() is None
    assert "withdrawn" in desk.log.take()


def test_a_folder_that_is_away_withdraws_nothing(desk: Desk) -> None:
    desk.folder.rename(desk.folder.with_name("away"))
    assert "cannot be listed" in desk.look()
    assert desk.look() == ""
    assert desk.period() == 5


def test_what_is_there_twice_is_told_with_both_files(desk: Desk) -> None:
    desk.write("a-copy.yaml", task_set(period=8))
    said = desk.look()
    assert "a-copy.yaml and again in" in said
    assert "check.yaml; the first counts" in said
    assert desk.period() == 8
    assert desk.look() == ""


def test_other_files_are_not_read(desk: Desk) -> None:
    desk.write("notes.txt", "{{")
    (desk.folder / ".check.yaml.swp").write_text("{{")
    (desk.folder / "more.yaml").mkdir()
    assert desk.look() == ""


def test_one_file_may_hold_several(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    foreign = "apiVersion: v1\nkind: Service\n"
    desk.write("all.yaml", "---\n".join([task_set(namespace="shop"), foreign, binding()]))
    desk.look()
    assert desk.period() == 5
    assert list(desk.files.rules.sets.by_key) == [(False, "shop", "check")]


# The inventory

POD, OTHER = manifest(), manifest("db", "127.0.0.3")
TEXT = "metadata: {name: web, namespace: shop}\nstatus: {podIP: 127.0.0.2}\n"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [POD, OTHER]}),
        json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [POD, OTHER]}, indent=2),
        "\n---\n".join(json.dumps(item) for item in (POD, OTHER)),
        f"kind: Pod\n{TEXT}---\nkind: Pod\n{TEXT.replace('web', 'db')}---\n",
    ],
)
def test_pods_are_read_as_kubectl_prints_them(text: str) -> None:
    assert [found.path for found in listed_pods(read_pods(text))[0]] == ["shop/web", "shop/db"]


def test_no_pods_at_all_must_be_said() -> None:
    assert read_pods("kind: List\nitems: []\n") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- 1\n", "expected a List or Pods"),
        ("kind: Deployment\n", "expected a List or Pods, not Deployment"),
        ("kind: List\nitems: 5\n", "items of the List: expected a list"),
        ("kind: [List]\n", "expected a List or Pods"),
        ("kind: 'Pod\n", "not YAML"),
        ('{"kind": "List"', "not YAML"),
    ],
)
def test_what_is_no_inventory_is_said_so(text: str, said: str) -> None:
    with pytest.raises(LanguageError) as raised:
        read_inventory(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


GOOD = json.dumps(POD)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            json.dumps(manifest("db", annotations={"version": 1.1})),
            "annotations.version: expected a string, not a number",
        ),
        (
            json.dumps(manifest("db", annotations={"registry": True})),
            "annotations.registry: expected a string, not true or false",
        ),
        (json.dumps(manifest("db", uid="uid-web")), "shop/web and shop/db have the same uid"),
        (GOOD, "pod shop/web is there twice"),
        (
            "kind: Pod\nmetadata: {name: 'db\n",
            "not YAML: line 4, column 18: this quotation mark is not closed",
        ),
        ("kind: Deployment\n", "expected a List or Pods, not Deployment"),
        ("[1]", "expected a List or Pods"),
        ("kind: List\nitems: [{kind: Service}]", "expected a Pod, not {'kind': 'Service'}"),
    ],
)
def test_one_bad_pod_costs_that_pod_alone(tmp_path: Path, broken: str, said: str) -> None:
    log = FakeLog()
    watched = InventoryFile(tmp_path / "pods.yaml", log.log)

    def write(*documents: str) -> str:
        (tmp_path / "new").write_text("\n---\n".join(documents))
        (tmp_path / "new").rename(tmp_path / "pods.yaml")
        watched.look()
        watched.look()
        return log.take()

    assert said in write(GOOD, broken)
    assert watched.pods is not None
    assert [found.path for found in watched.pods] == ["shop/web"]
    assert said not in write(GOOD, json.dumps(manifest("db")))
    assert [found.path for found in watched.pods] == ["shop/web", "shop/db"]
    assert said in write(GOOD, broken)
    kept = (
        "db" in broken or broken[0] in "k["
    )  # the pod was good before, or it is not known which one is meant
    assert [found.path for found in watched.pods] == ["shop/web", *["shop/db"] * kept]


def test_an_annotation_without_effect_is_said_so(tmp_path: Path) -> None:
    log = FakeLog()
    watched = InventoryFile(tmp_path / "pods.json", log.log)
    items = [
        manifest(f"web-{value}", f"127.0.0.{number}", annotations={"pidone.dev/maintenance": value})
        for number, value in enumerate(("true", "false", "yes"), 2)
    ]
    (tmp_path / "pods.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    for _ in range(3):
        watched.look()
    (said,) = [line for line in log.lines if line.startswith("unknown-maintenance")]
    assert 'shop/web-yes the annotation pidone.dev/maintenance is "yes", and has no effect' in said


def test_a_broken_inventory_keeps_the_one_before(tmp_path: Path) -> None:
    def write(value: Any) -> None:
        (tmp_path / "new").write_text(value if isinstance(value, str) else json.dumps(value))
        (tmp_path / "new").rename(tmp_path / "pods.yaml")

    said = FakeLog()
    watched = InventoryFile(tmp_path / "pods.yaml", said.log)

    def look() -> str:
        watched.look()
        watched.look()
        return said.take()

    write("kind: List\nitems: 5")
    assert "expected a list" in look()
    assert watched.pods is None
    write(POD)
    assert "read" in look()
    good = watched.pods
    for broken in ("", "kind: List\nitems: 5"):
        write(broken)
        assert "the version before stays in force" in look()
        assert watched.pods is good
    (tmp_path / "pods.yaml").unlink()
    assert "cannot be read: No such file" in look()
    assert look() == ""
    assert watched.pods is good


def test_a_file_that_may_be_read_later_is_read_then(desk: Desk) -> None:
    link = desk.folder / "linked.yaml"
    link.symlink_to(desk.folder / "later")
    assert "cannot be read: No such file" in desk.look()
    assert not desk.files.pending
    assert desk.look() == ""
    (desk.folder / "later").write_text(task_set("more", task="more"))
    assert "read" in desk.look()
    assert desk.files.rules.sets.find("more", "")


def test_a_file_of_mistakes_does_not_fill_the_log(desk: Desk) -> None:
    desk.write("broken.yaml", task_set("check") + "".join(f"unknown{number}: 1\n" for number in range(200)))
    lines = desk.look().split("\n")
    assert sum("unknown field" in line for line in lines) == MAX_PROBLEMS
    assert any("more: pidone check" in line for line in lines)
