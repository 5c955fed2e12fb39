"""Pods as people have them: a manifest, or what ``kubectl get pods -o yaml`` (or json) prints."""

import json
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pidone.errors import LanguageError
from pidone.plan.model import Pod


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
    metadata = pod.get("metadata") or {}
    return Pod(
        name=str(metadata.get("name", "")),
        namespace=str(metadata.get("namespace", "default")),
        uid=str(metadata.get("uid", "")),
        ip=str((pod.get("status") or {}).get("podIP", "")),
        node=str((pod.get("spec") or {}).get("nodeName", "")),
    )


def _documents(text: str) -> list[Any]:
    if text.lstrip().startswith("{"):  # JSON is YAML, and its own reader a hundred times as fast
        try:
            return [json.loads(text)]
        except (ValueError, RecursionError):
            pass  # {flow: mapping}, or an error that the YAML reader says better
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
