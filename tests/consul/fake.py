"""A Consul agent in memory, without I/O: the calls of the agent that pidone makes, and what clients and operators ask.

It answers as an agent does; ``test_consul_server.py`` asks it and a real one the same questions. ``old`` agents, such
as 1.8, answer some calls with other codes. Simplifications: one node, no other agents, no sidecars,
no checks that the agent runs itself.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.registries.fakes import RefusalError, Request

Document = dict[str, Any]
Reply = tuple[int, bytes]

PREFIX = "/v1/"
NODE = "node-1"
PASSING, WARNING, CRITICAL, MAINTENANCE = "passing", "warning", "critical", "maintenance"
STATUSES = (PASSING, WARNING, CRITICAL)
REAPER_SECONDS = 30.0  # between two looks for services that have been critical for too long
LEAST_REAP_SECONDS = 60.0  # check_deregister_interval_min
NO_REASON = (
    "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."
)
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_DURATION = re.compile(r"[-+]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|ms|s|m|h))+|0")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_CHECK = {
    "CheckID": str, "Name": str, "Status": str, "Notes": str, "TTL": "duration", "HTTP": str, "TCP": str,
    "Interval": "duration", "Timeout": "duration", "DeregisterCriticalServiceAfter": "duration",
    "SuccessBeforePassing": int, "FailuresBeforeCritical": int, "TLSSkipVerify": bool, "Method": str,
}  # fmt: skip
_SERVICE = {
    "ID": str, "Name": str, "Address": str, "Port": int, "Tags": [str], "Meta": {"*": str}, "Kind": str,
    "EnableTagOverride": bool, "Weights": {"Passing": int, "Warning": int}, "Check": _CHECK, "Checks": [_CHECK],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Call:
    names: tuple[str, ...]
    query: dict[str, str]
    body: bytes
    now: float
    token: str


@dataclass(slots=True)
class _Check:
    id: str
    name: str
    service: str
    status: str
    notes: str = ""
    output: str = ""
    ttl: float = 0.0  # none
    until: float = inf
    reap: float = inf
    critical_since: float = inf

    def set(self, status: str, output: str, now: float) -> None:
        if status != CRITICAL:
            self.critical_since = inf
        elif self.status != CRITICAL or self.critical_since == inf:
            self.critical_since = now
        self.status, self.output = status, output


@dataclass(slots=True)
class _State:
    services: dict[str, Document] = field(default_factory=dict)
    checks: dict[str, _Check] = field(default_factory=dict)
    saved: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # status, output and end, by check


class FakeConsul:
    """One agent. It never looks at the clock."""

    def __init__(
        self, *, old: bool = False, tokens: Mapping[str, Iterable[str]] | None = None, log_size: int = 10_000
    ) -> None:
        self.old = old
        # The services that each token may write; None without ACLs
        self.tokens = None if tokens is None else {token: set(names) for token, names in tokens.items()}
        self.log: deque[Request] = deque(maxlen=log_size)
        self._state = _State()
        self._reaped = 0.0  # when the reaper looked last

    def restart(self, now: float, *, empty: bool) -> None:
        """Begin again with the data directory, or without one."""
        self._advance(now)
        state, self._state = self._state, _State()
        self._reaped = now
        if empty:
            return
        self._state.services, self._state.saved = state.services, state.saved
        for check in state.checks.values():
            status, output, end = state.saved.get(check.id, (CRITICAL, "", 0.0))
            kept = check.ttl == 0 or end <= now
            check.set(CRITICAL if kept else status, "" if kept else output, now)
            check.until = now + check.ttl if check.ttl else inf
            self._state.checks[check.id] = check

    def handle(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one request: status, headers and body. ``now`` is in seconds and must not run backwards."""
        if self._reaped == 0.0:
            self._reaped = now
        try:
            status, answer = self._answer(method, target, headers, body, now)
        except RefusalError as refusal:
            status, answer = refusal.status, refusal.reason.encode()
        self.log.append(Request(method, target, body, status, now))
        kind = "application/json" if answer.startswith((b"{", b"[")) else "text/plain; charset=utf-8"
        return status, {"content-type": kind} if answer else {}, answer

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes, now: float) -> Reply:
        self._advance(now)
        path, _, query = target.partition("?")
        if not path.startswith(PREFIX):
            raise RefusalError(
                404, "" if self.old else "Invalid URL path: not a recognized HTTP API endpoint"
            )
        asked = path.removeprefix(PREFIX)
        for (verb, shape), route in ROUTES.items():
            if found := re.fullmatch(shape.replace("*", "(.+)"), asked):
                if verb != method:
                    raise RefusalError(405, f"method {method} not allowed")
                bearer = headers.get("authorization", "").removeprefix("Bearer ")
                token = headers.get("x-consul-token", bearer)
                names = tuple(unquote(name) for name in found.groups())
                pairs = dict(parse_qsl(query, keep_blank_values=True))
                return route(self, _Call(names, pairs, body, now, token))
        raise RefusalError(404, "" if self.old else "Invalid URL path: not a recognized HTTP API endpoint")

    def _advance(self, now: float) -> None:
        """Let checks expire, and take out what has been critical for too long."""
        while self._reaped + REAPER_SECONDS <= now:
            self._reaped += REAPER_SECONDS
            self._expire(self._reaped)
            for check in list(self._state.checks.values()):
                if self._reaped - check.critical_since > check.reap and check.service in self._state.services:
                    self._remove(check.service)
        self._expire(now)

    def _expire(self, now: float) -> None:
        for check in self._state.checks.values():
            if now > check.until:
                last = f" (last output before timeout follows): {check.output}" if check.output else ""
                check.set(CRITICAL, f"TTL expired{last}", check.until)
                check.until = inf

    def _remove(self, service: str) -> None:
        self._state.services.pop(service, None)
        for key, check in list(self._state.checks.items()):
            if check.service == service:
                del self._state.checks[key]
                self._state.saved.pop(key, None)

    # access

    def _may_write(self, call: _Call, name: str) -> None:
        names = self._granted(call)
        if names is not None and name not in names and "*" not in names:
            raise RefusalError(403, "Permission denied")

    def _granted(self, call: _Call) -> set[str] | None:
        if self.tokens is None:
            return None
        if call.token and call.token not in self.tokens:
            raise RefusalError(403, "ACL not found")
        return self.tokens.get(call.token, set())

    # calls

    def _register(self, call: _Call) -> Reply:
        document = _decoded(call.body, _SERVICE)
        name = document.get("Name", "")
        if not name:
            raise RefusalError(400, "Missing service name")
        _check_meta(document.get("Meta") or {})
        weights = document.setdefault("Weights", {"Passing": 1, "Warning": 1})
        if weights.get("Passing", 0) < 1:
            raise RefusalError(400, "Invalid Weights: Passing must be greater than 0")
        kinds = [document.pop("Check", None), *(document.pop("Checks", None) or ())]
        checks = [check for check in kinds if check is not None]
        for check in checks:
            _check_type(check)
        key = document.setdefault("ID", name) or name
        document["ID"] = key
        self._may_write(call, name)
        if key in self._state.services:
            self._may_write(call, self._state.services[key]["Name"])

        old = {check.id for check in self._state.checks.values() if check.service == key}
        new = set()
        for number, check in enumerate(checks, 1):
            default = f"service:{key}" + (f":{number}" if len(checks) > 1 else "")
            made = self._made(check, check.get("CheckID") or default, document, call.now)
            self._state.checks[made.id] = made
            new.add(made.id)
        if call.query.get("replace-existing-checks") in {"", "true"}:
            for gone in old - new:
                del self._state.checks[gone]
        self._state.services[key] = document
        return 200, b""

    def _made(self, check: Document, key: str, document: Document, now: float) -> _Check:
        """Return the check of a document, with the status that it had before."""
        name = check.get("Name") or f"Service '{document['Name']}' check"
        made = _Check(key, name, document["ID"], CRITICAL, notes=check.get("Notes", ""))
        made.set(check.get("Status") or CRITICAL, "", now)
        before = self._state.checks.get(key)
        if before is not None and before.service == document["ID"]:
            made.critical_since = before.critical_since
            made.set(before.status, before.output, now)
        status, output, end = self._state.saved.get(key, ("", "", 0.0))
        if end > now:
            made.set(status, output, now)
        made.ttl = check.get("TTL", 0.0)
        made.until = now + made.ttl if made.ttl else inf
        after = check.get("DeregisterCriticalServiceAfter", 0.0)
        made.reap = max(after, LEAST_REAP_SECONDS) if after else inf
        return made

    def _update(self, call: _Call, status: str, output: str) -> Reply:
        key = call.names[0]
        check = self._state.checks.get(key)
        self._granted(call)
        if check is None and not self.old:
            text = f'Unknown check ID "{key}". Ensure that the check ID is passed, not the check name.'
            raise RefusalError(404, text)
        if check is None and self.tokens is not None:
            raise RefusalError(500, f'Unknown check "{key}"')
        if check is not None and check.service in self._state.services:
            self._may_write(call, self._state.services[check.service]["Name"])
        if check is None or not check.ttl:
            raise RefusalError(500, f'CheckID "{key}" does not have associated TTL')
        check.set(status, output, call.now)
        check.until = call.now + check.ttl
        self._state.saved[key] = status, output, check.until
        return 200, b""

    def _pass(self, call: _Call) -> Reply:
        return self._update(call, PASSING, call.query.get("note", ""))

    def _warn(self, call: _Call) -> Reply:
        return self._update(call, WARNING, call.query.get("note", ""))

    def _fail(self, call: _Call) -> Reply:
        return self._update(call, CRITICAL, call.query.get("note", ""))

    def _update_check(self, call: _Call) -> Reply:
        wanted = _decoded(call.body, {"Status": str, "Output": str})
        if wanted.get("Status") not in STATUSES:
            raise RefusalError(400, f"Invalid check status: '{wanted.get('Status', '')}'")
        return self._update(call, wanted["Status"], wanted.get("Output", ""))

    def _maintenance(self, call: _Call) -> Reply:
        key = call.names[0]
        if "enable" not in call.query:
            raise RefusalError(400, "Missing value for enable")
        enable = call.query["enable"]
        if enable not in {"true", "false", "1", "0"}:
            raise RefusalError(400, f'Invalid value for enable: "{enable}"')
        self._vet(call, key)
        if key not in self._state.services:
            raise RefusalError(404, f'No service registered with ID "{key}"')
        check = f"_service_maintenance:{key}"
        if enable in {"false", "0"}:
            self._state.checks.pop(check, None)
        elif check not in self._state.checks:
            notes = call.query.get("reason") or NO_REASON
            self._state.checks[check] = _Check(check, "Service Maintenance Mode", key, CRITICAL, notes=notes)
        return 200, b""

    def _deregister(self, call: _Call) -> Reply:
        self._vet(call, call.names[0])
        self._remove(call.names[0])
        return 200, b""

    def _vet(self, call: _Call, key: str) -> None:
        """Refuse a change of a service that the token does not cover, or that is unknown where that is said."""
        service = self._state.services.get(key)
        self._granted(call)
        if service is not None:
            self._may_write(call, service["Name"])
        elif not self.old:
            text = f'Unknown service ID "{key}". Ensure that the service ID is passed, not the service name.'
            raise RefusalError(404, text)
        elif self.tokens is not None:
            raise RefusalError(500, f'Unknown service "{key}"')

    def _read_service(self, call: _Call) -> Reply:
        service = self._state.services.get(call.names[0])
        self._granted(call)
        if service is None:
            raise RefusalError(404, f"unknown service ID: {call.names[0]}")
        self._may_write(call, service["Name"])
        return 200, _json(_shown(service))

    def _read_health(self, call: _Call) -> Reply:
        service = self._state.services.get(call.names[0])
        self._granted(call)
        if service is None:
            return 404, _json({"AggregatedStatus": CRITICAL, "Service": None, "Checks": None})
        self._may_write(call, service["Name"])
        checks = [check for check in self._state.checks.values() if check.service == service["ID"]]
        status = _aggregate(checks)
        shown: Document = {"AggregatedStatus": status, "Service": _shown(service)}
        shown |= {"Checks": [self._shown_check(check) for check in checks]}
        return {PASSING: 200, WARNING: 429}.get(status, 503), _json(shown)

    def _read_name(self, call: _Call) -> Reply:
        """What clients ask."""
        entries = []
        for service in self._state.services.values():
            checks = [check for check in self._state.checks.values() if check.service == service["ID"]]
            if service["Name"] != call.names[0] or (
                "passing" in call.query and _aggregate(checks) != PASSING
            ):
                continue
            shown = [self._shown_check(check) for check in checks]
            entries.append({"Node": {"Node": NODE}, "Service": _shown(service), "Checks": shown})
        return 200, _json(entries)

    def _read_checks(self, call: _Call) -> Reply:
        self._granted(call)
        return 200, _json({check.id: self._shown_check(check) for check in self._state.checks.values()})

    def _register_check(self, call: _Call) -> Reply:
        document = _decoded(call.body, {**_CHECK, "ID": str, "ServiceID": str})
        _check_type(document)
        made = _Check(
            document.get("ID") or document["Name"], document["Name"], document.get("ServiceID", ""), CRITICAL
        )
        made.ttl, made.until = document.get("TTL", 0.0), inf
        made.set(document.get("Status") or CRITICAL, "", call.now)
        self._state.checks[made.id] = made
        return 200, b""

    def _deregister_check(self, call: _Call) -> Reply:
        self._state.checks.pop(call.names[0], None)
        self._state.saved.pop(call.names[0], None)
        return 200, b""

    def _shown_check(self, check: _Check) -> Document:
        service = self._state.services.get(check.service, {})
        return {
            "Node": NODE, "CheckID": check.id, "Name": check.name, "Status": check.status, "Notes": check.notes,
            "Output": check.output, "ServiceID": check.service, "ServiceName": service.get("Name", ""),
            "ServiceTags": service.get("Tags") or [],
        }  # fmt: skip


ROUTES: dict[tuple[str, str], Callable[[FakeConsul, _Call], Reply]] = {
    ("PUT", "agent/service/register"): FakeConsul._register,
    ("PUT", "agent/service/deregister/*"): FakeConsul._deregister,
    ("PUT", "agent/service/maintenance/*"): FakeConsul._maintenance,
    ("PUT", "agent/check/pass/*"): FakeConsul._pass,
    ("PUT", "agent/check/warn/*"): FakeConsul._warn,
    ("PUT", "agent/check/fail/*"): FakeConsul._fail,
    ("PUT", "agent/check/update/*"): FakeConsul._update_check,
    ("PUT", "agent/check/register"): FakeConsul._register_check,
    ("PUT", "agent/check/deregister/*"): FakeConsul._deregister_check,
    ("GET", "agent/service/*"): FakeConsul._read_service,
    ("GET", "agent/health/service/id/*"): FakeConsul._read_health,
    ("GET", "agent/checks"): FakeConsul._read_checks,
    ("GET", "health/service/*"): FakeConsul._read_name,
}


def _decoded(body: bytes, fields: Document) -> Document:
    """Return a body that Go's decoder takes, with durations in seconds; 400 with its words for any other."""
    try:
        value = json.loads(body)
    except ValueError:
        raise RefusalError(400, "Request decode failed: invalid character") from None
    decoded: Document = _typed(value, fields, "")
    return decoded


def _typed(value: Any, kind: Any, place: str) -> Any:
    if value is None:
        return None
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise _unfit(value, place)
        names = {name.lower(): name for name in kind}
        typed = {}
        for key, inner in value.items():
            name = key if "*" in kind else names.get(key.lower())
            if name is None:
                raise RefusalError(400, f'Request decode failed: json: unknown field "{key}"')
            typed[name] = _typed(inner, kind.get(name, kind.get("*")), f"{place}.{name}")
        return {name: inner for name, inner in typed.items() if inner is not None}
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _unfit(value, place)
        return [_typed(inner, kind[0], place) for inner in value]
    if kind == "duration":
        return _seconds(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _unfit(value, place)
    return value


def _unfit(value: Any, place: str) -> RefusalError:
    what = {str: "string", bool: "bool", dict: "object", list: "array"}.get(type(value), "number")
    text = f"Request decode failed: json: cannot unmarshal {what} into Go struct field {place}"
    return RefusalError(400, text)


def _seconds(value: Any) -> float:
    """Return a duration of Go in seconds: a text with units, or a number of nanoseconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1e9
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise RefusalError(400, f'Request decode failed: time: missing unit in duration "{value}"')
    parts = re.findall(r"([0-9.]+)(ns|us|ms|s|m|h)", value)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _check_type(check: Document) -> None:
    if check.get("Status", "") not in {"", *STATUSES}:
        raise RefusalError(400, "Status for checks must 'passing', 'warning', 'critical'")
    if not check.get("TTL") and not check.get("HTTP") and not check.get("TCP"):
        raise RefusalError(400, "Invalid check: TTL must be > 0 for TTL checks")
    if (check.get("HTTP") or check.get("TCP")) and not check.get("Interval"):
        raise RefusalError(400, "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks")


def _check_meta(meta: Mapping[str, str]) -> None:
    if len(meta) > 64:
        raise RefusalError(
            400, "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs"
        )
    for key, value in meta.items():
        why = (
            "Key cannot be blank" if not key
            else "Key is too long (limit: 128 characters)" if len(key) > 128
            else "Key contains invalid characters" if not _META_KEY.fullmatch(key)
            else "Key prefix 'consul-' is reserved for internal use" if key.startswith("consul-")
            else "Value is too long (limit: 512 characters)" if len(value.encode()) > 512
            else ""
        )  # fmt: skip
        if why:
            raise RefusalError(
                400, f"Invalid Service Meta: Couldn't load metadata pair ('{key}', '{value}'): {why}"
            )


def _aggregate(checks: Iterable[_Check]) -> str:
    found = list(checks)
    if any(check.id.startswith("_service_maintenance:") for check in found):
        return MAINTENANCE
    return max((check.status for check in found), key=STATUSES.index, default=PASSING)


def _shown(service: Document) -> Document:
    return {
        "ID": service["ID"], "Service": service["Name"], "Tags": service.get("Tags") or [],
        "Meta": service.get("Meta") or {}, "Port": service.get("Port", 0), "Address": service.get("Address", ""),
        "Weights": service["Weights"], "EnableTagOverride": service.get("EnableTagOverride", False),
    }  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
