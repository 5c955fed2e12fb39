"""``idle``: freezes the application's processes while there is no traffic, and lets them run again when there is.

No proxy stands before the application. The kernel completes a connection to a frozen application, and a packet socket
sees its first packet. Then all processes run again and the application answers as ever. A probe's packet does the same
until that connection ends (a blink), so the application answers its own probes.

    active ──no traffic for ``after``──► idle ──traffic, the pod's end, an error──► active
                                         │  ▲
                          a probe, a breath  └── its connection has ended

A packet that is judged wrongly keeps the application awake a little longer. It never costs an answer: nothing is
frozen while a connection of a blink is open, and what comes while all are being stopped is looked at afterwards.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import trio

from pidone.actions import Context, Setting, _traffic
from pidone.actions._accept_queue import AcceptQueue
from pidone.actions._freezer import Freezer
from pidone.actions._packets import FIN, MAX_PORTS, RST, SYN, Flow, Packet, PacketSocket
from pidone.counters import TaskView
from pidone.errors import Refused, TaskFailed
from pidone.http.pod_rooms import default_gateways
from pidone.metrics.exposition import Family, counter, gauge
from pidone.pid1 import inside
from pidone.plan.fields import Fields

STATES = ("active", "idle")
ACTIVE, IDLE = STATES

SHUT_PART = 1 / 5  # of ``after``, in which a busy pod's packets are not looked at
FIRST_PAUSE_SECONDS = (
    0.001  # for the application to read the end of a probe's connection; doubles with each look
)
QUEUE_PAUSE_SECONDS = 0.02  # between two looks at the accept queue of a frozen application
# A request without an answer keeps the application awake for so long. Not for ever: with HTTP/2, and after the last
# message of a WebSocket, the last data often comes from the client.
UNANSWERED_SECONDS = 600.0
SIGNAL_SECONDS = 1.0  # between two looks for a TERM that waits, while no repo tells of the pod's end

BLINK = "blink"  # a time of ``idle`` in which the application runs
BREATH, INSIDE = "breath", "inside"
CONNECTION, DATA, DATAGRAM, SIGNAL = "connection", "data", "udp", "signal"  # reasons of wakes, as INSIDE
PROBES = "probes"


@dataclass(slots=True)
class Counts:
    """What the task has done since its start. Seconds are by ``active``, ``idle`` and ``blink``."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wakes: Counter[str] = field(default_factory=Counter)  # by reason
    idle_times: int = 0  # begins of ``idle``
    blinks: int = 0
    undone: int = 0  # freezes that met a packet


@dataclass(frozen=True, slots=True)
class Breath:
    every: float
    seconds: float


@dataclass(slots=True)
class Followed:
    """The connections of a blink that the peers have opened, and ended again."""

    opened: set[Flow] = field(default_factory=set)
    ended: set[Flow] = field(default_factory=set)

    def take(self, packet: Packet) -> None:
        if packet.flags & (FIN | RST):
            self.opened.discard(packet.flow)
            self.ended.add(packet.flow)
        elif packet.tcp:
            self.opened.add(packet.flow)


class Idle:
    """Watches the traffic, and stops and continues the processes of the pod."""

    def __init__(self, fields: Fields, setting: Setting) -> None:
        """Read the fields. Raises ``Refused``."""
        self._setting = setting
        self._after = fields.seconds("after", least=0.05)
        action = fields.text("action", "freeze")
        if action not in {"freeze", "report"}:
            raise Refused(f'{fields.path}.action: expected freeze or report, not "{action}"')
        self.freezes = action == "freeze"
        ports = [_port(text, f"{fields.path}.ports") for text in fields.texts("ports")]
        self._tcp, self._udp = (
            frozenset(number for number, protocol in ports if protocol == name) for name in ("TCP", "UDP")
        )
        if not 0 < len(ports) <= MAX_PORTS:
            raise Refused(f"{fields.path}.ports: expected 1 to {MAX_PORTS}, not {len(ports)}")
        connections = fields.text("connections", "quiet")
        if connections not in {"quiet", "none"}:
            raise Refused(f'{fields.path}.connections: expected quiet or none, not "{connections}"')
        self._quiet_is_enough = connections == "quiet"
        self._blink_seconds = fields.seconds("probeTimeout", 1.0, least=0.05, most=3600)
        self._ignored = _ignored(fields, setting)
        self._breath: Breath | None = None
        if "breathe" in fields:
            breathe = fields.object("breathe")
            self._breath = Breath(breathe.seconds("every", least=0.05), breathe.seconds("for", least=0.01))
            breathe.done()
        self._freezer = Freezer(setting, fields.texts("containers"))
        fields.done()

        self.counts = Counts()
        self._sight: PacketSocket | AcceptQueue = PacketSocket(self._tcp, self._udp)
        self._first_seen: dict[object, float] = {}  # of connections from where probes come, and of visitors
        self._mode, self._since, self._idle_since = ACTIVE, 0.0, 0.0
        self._running = False
        self._why = ""  # for people
        self._why_at: float | None = None  # at which time it was so
        self._waiting = trio.CancelScope()  # of a wait for a packet while the application is frozen
        self._called = ""  # why the application is needed, though no packet has come

    async def run(self, context: Context) -> None:
        """Run until cancelled. Raises ``TaskFailed`` if it may not stop processes, or sees no traffic."""
        self._mode, self._since, self._called = ACTIVE, trio.current_time(), ""
        self._open()
        self._running = True
        failure = None
        try:
            context.report(ACTIVE)
            async with trio.open_nursery() as nursery:
                alternating = trio.CancelScope()
                nursery.start_soon(self._watch, context, alternating)
                with alternating:
                    try:
                        await self._alternate(context)
                    except OSError as error:  # raised outside of the nursery, which would make a group of it
                        failure = error
                if failure is None:  # the pod ends
                    context.report(ACTIVE)
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
        finally:
            self._thaw(ACTIVE)
            self._running = False
            self._sight.close()
            context.report("")
        if failure is not None:
            raise TaskFailed(f"cannot watch the traffic: {failure.strerror or failure}") from failure

    async def undo(self, context: Context) -> None:
        """Do nothing: the end of the run has let all processes run again."""

    def why(self) -> str:
        """Return why the application is awake or frozen, for people."""
        if not self.freezes:
            return self.forecast()
        if self._mode != ACTIVE:
            return f"no traffic for {_span(trio.current_time() - self._idle_since + self._after)}"
        if self._why_at is None:
            return self._why
        return f"{self._why} {_span(trio.current_time() - self._why_at)} ago"

    def seconds(self) -> dict[str, float]:
        """Return the time in each mode since the task's start."""
        if self._running:
            self._count()
        return {mode: self.counts.seconds[mode] for mode in (ACTIVE, IDLE, BLINK)}

    def forecast(self) -> str:
        """Return what a task that freezes would have done."""
        seconds = self.seconds()
        total = sum(seconds.values()) or 1.0
        part = (seconds[IDLE] + seconds[BLINK]) / total
        return f"would have slept {part:.0%} of {_span(total)}, with {self.counts.wakes.total()} wake-ups"

    # Active

    async def _alternate(self, context: Context) -> None:
        while True:
            await self._until_quiet()
            reason = await self._until_needed(context)
            self._thaw(ACTIVE)
            self.counts.wakes[reason] += 1
            if self.freezes:
                context.report(ACTIVE)

    async def _until_quiet(self) -> None:
        """Return when there was no traffic for ``after`` seconds, and nothing else keeps the application awake.

        After each packet the socket is shut for a while, so a busy pod pays for one packet in that time.
        """
        due = -inf  # shut first
        while True:
            if due == -inf:
                self._sight.close()
                await trio.sleep(self._after * SHUT_PART)
                self._sight.open()
                due = trio.current_time() + self._after
            packet = await self._next(due)
            if packet is None:
                wait, reason = max(self._objections(), default=(0.0, ""))
                if not wait:
                    return
                self._why, self._why_at = reason, None
                due = trio.current_time() + wait
            elif packet.needs_application and not self._covers(packet):
                self._note(packet)
                due = -inf

    def _objections(self) -> Iterator[tuple[float, str]]:
        """Yield why the application stays awake though no packet came, each with the seconds until the next look."""
        if unstarted := self._setting.containers.unstarted:
            yield self._after, f"container {unstarted[0]} has not been started"
        found = self._freezer.look()
        age = found.youngest_seconds()
        if age < self._after:
            yield self._after - age, f"a container was started {_span(age)} ago"
        connections = _traffic.connections(self._tcp)
        now = trio.current_time()
        keys: tuple[object, ...] = (*(each.flow for each in connections), *found.visitors)
        self._first_seen = {key: self._first_seen.get(key, now) for key in keys}

        in_use = []
        for each in connections:
            needed = max(self._after, UNANSWERED_SECONDS) if each.unanswered else self._after
            left = needed - each.quiet_seconds if self._quiet_is_enough else self._after
            probe_left = self._first_seen[each.flow] + self._blink_seconds - now  # in which a probe has ended
            if left > 0 and probe_left > 0 and self._ignored.comes_from(each.flow[0]):
                yield probe_left, "a probe is being answered"
            elif left > 0:
                in_use.append(min(left, self._after))  # it may end before
        if in_use:
            yield (
                max(in_use),
                f"{len(in_use)} {'connections are' if len(in_use) > 1 else 'connection is'} open",
            )
        for visitor in found.visitors:
            probe_left = self._first_seen[visitor] + self._blink_seconds - now
            if probe_left > 0:
                yield probe_left, "a command of a probe is running"
            else:
                yield self._after * SHUT_PART, "somebody is inside"

    # Idle

    async def _until_needed(self, context: Context) -> str:
        """Freeze the application, and return when it is needed: why it runs again for good."""
        self.counts.idle_times, self._idle_since = self.counts.idle_times + 1, trio.current_time()
        self._called = ""
        arrival = self._freeze()
        if self.freezes:
            context.report(IDLE)
        while True:
            if arrival is None:
                arrival = await self._arrival()
            else:
                self.counts.undone += 1
            self._thaw(BLINK)
            if reason := await self._blink(arrival):
                return reason
            arrival = self._freeze()

    async def _arrival(self) -> "Packet | str":
        """Wait for what needs the application: a packet, the next breath, or a reason for good."""
        breath = trio.current_time() + self._breath.every if self._breath else inf
        while not self._called:
            with trio.CancelScope() as self._waiting:
                packet = await self._next(breath)
                if packet is None:
                    return BREATH
                if packet.needs_application:
                    return packet
        return self._called

    async def _blink(self, arrival: "Packet | str") -> str:
        """Wait until a probe or a breath is over. Return the reason if it is neither, as soon as that is known."""
        breathes = arrival == BREATH and self._breath is not None
        end = trio.current_time() + (
            self._breath.seconds if breathes and self._breath else self._blink_seconds
        )
        followed, pause = Followed(), FIRST_PAUSE_SECONDS
        packet = arrival if isinstance(arrival, Packet) else None
        if packet is not None:
            self.counts.blinks += self._covers(packet)
        elif arrival == CONNECTION:
            followed.opened = {connection.flow for connection in self._recent_connections()}

        while not self._called:
            if packet is not None:
                if packet.needs_application and not self._covers(packet):
                    return self._note(packet)
                followed.take(packet)
            if trio.current_time() >= end:
                return self._still_needed(followed.opened)
            if not followed.opened and not breathes and self._is_answered(followed.ended):
                return ""
            until = end if followed.opened or breathes else min(end, trio.current_time() + pause)
            packet = await self._next(until)
            pause *= 2
        self._because("a signal waited")
        return self._called

    def _still_needed(self, opened: set[Flow]) -> str:
        """Return why the application runs on after the time of a blink; empty if it need not."""
        # the kubelet ends a probe's connection at its timeout, so one that is open is none
        open_flows = {each.flow for each in _traffic.connections(self._tcp) if not each.half_closed}
        if still := opened & open_flows:
            self._because(f"a connection from {_traffic.text(min(still)[0])} was open")
            return CONNECTION
        if self._freezer.look().visitors:
            self._because("somebody was inside")
            return INSIDE
        return ""

    def _is_answered(self, ended: set[Flow]) -> bool:
        """True if the application has read the end of these connections, and no command of a probe runs inside."""
        if self._freezer.look().visitors:
            return False
        return not ended or ended.isdisjoint(each.flow for each in _traffic.connections(self._tcp))

    def _recent_connections(self) -> list[_traffic.Connection]:
        """Return the connections with data, or made, within the time of a blink."""
        return [each for each in _traffic.connections(self._tcp) if each.quiet_seconds < self._blink_seconds]

    def _open_flows(self, flows: set[Flow], *, half_closed: bool) -> set[Flow]:
        """Return those of the connections that the application has not closed."""
        if not flows:
            return set()
        held = {
            connection.flow
            for connection in _traffic.connections(self._tcp)
            if half_closed or not connection.half_closed
        }
        return flows & held

    def _covers(self, packet: Packet) -> bool:
        """True if the packet belongs to a probe, or comes from a network that is ignored."""
        if self._ignored.covers(packet):
            return True
        # the command of an exec probe asks with a user agent of its own
        from_command = packet.tcp and self._ignored.probes and _traffic.is_loopback(packet.source)
        return from_command and bool(self._freezer.look().visitors)

    # The border to the kernel

    def _open(self) -> None:
        """Find out what this process may do, and open the way to see traffic. Raises ``TaskFailed``."""
        if self.freezes:
            self._freezer.check()
        try:
            self._sight = PacketSocket(self._tcp, self._udp)
            self._sight.open()
        except OSError as error:
            self._open_queue(error)

    def _open_queue(self, error: OSError) -> None:
        """Use the accept queue, since the packet socket was refused."""
        if self._udp:
            raise TaskFailed(
                f"cannot watch UDP port {min(self._udp)}: a packet socket is refused ({error.strerror}); process 1 "
                "needs the capability NET_RAW, or ports without UDP"
            ) from error
        self._sight = AcceptQueue(self._tcp)
        self._quiet_is_enough = False  # what comes on an open connection is not seen
        try:
            self._sight.open()
        except OSError as second:
            raise TaskFailed(
                f"cannot watch the traffic: a packet socket is refused ({error.strerror}), which needs the capability "
                f"NET_RAW, and so is a look at the sockets ({second.strerror}), which needs sock_diag"
            ) from second

    async def _next(self, until: float) -> Packet | None:
        """Return the next packet; None at the time ``until``."""
        with trio.CancelScope(deadline=until):
            return await self._sight.wait()
        return None

    def _freeze(self) -> "Packet | str | None":
        """Stop the application. Return what needs it all the same: what came while it was being stopped."""
        if isinstance(self._sight, AcceptQueue):
            self._sight.pause = QUEUE_PAUSE_SECONDS
        if self.freezes:
            self._freezer.stop()
        self._enter(IDLE)
        while (packet := self._sight.take()) is not None:
            if packet.needs_application:
                return packet
        if self.freezes and self._freezer.look().visitors:
            return INSIDE
        # one that waits for long is none that the freeze has met
        if self.freezes and _traffic.waiting(self._tcp) and self._recent_connections():
            return CONNECTION
        return None

    def _thaw(self, mode: str) -> None:
        """Let all processes run again."""
        self._freezer.thaw()
        if isinstance(self._sight, AcceptQueue):
            self._sight.pause = FIRST_PAUSE_SECONDS if mode == "blink" else max(1.0, self._after / 20)
        self._enter(mode)

    async def _watch(self, context: Context, alternating: trio.CancelScope) -> None:
        """Let the application run for good when the pod ends, and cancel ``alternating``.

        Where no repo can tell of the end, the runtime's TERM does, which waits in a stopped process.
        """
        while not context.ending:
            unseen = self._freezer.frozen and not self._setting.counters.repo_up
            with trio.move_on_after(SIGNAL_SECONDS if unseen else inf) as looking:
                await context.changed()
            if looking.cancelled_caught and inside.waiting_signal():
                self._called = SIGNAL
                self._thaw(BLINK)
                self._waiting.cancel()
        self._thaw(ACTIVE)
        alternating.cancel()

    # Words and figures

    def _note(self, packet: Packet) -> str:
        """Note the packet as the reason why the application is awake. Return the reason for the metrics."""
        self._because(f"a packet from {_traffic.text(packet.source)}")
        return DATAGRAM if not packet.tcp else CONNECTION if packet.flags & SYN else DATA

    def _because(self, words: str) -> None:
        self._why, self._why_at = words, trio.current_time()

    def _enter(self, mode: str) -> None:
        self._count()
        self._mode = mode

    def _count(self) -> None:
        now = trio.current_time()
        self.counts.seconds[self._mode] += now - self._since
        self._since = now


def privileged(config: Mapping[str, object]) -> bool:
    """True unless it only reports: what it stops cannot answer any more."""
    return config.get("action") != "report"


def build(fields: Fields, setting: Setting) -> Idle:
    return Idle(fields, setting)


def families(setting: Setting, views: Iterable[TaskView]) -> Iterator[Family]:
    frozen = gauge("pidone_idle", "Whether the application is frozen.")
    seconds = counter(
        "pidone_idle_seconds_total", "Time in each mode; blink: thawed for a probe or a breath."
    )
    wakes = counter("pidone_idle_wakes_total", "Ends of idle times by reason.")
    blinks = counter("pidone_idle_blinks_total", "Times that the application was thawed to answer a probe.")
    undone = counter("pidone_idle_undone_total", "Freezes that met a packet and were undone at once.")
    would = counter("pidone_idle_would_freeze_total", "Freezes that a task with action: report left out.")
    for view in views:
        action = setting.action(view.task.name)
        if not isinstance(action, Idle):
            continue
        name, counts = view.task.name, action.counts
        frozen.add(view.state == IDLE, task=name)
        for mode, duration in action.seconds().items():
            seconds.add(round(duration, 3), task=name, state=mode)
        for reason, count in sorted(counts.wakes.items()):
            wakes.add(count, task=name, reason=reason)
        blinks.add(counts.blinks, task=name)
        undone.add(counts.undone, task=name)
        if not action.freezes:
            would.add(counts.idle_times, task=name)
    yield from (frozen, seconds, wakes, blinks, undone, would)


def _ignored(fields: Fields, setting: Setting) -> _traffic.Ignored:
    """Read whose traffic is ignored. Raises ``Refused``."""
    words = fields.texts("ignore") if "ignore" in fields else (PROBES,)
    networks = []
    for word in words:
        if word != PROBES:
            try:
                networks.append(_traffic.Network.of(word))
            except (OSError, ValueError):
                raise Refused(f'{fields.path}.ignore: expected {PROBES} or a CIDR, not "{word}"') from None
    # the addresses from which the kubelet's probes come, by network plugin, and the pod's own probes
    addresses = {*fields.texts("nodes"), *default_gateways(), setting.pod.ip}
    agents = (_traffic.KUBELET, *fields.texts("agents"))
    return _traffic.Ignored(
        probes=PROBES in words,
        nodes=frozenset(_traffic.packed(address) for address in addresses if address),
        networks=tuple(networks),
        agents=tuple(agent.encode() for agent in agents),
    )


def _port(text: str, path: str) -> tuple[int, str]:
    """Read ``8080/TCP``. Raises ``Refused``."""
    digits, _, protocol = text.partition("/")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 6 else 0
    if not 0 < number < 65536 or protocol not in {"TCP", "UDP"}:
        raise Refused(f'{path}: expected a port as 8080/TCP or 53/UDP, not "{text}"')
    return number, protocol


def _span(seconds: float) -> str:
    """Return a time for people: ``12 s``, ``3 min``, ``5 h``, ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
