"""Reads the responder of one satellite after each wake and while it is awake, and says what the answers mean.

One task for each satellite that has a responder; it is parked while the satellite is not operational. One reading at a time,
each with a deadline (the edge's `Questions`), and few at once in all, so that satellites that answer slowly cost little.
While readings fail, the pause between them grows.

What follows from a reading: the count of builds goes to the satellite's machine, the pressure and the kills to the ledger
and the metrics, and what people should know to the log. A satellite is never stopped for its condition.
"""

import collections
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from bentpipe.config.responder import ResponderSection
from bentpipe.daemon.fleet.fact_collector import FactCollector
from bentpipe.daemon.fleet.leases import Leases
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.rules import backed_off
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.model import NO_SUSPICION, Address, SatelliteKey
from bentpipe.daemon.readings.abuse import AbuseWatch, Sample
from bentpipe.daemon.readings.changes import Kills, killed_between, was_booted
from bentpipe.daemon.readings.condition import Condition, after_failures, condition_of
from bentpipe.daemon.readings.reading import Reading, ReadingFailed, ReadResult

log = logging.getLogger("bentpipe.fleet")

READINGS_AT_ONCE = 64
"""Of all satellites. One that does not answer holds its place for its deadline, and then pauses for longer each time."""
MOST_PAUSE_S = 120.0
"""Longest pause between readings that fail, unless the interval is longer."""
FIRST_RETRY_S = 0.25
"""After a wake the responder may be some moments behind the port of the builds."""
LOGGED_CONNECTIONS = 8
"""Beside a kill: more are counted."""


@dataclasses.dataclass(slots=True)
class ReadingCounters:
    """Counts since the start, of all satellites."""

    results: collections.Counter[ReadResult] = dataclasses.field(default_factory=collections.Counter)
    oom_kills: int = 0
    pressure_kills: int = 0
    boots: int = 0
    """Satellites that were booted anew while they were awake."""
    actions: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What was done about suspected abuse."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadingContext:
    """What the readers of all satellites share."""

    read: Callable[[SatelliteKey, Address], Awaitable[Reading]]
    """Reads once, with a deadline. Raises ReadingFailed."""
    connections: Callable[[SatelliteKey], Sequence[str]] = lambda key: ()
    """The clients that are connected to the satellite through this host, in words for the log."""
    cut: Callable[[SatelliteKey], int] = lambda key: 0
    """Cuts all of them. Returns how many."""
    slots: trio.CapacityLimiter = dataclasses.field(default_factory=lambda: trio.CapacityLimiter(READINGS_AT_ONCE))
    counters: ReadingCounters = dataclasses.field(default_factory=ReadingCounters)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadSatellite:
    """What a reader uses of its satellite."""

    operational_at: Callable[[], Address | None]
    """Its machine's address; None if it is not operational."""
    leases: Leases
    facts: FactCollector
    feed: Callable[[msg.Input], None]
    """Takes the inputs for its machine."""


class Reader:
    """One satellite's reader. It reads nothing if the satellite has no responder (`section`)."""

    def __init__(
        self,
        key: SatelliteKey,
        section: ResponderSection | None,
        context: ReadingContext | None,
        satellite: ReadSatellite,
    ) -> None:
        self.reads = section is not None and context is not None
        """Whether there is a responder to read."""
        self.last: Reading | None = None
        """The newest reading since the satellite became operational."""
        self.condition = Condition.UNKNOWN
        self.suspicion = NO_SUSPICION
        self._key = key
        self._section = section or ResponderSection(port=1)
        self._context = context or ReadingContext(_reads_nothing)
        self._satellite = satellite
        self._failures = 0
        self._abuse = AbuseWatch()
        self._has_acted = False
        self._asked = trio.Event()
        self._awake = trio.Event()

    @property
    def is_suspected(self) -> bool:
        """Whether its score of abuse is one at which the operator wants something done."""
        return self.suspicion.score >= self._section.abuse.score

    # -- the satellite's side ------------------------------------------------------------------------------------------

    def count_builds(self) -> None:
        """Carry out a CountBuilds: read now. A BuildsRead follows unless the satellite is not operational any more."""
        self._asked.set()

    def began(self) -> None:
        """The satellite is operational."""
        if self.reads:
            self._awake.set()

    def ended(self) -> None:
        """It is not operational any more: what it told is over."""
        self.last, self.condition, self.suspicion = None, Condition.UNKNOWN, NO_SUSPICION
        self._failures, self._has_acted = 0, False
        self._abuse = AbuseWatch()
        self._awake = trio.Event()

    async def boot_info(self, key: SatelliteKey, address: Address) -> BootInfo | None:
        """Read a satellite that has just woken until it answers; the caller has a deadline. Never raises an Exception."""
        while True:
            try:
                reading = await self._ask(address)
            except ReadingFailed:
                await trio.sleep(FIRST_RETRY_S)
                continue
            if address == self._satellite.operational_at():
                self._took(reading)
            return BootInfo(reading.boot_id, reading.uptime_s)

    async def run_reader(self) -> None:
        """Read for ever."""
        while True:
            await self._awake.wait()
            with trio.move_on_after(self._pause_s()):
                await self._asked.wait()
            self._asked = trio.Event()
            address = self._satellite.operational_at()
            if address is not None:
                await self._read(address)

    def _pause_s(self) -> float:
        interval_s = self._section.interval_s
        return backed_off(interval_s, MOST_PAUSE_S, self._failures - 1) if self._failures else interval_s

    # -- one reading ---------------------------------------------------------------------------------------------------

    async def _ask(self, address: Address) -> Reading:
        """Raises ReadingFailed."""
        results = self._context.counters.results
        async with self._context.slots:
            try:
                reading = await self._context.read(self._key, address)
            except ReadingFailed as exc:
                results[exc.result] += 1
                raise
        results[ReadResult.OK] += 1
        return reading

    async def _read(self, address: Address) -> None:
        try:
            reading = await self._ask(address)
        except Exception as exc:
            if address == self._satellite.operational_at():
                self._failures += 1
                self._become(after_failures(self.condition, self._failures), str(exc))
            self._tell([msg.BuildsRead(None)])
            if not isinstance(exc, ReadingFailed):
                raise
            return
        if address == self._satellite.operational_at():
            self._took(reading)

    def _took(self, reading: Reading) -> None:
        before, self.last = self.last, reading
        self._failures = 0
        self._become(condition_of(reading), reading.buildkit_error)
        inputs: list[msg.Input] = [msg.BuildsRead(reading.running_builds)]
        if was_booted(before, reading):
            # Somebody has restarted it from inside, or another machine answers: the provider's look will tell.
            self._context.counters.boots += 1
            self._log("booted while it was awake", {"uptime_s": round(reading.uptime_s, 1)})
            self._abuse = AbuseWatch()
            inputs = [msg.Suspected(), msg.BuildsRead(None)]
        kills = killed_between(before, reading)
        if kills:
            self._tell_kills(kills)
        inputs += self._judge(reading)
        self._satellite.facts.read(reading, kills, self.suspicion)
        self._tell(inputs)

    def _tell(self, inputs: Sequence[msg.Input]) -> None:
        # The answer is older than what the clients have moved meanwhile.
        self._satellite.leases.read_meters()
        for event in inputs:
            self._satellite.feed(event)

    def _become(self, condition: Condition, words: str) -> None:
        before, self.condition = self.condition, condition
        if before is condition:
            return
        fields: dict[str, object] = {"condition": condition.value, "before": before.value}
        if words:
            fields["words"] = words
        bad = (Condition.FULL, Condition.DEAF, Condition.SILENT)
        self._log("condition", fields, logging.WARNING if condition in bad else logging.INFO)

    def _tell_kills(self, kills: Kills) -> None:
        """Log them, with the connections whose builds they may have been."""
        self._context.counters.oom_kills += kills.oom
        self._context.counters.pressure_kills += kills.pressure
        connected = self._context.connections(self._key)
        fields: dict[str, object] = {
            "oom_kills": kills.oom,
            "pressure_kills": kills.pressure,
            "steps": [
                {
                    "cause": each.cause.value,
                    "step": each.step,
                    "builds": list(each.build_refs),
                    "memory_bytes": each.memory_bytes,
                }
                for each in kills.steps
            ],
            "connections": list(connected[:LOGGED_CONNECTIONS]),
        }
        if len(connected) > LOGGED_CONNECTIONS:
            fields["more_connections"] = len(connected) - LOGGED_CONNECTIONS
        self._log("a build ran out of memory", fields)

    def _judge(self, reading: Reading) -> list[msg.Input]:
        """Look for signs of abuse. Returns what the machine must be told, if the operator wants something done."""
        section, moved = self._section.abuse, self._satellite.leases.client_moved()
        if reading.builds is None:
            return []
        self.suspicion = self._abuse.note(
            Sample(
                at=trio.current_time(),
                cpu_s=reading.builds.cpu_s,
                cpus=reading.builds.cpu_limit or reading.cpus,
                client_bytes=moved,
                connections=self._satellite.leases.granted,
                oldest_build_s=reading.oldest_build_s,
                old_outgoing=reading.network.old if reading.network is not None else 0,
                young_outgoing=reading.network.young if reading.network is not None else 0,
            )
        )
        if not self.is_suspected or section.action == "off":
            return []
        if not self._has_acted:
            self._has_acted = True
            self._context.counters.actions[section.action] += 1
            cut = self._context.cut(self._key) if section.action == "cut" else 0
            fields = {"score": self.suspicion.score, "reasons": list(self.suspicion.reasons)}
            self._log("abuse suspected", fields | {"action": section.action, "cut": cut})
        # Told with each reading, since connections that were cut may not have ended yet.
        return [] if section.action == "notify" else [msg.Distrusted(), msg.SleepAsked()]

    def _log(self, message: str, fields: dict[str, object], level: int = logging.WARNING) -> None:
        log.log(level, message, extra={"fields": {"satellite": str(self._key), **fields}})


async def _reads_nothing(key: SatelliteKey, address: Address) -> Reading:
    raise ReadingFailed(ReadResult.UNREACHABLE, f"{key} has no responder")
