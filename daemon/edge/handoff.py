"""The books of the spliced connections: which splice holds which lease, until the engine says that it ended.

Owns: the engine's event descriptor on the Python side. One task, `run_handoff`, waits on it; nothing else of Python's
is alive for a spliced connection but one entry of a dict.
"""

import collections
import dataclasses
import logging
import os
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.transport import Transport
from bentpipe.daemon.fleet.satellite import Lease
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.engine import Ended, EndReason, Engine, SpliceId

log = logging.getLogger("bentpipe.edge")


@dataclasses.dataclass(frozen=True, slots=True)
class Splice:
    """What is remembered of a spliced connection."""

    key: SatelliteKey
    principal: str
    peer: str
    lease: Lease
    on_end: Callable[[], None]


class HandOff:
    """Gives connections to the engine and takes their ends back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[SpliceId, Splice] = {}
        self._changed = trio.Event()
        self.ended: collections.Counter[EndReason] = collections.Counter()
        """How spliced connections ended since the start."""

    @property
    def live(self) -> int:
        """Spliced connections now."""
        return len(self._live)

    def hand_off(self, client: Transport, satellite: Transport, splice: Splice) -> None:
        """Give both sockets to the engine, and the lease to the splice. Raises OSError and keeps all if it refuses.

        Synchronous: no cancellation can fall between the two owners.
        """
        splice_id = self._engine.splice(client.detach(), satellite.detach())
        client.detached()
        satellite.detached()
        self._live[splice_id] = splice

    async def run_handoff(self) -> None:
        """Collect ends for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._engine.event_fd)
            for ended in self._engine.take_ended():
                self._end(ended)

    def _end(self, ended: Ended) -> None:
        splice = self._live.pop(ended.splice_id)
        splice.lease.release()
        splice.on_end()
        self.ended[ended.reason] += 1
        log.info(
            "connection ended",
            extra={
                "fields": {
                    "satellite": str(splice.key),
                    "principal": splice.principal,
                    "peer": splice.peer,
                    "reason": ended.reason.name.lower(),
                    "up_bytes": ended.counters.client_to_satellite_bytes,
                    "down_bytes": ended.counters.satellite_to_client_bytes,
                    **({"error": os.strerror(ended.error)} if ended.error else {}),
                }
            },
        )
        self._changed.set()
        self._changed = trio.Event()

    async def wait_none(self) -> None:
        """Return when no connection is spliced."""
        while self._live:
            await self._changed.wait()

    def abort_all(self) -> int:
        """Cut every spliced connection (RST on both legs); their ends arrive by `run_handoff`. Returns how many."""
        for splice_id in self._live:
            self._engine.abort(splice_id)
        return len(self._live)
