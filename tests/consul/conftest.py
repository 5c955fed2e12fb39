import pytest
import trio

from tests.consul.agents import KINDS, Agent, agent_of, new_name


@pytest.fixture
def name() -> str:
    return new_name()


@pytest.fixture(params=KINDS)
async def agent(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Agent:
    return await agent_of(request, nursery)
