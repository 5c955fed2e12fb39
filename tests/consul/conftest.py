import itertools

import pytest
import trio

from tests.consul.agents import KINDS, Agent, agent_of

_names = (f"ratings{number}" for number in itertools.count(1))


@pytest.fixture
def name() -> str:
    """A service of its own for each test: tests share the real agent."""
    return next(_names)


@pytest.fixture(params=KINDS)
async def agent(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Agent:
    return await agent_of(request, nursery)
