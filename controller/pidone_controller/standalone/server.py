"""The repo without Kubernetes: objects come from folders of files, pods from an inventory file.

For podman hosts, virtual machines, the demo and tests. Everything else is as in a cluster.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import trio

from pidone import __version__
from pidone.errors import StartError
from pidone.language.binding import Rules
from pidone.language.extends import ANY
from pidone.protocol import MAX_REPORT_BYTES
from pidone_controller.log import LimitedLog, Log, log, say
from pidone_controller.pods.model import Pod
from pidone_controller.repo.certificates import Pair
from pidone_controller.repo.listeners import Tls, host_port, listen, serve
from pidone_controller.repo.plans import Plans
from pidone_controller.repo.server import Repo
from pidone_controller.repo.server import Settings as RepoSettings
from pidone_controller.standalone.files import InventoryFile, TaskFiles, WatchedSecrets

# Between two looks at the files. A change is read at the second look, and reaches its pods within a second.
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line."""

    tasks: Sequence[Path]
    inventory: Path
    host: str
    port: int
    tls: tuple[str, int] | None = None  # the address for https, with a certificate and its key
    certificate: Path | None = None
    key: Path | None = None
    secrets: Path | None = None  # the folder with values of Secrets
    people: tuple[IPv4Network | IPv6Network, ...] = ()  # from which plans may be read, besides loopback


async def run(settings: Settings, log: Log = log) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``StartError``."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        tls = _tls(settings)
        secure = await listen(*settings.tls) if settings.tls else []
        listeners = await listen(settings.host, settings.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, settings, listeners, secure, tls, LimitedLog(log))
            async for number in signals:
                # Held requests are closed, not answered. After a 304 all pods would ask again at once; after the end
                # of a connection each keeps its plan and waits for a random time first.
                log("stopping", signal=signal.Signals(number).name)
                nursery.cancel_scope.cancel()
                break


def _tls(settings: Settings) -> Tls | None:
    """Return the certificate for https; None without https. Raises ``StartError`` and ``CertificateError``."""
    if settings.tls is None:
        return None
    if settings.certificate is None or settings.key is None:
        raise StartError("https needs a certificate: give --certificate FILE and --key FILE, in PEM")
    try:
        return Tls(Pair(settings.certificate.read_bytes(), settings.key.read_bytes()))
    except OSError as error:
        raise StartError(f"{error.filename} cannot be read: {error.strerror}") from error


def why_idle(rules: Rules, pods: Sequence[Pod] | None, settings: Settings) -> str:
    """Return why no pod gets a task, and what to do; empty if one gets some."""
    folders = ", ".join(map(str, settings.tasks))
    if pods is None:
        return f"{settings.inventory} was not read, and no pod gets an answer before it is; mend it"
    if not pods:
        return f"{settings.inventory} lists no pods; write kubectl get pods -A -o yaml into it"
    if not rules.bindings:
        sets = len(rules.sets.by_key)
        what = f"{sets} TaskSets and no TaskBinding" if sets else "no TaskSet and no TaskBinding"
        return f"{folders}: {what}, so no pod gets a task; add a TaskBinding, as in examples/bindings.yaml"
    if not any(next(rules.matching(pod), None) for pod in pods):
        return (
            f"no TaskBinding in {folders} selects one of the {len(pods)} pods of {settings.inventory}; "
            f"compare their podSelector with metadata.labels of {pods[0].path}"
        )
    return ""


class Idleness:
    """Logs why no pod gets a task, once for each reason."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings, self._log = settings, log
        self._judged: tuple[Rules, Sequence[Pod] | None] | None = None
        self._reason = ""

    def judge(self, rules: Rules, pods: Sequence[Pod] | None) -> None:
        if self._judged is not None and self._judged[0] is rules and self._judged[1] is pods:
            return
        self._judged = rules, pods
        before, self._reason = self._reason, why_idle(rules, pods, self._settings)
        if self._reason and self._reason != before:
            self._log("idle", reason=self._reason)


async def _serve(
    settings: Settings,
    listeners: list[trio.SocketListener],
    secure: list[trio.SocketListener],
    tls: Tls | None,
    log: Log,
) -> None:
    plans = Plans(log)
    secrets = WatchedSecrets(settings.secrets)
    repo = Repo(plans, log, settings=RepoSettings(people=settings.people))
    tasks = TaskFiles(settings.tasks, log, say, secrets)
    inventory = InventoryFile(settings.inventory, log)

    def look() -> None:
        tasks.look()
        inventory.look()

    idleness = Idleness(settings, log)
    listed: Sequence[Pod] | None = None  # the pods that the plans were given last

    async def refresh() -> None:
        nonlocal listed
        # In a thread: a large inventory takes seconds to read, which must not delay held requests.
        await trio.to_thread.run_sync(look)
        pods, rules = inventory.pods, tasks.rules
        if not (inventory.pending or tasks.pending):
            await trio.to_thread.run_sync(idleness.judge, rules, pods)
        # Nothing is served until every file was read: a pod with a plan must not learn that there is none.
        if pods is None or (tasks.pending and not plans.ready):
            return
        if rules is not plans.rules:
            plans.rule(rules)
        if secrets.look():
            plans.secrets_changed(ANY)
        if pods is not listed:
            plans.replace(pods)
            listed = pods

    bugs = set[str]()

    async def look_again() -> None:
        await trio.sleep(LOOK_SECONDS)
        try:
            await refresh()
        except Exception as error:  # noqa: BLE001 - a bug that one file triggers must not end the server
            text = f"{type(error).__name__}: {error}"
            if text not in bugs:
                log("bug", error=text)
                bugs.add(text)

    await look_again()
    await look_again()  # a file is read at the second look
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plans.run)
        await nursery.start(
            partial(
                serve,
                repo.begin,
                listeners,
                secure,
                tls,
                max_body=MAX_REPORT_BYTES,
                bounds=repo.bounds,
                refuse=repo.refuse,
                fatal=repo.died,
            )
        )
        _announce(log, [*listeners, *secure], ready=plans.ready)
        while True:
            await look_again()


def _announce(log: Log, listeners: Sequence[trio.SocketListener], *, ready: bool) -> None:
    for listener in listeners:
        log("listening", address=host_port(listener.socket.getsockname()), version=__version__, ready=ready)
