"""What a control plane leaves in its data planes for its successor (NOTE): what the successor must know before it acts.

It names the satellites whose machines are being stopped. Such a call may be on its way when the process dies, and takes
effect later. So the note is written, and that is waited for, before the call is sent.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable

import trio

from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes.records import LINK_ID, NoteRecord
from bentpipe.daemon.planes.table import RECORD_NUMBERS

NOTE_S = 1.0
"""For a plane to keep a note. A plane that hangs does not keep a satellite awake."""

STOPS_AT_ONCE = 64
"""Further stops wait for one of these, so that the note always fits a record. A cloud limits such calls far more."""


class SuccessorNote:
    """`planes` are those that there are now."""

    def __init__(self, planes: Callable[[], Iterable[RemotePlane]]) -> None:
        self._planes = planes
        self._stopping: set[SatelliteKey] = set()
        self._stops = trio.Semaphore(STOPS_AT_ONCE)

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
                await plane.ask(self._record(), RECORD_NUMBERS[NoteRecord])

    def write_nowait(self) -> None:
        """Let the planes know what holds now, soon."""
        for plane in self._planes():
            plane.send_nowait(self._record())

    def _record(self) -> NoteRecord:
        return NoteRecord(LINK_ID, json.dumps({"stopping": sorted(map(str, self._stopping))}).encode())

    def read(self, note: bytes) -> list[SatelliteKey]:
        """Read what the predecessor has left; returns the satellites that it was stopping. A broken note says nothing."""
        text = note.decode(errors="replace")
        try:
            found = json.loads(text)
        except ValueError:
            found = {"stopping": text.splitlines()}  # of a version that wrote a line for each satellite
        names = found.get("stopping", []) if isinstance(found, dict) else []
        return [key for each in names if (key := _key_of(each)) is not None]


def _key_of(name: object) -> SatelliteKey | None:
    if not isinstance(name, str):
        return None
    org, slash, rest = name.partition("/")
    return SatelliteKey(org, rest) if slash else None
