"""What pidone relies on in a Consul agent, asked of a real one and of the fake."""

import json
import uuid
from typing import Any

import pytest
import trio

from tests.consul.agents import KINDS, Agent, Document, fake_agent
from tests.consul.real import MANAGEMENT, RealConsul
from tests.results import serve_with

GONE = {
    404: "Unknown check",
    500: "does not have associated TTL",
}


def document(name: str, **changes: Any) -> Document:
    """A document as pidone sends it; a change to None leaves the key out."""
    check = {"Name": "pidone", "TTL": "30s", "Status": "passing", "DeregisterCriticalServiceAfter": "10m"}
    whole = {
        "ID": f"{name}-1",
        "Name": name,
        "Address": "10.42.0.18",
        "Port": 9080,
        "Tags": ["v1"],
        "Meta": {"zone": "a"},
        "Weights": {"Passing": 1, "Warning": 1},
        "Check": check,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def check(**changes: Any) -> Document:
    return {"TTL": "30s", **changes}


async def register(agent: Agent, name: str, query: str = "", **changes: Any) -> str:
    await agent.put(f"agent/service/register{query}", document(name, **changes))
    return f"{name}-1"


@pytest.mark.check("consul", "pass before register")
async def test_a_renewal_of_an_unknown_check_is_refused_in_consuls_words(agent: Agent, name: str) -> None:
    answer = await agent.call("PUT", f"agent/check/pass/service:{name}-1")
    assert answer.status in GONE
    assert GONE[answer.status] in answer.text


async def test_what_is_registered_is_read_back(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    service = await agent.service(key)
    assert service is not None
    sent = document(name)
    assert service["Service"] == name
    same = ("ID", "Address", "Port", "Tags", "Meta", "Weights")
    assert {key: service[key] for key in same} == {key: sent[key] for key in same}
    await agent.until(lambda: agent.passing(name), [key])
    checks = await agent.checks(key)
    assert {key: one["Status"] for key, one in checks.items()} == {f"service:{key}": "passing"}


async def test_an_unknown_service_is_not_found_in_consuls_words(agent: Agent, name: str) -> None:
    answer = await agent.call("GET", f"agent/service/{name}-1")
    assert answer.status == 404
    assert answer.text.startswith("unknown service ID")
    answer = await agent.call("GET", f"agent/health/service/id/{name}-1")
    assert answer.status == 404
    assert json.loads(answer.body)["Service"] is None


@pytest.mark.check("consul", "strict decoding")
@pytest.mark.parametrize(
    "wrong",
    [
        {"Surprise": 1},
        {"Meta": {"a": 1}},
        {"Meta": {"a b": "c"}},
        {"Meta": {"consul-x": "c"}},
        {"Meta": {"a": "x" * 513}},
        {"Meta": {f"k{number}": "" for number in range(65)}},
        {"Port": "9080"},
        {"Tags": "v1"},
        {"Name": None},
        {"Weights": {"Passing": 0, "Warning": 1}},
        {"Check": check(TTL="30")},
        {"Check": check(TTL="soon")},
        {"Check": check(Status="UP")},
        {"Check": check(Surprise=1)},
        {"Check": {"Name": "nothing"}},
    ],
)
async def test_what_is_no_document_is_refused_with_a_reason(wrong: Document, agent: Agent, name: str) -> None:
    answer = await agent.call("PUT", "agent/service/register", document(name, **wrong))
    assert answer.status == 400, answer
    assert answer.text.startswith(("Request decode failed", "Missing ", "Invalid ", "Status "))
    assert await agent.service(f"{name}-1") is None


async def test_without_an_id_the_name_is_the_id(agent: Agent, name: str) -> None:
    await register(agent, name, ID=None)
    assert await agent.service(name) is not None


async def test_a_new_check_begins_critical_unless_the_document_says_otherwise(
    agent: Agent, name: str
) -> None:
    key = await register(agent, name, Check=check())
    assert await agent.status(key) == "critical"


async def test_pass_warn_and_fail_are_the_status(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    for verb, status in (("fail", "critical"), ("warn", "warning"), ("pass", "passing")):
        await agent.put(f"agent/check/{verb}/service:{key}?note=by%20hand")
        assert await agent.status(key) == status
        assert (await agent.checks(key))[f"service:{key}"]["Output"] == "by hand"
        await agent.until(lambda: agent.passing(name), [key] if status == "passing" else [])
    for status in ("critical", "passing"):
        await agent.put(f"agent/check/update/service:{key}", {"Status": status, "Output": "x"})
        assert await agent.status(key) == status
    answer = await agent.call("PUT", f"agent/check/update/service:{key}", {"Status": "UP"})
    assert answer.status == 400


async def test_a_document_alone_does_not_say_which_status_is_shown(agent: Agent, name: str) -> None:
    """Of a check that is there already: it may keep its status whatever the document says."""
    key = await register(agent, name)
    await agent.put(f"agent/check/fail/service:{key}")
    await register(agent, name, Check=check())
    assert await agent.status(key) == "critical"


@pytest.mark.check("consul", "critical after TTL")
async def test_without_renewals_it_is_critical_after_the_ttl(agent: Agent, name: str) -> None:
    key = await register(agent, name, Check=check(TTL="2s", Status="passing"))
    await agent.pass_time(1.2)
    await agent.put(f"agent/check/pass/service:{key}")
    await agent.pass_time(1.2)
    assert await agent.status(key) == "passing", "renewed"
    await agent.pass_time(2)
    await agent.until(lambda: agent.status(key), "critical")
    assert (await agent.checks(key))[f"service:{key}"]["Output"].startswith("TTL expired")
    await agent.put(f"agent/check/pass/service:{key}")
    assert await agent.status(key) == "passing"


async def test_maintenance_hides_what_passes(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    for _ in range(2):
        await agent.put(f"agent/service/maintenance/{key}?enable=true&reason=upgrade")
        assert await agent.status(key) == "maintenance"
        assert (await agent.checks(key))[f"_service_maintenance:{key}"]["Notes"] == "upgrade"
    await agent.put(f"agent/service/maintenance/{key}?enable=true&reason=other")
    assert (await agent.checks(key))[f"_service_maintenance:{key}"]["Notes"] == "upgrade", (
        "the first one stays"
    )
    await agent.until(lambda: agent.passing(name), [])
    for _ in range(2):
        await agent.put(f"agent/service/maintenance/{key}?enable=false")
        assert await agent.status(key) == "passing"
    answer = await agent.call("PUT", f"agent/service/maintenance/{key}-no?enable=true")
    assert answer.status in {404, 500}
    assert "service" in answer.text


@pytest.mark.check("consul", "maintenance survives heartbeats, lost by replace-existing-checks")
async def test_maintenance_survives_renewals_and_documents(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    await agent.put(f"agent/service/maintenance/{key}?enable=true")
    await agent.put(f"agent/check/pass/service:{key}")
    assert await agent.status(key) == "maintenance"
    await register(agent, name, Tags=["v2"])
    assert await agent.status(key) == "maintenance"


@pytest.mark.check("consul", "maintenance survives heartbeats, lost by replace-existing-checks")
async def test_maintenance_is_lost_by_a_document_that_replaces_checks(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    await agent.put(f"agent/service/maintenance/{key}?enable=true")
    await register(agent, name, "?replace-existing-checks=true")
    assert await agent.status(key) == "passing"


async def test_checks_of_an_earlier_document_stay_unless_they_are_replaced(agent: Agent, name: str) -> None:
    key = await register(agent, name, Check=None, Checks=[check(), check()])
    assert set(await agent.checks(key)) == {f"service:{key}:1", f"service:{key}:2"}
    await register(agent, name)
    assert set(await agent.checks(key)) == {f"service:{key}:1", f"service:{key}:2", f"service:{key}"}
    assert await agent.status(key) == "critical"
    await register(agent, name, "?replace-existing-checks=true")
    assert set(await agent.checks(key)) == {f"service:{key}"}


async def test_a_deregistration_leaves_nothing_and_may_come_twice(agent: Agent, name: str) -> None:
    key = await register(agent, name)
    await agent.put(f"agent/service/maintenance/{key}?enable=true")
    await agent.put(f"agent/service/deregister/{key}")
    assert await agent.service(key) is None
    assert await agent.checks(key) == {}
    answer = await agent.call("PUT", f"agent/service/deregister/{key}")
    assert answer.status == 200 or "Unknown service" in answer.text
    await register(agent, name)
    assert await agent.status(key) == "passing", "without the maintenance"


async def test_another_method_or_path_is_refused(agent: Agent, name: str) -> None:
    assert (await agent.call("GET", f"agent/check/pass/service:{name}")).status == 405
    assert (await agent.call("POST", f"agent/service/deregister/{name}")).status == 405
    assert (await agent.call("GET", "agent/nothing")).status == 404


# Agents that begin again, and agents with ACLs: of these each test has its own


class TestRestart:
    @pytest.fixture(params=KINDS)
    async def restarted(self, request: pytest.FixtureRequest, nursery: trio.Nursery) -> tuple[Agent, Any]:
        if request.param == "consul":
            real: RealConsul = request.getfixturevalue("own_consul")

            def restart(*, empty: bool) -> None:
                real.stop(empty=empty)
                real.start()

            serve_with(request, real.agent.server)
            return real.agent, restart
        agent = await fake_agent(nursery, old=request.param == "old fake")
        serve_with(request, agent.server)
        fake, clock = agent.fake, agent.clock
        assert fake is not None
        return agent, lambda *, empty: fake.restart(clock.now(), empty=empty)

    @pytest.mark.check("consul", "restart with data keeps passing")
    async def test_with_its_data_it_keeps_what_was_passing(self, restarted: Any, name: str) -> None:
        agent, restart = restarted
        key = await register(agent, name)
        await agent.put(f"agent/check/pass/service:{key}")
        other = await register(agent, f"{name}-other")
        await agent.put(f"agent/service/maintenance/{other}?enable=true&reason=upgrade")
        restart(empty=False)
        assert await agent.status(key) == "passing"
        assert await agent.status(other) == "maintenance"
        await agent.put(f"agent/check/pass/service:{key}")

    @pytest.mark.check("consul", "wiped agent → register again")
    async def test_without_its_data_it_knows_nothing(self, restarted: Any, name: str) -> None:
        agent, restart = restarted
        key = await register(agent, name)
        restart(empty=True)
        assert await agent.service(key) is None
        answer = await agent.call("PUT", f"agent/check/pass/service:{key}")
        assert answer.status in GONE
        assert GONE[answer.status] in answer.text


@pytest.mark.check("consul", "ACL texts")
class TestAccess:
    @pytest.fixture
    def tokens(self) -> dict[str, str]:
        return {kind: str(uuid.uuid4()) for kind in ("right", "other", "unknown")} | {"none": ""}

    @pytest.fixture(params=KINDS)
    async def guarded(
        self, request: pytest.FixtureRequest, nursery: trio.Nursery, name: str, tokens: dict[str, str]
    ) -> Agent:
        """An agent where one token may write the service, and another one another service."""
        if request.param == "consul":
            real: RealConsul = request.getfixturevalue("guarded_consul")
            real.grant(tokens["right"], name)
            real.grant(tokens["other"], f"{name}-other")
            serve_with(request, real.agent.server)
            return real.agent
        granted = {tokens["right"]: {name}, tokens["other"]: {f"{name}-other"}, MANAGEMENT: {"*"}}
        agent = await fake_agent(nursery, old=request.param == "old fake", tokens=granted)
        agent.token = MANAGEMENT
        serve_with(request, agent.server)
        return agent

    async def test_the_right_token_suffices_for_all_calls(
        self, guarded: Agent, name: str, tokens: dict[str, str]
    ) -> None:
        guarded.token = tokens["right"]
        key = await register(guarded, name)
        await guarded.put(f"agent/check/pass/service:{key}")
        await guarded.put(f"agent/service/maintenance/{key}?enable=true")
        assert await guarded.status(key) == "maintenance"
        await guarded.put(f"agent/service/maintenance/{key}?enable=false")
        await guarded.put(f"agent/service/deregister/{key}")
        assert await guarded.service(key) is None
        answer = await guarded.call("PUT", f"agent/check/pass/service:{key}")
        assert answer.status in GONE
        assert "Unknown check" in answer.text
        answer = await guarded.call("PUT", f"agent/service/deregister/{key}")
        assert answer.status in GONE
        assert "Unknown service" in answer.text

    @pytest.mark.parametrize(
        ("token", "words"),
        [("none", "Permission denied"), ("other", "Permission denied"), ("unknown", "ACL not found")],
    )
    async def test_any_other_token_is_refused_in_consuls_words(
        self, token: str, words: str, guarded: Agent, name: str, tokens: dict[str, str]
    ) -> None:
        key = await register(guarded, name)
        for path in (
            "agent/service/register",
            f"agent/check/pass/service:{key}",
            f"agent/service/maintenance/{key}?enable=true",
            f"agent/service/deregister/{key}",
        ):
            body = document(name) if path.endswith("register") else None
            answer = await guarded.call("PUT", path, body, token=tokens[token])
            assert answer.status == 403, (path, answer)
            assert words in answer.text
        assert await guarded.status(key) == "passing"
