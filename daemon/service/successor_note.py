"""What a control plane leaves in its data planes for its successor (NOTE): what the successor must know before it acts.

It names the satellites whose machines are being stopped. Such a call may be on its way when the process dies, and takes
effect later. So the note is written, and that is waited for, before the call is sent.

With a shared store it also has the names by which this host has entered satellites. Splices outlive the control plane, and
so do its entries: the successor enters for them by a name of its own, and only then gives back what was entered before.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable

import trio

from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes.records import LINK_ID, NoteRecord
from bentpipe.daemon.planes.table import RECORD_NUMBERS

NOTE_S = 1.0
"""For a plane to keep a note. A plane that hangs does not keep a satellite awake."""

STOPS_AT_ONCE = 64
"""Further stops wait for one of these, so that the note always fits a record. A cloud limits such calls far more."""


STAYS = 64
"""Names of entries, at most: one for each process that died since the store answered last."""


class SuccessorNote:
    """`planes` are those that there are now."""

    def __init__(self, planes: Callable[[], Iterable[RemotePlane]]) -> None:
        self._planes = planes
        self._stopping: set[SatelliteKey] = set()
        self._coordination: Coordination | None = None
        self.inherited: set[str] = set()
        """By which names predecessors have entered satellites."""
        self._stops = trio.Semaphore(STOPS_AT_ONCE)

    def share(self, coordination: Coordination) -> None:
        """From now on the note has the names of this host's entries."""
        self._coordination = coordination
        coordination.announce_by(self._write)

    @contextlib.asynccontextmanager
    async def noting_stop(self, key: SatelliteKey) -> AsyncIterator[None]:
        """While the block runs, the planes know that the satellite's machine is being stopped.

        If this process dies meanwhile, its successor looks at the machine until the call has taken effect.
        """
        async with self._stops:
            self._stopping.add(key)
            await self._write()
            try:
                yield
            finally:
                self._stopping.discard(key)
                self.write_nowait()

    async def _write(self) -> None:
        with trio.move_on_after(NOTE_S):
            for plane in self._planes():
                await plane.ask(self.record(), RECORD_NUMBERS[NoteRecord])

    def write_nowait(self) -> None:
        """Let the planes know what holds now, soon."""
        for plane in self._planes():
            plane.send_nowait(self.record())

    def record(self) -> NoteRecord:
        """The note as it is now."""
        stays = () if self._coordination is None else self._coordination.stays
        found = {"stopping": sorted(map(str, self._stopping)), "stays": [*stays, *sorted(self.inherited)][:STAYS]}
        return NoteRecord(LINK_ID, json.dumps(found).encode())

    def read(self, note: bytes) -> list[SatelliteKey]:
        """Read what the predecessor has left; returns the satellites that it was stopping. A broken note says nothing."""
        text = note.decode(errors="replace")
        try:
            found = json.loads(text)
        except ValueError:
            found = {"stopping": text.splitlines()}  # of a version that wrote a line for each satellite
        if not isinstance(found, dict):
            return []
        self.inherited.update(_texts(found.get("stays"))[:STAYS])
        return [key for each in _texts(found.get("stopping")) if (key := _key_of(each)) is not None]

    def hand_on(self, coordination: Coordination) -> None:
        """Everything that is still used is entered anew: give back what predecessors have entered."""
        coordination.succeed(self.inherited)
        self.inherited.clear()


def _texts(found: object) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _key_of(name: str) -> SatelliteKey | None:
    org, slash, rest = name.partition("/")
    return SatelliteKey(org, rest) if slash else None
