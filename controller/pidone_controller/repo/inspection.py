"""Answers people and Prometheus: expected and reported plans of pods, and scrape targets."""

import json
from dataclasses import asdict
from typing import Any

from pidone.http.message import JSON, Request, Response, text_response
from pidone.http.urls import authority
from pidone.plan.digest import digest
from pidone.plan.mask import masked_tasks
from pidone_controller.pods.model import Pod
from pidone_controller.repo.callers import Readers
from pidone_controller.repo.plans import Plans, in_slices

PODS_PATH = "/v1/pods"
TARGETS_PATH = "/v1/prometheus/targets"

_NO_TASKS = digest([])


class Inspection:
    """Answers ``GET /v1/pods`` and ``GET /v1/prometheus/targets`` to clients that ``readers`` allows."""

    def __init__(self, plans: Plans, readers: Readers) -> None:
        self._plans, self._readers = plans, readers

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
        """Return all scrape targets: https://prometheus.io/docs/prometheus/latest/http_sd/."""
        refusal = await self._readers.refusal(request, secure=secure)
        if refusal:
            return refusal

        targets = []
        async for pod in in_slices(list(self._plans.inventory)):
            if not pod.served or pod.terminating or not self._plans.is_bound(pod):
                continue
            bundle = self._plans.entry(pod).bundle
            if bundle and bundle.metrics:
                labels = {
                    "namespace": pod.namespace,
                    "pod": pod.name,
                    "node": pod.node_name,
                    "uid": pod.uid,
                }
                targets.append({"targets": [authority(pod.ips[0], bundle.metrics)], "labels": labels})
        return _json(targets)

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
            },
        }


def _json(value: object) -> Response:
    return Response(200, {"content-type": JSON}, json.dumps(value, indent=2).encode() + b"\n")
