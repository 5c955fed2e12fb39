"""A Nacos server's HTTP API in memory, without I/O, in its three versions.

It answers as the servers do (``test_nacos_servers.py`` asks them and it the same questions), with simplifications: one
node, lists without delay, users that may do all or nothing, and what operators have set is kept for ever.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pidone.http.message import Request, Response

PREFIX = "/nacos/"
VERSIONS = {"2.3.2": ("v1", "v2"), "3.1.0": ("v1", "v3")}  # the APIs that the servers serve
_INSTANCE = {"v1": "v1/ns/instance", "v2": "v2/ns/instance", "v3": "v3/client/ns/instance"}
_ILLEGAL = {
    "serviceName": r"(?!@).((?!@@)[^\u4e00-\u9fa5\s])*",
    "groupName": r"[a-zA-Z0-9-_:\.]*",
    "namespaceId": r"[\w-]+",
    "clusterName": r"[0-9a-zA-Z-_]+",
}
_NAMES = {"groupName": "group", "namespaceId": "namespaceId/tenant", "clusterName": "cluster"}  # in messages
_TIMES = ("preserved.heart.beat.interval", "preserved.heart.beat.timeout", "preserved.ip.delete.timeout")
_DEFAULT_TIMES = (5000, 15_000, 30_000)

Key = tuple[str, str, str, str, int]  # namespace, group, service, ip, port


class _RefusalError(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, code: int, message: str, data: str) -> None:
        super().__init__(data)
        self.status, self.code, self.message, self.data = status, code, message, data


@dataclass(slots=True)
class _Instance:
    cluster: str
    weight: float
    enabled: bool
    ephemeral: bool
    metadata: dict[str, str]
    beat: float  # when it was renewed

    @property
    def times(self) -> tuple[int, ...]:
        """The interval of beats, and the times after which it is unhealthy and removed, in ms."""
        pairs = zip(_TIMES, _DEFAULT_TIMES, strict=True)
        return tuple(int(self.metadata.get(key, default)) for key, default in pairs)

    def overdue(self, now: float, time: int) -> bool:
        return self.ephemeral and now - self.beat > self.times[time] / 1000


@dataclass
class FakeNacos:
    """A server that starts empty. It never looks at the clock."""

    apis: Collection[str]
    users: dict[str, str] = field(default_factory=dict)  # passwords; without users nobody has to log in
    ttl: int = 18_000  # seconds that a token is valid
    log: list[tuple[str, str]] = field(default_factory=list)  # method and path of each request
    beat_interval: int = 5000
    broken: bool = False  # it answers beats as one that has lost the service

    def __post_init__(self) -> None:
        self.instances: dict[Key, _Instance] = {}
        self._set: dict[Key, dict[str, Any]] = {}  # by operators
        self._tokens: dict[str, float] = {}  # until when each is valid

    def clear(self) -> None:
        """Forget all instances, as a restart does."""
        self.instances.clear()

    def revoke_tokens(self) -> None:
        self._tokens.clear()

    def answer(self, request: Request, now: float) -> Response:
        path, _, query = request.target.partition("?")
        self.log.append((request.method, path.removeprefix(PREFIX)))
        form = "form" in request.headers.get("content-type", "")
        body = request.body.decode() if form else ""
        values = dict(parse_qsl(query, keep_blank_values=True) + parse_qsl(body, keep_blank_values=True))
        api = path.removeprefix(PREFIX).partition("/")[0]
        try:
            return self._answer(api, request, path.removeprefix(PREFIX), values, now)
        except _RefusalError as refusal:
            if not refusal.message:
                return Response(refusal.status, {}, refusal.data.encode())
            if api == "v1":
                return Response(
                    refusal.status, {"content-type": "text/plain;charset=UTF-8"}, refusal.data.encode()
                )
            return _json(
                {"code": refusal.code, "message": refusal.message, "data": refusal.data}, refusal.status
            )

    def _answer(self, api: str, request: Request, path: str, values: dict[str, str], now: float) -> Response:
        if path in {"v1/auth/login", "v3/auth/user/login"} and api in self.apis:
            return self._log_in(path, values, now)
        if (request.method, path) == ("PUT", "v3/admin/ns/instance") and "v3" in self.apis:
            return self._update("v3", values)
        if api not in self.apis or not path.startswith(_INSTANCE[api]):
            return _page(410 if api == "v2" and "v3" in self.apis else 404, path)
        if self.users and not self._may(request, values, now):
            return _page(403, path)
        _check(values)
        for key, instance in list(self.instances.items()):
            if instance.overdue(now, 2):
                del self.instances[key]
        return self._do(api, request.method, path, values, now)

    def _do(self, api: str, method: str, path: str, values: dict[str, str], now: float) -> Response:
        match method, path.removeprefix(_INSTANCE[api]):
            case "POST", "" if not (values.get("heartBeat") == "true" and api == "v3"):
                return self._register(api, values, now)
            case ("POST", "") | ("PUT", "/beat") if method == "POST" or api != "v3":
                return self._beat(api, values, now)
            case "PUT", "" if api != "v3":
                return self._update(api, values)
            case "DELETE", "":
                self.instances.pop(_key(api, values), None)
                return _ok(api)
            case "GET", "/list":
                return self._list(api, values, now)
        return _page(405, path)

    def _register(self, api: str, values: dict[str, str], now: float) -> Response:
        key = _key(api, values)
        instance = _Instance(
            cluster=values.get("clusterName") or values.get("cluster") or "DEFAULT",
            weight=float(values.get("weight", 1)),
            enabled=values.get("enabled") != "false",
            ephemeral=values.get("ephemeral") != "false",
            metadata=_metadata(values),
            beat=now,
        )
        if not 0 <= instance.weight <= 10_000:
            text = "instance format invalid: The weights range from 0.0 to 10000.0"
            raise _RefusalError(400, 21001, "weight error", text)
        interval, timeout, delete = instance.times
        if interval > timeout or interval > delete:
            text = (
                "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'."
            )
            raise _RefusalError(400, 21004, "instance error", text)
        kinds = {
            other.ephemeral for (*service, _, _), other in self.instances.items() if service == [*key[:3]]
        }
        if kinds - {instance.ephemeral}:
            was, new = ("persistent", "ephemeral") if instance.ephemeral else ("ephemeral", "persistent")
            raise _RefusalError(
                400,
                30_000,
                "server error",
                f"errCode: 400, errMsg: Current service {key[1]}@@{key[2]} is {was} service, "
                f"can't register {new} instance. ",
            )
        self.instances[key] = instance
        return _ok(api)

    def _update(self, api: str, values: dict[str, str]) -> Response:
        """Keep what an operator sets in the console."""
        enabled, weight = values.get("enabled") != "false", float(values.get("weight", 1))
        self._set[_key(api, values)] = {"enabled": enabled, "weight": weight}
        return _ok(api)

    def _beat(self, api: str, values: dict[str, str], now: float) -> Response:
        if api == "v2" and "@@" not in values["serviceName"]:
            text = "Param 'serviceName' is illegal, it should be format as 'groupName@@serviceName'"
            raise _RefusalError(400, 20_002, "parameter validate error", text)
        instance = self.instances.get(_key(api, values))
        known = instance is not None and instance.ephemeral
        if self.broken:
            raise _RefusalError(500, 30_000, "server error", "service not found: G@@web@public")
        if known:
            assert instance is not None
            instance.beat = now
        if api == "v3":
            return (
                _ok(api) if known else _json({"code": 21_003, "message": "instance not found", "data": None})
            )
        interval = self.beat_interval
        if instance is not None and _TIMES[0] in instance.metadata:
            interval = instance.times[0]
        code = 10_200 if known else 20_404
        return _json({"clientBeatInterval": interval, "code": code, "lightBeatEnabled": True})

    def _list(self, api: str, values: dict[str, str], now: float) -> Response:
        service = _key(api, values | {"ip": "", "port": "0"})[:3]
        clusters = values.get("clusters" if api == "v1" else "clusterName", "")
        clusters = clusters or ("DEFAULT" if api == "v3" else "")
        hosts = [self._host(key, now) for key in self.instances if key[:3] == service]
        hosts = [
            host
            for host in hosts
            if host["enabled"] and (not clusters or host["clusterName"] in clusters.split(","))
        ]
        if values.get("healthyOnly") == "true":
            hosts = [host for host in hosts if host["healthy"]]
        name = f"{service[1]}@@{service[2]}"
        whole = {"name": name, "groupName": service[1], "clusters": clusters, "hosts": hosts}
        if api == "v1":
            return _json(whole)
        return _json({"code": 0, "message": "success", "data": whole if api == "v2" else hosts})

    def _host(self, key: Key, now: float) -> dict[str, Any]:
        instance = self.instances[key]
        times = zip(
            ("instanceHeartBeatInterval", "instanceHeartBeatTimeOut", "ipDeleteTimeout"),
            instance.times,
            strict=True,
        )
        return {
            "ip": key[3],
            "port": key[4],
            "weight": instance.weight,
            "healthy": not instance.overdue(now, 1),
            "enabled": instance.enabled,
            "ephemeral": instance.ephemeral,
            "clusterName": instance.cluster,
            "serviceName": f"{key[1]}@@{key[2]}",
            "metadata": instance.metadata,
            **dict(times),
            **self._set.get(key, {}),
        }

    def _log_in(self, path: str, values: dict[str, str], now: float) -> Response:
        if not self.users:
            return _json({"code": 200, "message": None, "data": "Bearer AUTH_DISABLED"})
        user, password = values.get("username", ""), values.get("password", "")
        if self.users.get(user) != password:
            return _page(403, path)
        token = f"token-{len(self.log)}"
        self._tokens[token] = now + self.ttl
        return _json({"accessToken": token, "tokenTtl": self.ttl, "globalAdmin": False, "username": user})

    def _may(self, request: Request, values: dict[str, str], now: float) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        token = bearer or request.headers.get("accesstoken") or values.get("accessToken", "")
        return now < self._tokens.get(token, 0.0)


def _key(api: str, values: dict[str, str]) -> Key:
    for name, kind in (("serviceName", "String"), ("ip", "String"), ("port", "Integer")):
        if name not in values:
            text = f"Required parameter '{name}' type {kind} is not present"
            raise _RefusalError(400, 10_000, "parameter missing", text)
    group, _, service = values["serviceName"].rpartition("@@")
    group = group or values.get("groupName") or "DEFAULT_GROUP"
    return values.get("namespaceId") or "public", group, service, values["ip"], int(values["port"])


def _check(values: dict[str, str]) -> None:
    """Raise for what the check of parameters refuses."""
    for name, pattern in _ILLEGAL.items():
        value = values.get(name, "")
        word = value.rpartition("@@")[2] if name == "serviceName" else value
        if word and not re.fullmatch(pattern, word):
            text = f"Param '{_NAMES.get(name, name)}' is illegal, "
            text += "illegal characters should not appear in the param.\r\n"
            raise _RefusalError(400, 0, "", text)
    if sum(len(key) + len(value) for key, value in _metadata(values).items()) > 1024:
        text = "Param 'Metadata' is illegal, the param length should not exceed 1024.\r\n"
        raise _RefusalError(400, 0, "", text)


def _metadata(values: dict[str, str]) -> dict[str, str]:
    metadata: dict[str, str] = json.loads(values.get("metadata") or "{}")
    return metadata


def _ok(api: str) -> Response:
    if api == "v1":
        return Response(200, {"content-type": "text/plain;charset=UTF-8"}, b"ok")
    return _json({"code": 0, "message": "success", "data": "ok"})


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(value).encode())


def _page(status: int, path: str) -> Response:
    """The answer of Spring itself."""
    errors = {403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 410: "Gone"}
    value = {"timestamp": "2026-01-01T00:00:00.000+00:00", "status": status, "error": errors[status]}
    return _json(value | {"path": PREFIX + path}, status)
