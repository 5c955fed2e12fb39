"""One conversation with an API server, word for word the same with the real one and with the fake.

``python -m tests.cluster.record`` writes down what the real one says; ``test_recordings.py`` has the same conversation
with the fake and compares; ``tests/cluster/test_recordings.py`` has it with the real one again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from pidone_controller.kubernetes.client import APPLY, JSON, MERGE
from pidone_controller.kubernetes.resources import PODS, TASK_BINDINGS, TASK_SETS, TOKEN_REVIEWS

RECORDED = Path(__file__).parent / "recorded"
SPACE = "recorded"
AUDIENCE = "pidone-repo"
SETS = TASK_SETS.path(SPACE)
BINDINGS = TASK_BINDINGS.path(SPACE)

# What differs each time, or is said by the one and need not be said by the other, with no reader in the controller.
UNREAD = {"managedFields", "creationTimestamp"}
# What is compared to the letter. Of everything else, that it is text, a number, a list or an object.
LITERAL = {"kind", "apiVersion", "type", "reason", "code", "authenticated"}
# What the controller reads: the fake has it wherever the real one has it.
READ = LITERAL | {
    *(
        "metadata",
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "annotations",
        "continue",
        "items",
    ),
    *("object", "details", "causes", "status", "message", "user", "username", "groups", "extra", "audiences"),
    *("k8s.io/initial-events-end", "spec", "remainingItemCount"),
}

Object = dict[str, Any]


class Server(Protocol):
    """Either of them, with a namespace ``SPACE`` in which there are three pods: a, b and c."""

    async def ask(self, said: "Exchange", headers: Mapping[str, str], body: bytes, lines: int) -> None:
        """Send the request and write down the answer: its body, or so many lines of it (0: to its end)."""

    async def lose_history(self) -> None:
        """All versions until now are too old."""

    async def token(self) -> str:
        """A token for ``AUDIENCE`` that is good."""


@dataclass
class Exchange:
    """One exchange. Of a watch ``body`` is the list of its events."""

    method: str
    path: str
    query: dict[str, str]
    status: int = 0
    content_type: str = ""
    body: Any = None

    def value(self) -> Object:
        asked = f"{self.method} {self.path}" + (f"?{urlencode(self.query)}" if self.query else "")
        return {"asked": asked, "status": self.status, "content-type": self.content_type, "body": self.body}

    def read(self, text: bytes) -> None:
        """Take over what was answered."""
        if self.query.get("watch"):
            self.body = [json.loads(line) for line in text.splitlines()]
        elif self.content_type == JSON:
            self.body = json.loads(text)
        else:
            self.body = text.decode()


@dataclass
class Conversation:
    server: Server
    exchanges: dict[str, Object] = field(default_factory=dict)

    async def say(
        self,
        name: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        *,
        content: str = JSON,
        token: str = "",
        lines: int = 0,
    ) -> Object:
        said = Exchange(method, path, dict(query or {}))
        headers = {"accept": JSON} | ({"content-type": content} if body is not None else {})
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        await self.server.ask(said, headers, b"" if body is None else json.dumps(body).encode(), lines)
        self.exchanges[name] = pruned(said.value())
        answer: Object = said.body if isinstance(said.body, dict) else {}
        return answer


def task_set(name: str, **meta: Any) -> Object:
    spec = {"tasks": [{"name": "numbers", "metrics": {}}]}
    return {
        "apiVersion": TASK_SETS.api_version,
        "kind": TASK_SETS.kind,
        "metadata": {"name": name, **meta},
        "spec": spec,
    }


def binding(**fields: Any) -> Object:
    head = {"apiVersion": TASK_BINDINGS.api_version, "kind": TASK_BINDINGS.kind}
    return {**head, "metadata": {"name": "web", "namespace": SPACE}, **fields}


def review(token: str, *audiences: str) -> Object:
    spec = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
    return {"apiVersion": TOKEN_REVIEWS.api_version, "kind": TOKEN_REVIEWS.kind, "metadata": {}, "spec": spec}


def pruned(value: Any) -> Any:
    """Without what nobody reads and most of it is."""
    if isinstance(value, dict):
        return {key: pruned(part) for key, part in value.items() if key not in UNREAD}
    return [pruned(part) for part in value] if isinstance(value, list) else value


async def converse(server: Server, *, patient: bool = True) -> dict[str, Object]:
    """All of it, in order. By name: what was asked, and the answer. Impatient, without what takes a minute."""
    talk = Conversation(server)
    say = talk.say
    made = await say("create", "POST", SETS, body=task_set("one"))
    since = made["metadata"]["resourceVersion"]
    await say("create-again", "POST", SETS, body=task_set("one"))
    await say("get", "GET", f"{SETS}/one")
    await say("get-nothing", "GET", f"{SETS}/nobody")
    await say("get-an-unknown-kind", "GET", f"/apis/pidone.dev/v1alpha1/namespaces/{SPACE}/nothings")
    await say("bad-token", "GET", f"{SETS}/one", token="nobody's")
    changed = made | {"metadata": made["metadata"] | {"labels": {"app": "web"}}}
    await say("replace", "PUT", f"{SETS}/one", body=changed)
    await say("replace-too-late", "PUT", f"{SETS}/one", body=changed)
    await say("merge", "PATCH", f"{SETS}/one", body={"metadata": {"labels": {"app": None}}}, content=MERGE)
    late = {"metadata": {"labels": {"app": "web"}, "resourceVersion": since}}
    await say("merge-too-late", "PATCH", f"{SETS}/one", body=late, content=MERGE)
    another = {"metadata": {"labels": {"app": "web"}, "uid": "00000000-0000-4000-8000-000000000000"}}
    await say("merge-another", "PATCH", f"{SETS}/one", body=another, content=MERGE)
    await say("merge-nothing", "PATCH", f"{SETS}/nobody", body=late, content=MERGE)
    await say("create-two", "POST", SETS, body=task_set("two"))
    await say("create-three", "POST", SETS, body=task_set("three"))
    await say("delete", "DELETE", f"{SETS}/three")
    await say("delete-nothing", "DELETE", f"{SETS}/three")

    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "taskSets": ["one"]}
    ours, theirs = {"fieldManager": "ours", "force": "false"}, {"fieldManager": "theirs", "force": "false"}
    await say("apply-new", "PATCH", f"{BINDINGS}/web", ours, binding(spec=spec), content=APPLY)
    await say("apply-again", "PATCH", f"{BINDINGS}/web", ours, binding(spec=spec), content=APPLY)
    other = spec | {"podSelector": {"matchLabels": {"app": "api"}}}
    await say("apply-anothers-field", "PATCH", f"{BINDINGS}/web", theirs, binding(spec=other), content=APPLY)
    forced = theirs | {"force": "true"}
    await say("apply-by-force", "PATCH", f"{BINDINGS}/web", forced, binding(spec=other), content=APPLY)
    late = binding(spec=spec) | {"metadata": {"name": "web", "namespace": SPACE, "resourceVersion": since}}
    await say("apply-too-late", "PATCH", f"{BINDINGS}/web", forced, late, content=APPLY)
    nobody = binding(status={}) | {"metadata": {"name": "nobody", "namespace": SPACE}}
    await say("apply-status-of-nothing", "PATCH", f"{BINDINGS}/nobody/status", ours, nobody, content=APPLY)
    status = binding(status={"observedGeneration": 1})
    await say("apply-status", "PATCH", f"{BINDINGS}/web/status", ours, status, content=APPLY)

    first = await say("list-a-page", "GET", SETS, {"limit": "1"})
    await say("list-the-last-page", "GET", SETS, {"limit": "1", "continue": first["metadata"]["continue"]})
    pods = PODS.path(SPACE)
    page = await say("list-pods", "GET", pods, {"limit": "2"})
    selected = {"labelSelector": "app=b", "fieldSelector": "status.phase!=Succeeded,spec.hostNetwork=false"}
    await say("list-selected", "GET", pods, selected)
    await say("list-nothing", "GET", pods, {"labelSelector": "app=nothing"})

    watch = {"watch": "true", "allowWatchBookmarks": "true"}
    await say("watch", "GET", SETS, watch | {"resourceVersion": since}, lines=5)
    await say(
        "watch-selected", "GET", SETS, watch | {"resourceVersion": since, "labelSelector": "app=web"}, lines=2
    )
    stream = watch | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    await say("watch-with-a-list", "GET", pods, stream, lines=4)
    await say("watch-with-a-list-of-sets", "GET", SETS, stream, lines=3)
    now = page["metadata"]["resourceVersion"]
    await say("watch-to-its-end", "GET", pods, watch | {"resourceVersion": now, "timeoutSeconds": "1"})
    if patient:
        await say("watch-a-minute", "GET", pods, watch | {"resourceVersion": now}, lines=1)

    token = await server.token()
    for name, words in {
        "review": review(token, AUDIENCE),
        "review-for-another": review(token, "another"),
        "review-nonsense": review("nonsense", AUDIENCE),
    }.items():
        await say(name, "POST", TOKEN_REVIEWS.path(), body=words)
        talk.exchanges[name]["body"]["spec"]["token"] = "..."

    await server.lose_history()
    await say("page-of-a-lost-version", "GET", pods, {"limit": "2", "continue": page["metadata"]["continue"]})
    await say("watch-from-a-lost-version", "GET", pods, watch | {"resourceVersion": now})
    return talk.exchanges


def read_all() -> dict[str, Object]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RECORDED.glob("*.json"))}


def differences(real: Any, other: Any, path: str = "") -> list[str]:
    """Where ``other`` says what ``real`` does not, or leaves out what the controller reads."""
    if isinstance(real, dict) and isinstance(other, dict):
        found = [f"{path}.{key}: only here" for key in other.keys() - real.keys()]
        found += [f"{path}.{key}: missing" for key in (real.keys() - other.keys()) & READ]
        for key in real.keys() & other.keys():
            found += differences(real[key], other[key], f"{path}.{key}")
        return sorted(found)
    if isinstance(real, list) and isinstance(other, list):
        found = [] if len(real) == len(other) else [f"{path}: {len(other)} and not {len(real)}"]
        for index, (left, right) in enumerate(zip(real, other, strict=False)):
            found += differences(left, right, f"{path}[{index}]")
        return found
    literal = path.rpartition(".")[2] in LITERAL or isinstance(real, bool)
    same = real == other if literal else type(real) is type(other)
    return [] if same else [f"{path}: {other!r} and not {real!r}"]
