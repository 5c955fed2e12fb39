"""Reads pods of manifests and of ``kubectl get pods -o yaml`` (or json), and their fields."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pidone.errors import LanguageError
from pidone.language import foreign
from pidone.language.foreign import decoded, parts
from pidone.plan.model import Pod

_BLANK = re.compile(r"[ \t\r\n]*")
_KEYED = re.compile(r"(metadata\.(?:labels|annotations))\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class PodProblem:
    """The reason why a pod of a file is left out."""

    text: str
    name: str = ""  # namespace/name; empty if it is not known


def read_pods(text: str | bytes) -> list[dict[str, Any]]:
    """Return the core/v1 Pod objects of a List, a PodList, or of Pods in a row.

    Raises ``LanguageError``, which names the value in the place of a pod.
    """
    pods, problems = read_inventory(text)
    for problem in problems:
        raise LanguageError(problem.text)
    return pods


def read_inventory(text: str | bytes) -> tuple[list[dict[str, Any]], list[PodProblem]]:
    """Return the Pod objects as in ``read_pods``, and why others are left out.

    Raises ``LanguageError`` if there are only problems.
    """
    text = decoded(text) if isinstance(text, bytes) else text
    pods: list[dict[str, Any]] = []
    problems: list[PodProblem] = []
    empty = True
    for document in _documents(text, problems):
        empty = False
        try:
            pods += _items(document, problems)
        except LanguageError as error:
            problems.append(PodProblem(str(error)))
    if empty and not problems:
        raise LanguageError("empty; no pods at all are written as a List with items: []")
    if problems and not pods:
        raise LanguageError(problems[0].text)
    return pods, problems


def pod_facts(pod: Mapping[str, Any]) -> Pod:
    """Return the facts of a pod from its object. Missing fields are empty, the namespace is ``default``."""
    return Pod(
        name=pod_field("metadata.name", pod) or "",
        namespace=pod_field("metadata.namespace", pod) or "",
        uid=pod_field("metadata.uid", pod) or "",
        ip=pod_field("status.podIP", pod) or "",
        node=pod_field("spec.nodeName", pod) or "",
    )


def shown_pod(pod: Mapping[str, Any]) -> str:
    """Return the pod for messages: ``pod shop/web``."""
    return f"pod {pod_field('metadata.namespace', pod)}/{pod_field('metadata.name', pod) or '?'}"


def pod_field(path: str, pod: Mapping[str, Any]) -> str | None:
    """Return a field of a core/v1 Pod object by its path in the Downward API; None if it is missing.

    Lists are joined by commas, as in the Downward API. Without a namespace it is
    ``default``, as for kubectl.
    """
    keyed = _KEYED.fullmatch(path)
    value: Any = pod
    for step in [*keyed.group(1).split("."), keyed.group(2)] if keyed else path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if path == "status.podIPs":
        addresses = [item.get("ip") for item in objects(value)] or [pod_field("status.podIP", pod)]
        return ",".join(str(address) for address in addresses if address) or None
    if path == "metadata.namespace":
        value = value or "default"
    return value if isinstance(value, str) and (value or keyed) else None


def objects(value: object) -> list[Mapping[str, Any]]:
    """Return the objects of a list. Values of other types are left out, since a Pod may be hand-written."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def place(path: str) -> str:
    """Return the name of a path of the Downward API for messages: ``label "app"``."""
    keyed = _KEYED.fullmatch(path)
    if keyed is None:
        return path
    return f'{"label" if keyed.group(1).endswith("labels") else "annotation"} "{keyed.group(2)}"'


def _documents(text: str, problems: list[PodProblem]) -> Iterator[Any]:
    """Yield the documents that are not empty."""
    if text.lstrip().startswith("{"):  # JSON is YAML, and its own reader a hundred times as fast
        try:
            yield from _json(text)
        except (ValueError, RecursionError):
            pass  # {flow: mapping}, or an error that the YAML reader says better
        else:
            return
    for lines, part in parts(text):
        try:
            document = foreign.value(part, lines=lines)
        except LanguageError as error:
            problems.append(PodProblem(f"not YAML: {error}"))
        else:
            if document is not None:
                yield document


def _json(text: str) -> list[Any]:
    """Return the values of a text of JSON; several stand one after the other."""
    decoder, values, end = json.JSONDecoder(), [], 0
    while (start := _BLANK.match(text, end).end()) < len(text):  # type: ignore[union-attr] # nothing is a match too
        value, end = decoder.raw_decode(text, start)
        values.append(value)
    return values


def _items(document: object, problems: list[PodProblem]) -> Iterable[dict[str, Any]]:
    if not isinstance(document, dict):
        raise LanguageError(f"expected a List or Pods, not {document!r:.40}")
    kind = str(document.get("kind", "a mapping without a kind"))
    if kind == "Pod":
        return [document]
    if kind not in {"List", "PodList"}:
        raise LanguageError(f"expected a List or Pods, not {kind}")
    items = document.get("items", [])
    if not isinstance(items, list):
        raise LanguageError(f"items of the {kind}: expected a list")
    pods = []
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("kind", "Pod") == "Pod":
            pods.append(item)
        else:
            problems.append(PodProblem(f"items[{index}] of the {kind}: expected a Pod, not {item!r:.40}"))
    return pods
