"""Documents and answers of a Consul agent as values, typed and bounded, whatever a server answers."""

from collections.abc import Mapping
from math import floor
from typing import Any, NamedTuple

from pidone.http.message import Response
from pidone.http.urls import segment
from pidone.registries import Status
from pidone.registries._servers import MAX_SHOWN, Remedies, Trouble, is_page, json_object, printable

NOTES = "set by pidone"
MAINTENANCE_REASON = "maintenance by pidone"  # the note that tells our maintenance from an operator's
PASSING, CRITICAL, MAINTENANCE = "passing", "critical", "maintenance"
_ABSENT = "unknown service ID"  # Consul's word in an answer 404 to a GET
# Consul's words where it does not have the instance; which of them depends on version, call and ACLs
_GONE = (
    "Unknown check",
    "does not have associated TTL",
    "Unknown service",
    "No service registered with ID",
    _ABSENT,
)
_DENIED = ("Permission denied", "ACL not found")
# The beginnings of refusals of a document
_REFUSALS = ("Request decode failed", "Missing ", "Invalid ", "Status ", "Check ", "Service ")
_PLAIN_HTTP = "Client sent an HTTP request to an HTTPS server"
REMEDIES = Remedies(
    "a Consul agent",
    url="It ends before /v1, as http://host:8500",
    credentials="this is not Consul's refusal of a token; does a proxy want a user (http://user:password@host)?",
)


class Instance(NamedTuple):
    """Our document, ``api.AgentServiceRegistration``. Durations are in seconds."""

    name: str
    id: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    passing_weight: int
    warning_weight: int
    ttl: float
    deregister_after: float

    @property
    def resource(self) -> str:
        return f"service/{segment(self.id)}"

    @property
    def check(self) -> str:
        """The identifier of the check, which the agent makes."""
        return f"service:{self.id}"

    def document(self, status: Status) -> dict[str, Any]:
        """Return the body of a registration. What does not pass yet begins critical, so that no client gets it."""
        return {
            "ID": self.id,
            "Name": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Weights": {"Passing": self.passing_weight, "Warning": self.warning_weight},
            "Check": {
                "Name": "pidone",
                "Notes": NOTES,
                "TTL": _go_duration(self.ttl),
                "Status": PASSING if status is Status.UP else CRITICAL,
                "DeregisterCriticalServiceAfter": _go_duration(self.deregister_after),
            },
        }


class Copy(NamedTuple):
    """The agent's copy of our instance, as far as it is needed. Texts are bounded and printable."""

    address: str
    document: tuple[Any, ...]  # what ``essence`` makes of it
    check: str  # the status of our check; empty if the agent does not have it
    aggregate: str  # the status of the instance, of all its checks and those of the node
    maintenance: bool
    ours: bool  # maintenance of the instance that was set by pidone

    def status(self, wanted: Status) -> str:
        """Return the status that clients see: ``wanted`` if they see that."""
        if self.maintenance:
            return Status.OUT_OF_SERVICE
        if self.aggregate == CRITICAL and wanted is Status.STARTING:
            return wanted
        return {PASSING: str(Status.UP), CRITICAL: str(Status.DOWN)}.get(self.aggregate, self.aggregate)


def is_done(answer: Response) -> bool:
    """True if this 200 is Consul's, which has no body."""
    return answer.status == 200 and not answer.body.strip()


def is_gone(answer: Response) -> bool:
    """True if Consul says that it does not have the instance."""
    return answer.status in {404, 500} and not is_page(answer) and any(word in answer.text for word in _GONE)


def is_done_or_gone(answer: Response) -> bool:
    """True if Consul has done what was asked, or does not have the instance."""
    return is_done(answer) or is_gone(answer)


def is_absent(answer: Response) -> bool:
    """True if Consul says in an answer to ``GET service`` that it does not have the instance."""
    return answer.status == 404 and _ABSENT in answer.text


def copy_of(answer: Response, instance: Instance) -> Copy | None:
    """Return the agent's copy in an answer to ``GET health/service/id``; None if there is none.

    The answer's status depends on that of the instance: 200 passing, 429 warning, 503 critical or maintenance.
    Values of a wrong type are left out.
    """
    if answer.status not in {200, 429, 503}:
        return None
    found = json_object(answer)
    service, aggregate, checks = (found.get(name) for name in ("Service", "AggregatedStatus", "Checks"))
    if not isinstance(service, dict) or service.get("ID") != instance.id or not isinstance(aggregate, str):
        return None
    by_id = {
        str(check.get("CheckID", "")): check
        for check in (checks if isinstance(checks, list) else ())
        if isinstance(check, dict)
    }
    maintenance = by_id.get(f"_service_maintenance:{instance.id}", {})
    return Copy(
        address=_shown_text(service.get("Address")),
        document=essence(service),
        check=_shown_text(by_id.get(instance.check, {}).get("Status")),
        aggregate=_shown_text(aggregate),
        maintenance=aggregate == MAINTENANCE,
        ours=maintenance.get("Notes") == MAINTENANCE_REASON,
    )


def essence(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a document, of those that we send and of those that an agent shows."""
    name = document.get("Name", document.get("Service"))
    return (name, *(document.get(key) or None for key in ("Address", "Port", "Tags", "Meta", "Weights")))


def _shown_text(value: object) -> str:
    return printable(value)[:MAX_SHOWN] if isinstance(value, str) else ""


def _go_duration(seconds: float) -> str:
    """Return seconds as Go reads durations: ``30s``, ``1500ms``."""
    milliseconds = floor(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def trouble(answer: Response, *, name: str, with_token: bool, accepted: bool) -> Trouble:
    """Return the reason and the remedy for an answer that is no success. ``name`` is that of the service."""
    text = answer.text
    if answer.status == 403 and any(word in text for word in _DENIED):
        needed = f'service:write on "{name}"'
        reason = (
            f"the token is unknown, or it has no {needed}"
            if with_token
            else f"set token or tokenFile to a token with {needed}"
        )
        return Trouble(reason, refused=True)
    if answer.status == 400 and text.startswith(_REFUSALS):
        return Trouble("the registry does not accept the document", refused=True)
    if answer.status == 400 and _PLAIN_HTTP in text and not accepted:
        return Trouble("the agent wants https; write https:// in the URL", refused=True)
    return REMEDIES.foreign(answer, accepted=accepted)
