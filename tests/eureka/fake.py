"""An Eureka registry in memory, without I/O: what pidone talks to where no Java is at hand.

It answers as Spring Cloud's Eureka server does (``test_eureka_servers.py`` asks both the same questions),
with simplifications: JSON only whatever the headers say, one node, no deltas, no response cache, no
self-preservation, and leases expire on the instant. It is stricter in one thing: metadata values that are
lists are refused; the server mangles them.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.registries.fakes import RefusalError, Request

Document = dict[str, Any]
Reply = tuple[int, bytes]

PREFIX = "/eureka/"
STATUSES = frozenset({"UP", "DOWN", "STARTING", "OUT_OF_SERVICE", "UNKNOWN"})
DATA_CENTER_CLASSES = frozenset(
    {"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "com.netflix.appinfo.MyDataCenterInfo"}
)
COPIED = (
    "instanceId",
    "hostName",
    "ipAddr",
    "vipAddress",
    "secureVipAddress",
    "homePageUrl",
    "statusPageUrl",
    "healthCheckUrl",
    "secureHealthCheckUrl",
    "asgName",
)


@dataclass(frozen=True, slots=True)
class _Call:
    names: tuple[str, ...]  # the path parts that are names: app, instance id, vip
    query: dict[str, str]
    body: bytes
    now: float
    target: str


@dataclass(slots=True)
class _Lease:
    document: Document
    duration: int
    registered: float
    touched: float
    up_since: float

    @property
    def dirty(self) -> int:
        return int(self.document["lastDirtyTimestamp"])

    def renew(self, now: float) -> None:
        # Adding the duration here and once more in ``expired`` is the upstream bug that stays: a lease which
        # was renewed lasts twice as long as it says (the comment is in Netflix's Lease.java).
        self.touched = now + self.duration

    def expired(self, now: float) -> bool:
        return now > self.touched + self.duration

    def read(self) -> Document:
        """The document as a GET shows it."""
        timing = self.document["leaseInfo"] | {
            "registrationTimestamp": _milliseconds(self.registered),
            "lastRenewalTimestamp": _milliseconds(self.touched),
            "evictionTimestamp": 0,
            "serviceUpTimestamp": _milliseconds(self.up_since),
        }
        return self.document | {"leaseInfo": timing}


class FakeEureka:
    """A registry that starts empty. One object is one server; it never looks at the clock.

    Source: the answers of a Spring Cloud Eureka server, and ``AbstractInstanceRegistry``, ``Lease`` and the
    ``...OverrideRule`` classes of Netflix/eureka.
    """

    def __init__(self, *, log_size: int = 10_000) -> None:
        self.log: deque[Request] = deque(maxlen=log_size)
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._overrides: dict[str, str] = {}  # by instance id alone, as in the server

    def clear(self) -> None:
        """Forget every instance and override, as a restart does. The log is the test's and stays."""
        self._leases.clear()
        self._overrides.clear()

    def handle(self, method: str, target: str, body: bytes, now: float) -> tuple[int, dict[str, str], bytes]:
        """Answer one request: status, headers and body.

        ``target`` is the raw request target with its query; ``now`` is seconds since the epoch and must not
        run backwards. Whatever is wrong with a request is an answer (400, 404, 405, 500), not an exception.
        """
        try:
            status, answer = self._answer(method, target, body, now)
        except RefusalError as refusal:
            status, answer = refusal.status, refusal.reason.encode()
        self.log.append(Request(method, target, body, status, now))
        return status, {"content-type": "application/json"} if answer else {}, answer

    def _answer(self, method: str, target: str, body: bytes, now: float) -> Reply:
        path, _, query = target.partition("?")
        if "%2f" in path.lower():
            raise RefusalError(400, "an encoded slash in a path")  # Tomcat does not let it through
        if not path.startswith(PREFIX):
            raise _not_found(target)
        parts = [unquote(part) for part in path.removeprefix(PREFIX).rstrip("/").split("/")]
        shape = "/".join(part if place in {0, 3} else "*" for place, part in enumerate(parts))
        route = ROUTES.get((method, shape))
        if route is None:
            known = any(shape == known_shape for _, known_shape in ROUTES)
            raise _error(405, "Method Not Allowed", target) if known else _not_found(target)
        for key in [key for key, lease in self._leases.items() if lease.expired(now)]:
            self._forget(key)
        pairs = dict(parse_qsl(query, keep_blank_values=True))
        return route(self, _Call(tuple(parts[1:3]), pairs, body, now, target))

    def _register(self, call: _Call) -> Reply:
        app = call.names[0].upper()
        document = _read_document(call.body, call.now)
        _check_document(document, app)
        duration = document["leaseInfo"]["durationInSecs"]
        instance_id = document.get("instanceId") or document["hostName"]
        old = self._leases.get((app, instance_id))
        if old and old.dirty > int(document["lastDirtyTimestamp"]):
            document = old.document  # an older document is not believed, and the answer does not say so
        if document["overriddenStatus"] != "UNKNOWN":
            self._overrides.setdefault(instance_id, document["overriddenStatus"])
        document["overriddenStatus"] = self._overrides.get(instance_id, document["overriddenStatus"])
        document["status"] = self._status(document, instance_id, old)
        document["actionType"] = "ADDED"
        document["lastUpdatedTimestamp"] = str(_milliseconds(call.now))
        # a new lease, not a renewed one: a POST takes back what earlier heartbeats had added
        self._leases[app, instance_id] = _Lease(
            document,
            duration,
            registered=call.now,
            touched=call.now,
            up_since=old.up_since if old else call.now,
        )
        return 204, b""

    def _status(self, document: Document, instance_id: str, lease: _Lease | None) -> str:
        """Which status is believed: the first rule that matches."""
        said: str = document["status"]
        if said not in {"UP", "OUT_OF_SERVICE"}:
            return said
        if instance_id in self._overrides:
            return self._overrides[instance_id]
        if lease and lease.document["status"] in {"UP", "OUT_OF_SERVICE"}:
            kept: str = lease.document["status"]
            return kept
        return said

    def _heartbeat(self, call: _Call) -> Reply:
        lease = self._found(call)
        status = self._status(lease.document, call.names[1], lease)
        if status == "UNKNOWN":
            raise _not_found(call.target)
        lease.document["status"] = status
        lease.renew(call.now)
        if _number(call, "lastDirtyTimestamp") > lease.dirty:
            raise _not_found(call.target)  # "send me your newer document"; the lease is renewed all the same
        return 200, b""

    def _leave(self, call: _Call) -> Reply:
        self._found(call)
        self._forget((call.names[0].upper(), call.names[1]))
        return 200, b""

    def _override(self, call: _Call) -> Reply:
        lease = self._found(call)
        status = _status_word(call, call.query.get("value", ""))
        dirty = _number(call, "lastDirtyTimestamp")
        lease.renew(call.now)
        if status != lease.document["status"]:
            self._overrides[call.names[1]] = status
            lease.document |= {"status": status, "overriddenStatus": status, "actionType": "MODIFIED"}
            lease.document["lastDirtyTimestamp"] = str(max(dirty, lease.dirty))
        return 200, b""

    def _lift_override(self, call: _Call) -> Reply:
        lease = self._found(call)
        status = _status_word(call, call.query.get("value", "UNKNOWN"))
        lease.renew(call.now)
        if self._overrides.pop(call.names[1], None):
            lease.document |= {"status": status, "overriddenStatus": "UNKNOWN", "actionType": "MODIFIED"}
        return 200, b""

    def _add_metadata(self, call: _Call) -> Reply:
        self._found(call).document["metadata"] |= call.query
        return 200, b""

    def _read_instance(self, call: _Call) -> Reply:
        return 200, _json({"instance": self._found(call).read()})

    def _read_instance_of_any_app(self, call: _Call) -> Reply:
        for (_, instance_id), lease in self._leases.items():
            if instance_id == call.names[0]:
                return 200, _json({"instance": lease.read()})
        raise _not_found(call.target)

    def _read_app(self, call: _Call) -> Reply:
        app = call.names[0].upper()
        leases = [lease.read() for (name, _), lease in self._leases.items() if name == app]
        if not leases:
            raise _not_found(call.target)
        return 200, _json({"application": {"name": app, "instance": leases}})

    def _read_apps(self, _: _Call) -> Reply:
        return 200, _applications("1", self._leases.values())

    def _read_vip(self, call: _Call) -> Reply:
        def has(lease: _Lease) -> bool:
            return call.names[0] in lease.document.get("vipAddress", "").split(",")

        return 200, _applications("-1", filter(has, self._leases.values()))

    def _found(self, call: _Call) -> _Lease:
        app, instance_id = call.names
        lease = self._leases.get((app.upper(), instance_id))
        if lease is None:
            raise _not_found(call.target)
        return lease

    def _forget(self, key: tuple[str, str]) -> None:
        del self._leases[key]
        self._overrides.pop(key[1], None)


ROUTES: dict[tuple[str, str], Callable[[FakeEureka, _Call], Reply]] = {
    ("GET", "apps"): FakeEureka._read_apps,
    ("GET", "apps/*"): FakeEureka._read_app,
    ("POST", "apps/*"): FakeEureka._register,
    ("GET", "apps/*/*"): FakeEureka._read_instance,
    ("PUT", "apps/*/*"): FakeEureka._heartbeat,
    ("DELETE", "apps/*/*"): FakeEureka._leave,
    ("PUT", "apps/*/*/status"): FakeEureka._override,
    ("DELETE", "apps/*/*/status"): FakeEureka._lift_override,
    ("PUT", "apps/*/*/metadata"): FakeEureka._add_metadata,
    ("GET", "instances/*"): FakeEureka._read_instance_of_any_app,
    ("GET", "vips/*"): FakeEureka._read_vip,
}


def _read_document(body: bytes, now: float) -> Document:
    """What the server keeps of a POST body: known fields and defaults; 400 where its parser gives up."""
    try:
        sent = json.loads(body)["instance"]
        document: Document = {name: str(sent[name]) for name in COPIED if sent.get(name) is not None}
        dirty = sent.get("lastDirtyTimestamp", _milliseconds(now))
        lease = sent.get("leaseInfo") or {}
        status = sent.get("status", "UP")
        overridden = sent.get("overriddenstatus") or sent.get("overriddenStatus")
        return document | {
            "app": str(sent["app"]).upper(),
            "status": status if status in STATUSES else "UNKNOWN",
            "overriddenStatus": overridden if overridden in STATUSES else "UNKNOWN",
            "port": _read_port(sent.get("port"), 7001, enabled=True),
            "securePort": _read_port(sent.get("securePort"), 7002, enabled=False),
            "countryId": int(sent.get("countryId", 1)),
            "dataCenterInfo": _read_data_center(sent.get("dataCenterInfo")),
            "leaseInfo": {
                "renewalIntervalInSecs": _positive(lease.get("renewalIntervalInSecs"), 30),
                "durationInSecs": _positive(lease.get("durationInSecs"), 90),
            },
            "metadata": {key: _read_scalar(value) for key, value in (sent.get("metadata") or {}).items()},
            "isCoordinatingDiscoveryServer": "false",
            "lastDirtyTimestamp": str(dirty) if str(dirty).isdecimal() else "0",
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RefusalError(400, '{"error": "cannot parse request body"}') from error


def _check_document(document: Document, app: str) -> None:
    """400 with a plain reason, the first that applies."""
    name = document["app"]
    data_center = document["dataCenterInfo"]
    for wrong, reason in (
        (not (document.get("instanceId") or document.get("hostName")), "Missing instanceId"),
        (not document.get("hostName"), "Missing hostname"),
        (not document.get("ipAddr"), "Missing ip address"),
        (not name, "Missing appName"),
        (name != app, f"Mismatched appName, expecting {app} but was {name}"),
        (data_center is None, "Missing dataCenterInfo"),
        (data_center and not data_center.get("name"), "Missing dataCenterInfo Name"),
    ):
        if wrong:
            raise RefusalError(400, reason)


def _read_port(port: Any, default: int, *, enabled: bool) -> Document:
    if port is None:
        return {"$": default, "@enabled": str(enabled).lower()}
    number = str(port.get("$", default))
    return {
        "$": int(number) if number.isdecimal() else 0,
        "@enabled": str(port.get("@enabled", enabled)).lower(),
    }


def _read_data_center(info: Any) -> Document | None:
    if info is None:
        return None
    name = info.get("name")
    if info["@class"] not in DATA_CENTER_CLASSES or name not in {None, "MyOwn", "Amazon", "Netflix"}:
        raise ValueError(info)
    return {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": name}


def _read_scalar(value: Any) -> str:
    if isinstance(value, dict | list):
        raise TypeError(value)
    return str(value)


def _positive(value: Any, default: int) -> int:
    return int(value) if value is not None and int(value) > 0 else default


def _number(call: _Call, name: str) -> int:
    text = call.query.get(name, "0")
    if not text.isdecimal():
        raise _error(500, "Internal Server Error", call.target)
    return int(text)


def _status_word(call: _Call, word: str) -> str:
    if word not in STATUSES:
        raise _error(500, "Internal Server Error", call.target)
    return word


def _error(status: int, error: str, target: str) -> RefusalError:
    path = target.partition("?")[0]
    return RefusalError(status, _json({"status": status, "error": error, "path": path}).decode())


def _not_found(target: str) -> RefusalError:
    return _error(404, "Not Found", target)


def _applications(version: str, leases: Iterable[_Lease]) -> bytes:
    apps: dict[str, list[Document]] = {}
    counts = Counter[str]()
    for lease in leases:
        apps.setdefault(lease.document["app"], []).append(lease.read())
        counts[lease.document["status"]] += 1
    found = [{"name": name, "instance": instances} for name, instances in apps.items()]
    code = "".join(f"{status}_{count}_" for status, count in sorted(counts.items()))
    document = {"versions__delta": version, "apps__hashcode": code, "application": found}
    return _json({"applications": document})


def _json(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
