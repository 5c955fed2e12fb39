"""Pods as people have them: a manifest, or what ``kubectl get pods -o yaml`` (or json) prints; and their fields."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pidone.errors import LanguageError
from pidone.plan.model import Pod

_KEYED = re.compile(r"(metadata\.(?:labels|annotations))\['([^']+)'\]")


def read_pods(text: str) -> list[dict[str, Any]]:
    """The core/v1 Pod objects of a List, a PodList, or of Pods in a row.

    Raises ``LanguageError`` that says what stands where a pod should.
    """
    documents = [document for document in _documents(text) if document is not None]
    if not documents:
        raise LanguageError("empty; no pods at all are written as a List with items: []")
    return [pod for document in documents for pod in _items(document)]


def pod_facts(pod: Mapping[str, Any]) -> Pod:
    """What a pod is told about itself, from its object; missing fields are empty, the namespace is default."""
    return Pod(
        name=pod_field("metadata.name", pod) or "",
        namespace=pod_field("metadata.namespace", pod) or "",
        uid=pod_field("metadata.uid", pod) or "",
        ip=pod_field("status.podIP", pod) or "",
        node=pod_field("spec.nodeName", pod) or "",
    )


def shown_pod(pod: Mapping[str, Any]) -> str:
    """``pod shop/web``."""
    return f"pod {pod_field('metadata.namespace', pod)}/{pod_field('metadata.name', pod) or '?'}"


def pod_field(path: str, pod: Mapping[str, Any]) -> str | None:
    """A field of a core/v1 Pod object, by a path as the Downward API writes it; None where it has none.

    Lists are written as the Downward API writes them, with commas between. Without a namespace it is
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
    """The objects of a list; what is no list, or no object, is passed over, as a Pod may be hand-written."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def place(path: str) -> str:
    """What a path of the Downward API leads to, in words: ``label "app"``."""
    keyed = _KEYED.fullmatch(path)
    if keyed is None:
        return path
    return f'{"label" if keyed.group(1).endswith("labels") else "annotation"} "{keyed.group(2)}"'


def _documents(text: str) -> list[Any]:
    if text.lstrip().startswith("{"):  # JSON is YAML, and its own reader a hundred times as fast
        try:
            return [json.loads(text)]
        except (ValueError, RecursionError):
            pass  # {flow: mapping}, or an error that the YAML reader says better
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return list(YAML(typ="safe", pure=True).load_all(StringIO(text)))
    except (YAMLError, ValueError, RecursionError) as error:
        raise LanguageError(f"not YAML: {' '.join(str(error).split())}") from error


def _items(document: object) -> Iterable[dict[str, Any]]:
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
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.get("kind", "Pod") != "Pod":
            raise LanguageError(f"items[{index}] of the {kind}: expected a Pod, not {item!r:.40}")
    return items
