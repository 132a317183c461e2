"""One look at all satellites and at the clients that are held, shared by everybody who looks at the page."""

import dataclasses
from collections.abc import Iterable

import trio

from bentpipe.daemon.admin.facts import AdminParts
from bentpipe.daemon.admin.viewer import EVERYTHING
from bentpipe.daemon.api.activity import ActivityRow, RateMeter
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.record import Phase, Record
from bentpipe.daemon.records.telling import Fields, open_fields

LOOK_AGE_S = 1.0
"""However many browsers look, satellites and their counters are read once in this time."""
A_TURN = 200
"""Satellites or connections that are looked at before other tasks have their turn: each takes some microseconds."""
HELD_MOST = 200
"""Held clients that are listed, those that have waited longest."""


@dataclasses.dataclass(frozen=True, slots=True)
class SatelliteRow:
    """A satellite as it is now."""

    key: SatelliteKey
    activity: ActivityRow
    """As `bentpipe top` shows it."""
    trouble: str
    """Why a client would be refused now, for the operator; "" if it would not."""
    hint: str
    """The same in words that its clients read."""
    woken_by: str


@dataclasses.dataclass(frozen=True, slots=True)
class FleetLook:
    """What was seen in one look."""

    rows: tuple[SatelliteRow, ...]
    held: tuple[Fields, ...]
    """The clients that wait, the longest waiting first."""
    connections_seen: int
    """Connections that were accepted or have ended so far: another number means that a list of them is old."""

    def row(self, key: SatelliteKey) -> SatelliteRow | None:
        """One satellite's."""
        return next((each for each in self.rows if each.key == key), None)


class Looker:
    """Makes looks."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._meters: dict[str, RateMeter] = {}
        self._last: FleetLook | None = None
        self._old_at = float("-inf")
        self._looking = trio.Lock()

    async def look(self) -> FleetLook:
        """The last look, if it is young enough, or a new one."""
        async with self._looking:
            if self._last is None or trio.current_time() >= self._old_at:
                self._last = await self._look()
                self._old_at = trio.current_time() + LOOK_AGE_S
            return self._last

    async def _look(self) -> FleetLook:
        fleet, book = self._parts.fleet, self._parts.finder.book
        orgs = sorted({each.key.org for each in fleet.satellites})
        self._meters = {org: self._meters.get(org, RateMeter()) for org in orgs}
        rows: list[SatelliteRow] = []
        for org in orgs:
            answer = await self._parts.operations.activity(EVERYTHING, org)
            for activity in self._meters[org].rows(answer):
                key = SatelliteKey(org, activity.name)
                rows.append(_row(key, activity, fleet.find(key)))
                if len(rows) % A_TURN == 0:
                    await trio.lowlevel.checkpoint()
        held = await _held(book.all_open()) if any(row.activity.held for row in rows) else ()
        return FleetLook(tuple(rows), held, 2 * book.opened - book.open_count)


def _row(key: SatelliteKey, activity: ActivityRow, satellite: Satellite | None) -> SatelliteRow:
    trouble = None if satellite is None else satellite.trouble
    words, hint = ("", "") if trouble is None else (str(trouble), trouble.peer_hint)
    return SatelliteRow(key, activity, words, hint, "" if satellite is None else satellite.woken_by)


def is_held(record: Record) -> bool:
    """Whether the connection waits for its satellite now."""
    return record.has_reached(Phase.HELD) and not record.has_reached(Phase.LEASED)


async def _held(records: Iterable[Record]) -> tuple[Fields, ...]:
    found: list[Record] = []
    for number, record in enumerate(records, 1):
        if is_held(record):
            found.append(record)
        if number % A_TURN == 0:
            await trio.lowlevel.checkpoint()
    found.sort(key=lambda record: record.marks[Phase.HELD])
    return tuple(open_fields(record) for record in found[:HELD_MOST])
