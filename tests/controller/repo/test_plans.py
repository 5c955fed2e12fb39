"""When plans are derived, and what is passed on about pods."""

import json
import re
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pidone.language.binding import Rules, derive
from pidone.plan.format import decode_bundle
from pidone.plan.report import Report
from pidone_controller.log import log
from pidone_controller.pods.model import Pod
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from tests.controller.factories import binding, pod, rules, task_set
from tests.controller.repo.requests import CHECKED, RULES, Background, get, post, put, repo_of

DIGEST = "sha256-" + "1" * 64


@pytest.fixture
def repo(nursery: trio.Nursery) -> Repo:
    repo = Repo(Plans(log), log)
    nursery.start_soon(repo.plans.run)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3"))
    return repo


class Derivations:
    """Counts whose plan was derived, in order."""

    def __init__(self) -> None:
        self.of: list[str] = []

    def __call__(self, found: Pod, known: Rules) -> list[dict[str, Any]]:
        self.of.append(found.name)
        return derive(found, known)


async def test_a_bug_in_one_pod_s_derivation_is_told_and_stops_no_other() -> None:
    def some(found: Any, _rules: Rules) -> list[dict[str, Any]]:
        if found.name == "web":
            raise KeyError("web")
        return []

    repo = Repo(Plans(log, derive=some), log)
    put(repo, pod(labels=CHECKED), pod("db", "127.0.0.3", labels=CHECKED))
    bad = await repo.handle(get())
    assert (bad.status, "internal error: KeyError" in bad.text) == (503, True)
    assert (await repo.handle(get(peer="127.0.0.3"))).status == 200


async def test_reports_go_with_their_pod(repo: Repo) -> None:
    await repo.handle(post({"state": "applied", "digest": DIGEST}))
    put(repo)
    put(repo, pod(uid="uid-next"))
    web = json.loads((await repo.handle(get("/v1/pods/shop/web", peer="127.0.0.1"))).body)
    assert web["reported"] is None


async def test_a_plan_is_derived_for_whom_it_matters(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    repo = repo_of(pod(labels=CHECKED), pod("db", "127.0.0.3"), derive=derivations)
    nursery.start_soon(repo.plans.run)
    await wait_all_tasks_blocked()
    assert derivations.of == ["web"]  # nobody has asked; no binding chooses db
    await repo.handle(get())
    await repo.handle(get(peer="127.0.0.3"))
    repo.plans.put(pod(labels=CHECKED))  # seen again, as in each list
    repo.plans.put(pod("db", "127.0.0.3", labels={"other": "label"}))
    await wait_all_tasks_blocked()
    assert derivations.of == ["web"]
    repo.plans.put(pod("db", "127.0.0.3", labels=CHECKED))
    await wait_all_tasks_blocked()
    assert derivations.of == ["web", "db"]


async def test_changes_without_a_pause_are_one_answer(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    repo = repo_of(pod(labels=CHECKED), derive=derivations)
    nursery.start_soon(repo.plans.run)
    etag = (await repo.handle(get())).headers["etag"]
    held = Background(nursery, repo.handle(get(prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    derivations.of.clear()
    repo.plans.rule(rules(task_set(period=9), binding()))
    for turn in range(5):
        repo.plans.put(pod(labels={**CHECKED, "turn": str(turn)}))
    repo.plans.put(pod(labels={**CHECKED, "turn": "last"}, terminating=True))
    bundle = decode_bundle((await held.answer()).body, ["probe"])
    assert bundle.phase == "Terminating"
    assert derivations.of == ["web"]


async def test_the_annotation_of_maintenance_reaches_the_pod_at_once_and_is_no_new_plan(
    nursery: trio.Nursery,
) -> None:
    plain = pod(labels=CHECKED)
    annotated = pod(labels=CHECKED, annotations={"pidone.dev/maintenance": "true"})
    repo = repo_of(plain)
    nursery.start_soon(repo.plans.run)
    first = await repo.handle(get())
    answers = [first]
    for change in (annotated, plain):
        held = Background(
            nursery, repo.handle(get(prefer="wait=55", if_none_match=answers[-1].headers["etag"]))
        )
        await wait_all_tasks_blocked()
        repo.plans.put(change)
        answers.append(await held.answer())
    bundles = [decode_bundle(answer.body, ["probe"]) for answer in answers]
    assert [bundle.maintenance for bundle in bundles] == [False, True, False]
    assert len({bundle.plan.digest for bundle in bundles}) == 1
    assert answers[0].headers["etag"] == answers[2].headers["etag"] != answers[1].headers["etag"]


async def test_new_rules_reach_those_who_wait_first_and_let_others_speak(nursery: trio.Nursery) -> None:
    derivations = Derivations()
    pods = [pod(f"pod-{index}", f"127.0.1.{index}", labels=CHECKED) for index in range(250)]
    repo = repo_of(*pods, derive=derivations)
    nursery.start_soon(repo.plans.run)
    await wait_all_tasks_blocked()
    etag = (await repo.handle(get(peer="127.0.1.249"))).headers["etag"]
    held = Background(nursery, repo.handle(get(peer="127.0.1.249", prefer="wait=55", if_none_match=etag)))
    await wait_all_tasks_blocked()
    derivations.of.clear()
    repo.plans.rule(rules(task_set(period=9), binding()))
    await held.answer()
    assert derivations.of[0] == "pod-249"
    assert len(derivations.of) < 250  # it had its answer long before all were derived
    await wait_all_tasks_blocked()
    assert sorted(derivations.of) == sorted(one.name for one in pods)


async def test_reports_and_ends_are_passed_on() -> None:
    told: list[tuple[str, str]] = []
    gone: list[tuple[str, str | None]] = []

    def end(found: Pod, report: Report | None) -> None:
        gone.append((found.name, report.state if report else None))

    repo = repo_of(
        pod(labels=CHECKED), pod("db", "127.0.0.3"), pod("job", "127.0.0.4"),
        on_report=lambda found, report: told.append((found.name, report.state)), on_gone=end,
    )  # fmt: skip
    await repo.handle(post({"state": "applied"}))
    repo.plans.receive(pod("db", "127.0.0.3"), Report("rejected"))  # as another replica got it
    assert told == [("web", "applied"), ("db", "rejected")]
    repo.plans.put(pod("job", "127.0.0.4", phase="Succeeded"))
    repo.plans.drop(("shop", "job"))
    repo.plans.put(pod(labels=CHECKED, terminating=True))
    assert gone == [("job", None)]
    repo.plans.drop(("shop", "web"))
    repo.plans.drop(("shop", "web"))
    repo.plans.replace([])
    assert gone == [("job", None), ("web", "applied"), ("db", "rejected")]


def test_any_order_of_pods_and_rules_is_ready_at_last() -> None:
    repo = Repo(Plans(log), log, random=Random(1))
    assert not repo.plans.ready
    repo.plans.replace([pod(labels=CHECKED)])
    assert not repo.plans.ready
    repo.plans.rule(RULES)
    assert repo.plans.ready


async def test_a_refusal_is_logged_with_the_digest_of_the_plan(
    repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    etag = (await repo.handle(get())).headers["etag"].strip('"')
    refusal = {"state": "rejected", "digest": None, "rejected": etag, "error": "no such action"}
    assert (await repo.handle(post(refusal))).status == 204
    lines = capsys.readouterr().err.splitlines()
    (plan,) = [line for line in lines if "event=plan" in line and "pod=shop/web" in line]
    (rejected,) = [line for line in lines if "event=rejected" in line]
    digest = re.search(r" (digest=\S+)", plan)
    assert digest is not None
    assert f" {digest[1]} " in rejected
    assert f" etag={etag[:19]} " in rejected
