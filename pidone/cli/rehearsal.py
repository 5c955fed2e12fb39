"""Simulates the world around a pod for ``pidone test``: the case gives the answers to the actions.

Plan, engine and actions are those of real pods, on Trio's mock clock. Only the calls of an action to the world are
simulated. ``x-pidone-simulation`` in the action's schema names them:

    question   the attribute ``ask`` of the action: a coroutine function that returns why not, or an empty string
    registry   the attribute ``registry`` of each of the action's ``targets``, a ``pidone.registries.Registry``. The
               calls of several targets begin with the registry's name, and an answer to one of them does too
    program    commands, which the action starts with ``Setting.reaper``
    none       there are none, since the action calls other tasks alone

An action without it is simulated as a whole: it works, or fails.

Random numbers are all 0. So the first run of a periodic task comes at once, each later run exactly one period after
the run before, and a retry after the whole backoff.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import trio

from pidone import actions
from pidone.actions import Action, Context, Setting
from pidone.errors import RegistryError, RegistryRefused, TaskFailed, TransferTimeout
from pidone.language import duration, schemas
from pidone.pid1.reaper import Child, Reaper
from pidone.plan.model import Task
from pidone.registries import Entry, Registry, Status
from pidone.registries._servers import ANSWER_SECONDS

WORDS = {  # the possible answers by what is simulated; the first is the answer until a case gives another
    "question": ("fails", "succeeds", "answers <status>", "times out"),
    "registry": ("accepts", "refuses", "fails", "times out", "forgets"),
    "program": ("succeeds", "exits <code>", "hangs"),
    "none": (),
    "": ("works", "fails"),
}

_GIVEN = re.compile(r"(?P<word>[a-z]+( out)?)( (?P<number>[0-9]{1,3}))?( after (?P<after>[0-9hms]+))?")


def words(action: str) -> tuple[str, ...]:
    """Return the possible answers to a task with this action."""
    return WORDS[schemas.actions()[action].simulation]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the world: a word of ``WORDS``, its number, and its delay in seconds."""

    word: str
    number: int = 0
    after: float = 0.0
    registry: str = ""  # of a task with several, the one that answers so; empty: all

    @classmethod
    def of(cls, text: str, action: str) -> "Answer | None":
        """Read ``answers 503 after 2s`` or ``consul fails``; None if it is no answer to this action."""
        registry, _, rest = text.partition(" ")
        if schemas.actions()[action].simulation != "registry" or registry not in schemas.registries():
            registry, rest = "", text
        match = _GIVEN.fullmatch(rest)
        if match is None:
            return None
        word, number, after = match["word"], match["number"], match["after"]
        has_number = {each.partition(" <")[0]: "<" in each for each in words(action)}
        delay = duration.seconds(after) if after else 0.0
        if has_number.get(word) is not (number is not None) or delay is None:
            return None
        return cls(word, int(number or 0), delay, registry)


class World:
    """The current answers, and the calls so far, by the task's name."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[str, Answer]] = defaultdict(dict)  # by task and registry
        self.calls: dict[str, list[str]] = defaultdict(list)

    def build(self, task: Task, setting: Setting) -> Action:
        """Build the action as a pod does, with the same refusals, and replace its calls to the world."""
        action: Any = actions.build(task, replace(setting, reaper=_Programs(self, task), programs="/"))
        match schemas.actions()[task.action].simulation:
            case "question":
                action.ask = _ProbeRequest(self, task)
            case "registry":
                for target in action.targets:
                    name = target.name if len(action.targets) > 1 else ""
                    target.registry = _Registry(self, task, target.registry, name)
            case "":
                return _Other(self, task)
        simulated: Action = action
        return simulated

    def give(self, task: str, answer: Answer) -> None:
        """Answer so from now on."""
        if not answer.registry:
            self._answers[task].clear()
        self._answers[task][answer.registry] = answer

    def answer(self, task: Task, registry: str = "") -> Answer:
        answers = self._answers[task.name]
        return answers.get(registry) or answers.get("") or Answer(words(task.action)[0])

    def called(self, task: Task, what: str) -> None:
        self.calls[task.name].append(what)


class Zeros(Random):
    """A source of random numbers that are all 0; the docstring of this module lists the effects."""

    def random(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class _ProbeRequest:
    world: World
    task: Task

    async def __call__(self, context: Context) -> str:
        del context
        answer, timeout = self.world.answer(self.task), float(self.task.config.get("timeoutSeconds") or 1)
        if answer.word == "times out" or answer.after >= timeout:
            await trio.sleep(timeout)
            return f"no answer within {timeout:g} s"
        await trio.sleep(answer.after)
        if answer.word == "answers":
            return "" if 200 <= answer.number < 400 else f"answered {answer.number}"
        return "" if answer.word == "succeeds" else "connection refused"


@dataclass(frozen=True, slots=True)
class _Registry:
    world: World
    task: Task
    real: Registry  # which is not called
    name: str  # of the registry, where the task has several

    @property
    def where(self) -> str:
        return self.real.where

    @property
    def endpoint(self) -> str:
        return self.real.endpoint

    @property
    def places(self) -> frozenset[str]:
        return self.real.places

    @property
    def instance(self) -> str:
        return self.real.instance

    @property
    def address(self) -> str:
        return self.real.address

    @property
    def interval(self) -> float:
        return self.real.interval

    @property
    def lease(self) -> float:
        return self.real.lease

    async def read(self) -> Entry | None:
        return None

    def succeeds(self, previous: Registry) -> bool:
        return isinstance(previous, _Registry) and self.real.succeeds(previous.real)

    def take_over(self, previous: Registry) -> None:
        """There is nothing to go on from."""

    async def register(self, status: Status) -> str:
        await self._call(f"register {status}")
        return status.value

    async def heartbeat(self) -> bool:
        forgotten = (await self._call("heartbeat")).word == "forgets"
        if forgotten:  # once: the registration that follows is accepted
            self.world.give(self.task.name, Answer("accepts", registry=self.name))
        return not forgotten

    async def deregister(self) -> None:
        await self._call("deregister")

    async def _call(self, what: str) -> Answer:
        self.world.called(self.task, f"{self.name} {what}".lstrip())
        answer = self.world.answer(self.task, self.name)
        if answer.word == "times out" or answer.after >= ANSWER_SECONDS:
            await trio.sleep(ANSWER_SECONDS)
            raise TransferTimeout(f"{what}: no answer within {ANSWER_SECONDS:g} s")
        await trio.sleep(answer.after)
        if answer.word == "refuses":
            raise RegistryRefused(f"{what}: answered 401")
        if answer.word == "fails":
            raise RegistryError(f"{what}: answered 503")
        return answer


class _Programs(Reaper):
    """A reaper that starts no process; the case gives the ends of programs."""

    def __init__(self, world: World, task: Task) -> None:
        super().__init__()
        self._world, self._task = world, task

    def spawn(self, argv: Any, **options: Any) -> Child:
        del options
        self._world.called(self._task, " ".join(argv))
        return _Program(self._world.answer(self._task))


class _Program(Child):
    def __init__(self, answer: Answer) -> None:
        super().__init__(0)
        self._code = answer.number if answer.word == "exits" else 0
        self._until = float("inf") if answer.word == "hangs" else trio.current_time() + answer.after

    async def wait(self) -> int:
        with trio.move_on_at(self._until):
            await self._ended.wait()
        if self.returncode is None:
            self.returncode = self._code
            self._ended.set()
        return self.returncode

    async def end(self, number: int) -> None:
        if self.returncode is None:
            self.returncode = -number
            self._ended.set()


@dataclass(frozen=True, slots=True)
class _Other:
    """Any other action. Unless it fails, its task is in the state that a plain ``needs`` waits for."""

    world: World
    task: Task

    async def run(self, context: Context) -> None:
        answer = self.world.answer(self.task)
        await trio.sleep(answer.after)
        if answer.word == "fails":
            raise TaskFailed("failed, as the case says")
        context.report(schemas.actions()[self.task.action].ready)
        if self.task.every is None:
            try:
                await trio.sleep_forever()
            finally:
                context.report("")

    async def undo(self, context: Context) -> None:
        """Nothing to undo."""
