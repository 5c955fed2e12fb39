"""Answers people and Prometheus: expected and reported plans of pods, and scrape targets."""

import hashlib
import json
import re
from dataclasses import asdict
from math import inf
from typing import Any

import trio

from pidone.http import negotiation
from pidone.http.message import JSON, Request, Response, text_response
from pidone.http.urls import authority
from pidone.plan.digest import digest
from pidone.plan.mask import masked_tasks
from pidone_controller.pods.model import Pod
from pidone_controller.repo.callers import Readers
from pidone_controller.repo.plans import Plans, in_slices

PODS_PATH = "/v1/pods"
TARGETS_PATH = "/v1/prometheus/targets"

# Prometheus asks once a minute. Any number of servers, and of replicas of them, share one list.
TARGETS_FRESH_SECONDS = 5.0

_NO_TASKS = digest([])
_NO_LABEL = re.compile("[^a-zA-Z0-9_]")  # characters of a pod's label that Prometheus' names do not have


class Inspection:
    """Answers ``GET /v1/pods`` and ``GET /v1/prometheus/targets`` to clients that ``readers`` allows."""

    def __init__(self, plans: Plans, readers: Readers) -> None:
        self._plans, self._readers = plans, readers
        self._targets: list[tuple[str, str]] = []  # the namespace of each pod, and its target as JSON
        self._targets_at = -inf
        self._listing = trio.Lock()

    async def pods(self, request: Request, *, secure: bool) -> Response:
        """Answer ``GET /v1/pods``, ``/v1/pods/<namespace>`` and ``/v1/pods/<namespace>/<name>``."""
        namespace, _, name = request.path.removeprefix(PODS_PATH).strip("/").partition("/")
        refusal = await self._readers.refusal(request, namespace, name, secure=secure)
        if refusal:
            return refusal

        inventory = self._plans.inventory
        if name:
            pod = inventory.find(namespace, name)
            if pod is None or not pod.served:
                return text_response(
                    404, f"there is no live pod {namespace}/{name} with an address of its own"
                )
            return _json(self._details(pod))

        pods = [pod for pod in inventory if pod.served and namespace in {"", pod.namespace}]
        pods.sort(key=lambda pod: (pod.namespace, pod.name))
        summaries = [json.dumps(self._summary(pod), indent=2) async for pod in in_slices(pods)]
        return Response(200, {"content-type": JSON}, f'{{"pods": [{", ".join(summaries)}]}}\n'.encode())

    async def targets(self, request: Request, *, secure: bool) -> Response:
        """Answer ``GET /v1/prometheus/targets`` and ``/v1/prometheus/targets/<namespace>`` with the targets to scrape.

        https://prometheus.io/docs/prometheus/latest/http_sd/
        """
        namespace = request.path.removeprefix(TARGETS_PATH).strip("/")
        if "/" in namespace:
            return text_response(404, f"the path is {TARGETS_PATH} or {TARGETS_PATH}/<namespace>")
        refusal = await self._readers.refusal(request, namespace, secure=secure)
        if refusal:
            return refusal

        async with self._listing:
            if trio.current_time() - self._targets_at >= TARGETS_FRESH_SECONDS:
                self._targets = await self._list_targets()
                self._targets_at = trio.current_time()
            targets = [target for its, target in self._targets if namespace in {"", its}]
        body = ("[" + ",\n ".join(targets) + "]\n").encode()
        etag = f'"sha256-{hashlib.sha256(body).hexdigest()}"'
        headers = {"content-type": JSON, "etag": etag}
        if etag in negotiation.etags(request.headers.get("if-none-match", "")):
            return Response(304, headers)
        return Response(200, headers, body)

    async def _list_targets(self) -> list[tuple[str, str]]:
        """Return the namespace and the target of every pod whose plan has metrics, sorted by namespace and name."""
        targets = []
        async for pod in in_slices(list(self._plans.inventory)):
            if not pod.served or pod.terminating or not self._plans.is_bound(pod):
                continue
            bundle = self._plans.entry(pod).bundle
            if bundle and bundle.metrics:
                targets.append((pod.namespace, pod.name, json.dumps(_target(pod, bundle.metrics))))
        return [(namespace, target) for namespace, _, target in sorted(targets)]

    def _details(self, pod: Pod) -> dict[str, Any]:
        entry, last, details = self._plans.entry(pod), self._plans.last_report(pod), self._summary(pod)
        details["tasks"] = masked_tasks(entry.bundle.tasks) if entry.bundle else []
        if last:
            report, received = last
            details["reported"] = {**asdict(report), "received": received}
        return details

    def _summary(self, pod: Pod) -> dict[str, Any]:
        report = self._plans.report(pod)
        expected, error = (_NO_TASKS, 0), ""
        if self._plans.is_bound(pod):
            entry = self._plans.entry(pod)
            error = entry.error
            expected = (entry.bundle.digest, entry.bundle.count) if entry.bundle else ("", 0)
        return {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "ips": list(pod.ips),
            "phase": "Terminating" if pod.terminating else pod.phase,
            "expected": {"digest": expected[0], "tasks": expected[1]} if expected[0] else None,
            "error": error or self._plans.withheld(pod),
            "reported": report
            and {
                "state": report.state,
                "digest": report.digest,
                "rejected": report.rejected,
                "error": report.error,
                "maintenance": report.maintenance,
                "snapshot": report.snapshot,
            },
        }


def _target(pod: Pod, port: int) -> dict[str, Any]:
    """Return one target group. Prometheus drops ``__meta_*`` after relabeling; the other labels are on each series."""
    meta = {f"__meta_pidone_pod_label_{_NO_LABEL.sub('_', name)}": text for name, text in pod.labels.items()}
    labels = {
        "namespace": pod.namespace,
        "pod": pod.name,
        "node": pod.node_name,
        **meta,
        "__meta_pidone_pod_uid": pod.uid,
        "__meta_pidone_pod_ip": pod.ips[0],
        "__meta_pidone_pod_phase": pod.phase,
    }
    return {"targets": [authority(pod.ips[0], port)], "labels": labels}


def _json(value: object) -> Response:
    return Response(200, {"content-type": JSON}, json.dumps(value, indent=2).encode() + b"\n")
