"""``make demo``: runs three pods, a repo, a registry and an application on this machine, and checks each step.

``make demo REGISTRY=etcd`` shows the same with another registry than Eureka, if its server is installed. Each step is
checked in the registry, the repo or a metrics page, and its duration is printed. A step that fails ends the demo with
the expected and the actual state, and exit code 1.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from tests import pidns
from tests.demo import registries
from tests.demo.registries import BEAT_SECONDS, PORT
from tests.demo.service import Service
from tests.demo.world import AWAY, DB, METRICS, NOT_REGISTERED, PLAIN, ROOT, WEB, World
from tests.patience import PATIENCE_SECONDS
from tests.processes import command

T = TypeVar("T")

DOZE = ROOT / "build/doze"

ORPHANS = 1000


class StepFailed(Exception):
    """A step that failed; the text is the expected and the actual state."""


class Show:
    """Prints steps, with the time since the start and the duration of the step."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def line(self, step: str, text: str = "") -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {step:<12} {text}".rstrip(), flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yield a function that prints a result of the step, with the time since the step began."""
        began = time.monotonic()
        yield lambda text: self.line(name, f"{text}  ({time.monotonic() - began:.2f} s)")


def until(
    read: Callable[[], T], holds: Callable[[T], object], expected: str, *, seconds: float = PATIENCE_SECONDS
) -> T:
    """Read a value until ``holds`` is true for it, and return it. Raises ``StepFailed`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if holds(value):
            return value
        if time.monotonic() > deadline:
            raise StepFailed(f"expected within {seconds:g} s: {expected}\nseen: {value}")
        time.sleep(0.02)


def bring_up(world: World, show: Show) -> None:
    words, _ = pidns.way()
    show.line("start", f"each pod has its own process 1: {words}")
    show.line("", f"registry: {world.registry.kind}")
    world.repo.start()
    world.registry.service.start()
    until(world.repo_ready, bool, f"the repo answers at {world.repo_url}")
    for name in world.addresses:
        world.start_pod(name)
        show.line("", f"pod shop/{name:<5} at {world.addresses[name]}, labels {world.labels[name]}")
    with show.step("plan") as say:
        for name, tasks in {WEB: 2, DB: 1}.items():
            expected = f"shop/{name} runs a plan with {tasks} tasks"
            pod = until(lambda name=name: world.reported(name), lambda pod: _runs(pod, tasks), expected)  # type: ignore[misc] # noqa: B023
            digest = str(pod["expected"]["digest"])[:15]
            say(f"shop/{name:<5} runs plan {digest}.. with {tasks} task{'' if tasks == 1 else 's'}")
        if DOZE.exists():
            until(
                lambda: idle_program(world),
                lambda program: program.startswith("doze"),
                f"shop/{PLAIN} has no tasks and dozes",
            )
            memory = private_memory(world.pods[PLAIN].pid)
            say(f"shop/{PLAIN} has no tasks: process 1 is doze, with {memory} KiB of private memory")


def idle_program(world: World) -> str:
    """Return the program of process 1 in the pod without labels, or "asking" while it asks for a plan."""
    process = psutil.Process(world.pods[PLAIN].pid)
    helper = pidns.PODLET.name  # runs in each pod of the demo
    asking = [child for child in process.children() if helper not in " ".join(command(child))]
    return "asking" if asking else Path(process.exe()).name


def private_memory(pid: int) -> int:
    """Return the private memory of a process in KiB. Root and the owner of the user namespace may read it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _runs(pod: dict[str, object], tasks: int) -> bool:
    expected, reported = pod.get("expected"), pod.get("reported")
    if not isinstance(expected, dict) or not isinstance(reported, dict):
        return False
    return bool(expected["tasks"] == tasks and reported["digest"] == expected["digest"])


def task_state(world: World, pod: str, task: str) -> str:
    reported = world.reported(pod).get("reported") or {}
    return str((reported.get("tasks") or {}).get(task, {}).get("state"))


def register(world: World, show: Show) -> None:
    title = world.registry.title
    until(world.status, lambda status: status != AWAY, f"{title} answers")
    world.app.start()
    with show.step("healthy") as say:
        until(lambda: task_state(world, WEB, "ready"), lambda state: state == "healthy", "ready is healthy")
        say(f"the probe of http://{world.addresses[WEB]}:{PORT}/ succeeds")
    with show.step("registered") as say:
        instance = until(
            world.instance,
            lambda instance: instance and instance.status == "UP",
            f"the instance is UP in {title}",
        )
        assert instance is not None
        if (instance.address, instance.port) != (world.addresses[WEB], PORT):
            raise StepFailed(f"expected {world.addresses[WEB]}:{PORT} in {title}\nseen: {instance}")
        say(f"{title} lists {instance.name} at {instance.address}:{instance.port}: {instance.status}")
    with show.step("heartbeats") as say:
        renewals = {instance.renewed}

        def renewed() -> int:
            current = world.instance()
            if current is not None:
                renewals.add(current.renewed)
            return len(renewals)

        until(renewed, lambda count: count >= 4, f"three renewals of the lease in {title}")
        say(f"{title} received three, one every {BEAT_SECONDS} s")


def orphans(world: World, show: Show) -> None:
    sample = 'pidone_reaped_total{reason="orphan"}'
    before = world.metric(DB, sample)
    if before is None:
        raise StepFailed(
            f"expected {sample} at http://{world.addresses[DB]}:{METRICS}/metrics\nseen: nothing"
        )
    with show.step("orphans") as say:
        world.pods[DB].make_orphans(ORPHANS)
        reaped = until(
            lambda: (world.metric(DB, sample) or 0) - before,
            lambda count: count == ORPHANS,
            f"{ORPHANS} orphans reaped, on the metrics page",
        )
        until(world.pods[DB].zombies, lambda count: count == 0, "no zombies left, in /proc")
        say(f"{ORPHANS} orphans made in shop/{DB}, {reaped:.0f} reaped, no zombies left")


def break_and_mend(world: World, show: Show) -> None:
    title, unhealthy = world.registry.title, world.registry.unhealthy
    for order, status in (("break", unhealthy), ("mend", "UP")):
        with show.step(f"{order}s".replace("breaks", "broken").replace("mends", "mended")) as say:
            world.order_application(order)
            until(world.status, lambda value: value == status, f"ratings is {status} in {title}")  # noqa: B023
            say(f"the application answers {503 if order == 'break' else 200}, and {title} shows: {status}")


def relabel(world: World, show: Show) -> None:
    before = world.instance()
    with show.step("label") as say:
        world.labels[WEB]["pidone.dev/metrics"] = "true"
        world.write_inventory()
        up = until(
            lambda: world.metric(
                WEB, f'pidone_registration_up{{task="registration",registry="{world.name}",'
            ),
            lambda value: value == 1,
            f"metrics at http://{world.addresses[WEB]}:{METRICS}/metrics, and an unchanged registration",
        )
        after = world.instance()
        if not before or not after or before.registered != after.registered:
            raise StepFailed(f"expected an unchanged registration\nseen: {before} and then {after}")
        say(
            f"shop/{WEB} now serves metrics too (registration up: {up:.0f}), and its registration is unchanged"
        )


def restart_registry(world: World, show: Show) -> None:
    title = world.registry.title
    world.registry.service.end()
    world.registry.empty()
    show.line("registry", f"{title} is killed (SIGKILL) and starts again, empty")
    world.registry.service.start()
    until(world.status, lambda status: status != AWAY, f"{title} answers")
    with show.step("again") as say:
        until(world.status, lambda status: status == "UP", "ratings is UP in the empty registry")
        say("registered again by the next heartbeat")


def end_pod(world: World, show: Show) -> None:
    title = world.registry.title
    with show.step("deleted") as say:
        world.deleted.add(WEB)
        world.write_inventory()
        until(world.status, lambda status: status == NOT_REGISTERED, f"ratings is gone from {title}")
        say(f"shop/{WEB} is terminating: deregistered while its application still runs")
    if world.app.ended():
        raise StepFailed("expected that the application still runs\nseen: it has ended")
    until(world.status, lambda status: status == NOT_REGISTERED, f"ratings stays out of {title}")


def end(world: World, show: Show) -> None:
    import signal

    with show.step("end") as say:
        for name, pod in world.pods.items():
            if not pod.same():
                raise StepFailed(f"expected that process 1 of shop/{name} still runs\nseen: it has ended")
            pod.signal(signal.SIGTERM)
        codes = {name: pod.wait(PATIENCE_SECONDS) for name, pod in world.pods.items()}
        if set(codes.values()) != {0}:
            raise StepFailed(f"expected exit code 0 of each process 1 after SIGTERM\nseen: {codes}")
        say("each process 1 was the same from start to end, and exited with 0")


def keep(world: World, show: Show, restart_after: float) -> None:
    """Keep running, restart killed servers, and print each change of the status in the registry, until interrupted."""
    services = {"repo": world.repo, world.name: world.registry.service, "application": world.app}
    pids = ", ".join(f"{name} {service.process.pid}" for name, service in services.items() if service.process)
    pids += "".join(f", shop/{name} {pod.pid}" for name, pod in world.pods.items())
    show.line("keep", f"pids: {pids}")
    show.line("", f"repo {world.repo_url}/v1/pods   {world.registry.title} {world.registry.url}")
    show.line(
        "",
        f"kill repo, {world.name} or application: it is restarted after {restart_after:g} s; Ctrl-C ends the demo",
    )
    killed: dict[str, float] = {}
    last_status = ""
    while True:
        status = world.status()
        if status != last_status:
            last_status = status
            show.line(world.name, f"ratings: {status}")
        for name, service in services.items():
            _restart(name, service, killed, show, restart_after)
        for name, pod in world.pods.items():
            if not pod.same():
                raise StepFailed(f"expected that process 1 of shop/{name} still runs\nseen: it has ended")
        time.sleep(0.1)


def _restart(name: str, service: Service, killed: dict[str, float], show: Show, after: float) -> None:
    """Start a service that was killed ``after`` seconds ago. ``killed`` has the times by name."""
    if not service.ended():
        return
    if name not in killed:
        killed[name] = time.monotonic()
        show.line("killed", name)
    if time.monotonic() - killed[name] >= after:
        del killed[name]
        service.start()
        assert service.process is not None
        show.line("restarted", f"{name}, pid {service.process.pid}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep running; restart servers that are killed")
    parser.add_argument("--restart-after", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/demo", help="for logs and the inventory")
    parser.add_argument("--registry", choices=registries.names(), default="eureka")
    arguments = parser.parse_args()
    if reason := registries.missing(arguments.registry):
        print(f"the demo with {arguments.registry} needs its server: {reason}", file=sys.stderr)
        return 1
    show = Show()
    with World(arguments.folder, arguments.registry) as world:
        try:
            for part in (bring_up, register, orphans, break_and_mend, relabel):
                part(world, show)
            if arguments.keep:
                keep(world, show, arguments.restart_after)
            for part in (restart_registry, end_pod, end):
                part(world, show)
        except StepFailed as failed:
            print(f"\nFAILED: {failed}\nlogs: {os.path.relpath(world.folder)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
    show.line("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
