"""``pidone test``: what passes, what fails and how it is told, and case files that are wrong themselves."""

from pathlib import Path
from textwrap import dedent

import pytest

from pidone.cli.cases import read_cases
from pidone.cli.rehearsal import Answer, words
from pidone.cli.test import test as run_cases
from pidone.language.schemas import actions

ROOT = Path(__file__).parents[2]
READY_MADE = [ROOT / "tasks", ROOT / "examples"]
SETS = """
    apiVersion: pidone.dev/v1alpha1
    kind: TaskSet
    metadata: {name: web}
    spec:
      params:
        - {name: period, type: integer, default: 10}
      tasks:
        - {name: ready, probe: {tcpSocket: {port: 80}, periodSeconds: $(params.period), timeoutSeconds: 2}}
        - name: registration
          needs: [ready]
          register: {eureka: {url: http://e/eureka, app: web, port: 80}, follow: ready}
        - {name: beat, needs: [registration], heartbeat: {of: registration}}
        - {name: warm, needs: [ready], timeout: 5s, backoffLimit: 2, exec: {command: [/bin/warm, --all]}}
        - {name: page, metrics: {}}
"""


class Desk:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "web.yaml").write_text(dedent(SETS), "utf-8")

    def test(self, text: str) -> tuple[int, str, str]:
        """One case file beside the set; exit code, output, summary."""
        file = self.folder / "web.test.yaml"
        file.write_text(dedent(text), "utf-8")
        code = run_cases([str(file)])
        output, summary = self._capsys.readouterr()
        return code, output.replace(f"{self.folder}/", ""), summary

    def steps(self, *steps: str) -> tuple[int, str, str]:
        """One case with these steps, one a line from line 4 on."""
        lines = ["cases:", "  - name: it", "    steps:", *(f"      - {{{step}}}" for step in steps)]
        return self.test("\n".join(lines) + "\n")


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_the_cases_of_the_ready_made_sets_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cases([str(folder) for folder in READY_MADE]) == 0
    output, summary = capsys.readouterr()
    assert "FAIL" not in output
    assert summary.endswith("all passed\n")


@pytest.mark.parametrize("folder", READY_MADE, ids=lambda folder: folder.name)
def test_every_ready_made_set_has_cases(folder: Path) -> None:
    cases = {
        file.name: read_cases(file.read_text("utf-8"), file.name)[0] for file in folder.glob("*.test.yaml")
    }
    sets = {file.name for file in folder.glob("*.yaml")} - cases.keys()
    tested = {
        set_file
        for name, case_file in cases.items()
        if case_file is not None
        for set_file in case_file.files or [name.replace(".test.yaml", ".yaml")]
        if "/" not in set_file
    }
    assert tested == sets
    assert sets


def test_a_case_that_passes(desk: Desk) -> None:
    assert desk.steps("at: 1s, expect: {page: listening, registration: waiting}") == (
        0,
        "web.test.yaml\n  ok    it\n",
        "1 case: all passed\n",
    )


def test_a_wrong_state_is_told_with_place_expected_got_and_what_had_happened(desk: Desk) -> None:
    code, output, summary = desk.steps(
        "at: 0s, given: {ready: succeeds}", "at: 3s, expect: {ready: unhealthy}"
    )
    assert (code, summary) == (1, "1 case: 1 failed\n")
    assert (
        output
        == dedent(
            """\
        web.test.yaml
          FAIL  it
        web.test.yaml:5:34: at 3s "ready" is healthy; expected unhealthy [state]
            5 |       - {at: 3s, expect: {ready: unhealthy}}
              |                                  ^~~~~~~~~
        """
        )
        + output.partition("^~~~~~~~~\n")[2]
    )
    assert "                0s  registration is registered\n" in output
    assert "   3s  " not in output  # its own end is no part of the story


def test_a_run_s_error_is_told_with_the_state(desk: Desk) -> None:
    _, output, _ = desk.steps("at: 1s, given: {page: fails}", "at: 9s", "at: 10s, expect: {page: due}")
    assert 'at 10s "page" is listening; expected due' in output  # it had the port before
    _, output, _ = desk.steps("at: 0s, given: {page: fails}, expect: {page: listening}")
    assert 'is due ("failed, as the case says"); expected listening' in output


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("succeeds", "healthy"),
        ("answers 200", "healthy"),
        ("answers 399", "healthy"),
        ("succeeds after 1s", "healthy"),
        ("answers 503", "unhealthy"),
        ("fails", "unhealthy"),
        ("times out", "unhealthy"),
        ("succeeds after 2s", "unhealthy"),
    ],
)
def test_what_a_probe_can_be_answered(desk: Desk, answer: str, state: str) -> None:
    assert desk.steps(f"at: 0s, given: {{ready: {answer}}}", f"at: 30s, expect: {{ready: {state}}}")[0] == 0


@pytest.mark.parametrize(
    ("answer", "registration"), [("accepts", "registered"), ("accepts after 4s", "registered")]
)
def test_what_a_registry_can_answer(desk: Desk, answer: str, registration: str) -> None:
    code, output, _ = desk.steps(
        f"at: 0s, given: {{ready: succeeds, registration: {answer}}}",
        f"at: 5s, expect: {{registration: {registration}}}",
    )
    assert code == 0, output


@pytest.mark.parametrize("answer", ["refuses", "fails", "times out", "accepts after 5s"])
def test_a_registry_that_does_not_accept_is_asked_again(desk: Desk, answer: str) -> None:
    code, output, _ = desk.steps(
        f"at: 0s, given: {{ready: succeeds, registration: {answer}}}",
        "at: 1h, given: {registration: accepts}",
        "at: 2h, expect: {registration: registered}",
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        ("succeeds", 1),
        ("exits 3", 3),
        ("hangs", 3),
        ("succeeds after 9s", 3),
    ],
)
def test_what_a_program_can_do(desk: Desk, answer: str, runs: int) -> None:
    code, output, _ = desk.steps(
        f"at: 0s, given: {{ready: succeeds, warm: {answer}}}",
        f"at: 10m, calls: {{warm: [/bin/warm --all x {runs}]}}",
    )
    assert code == 0, output


def test_calls_are_those_since_the_task_was_asked_last(desk: Desk) -> None:
    code, output, _ = desk.steps(
        "at: 0s, given: {ready: succeeds}, calls: {registration: [register UP, heartbeat]}",
        "at: 45s, calls: {registration: [heartbeat]}",
        "at: 10m, calls: {registration: [heartbeat x 19]}",
        "at: 10m1s, calls: {registration: [deregister]}",
    )
    assert code == 1
    assert (
        'web.test.yaml:7:43: until 10m1s "registration" made these calls: none; expected deregister' in output
    )


def test_a_pod_s_labels_may_change_on_the_way(desk: Desk) -> None:
    binding = """
        ---
        apiVersion: pidone.dev/v1alpha1
        kind: TaskBinding
        metadata: {name: web}
        spec: {podSelector: {matchLabels: {web: "true"}}, taskSets: [web]}
    """
    (desk.folder / "web.yaml").write_text(dedent(SETS) + dedent(binding), "utf-8")
    code, output, _ = desk.steps(
        "at: 0s, given: {ready: succeeds}, expect: {ready: gone}",
        'at: 1m, pod: {labels: {web: "true"}}, expect: {ready: healthy, registration: registered}',
        "at: 2m, pod: {labels: {web: null}}, expect: {ready: gone, registration: gone}",
    )
    assert code == 0, output


def test_labels_that_no_plan_can_be_made_of_are_told(desk: Desk) -> None:
    text = dedent(SETS).replace(
        "default: 10}", "default: 10, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['period']\"}}}"
    )
    (desk.folder / "web.yaml").write_text(text, "utf-8")
    code, output, _ = desk.steps("at: 0s", "at: 9s, pod: {labels: {period: many}}, expect: {page: listening}")
    assert code == 1
    assert (
        'web.test.yaml:5:23: the pod does not get its plan: pod default/pod: TaskSet "web": param' in output
    )


def test_tasks_plan_and_rejected(desk: Desk) -> None:
    code, output, summary = desk.test(
        """
        cases:
          - name: all that is expected is there
            params: {period: 3}
            tasks: [ready, registration, beat, warm, page]
            plan:
              ready: {probe: {periodSeconds: 3, tcpSocket: {port: 80}}}
              warm: {exec: {command: [/bin/warm, --all]}}
          - name: rejected as said
            params: {period: x}
            rejected: is not an integer
          - {name: other tasks, tasks: [ready]}
          - {name: other fields, plan: {ready: {probe: {periodSeconds: 3, grpc: {}}}}}
          - {name: not rejected, rejected: is not an integer}
          - {name: rejected unseen, params: {period: x}, tasks: []}
          - {name: rejected for something else, params: {period: x}, rejected: too large}
        """
    )
    assert (code, summary) == (1, "7 cases: 5 failed\n")
    for line in (
        "  ok    all that is expected is there",
        "  ok    rejected as said",
        "the pod gets the tasks ready, registration, beat, warm, page; expected ready [tasks]",
        "ready.probe.periodSeconds is 10; expected 3 [plan]",
        'the plan has no "grpc" here; it has ',
        "a plan can be made for this pod; expected that it is rejected",
    ):
        assert line in output
    assert output.count('param "period": the TaskBinding gives "x", which is not an integer [rejected]') == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cases: []", '1:1: "cases" is empty'),
        ("case: []", '1:1: unknown field "case"; did you mean "cases"?'),
        ("cases: [{name: a}]", '1:16: case "a" expects nothing; add steps, tasks, plan or rejected'),
        ("cases: [{name: a, steps: [{at: 5}]}]", "1:32: 5 is not a duration; write it like 10s"),
        ("cases: [{name: a, steps: [{at: 2s}, {at: 1s}]}]", "1:42: 1s is before the step above, at 2s"),
        ("cases: [{name: a, steps: [{at: 1s, pod: dies}]}]", '1:41: "dies" is not known here'),
        ("cases: [{name: a, steps: [{at: 1s, expct: {}}]}]", 'unknown field "expct"; did you mean "expect"?'),
        (
            "cases: [{name: a, steps: [{at: 1s, expect: {redy: healthy}}]}]",
            '1:45: "redy" is not a task of these sets; did you mean "ready"? [unknown-task]',
        ),
        (
            "cases: [{name: a, steps: [{at: 1s, expect: {ready: registered}}]}]",
            '"ready" is a probe task and is never "registered"; it can be started, healthy, unhealthy, gone',
        ),
        (
            "cases: [{name: a, steps: [{at: 1s, given: {registration: answers 4}}]}]",
            '"registration" is a register task; what can be given to it is accepts, refuses, fails',
        ),
        (
            "cases: [{name: a, steps: [{at: 1s, given: {beat: fails}}]}]",
            '"beat" is a heartbeat task; what can be given to it is nothing: it asks nobody',
        ),
        ("cases: [{name: a, plan: {redy: {}}}]", '"redy" is not a task of these sets'),
        ("a: b\n---\nc: d", "a case file is one document"),
        ("cases: [", 'this "[" is not closed'),
        ("", "the file is empty"),
    ],
)
def test_a_mistake_in_a_case_file_has_its_place(desk: Desk, text: str, said: str) -> None:
    code, output, _ = desk.test(text)
    assert code == 1
    assert said in output
    assert output.startswith("web.test.yaml\nweb.test.yaml:")


def test_mistakes_in_the_sets_are_told_there(desk: Desk) -> None:
    (desk.folder / "web.yaml").write_text(dedent(SETS).replace("needs: [ready]", "needs: [redy]", 1), "utf-8")
    code, output, _ = desk.steps("at: 0s, expect: {ready: running}")
    assert code == 1
    assert 'web.yaml:11:15: task "registration" needs "redy"' in output


def test_a_file_of_another_name_says_what_it_is_about(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    file = desk.folder / "cases.yaml"
    file.write_text("cases: [{name: all, tasks: [ready, registration, beat, warm, page]}]", "utf-8")
    assert run_cases([str(file)]) == 1
    assert 'cases.yaml: "files" is missing; only NAME.test.yaml' in capsys.readouterr().out
    file.write_text("files: [web.yaml]\n" + file.read_text("utf-8"), "utf-8")
    assert run_cases([str(file)]) == 0


def test_nothing_to_run_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cases([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pidone test: no *.test.yaml in {tmp_path}\n"
    assert run_cases([str(tmp_path / "x.test.yaml")]) == 2
    assert capsys.readouterr().err.endswith("x.test.yaml: No such file or directory\n")


def test_containers_that_have_started_are_an_event_of_a_case(desk: Desk) -> None:
    runs = "{name: look, runOn: [pod.containersStarted], exec: {command: [/bin/look]}}"
    text = SETS.partition("tasks:")[0].replace("period, type: integer, default: 10", "unused, default: x")
    (desk.folder / "web.yaml").write_text(dedent(f"{text}tasks: [{runs}]\n"), "utf-8")
    code, output, _ = desk.steps(
        "at: 10s, expect: {look: armed}, calls: {look: []}",
        "at: 20s, pod: containersStarted, expect: {look: succeeded}, calls: {look: [/bin/look]}",
        "at: 1h, calls: {look: []}",
    )
    assert code == 0, output
    code, output, _ = desk.steps("at: 10s, pod: starts")
    assert 'expected "terminates", "containersStarted", or labels' in output


@pytest.mark.parametrize("action", list(actions()))
def test_every_word_is_read_and_nothing_else(action: str) -> None:
    for word in words(action):
        name, _, number = word.partition(" <")
        text = f"{name} 200" if number else name
        assert Answer.of(text, action) == Answer(name, 200 if number else 0)
        assert Answer.of(f"{text} after 1500ms", action) == Answer(name, 200 if number else 0, 1.5)
        assert Answer.of(name if number else f"{name} 200", action) is None
    for text in ("", "explodes", "times", "fails after", "fails after x", " fails"):
        assert Answer.of(text, action) is None


def test_the_same_case_gives_the_same_result_every_time(desk: Desk) -> None:
    """A heartbeat, a failed probe's DOWN and the pod's end in one moment: whatever comes first, it always does."""
    outputs = {
        desk.steps(
            "at: 0s, given: {ready: succeeds}",
            "at: 1h, given: {ready: fails}, expect: {ready: healthy}",
            "at: 1h30s, pod: terminates, calls: {registration: []}",
        )[1]
        for _ in range(20)
    }
    assert len(outputs) == 1
    assert "heartbeat x 1" in outputs.pop()


def test_several_registries_are_simulated_each_by_its_name(desk: Desk) -> None:
    """Both are Eureka here, so they share the name."""
    before = "register: {eureka: {url: http://e/eureka, app: web, port: 80}, follow: ready}"
    to = "[{eureka: {url: http://e/e, app: web, port: 80}}, {eureka: {url: http://f/e, app: web, port: 80}}]"
    after = f"register: {{to: {to}, follow: ready}}"
    beat = "- {name: beat, needs: [registration], heartbeat: {of: registration}}"
    text = dedent(SETS).replace(before, after).replace(beat, "")
    (desk.folder / "web.yaml").write_text(text, "utf-8")
    code, output, _ = desk.steps(
        "at: 0s, given: {ready: succeeds, registration: eureka accepts}, expect: {registration: registered}, "
        "calls: {registration: [eureka register UP x 2, eureka heartbeat x 2]}",
        "at: 29s, given: {registration: eureka forgets}",
        "at: 31s, calls: {registration: [eureka heartbeat x 2, eureka register UP x 2]}",
        "at: 32s, pod: terminates, calls: {registration: [eureka deregister x 2]}",
    )
    assert code == 0, output
