"""Files with values of params: which files a pod reads, and what follows when they change."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pidone.actions import Context
from pidone.errors import Refused, TaskFailed
from pidone.journal import Journal
from pidone.plan.digest import canonical
from pidone.plan.format import decode_bundle, encode_bundle
from pidone.plan.model import MAX_SECRET, Phase, Pod, Task
from pidone.pod.local import document
from pidone.pod.program import PodProgram
from pidone.pod.secret_files import MAX_FILES, SecretFiles
from pidone.pod.settings import Settings
from tests.mounted import mount

FACTS = Pod("web", "shop", "u", "127.0.0.1")
MARK, OTHER = "pidone-file-0123456789abcdef", "pidone-file-fedcba9876543210"
FIRST, SECOND = "correct-horse-battery", "staple-and-more"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of PIDONE_SECRETS, with the Secret etcd in it."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    mount(folder / "etcd", password=FIRST + "\n", user="pods")
    return folder


def using(name: str, files: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "exec": {"command": ["/opt/pidone/hook"], "env": [{"name": "PASSWORD", "value": f"<{MARK}>"}]},
        "secrets": {"salt": "", "values": [], "files": files},
    }


PLAIN = {"name": "plain", "exec": {"command": ["/opt/pidone/hook", MARK]}}
PASSWORD, USER = using("login", {MARK: "etcd/password"}), using("other", {MARK: "etcd/user"})


def bundle(*tasks: dict[str, Any]) -> bytes:
    return canonical(encode_bundle(list(tasks), phase=Phase.RUNNING, pod=FACTS))


class Started:
    """An action that fails with all that it knows. ``texts`` has the configuration of each start."""

    texts: list[str]

    def __init__(self, task: Task) -> None:
        self._task = task

    async def run(self, context: Context) -> None:
        Started.texts.append(f"{self._task.name} {json.dumps(self._task.config)}")
        context.report("registered")
        context.explain(f"answered 401 to {self._task.config}")
        await trio.sleep_forever()

    async def undo(self, context: Context) -> None:
        raise TaskFailed(f"answered 403 to {self._task.config}")


@pytest.fixture
def program(folder: Path, nursery: trio.Nursery) -> PodProgram:
    Started.texts = []
    program = PodProgram(
        Settings(secrets=str(folder)), Journal(lambda _: None), build=lambda task, _setting: Started(task)
    )
    program.start_part = nursery.start_soon
    return program


async def test_a_value_is_read_and_told_nowhere(
    program: PodProgram, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(program.engine.run)
    data = bundle(PASSWORD, USER, PLAIN)
    program.apply(data, trusted=True)
    await trio.sleep(1)
    assert any(text.startswith("login") and f"<{FIRST}>" in text for text in Started.texts)
    assert any(text.startswith("other") and "<pods>" in text for text in Started.texts)
    assert any(text.startswith("plain") and MARK in text for text in Started.texts)
    assert program.status().digest == json.loads(data)["digest"]
    assert "answered 401" in program.tasks()["login"].error
    program.apply(bundle(), trusted=True)
    await trio.sleep(30)
    told = json.dumps([document(program), list(program.journal.lines), program.engine.left])
    assert "answered 403" in told
    assert FIRST not in told
    assert "<***>" in told
    nursery.cancel_scope.cancel()


async def test_another_content_changes_the_tasks_that_use_it_and_no_other(
    program: PodProgram, folder: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(program.engine.run)
    program.apply(bundle(PASSWORD, USER, PLAIN), trusted=True)
    await trio.sleep(1)
    Started.texts.clear()
    mount(folder / "etcd", password=SECOND, user="pods")
    assert not program.look_at_files()
    await trio.sleep(30)
    (text,) = Started.texts
    assert text.startswith("login")
    assert f"<{SECOND}>" in text
    told = json.dumps([document(program), list(program.journal.lines), program.engine.left])
    assert not any(value in told for value in (FIRST, SECOND))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("news", ["an answer of a registry", "a change of a task"])
async def test_files_are_looked_at_after_news(
    program: PodProgram, folder: Path, nursery: trio.Nursery, autojump_clock: MockClock, news: str
) -> None:
    await nursery.start(program.engine.run)
    program.apply(bundle(PASSWORD), trusted=True)
    await trio.sleep(1)
    mount(folder / "etcd", password=SECOND, user="pods")
    await trio.sleep(600)
    assert len(Started.texts) == 1
    if news == "an answer of a registry":
        program.maintenance.notify()
    else:
        program.engine.wake_tasks()
    await trio.sleep(30)
    assert f"<{SECOND}>" in Started.texts[-1]
    nursery.cancel_scope.cancel()


async def test_a_file_that_goes_away_keeps_its_value_until_it_is_back(
    program: PodProgram, folder: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(program.engine.run)
    program.apply(bundle(PASSWORD), trusted=True)
    await trio.sleep(1)
    (folder / "etcd/..data").unlink()
    for _ in range(3):
        program.look_at_files()
        await trio.sleep(30)
    assert [state.stage for state in program.engine.tasks] == ["running"]
    kept = [line for line in program.journal.lines if "event=secret-files-kept" in line]
    assert len(kept) == 1
    assert "etcd/password" in kept[0]
    assert "No such file or directory" in kept[0]
    mount(folder / "etcd", password=SECOND, user="pods")
    program.look_at_files()
    await trio.sleep(30)
    assert f"<{SECOND}>" in Started.texts[-1]
    nursery.cancel_scope.cancel()


async def test_a_refused_plan_may_be_accepted_when_its_file_is_there(
    program: PodProgram, folder: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(program.engine.run)
    program.apply(bundle(PASSWORD), trusted=True)
    with pytest.raises(Refused, match=r"the file consul/token in .* cannot be read: No such file"):
        program.apply(bundle(using("login", {MARK: "consul/token"})), trusted=True)
    assert not program.look_at_files()
    mount(folder / "etcd", password=SECOND, user="pods")  # the plan before still follows its own
    assert not program.look_at_files()
    await trio.sleep(30)
    assert f"<{SECOND}>" in Started.texts[-1]
    mount(folder / "consul", token="t0ken")
    assert program.look_at_files()
    program.apply(bundle(using("login", {MARK: "consul/token"})), trusted=True)
    assert not program.look_at_files()
    nursery.cancel_scope.cancel()


async def test_the_end_of_a_pod_needs_no_file(
    program: PodProgram, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(program.engine.run)
    task = using("login", {MARK: "not/there"})
    program.apply(canonical(encode_bundle([task], phase=Phase.TERMINATING, pod=FACTS)), trusted=True)
    assert program.engine.ending
    nursery.cancel_scope.cancel()


async def test_no_file_is_read_for_a_plan_that_came_over_plain_http(program: PodProgram) -> None:
    with pytest.raises(Refused) as raised:
        program.apply(bundle(using("login", {MARK: "not/there"})), trusted=False)
    assert str(raised.value) == (
        "a file with a value is read for a plan from an https repo or a local file only, "
        "and this plan came over plain http"
    )


def test_a_pod_without_such_a_folder_names_the_remedy() -> None:
    program = PodProgram(Settings(), Journal(lambda _: None))
    with pytest.raises(Refused) as raised:
        program.apply(bundle(PASSWORD), trusted=True)
    assert str(raised.value) == (
        'task "login": a param is in the file etcd/password, and this pod reads no files. Run pidone as a sidecar '
        "that mounts the Secret, with PIDONE_SECRETS=FOLDER, or use valueFrom: {secretKeyRef: {name, key}}"
    )


def test_a_pod_that_does_not_know_files_refuses_them_by_name() -> None:
    """As older pods do, whose decoder gets the tasks as they are."""
    with pytest.raises(Refused, match=r'task "login".secrets: pidone .* does not know "files"'):
        decode_bundle(bundle(PASSWORD), ["exec"])


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(Refused) as raised:
        SecretFiles(str(folder)).fill([using("login", {MARK: name})])
    return str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["../outside", "etcd/../../outside", "etcd/../etcd/password", "link", "chain", "/etc/hostname", ""],
)
def test_no_file_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("no")
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "chain").symlink_to("etcd/../link")
    assert f"which is not in {folder}, the folder of PIDONE_SECRETS; mount it there" in refusal(folder, name)


def test_a_folder_beside_it_whose_name_begins_alike_is_outside(folder: Path) -> None:
    beside = folder.parent / "secrets-of-others"
    beside.mkdir()
    (beside / "token").write_text("no")
    assert "which is not in" in refusal(folder, str(beside / "token"))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read: it is no text in UTF-8"),
        (lambda path: path.write_text("two\nlines\n"), "is not one line of 1 to 4096 characters"),
        (lambda path: path.write_text("x" * (MAX_SECRET + 1)), "is not one line of 1 to 4096 characters"),
        (lambda path: path.write_text("x" * 10_000_000), "is not one line of 1 to 4096 characters"),
        (lambda path: path.write_text("\n"), "is not one line of 1 to 4096 characters"),
        (lambda path: path.mkdir(), "not a file with a value"),
        (make_fifo, "not a file with a value"),
        (lambda path: path.symlink_to("token"), "cannot be read: "),
    ],
)
def test_a_file_without_a_value_is_named(folder: Path, make: Callable[[Path], Any], message: str) -> None:
    make(folder / "token")
    assert message in refusal(folder, "token")


@pytest.mark.parametrize("content", ["wörd and/more", "wörd and/more\n", "wörd and/more\r\n"])
def test_one_line_end_is_left_out(folder: Path, content: str) -> None:
    (folder / "token").write_text(content, newline="")
    for name in ("token", str(folder / "token")):
        (task,) = SecretFiles(str(folder)).fill([using("login", {MARK: name})])
        assert task["exec"]["env"][0]["value"] == "<wörd and/more>"
        assert task["secrets"] == {"salt": "", "values": ["wörd and/more"]}


def test_values_are_put_in_once(folder: Path) -> None:
    """The content of a file that has the mark of another one is no reference."""
    (folder / "token").write_text(OTHER)
    task = using("login", {MARK: "token", OTHER: "etcd/user"}) | {"exec": {"command": [MARK, OTHER]}}
    assert SecretFiles(str(folder)).fill([task])[0]["exec"]["command"] == [OTHER, "pods"]


def test_all_tasks_get_the_same_version_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first one would keep a version that ``changed`` knows nothing of."""
    read = SecretFiles._content

    def then_changed(files: SecretFiles, name: str) -> bytes:
        data = read(files, name)
        mount(folder / "etcd", password=SECOND, user="pods")
        return data

    monkeypatch.setattr(SecretFiles, "_content", then_changed)
    files = SecretFiles(str(folder))
    tasks = files.fill([PASSWORD, PASSWORD | {"name": "second"}])
    assert [task["secrets"]["values"] for task in tasks] == [[FIRST], [FIRST]]
    assert files.changed()


def test_values_have_a_bound_in_a_plan(folder: Path) -> None:
    (folder / "token").write_text("x" * MAX_SECRET)
    task = using("login", {MARK: "token"}) | {"exec": {"command": [MARK * 300]}}
    with pytest.raises(Refused, match="the values of files have more than 1048576 characters in the plan"):
        SecretFiles(str(folder)).fill([task])


def test_files_have_a_bound_in_a_plan(folder: Path) -> None:
    tasks = []
    for number in range(MAX_FILES + 1):
        (folder / f"token{number}").write_text("x")
        tasks.append(using(f"login{number}", {MARK: f"token{number}"}))
    assert len(SecretFiles(str(folder)).fill(tasks[:-1])) == MAX_FILES
    with pytest.raises(Refused, match=r'task "login50": .* token50, and 50 other files are read'):
        SecretFiles(str(folder)).fill(tasks)


@pytest.mark.parametrize("files", [1, {MARK: 1}, [MARK]])
def test_a_form_that_is_not_known_is_refused(folder: Path, files: object) -> None:
    with pytest.raises(Refused, match=r'task "login".secrets.files'):
        SecretFiles(str(folder)).fill(
            [using("login", {}) | {"secrets": {"salt": "", "values": [], "files": files}}]
        )
