"""Work that an author chooses is bounded: twice the input is at most twice the work, or it is refused."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from pidone.errors import LanguageError
from pidone.language.binding import BindingError, Rules, derive
from pidone.language.checking import MAX_FINDINGS, check_text
from pidone.language.extends import MAX_PARAMS, MAX_PATTERNS, Sets, flat
from pidone.language.model import Param, TaskBinding, TaskSet
from pidone.language.params import MAX_LENGTH
from pidone.language.pruning import pruned
from pidone.language.reading import MAX_DOCUMENTS
from pidone.language.rendering import MAX_CHARACTERS, render
from pidone.language.resolution import heirs
from pidone.language.safe_patterns import MAX_TEXT
from pidone.plan.format import MAX_TASKS
from tests.language.work import lines_of

HEAD = "apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {name: x}\nspec:\n"
RUN = "exec: {command: [/bin/true]}"
TASK = f"  tasks: [{{name: a, {RUN}}}]\n"


def several(items: Iterable[object]) -> str:
    return f"[{', '.join(map(str, items))}]"


def task_set(name: str, *extends: str) -> str:
    bases = f"  extends: {several(extends)}\n" if extends else ""
    spec = f"{bases}  tasks: [{{name: t-{name}, {RUN}}}]\n"
    return f"apiVersion: pidone.dev/v1alpha1\nkind: TaskSet\nmetadata: {{name: {name}}}\nspec:\n{spec}---\n"


def tasks(n: int, body: str) -> str:
    lines = (f"    - {{name: t{i}, {body.replace('%i', str(i)).replace('%n', str(n))}}}\n" for i in range(n))
    return f"{HEAD}  tasks:\n{''.join(lines)}"


def levels(n: int) -> str:
    """Each set extends all eight of the level below it, four levels on each other."""
    names = [f"s{i}" for i in range(n)]
    return "".join(
        task_set(name, *(names[i - i % 8 - 8 : i - i % 8] if (i // 8) % 4 else ()))
        for i, name in enumerate(names)
    )


def circle(n: int) -> str:
    return "".join(task_set(f"s{i}", *(f"s{(i + step) % n}" for step in range(1, 9))) for i in range(n))


def doubtful_list(n: int) -> str:
    kind = "apiVersion: pidone.dev/v1alpha1, kind: TaskSet"
    items = "".join(
        f"- {{{kind}, metadata: {{name: s{i}}}, spec: {{tasks: [{{name: a, {RUN}}}]}}}}\n" for i in range(n)
    )
    return f"apiVersion: v1\nkind: List\nx: {several(['on'] * n)}\nitems:\n{items}"


FILES: dict[str, Callable[[int], str]] = {
    "levels of extends": levels,
    "a circle of extends": circle,
    "sets that extend the same": lambda n: task_set("a") + "".join(task_set(f"s{i}", "a") for i in range(n)),
    "sets that extend what is elsewhere": lambda n: "".join(task_set(f"s{i}", f"b{i}") for i in range(n)),
    "tasks": lambda n: tasks(n, RUN),
    "registrations": lambda n: tasks(n, "register: {eureka: {url: 'http://e:1/e', app: a%i, port: 1}}"),
    "heartbeats": lambda n: tasks(n, "heartbeat: {of: t0}"),
    "ports": lambda n: tasks(n, "metrics: {port: 2%i}"),
    "probes": lambda n: tasks(n, "probe: {httpGet: {port: 2%i}}"),
    "chains": lambda n: tasks(n, f"needs: [t%i-], {RUN}"),
    "unknown fields": lambda n: f"{HEAD}{TASK}" + "".join(f"  k{i}: 1\n" for i in range(n)),
    "items twice": lambda n: f"{HEAD}  extends: {several(f'{{a: {i}}}' for i in range(n))}\n{TASK}",
    "keys twice": lambda n: HEAD + "  tasks: 1\n" * n,
    "names twice": lambda n: f"{HEAD}  tasks:\n" + f"    - {{name: t, {RUN}}}\n" * n,
    "objects twice": lambda n: task_set("a") * n,
    "params": lambda n: f"{HEAD}  params: {several(f'{{name: p{i}}}' for i in range(n))}\n{TASK}",
    "references": lambda n: f"{HEAD}  tasks: [{{name: a, exec: {{command: [/x, '{'$(x)' * n}']}}}}]\n",
    "aliases": lambda n: "a: &a [x]\n" + "".join(f"b{i}: *a\n" for i in range(n)),
    "anchors": lambda n: "".join(f"k{i}: &a{i} x\n" for i in range(n)),
    "brackets": lambda n: "a: " + "[" * (1200 + n),  # a key may have 1024 characters, which are looked at
    "dashes": lambda n: "- " * n,
    "ends of lines": lambda n: "a: 'x" + "\u2028" * n + "'\n",
    "a List with doubts": doubtful_list,
    "documents": lambda n: "--- {a: b}\n" * n,
    "an open quote": lambda n: "a: '" + "x: y\n " * n,
    "long words": lambda n: "a: [" + ("1:" * n) + ", " + "1_" * n + ", " + "1e" * n + "]\n",
}


@pytest.mark.parametrize("name", FILES)
def test_twice_the_file_is_twice_the_work(name: str) -> None:
    n = 32
    check_text(FILES[name](n), "x.yaml")  # imports, and reads schemas
    first, second = (lines_of(partial(check_text, FILES[name](size), "x.yaml")) for size in (n, 2 * n))
    assert second < 2.5 * first


def test_the_edges_of_circles_are_not_all_walked() -> None:
    def work(n: int) -> int:
        needs = several(f"t{i}" for i in range(n))
        return lines_of(partial(check_text, tasks(n, f"needs: {needs}, {RUN}"), "x.yaml"))

    assert work(60) < 5 * work(30)  # there are four times as many edges


@dataclass(frozen=True)
class Pod:
    """What ``derive`` reads of a pod."""

    uid: str = "u"
    namespace: str = "shop"
    labels: Mapping[str, str] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(
        default_factory=lambda: {"metadata": {"name": "web-0", "namespace": "shop"}}
    )


def run(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "exec": {"command": ["/bin/true"]}, **more}


def growth(make: Callable[[int], Callable[[], object]], n: int) -> float:
    make(n)()
    first, second = (lines_of(make(size)) for size in (n, 2 * n))
    return second / first


def test_tasks_that_go_one_after_the_other_cost_one_look_each() -> None:
    def make(n: int) -> Callable[[], object]:
        first = run("t0", podSelector={"matchLabels": {"a": "b"}})
        return partial(
            pruned, [first, *(run(f"t{i}", runOn=[f"t{i - 1}.succeeded"]) for i in range(1, n))], {}
        )

    assert make(50)() == []
    assert growth(make, 50) < 2.5


def test_bindings_of_one_set_are_compared_with_the_first_alone() -> None:
    def make(n: int) -> Callable[[], object]:
        one = TaskSet("a", "shop", tasks=tuple(run(f"t{i}") for i in range(5)))
        bindings = [TaskBinding(f"b{i}", "shop", task_sets=("a",)) for i in range(n)]
        rules = Rules(Sets.of([one]), bindings)
        return partial(derive, Pod(), rules)

    assert len(make(20)()) == 5  # type: ignore[arg-type]
    assert growth(make, 20) < 2.5


def test_a_pod_of_thousands_of_bindings_has_an_end() -> None:
    one = TaskSet("a", "shop", tasks=(run("t"),))
    bindings = [TaskBinding(f"b{i:04}", "shop", task_sets=("a",)) for i in range(1000)]
    with pytest.raises(BindingError, match="more than 200 bindings select this pod"):
        derive(Pod(), Rules(Sets.of([one]), bindings))


def test_all_who_bring_a_contested_task_are_named_and_the_text_has_an_end() -> None:
    sets = [TaskSet(name, "shop", tasks=(run("t"),)) for name in "ab"]
    bindings = [TaskBinding(f"b{i:03}", "shop", task_sets=("ab"[i % 2],)) for i in range(60)]
    with pytest.raises(BindingError) as raised:
        derive(Pod(), Rules(Sets.of(sets), bindings))
    assert len(raised.value.bindings) == 60
    assert not raised.value.rest
    assert len(str(raised.value)) < 10_000


def test_sets_are_flattened_with_work_that_grows_with_the_sets() -> None:
    def make(n: int) -> Callable[[], object]:
        made = [TaskSet(f"s{i}", extends=tuple(f"s{k}" for k in range(max(0, i - 8), i))) for i in range(n)]
        return lambda: [flat(one, sets) for sets in [Sets.of(made)] for one in made]

    assert growth(make, 40) < 2.5


def test_a_chain_longer_than_the_stack_of_python_is_refused() -> None:
    made = [TaskSet(f"s{i}", extends=(f"s{i + 1}",)) for i in range(5000)]
    (problem, *_) = flat(made[0], Sets.of(made)).problems
    assert problem.rule in {"extends-depth", "extends-cycle"}


@pytest.mark.parametrize("kind", ["tasks", "params"])
def test_what_a_set_inherits_is_bounded(kind: str) -> None:
    most = {"tasks": MAX_TASKS, "params": MAX_PARAMS}[kind]
    bases = [
        TaskSet(
            f"b{i}",
            tasks=tuple(run(f"t{i}-{k}") for k in range(most // 2 if kind == "tasks" else 1)),
            params=tuple(Param(f"p{i}-{k}") for k in range(most // 2 if kind == "params" else 1)),
        )
        for i in range(4)
    ]
    heir = TaskSet("heir", extends=tuple(base.name for base in bases))
    (problem,) = {one.rule: one for one in flat(heir, Sets.of([*bases, heir])).problems}.values()
    assert problem.rule == "extends-size"
    assert problem.path[0] == "extends"
    with pytest.raises(LanguageError, match=f"more than {most} {kind}"):
        heirs([*bases, heir])


def test_the_patterns_of_a_set_are_bounded_together() -> None:
    count = MAX_PATTERNS // 900 + 1
    params = several(f'{{name: p{i}, pattern: "^a{{900}}$"}}' for i in range(count))
    args = several(["/x", *(f"$(params.p{i})" for i in range(count))])
    text = f"{HEAD}  params: {params}\n  tasks: [{{name: a, exec: {{command: {args}}}}}]\n"
    (finding,) = check_text(text, "x.yaml").findings
    assert finding.rule == "pattern"
    assert "repeat less" in finding.message
    assert not check_text(text.replace("900", "90"), "x.yaml").findings


@pytest.mark.parametrize("command", [["/x", "$(params.a)" * 5000], ["/x", *["$(params.a)"] * 900]])
def test_a_value_that_stands_in_many_places_fills_no_memory(command: Sequence[str]) -> None:
    one = TaskSet(
        "a", params=(Param("a", max_length=MAX_LENGTH),), tasks=({"name": "t", "exec": {"command": command}},)
    )
    with pytest.raises(
        LanguageError, match=rf"more than {MAX_CHARACTERS} characters|more than \d+ characters"
    ):
        render([one], {"a": "x" * MAX_LENGTH}, {"metadata": {"name": "p"}})


@pytest.mark.parametrize(("pattern", "most"), [("", MAX_LENGTH), ("^x*$", MAX_TEXT)])
def test_a_value_has_a_length(pattern: str, most: int) -> None:
    one = TaskSet("a", params=(Param("a", pattern=pattern),), tasks=(run("t"),))
    render([one], {"a": "x" * most}, {"metadata": {"name": "p"}})
    with pytest.raises(LanguageError, match=f"is longer than {most} characters"):
        render([one], {"a": "x" * (most + 1)}, {"metadata": {"name": "p"}})


def test_a_file_of_findings_and_of_objects_has_an_end() -> None:
    mistakes = "".join(f"  k{i}: 1\n" for i in range(400))
    checked = check_text("---\n".join(f"{HEAD}{mistakes}" for _ in range(20)), "x.yaml")
    assert len(checked.findings) < 2 * MAX_FINDINGS
    assert any("what follows was not checked" in finding.message for finding in checked.findings)
    items = "- {a: b}\n" * (MAX_DOCUMENTS + 1)
    (finding,) = check_text(f"apiVersion: v1\nkind: List\nitems:\n{items}", "x.yaml").findings
    assert finding.rule == "too-large"
