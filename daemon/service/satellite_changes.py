"""Brings the satellites of a changed configuration into the fleet, while clients use those that are there.

What the rules of a satellite's sleep say holds at once. What is of its machine, or of how it is reached, holds for the next
machine: the satellite is taken up anew as soon as it sleeps and nobody uses it. A satellite that is not in the configuration
any more takes no new clients. Those that are connected may finish; then it is put to sleep and given up.

Owns: which satellites of the configuration the fleet has. Launched and registered satellites are not its business.
"""

import dataclasses
import logging
from collections.abc import Mapping

import trio

from bentpipe.config.live import Effect, change_of
from bentpipe.config.model import MachineSection, SatelliteSection
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.errors import SleepRefused
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.api import specs_of
from bentpipe.daemon.service.provisioning import SatelliteParts
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

log = logging.getLogger("bentpipe")

SETTLE_S = 0.5
"""Between looks whether a satellite that waits for a change sleeps by now. Each costs some microseconds."""
ASK_AGAIN_S = 30.0
"""Until a satellite that is to be given up, and could not be put to sleep, is asked again."""
DISMISSED_WORDS = "the satellite was taken out of the edge host's configuration"

AT_ONCE = tuple(field for field in MachineSection.model_fields if change_of(MachineSection, field).effect is Effect.NOW)
"""The fields of a satellite whose change holds at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class WantedSatellite:
    """A satellite as the configuration has it."""

    section: SatelliteSection
    tls: SatelliteTls | None
    """By which its certificate is verified, read anew; None without TLS, or if its certificate is the daemon's own."""
    proven: bool
    """Whether TLS tells it from every other satellite: see KnownAddresses."""


class SatelliteChanges:
    """`run_changes` must run."""

    def __init__(self, fleet: Fleet, parts: SatelliteParts, sections: Mapping[SatelliteKey, SatelliteSection]) -> None:
        self._fleet = fleet
        self._parts = parts
        self._has = dict(sections)
        """With which section each is in the fleet."""
        self._wanted: Mapping[SatelliteKey, WantedSatellite] | None = None
        """None until there is another configuration than that of the start."""
        self._asked_at: dict[SatelliteKey, float] = {}
        """When a satellite that is to be given up was last asked to sleep."""
        self._adding: set[SatelliteKey] = set()
        self._changed = trio.Event()

    def has(self, key: SatelliteKey) -> bool:
        """Whether the fleet has it because it is, or was, in the configuration."""
        return key in self._has

    @property
    def pending(self) -> dict[SatelliteKey, str]:
        """The satellites that are not yet as the configuration wants them, with what they wait for."""
        wanted = self._wanted if self._wanted is not None else {}
        found = {}
        for key, section in self._has.items() if self._wanted is not None else ():
            if key not in wanted:
                found[key] = Effect.DRAINED.value
            elif wanted[key].section != section:
                found[key] = Effect.ASLEEP.value
        return found

    def follow(self, wanted: Mapping[SatelliteKey, WantedSatellite]) -> None:
        """These are the satellites of the configuration from now on."""
        self._wanted = wanted
        for key, old in self._has.items():
            satellite = self._fleet.find(key)
            if satellite is None:
                continue
            if key in wanted:
                self._take_over(satellite, old, wanted[key])
            else:
                self._dismiss(satellite, old)
        self._changed.set()

    async def wait_added(self) -> None:
        """Return once every satellite of the configuration can be found by clients."""
        while any(self._fleet.find(key) is None for key in (self._wanted or {})):
            await trio.sleep(SETTLE_S / 50)

    def _take_over(self, satellite: Satellite, old: SatelliteSection, wanted: WantedSatellite) -> None:
        key, new = satellite.key, wanted.section
        if self._asked_at.pop(key, None) is not None:
            satellite.retirement.recall()
        section = old.model_copy(update={field: getattr(new, field) for field in AT_ONCE})
        self._has[key] = section
        self._fleet.follow(satellite, section)
        self._parts.specs[key] = specs_of(section)
        if wanted.tls is not None and section.tls == new.tls:
            self._parts.tls[key] = wanted.tls  # its files may be others
        if not wanted.proven and not section.has_issued_tls:
            self._parts.proven.discard(key)

    def _dismiss(self, satellite: Satellite, old: SatelliteSection) -> None:
        if satellite.key in self._asked_at:
            return
        self._asked_at[satellite.key] = float("-inf")
        satellite.retirement.dismiss(DISMISSED_WORDS)
        # Hours in which it is kept awake would keep it for ever.
        self._fleet.follow(satellite, old.model_copy(update={"keep_awake": ()}))

    async def run_changes(self) -> None:
        """Bring about what is pending, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                if self._wanted is not None:
                    self._settle(nursery, self._wanted)
                with trio.move_on_after(SETTLE_S if self.pending else float("inf")):
                    await self._changed.wait()
                self._changed = trio.Event()

    def _settle(self, nursery: trio.Nursery, wanted: Mapping[SatelliteKey, WantedSatellite]) -> None:
        for key in self.pending:
            with contained(_owner(key)):
                satellite = self._fleet.find(key)
                if satellite is None or key in self._adding:
                    continue
                if key not in wanted:
                    self._end(satellite)
                elif satellite.is_dormant:
                    nursery.start_soon(run_owned, _owner(key), self._put, wanted[key], satellite)
                    self._adding.add(key)
        for key in [each for each in wanted if each not in self._has and each not in self._adding]:
            nursery.start_soon(run_owned, _owner(key), self._put, wanted[key], None)
            self._adding.add(key)

    async def _put(self, wanted: WantedSatellite, old: Satellite | None) -> None:
        """Take up a satellite, in the place of the one that is there."""
        section = wanted.section
        key = SatelliteKey(section.org, section.name)
        try:
            if old is not None and not old.is_dormant:
                return  # a client has come since; the next look tries again
            self._has[key] = section
            if old is not None:
                self._parts.forget(key)
            self._parts.take_up(section, wanted.tls, proven=wanted.proven)
            if old is None:
                await self._fleet.add(section)
            else:
                await self._fleet.renew(old, section)
            log.info("satellite of the configuration taken up", extra={"fields": {"satellite": str(key)}})
        finally:
            self._adding.discard(key)
            self._changed.set()

    def _end(self, satellite: Satellite) -> None:
        """Take the next step of giving up a satellite that is not in the configuration any more."""
        key = satellite.key
        if satellite.is_dormant:
            self._parts.forget(key)
            self._fleet.give_up(satellite)
            del self._has[key], self._asked_at[key]
            log.info("satellite of the configuration given up", extra={"fields": {"satellite": str(key)}})
            return
        now = trio.current_time()
        unused = not satellite.leases and not satellite.waiting
        if unused and satellite.state is SatelliteState.OPERATIONAL and now >= self._asked_at[key] + ASK_AGAIN_S:
            self._asked_at[key] = now
            try:
                satellite.ask_to_sleep()
            except SleepRefused as exc:
                fields = {"satellite": str(key), "reason": str(exc)}
                log.info("a satellite that was taken out of the configuration stays awake", extra={"fields": fields})


def _owner(key: SatelliteKey) -> Owner:
    return Owner("satellite change", str(key), Decision.GIVE_UP)
