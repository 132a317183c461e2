"""What is known of one connection, filled in as it goes on. Only the Trio thread uses it.

A record is open from accept to the connection's very end, and then closed once: see `book.py`.
"""

import array
import dataclasses
import enum
import logging
import math
from collections.abc import Callable
from types import TracebackType

from bentpipe.daemon.model import SatelliteKey

DIGITS = 4
"""Digits after the point of times: a tenth of a millisecond."""


class Phase(enum.IntEnum):
    """The steps of a connection's life, in their usual order. The value is the place of its time in `Record.marks`."""

    ACCEPTED = 0
    GREETED = 1
    """Its first request is complete."""
    ADMITTED = 2
    """It may use its satellite."""
    HELD = 3
    """It begins to wait for its satellite."""
    LEASED = 4
    """It waits no more: its satellite is awake."""
    DIALLED = 5
    """The satellite has accepted a connection for it."""
    FIRST_BYTE = 6
    """The satellite's first byte has come."""
    SPLICED = 7
    """Both sockets are the engine's."""
    LAST_BYTE = 8
    """The last byte was delivered, in either direction."""
    ENDED = 9

    @property
    def field(self) -> str:
        """Names its time in lines and records: seconds since the accept."""
        return f"{self.name.lower()}_s"


_UNREACHED = array.array("d", [math.nan] * len(Phase))
_FIELDS = tuple((phase, phase.field) for phase in Phase if phase is not Phase.ACCEPTED)


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a connection ended: a code for programs, words for people, and how urgent it is (a level of `logging`)."""

    code: str
    words: str
    level: int = logging.INFO


NOT_ENDED = End("open", "it is still open")
PASSED_ON = End("passed-on", "another process has the connection, and its record")
"""Nobody is told of such a record."""
LOST = End("lost", "the daemon ended, or failed, before the connection's end was known", logging.WARNING)


class Record:
    """One connection. `clock` returns seconds of the clock of all its times; `closed` is called at its end."""

    __slots__ = (
        "_clock",
        "_closed",
        "_handed_off",
        "_in_block",
        "down_bytes",
        "end",
        "error",
        "id",
        "is_open",
        "marks",
        "peer",
        "principal",
        "satellite",
        "status",
        "traceparent",
        "tracestate",
        "up_bytes",
        "wall_s",
        "woken_by",
    )

    def __init__(
        self,
        connection_id: str,
        peer: str,
        wall_s: float,
        clock: Callable[[], float],
        closed: Callable[["Record"], None],
    ) -> None:
        """`wall_s` is when it was accepted, in seconds since the epoch."""
        self.id = connection_id
        self.peer = peer
        self.wall_s = wall_s
        self.principal = ""
        self.satellite: SatelliteKey | None = None
        self.woken_by: str | None = None
        """If it was held: the principal whose client had the satellite woken; "" if none had."""
        self.marks = _UNREACHED[:]
        """When it reached each phase, by `clock`; NaN if it has not. Flat, since there is one for each open connection."""
        self.marks[Phase.ACCEPTED] = clock()
        self.up_bytes = 0
        """From the client."""
        self.down_bytes = 0
        """To the client."""
        self.status = ""
        """The gRPC status of its refusal, by name."""
        self.error = ""
        """What went wrong, for the operator."""
        self.traceparent = self.tracestate = ""
        """The client's own, of its first request (W3C Trace Context)."""
        self.end = NOT_ENDED
        self.is_open = True
        self._clock = clock
        self._closed = closed
        self._handed_off = False
        self._in_block = False

    def reach(self, phase: Phase) -> None:
        """The connection reaches the phase now; if it does so again, the last time counts."""
        self.marks[phase] = self._clock()

    def reach_first(self, phase: Phase, ago_s: float = 0.0) -> None:
        """The same `ago_s` ago, if it has not reached the phase before."""
        if math.isnan(self.marks[phase]):
            self.marks[phase] = self._clock() - ago_s

    def has_reached(self, phase: Phase) -> bool:
        """Whether it has."""
        return not math.isnan(self.marks[phase])

    def finish(self, end: End, error: str = "") -> None:
        """Say how the connection ends. What was said first counts: a later failure is a consequence of it."""
        if self.end is NOT_ENDED:
            self.end = end
        self.error = self.error or error

    def hand_off(self) -> None:
        """From now on the connection's splice owns the record, and closes it."""
        self._handed_off = True

    def take_back(self, end: End) -> None:
        """There is no splice after all. The session closes the record; if it is over already, the record ends so."""
        self._handed_off = False
        if not self._in_block:
            self.finish(end)
            self.close()

    def close(self) -> None:
        """The connection is over. Idempotent."""
        if self.is_open:
            self.is_open = False
            if self.end is NOT_ENDED:
                self.end = LOST
            self.reach(Phase.ENDED)
            self._closed(self)

    def __enter__(self) -> "Record":
        """Run the connection in the block."""
        self._in_block = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, whatever ended the block, unless the splice has it."""
        self._in_block = False
        if not self._handed_off:
            self.close()

    def between_s(self, first: Phase, then: Phase) -> float:
        """Seconds from one phase to another; NaN if it has not reached both."""
        return self.marks[then] - self.marks[first]

    @property
    def held_s(self) -> float:
        """For how long it waited for its satellite, until its lease or its end; NaN if it did not wait."""
        until = Phase.LEASED if self.has_reached(Phase.LEASED) else Phase.ENDED
        return self.between_s(Phase.HELD, until)

    def fields(self) -> dict[str, object]:
        """Everything, flat, by names that do not change: for the log, and for the store as JSON.

        Times are seconds since the accept; `at` is the accept, in seconds since the epoch.
        """
        accepted = self.marks[Phase.ACCEPTED]
        found: dict[str, object] = {
            "id": self.id,
            "satellite": "" if self.satellite is None else str(self.satellite),
            "principal": self.principal,
            "peer": self.peer,
            "end": self.end.code,
            "reason": self.end.words,
            "at": round(self.wall_s, 3),
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
        }
        for phase, name in _FIELDS:
            if self.has_reached(phase):
                found[name] = round(self.marks[phase] - accepted, DIGITS)
        if self.woken_by is not None:
            found["woken_by"] = self.woken_by or "nobody"
        optional = {"status": self.status, "error": self.error, "traceparent": self.traceparent}
        return found | {name: value for name, value in optional.items() if value}
