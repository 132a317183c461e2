"""The greeting read in C, with the interface of proto/greeting.py, which goes on where C stops.

C stops at a frame that breaks a rule or a limit, and at what it leaves to Python (native/src/greeting.c says what). Then
`stopped` is set, and `hand_over` makes a Greeting that has read the same frames. The Greeting reads the frame at which C
stopped: it has the words for a refusal.
"""

import dataclasses

from bentpipe.native.greeting import LIMITS, GreetingLimits, GreetingReader, GreetingVerdict
from bentpipe.native.lib import Pointer
from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.events import Event, GoAwayReceived, PingAnswered, RequestHeaders, StreamReset
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.greeting import Greeting, ReadBefore
from bentpipe.proto.states import State

STATES = tuple(State)
"""By their numbers in C."""
_PINGS = 1 + LIMITS.index("PING_FRAMES")
_SPEAKS = {State.SETTINGS, State.OPENING, State.OPENING_BLOCK}


def make_limits(most_fields: int = limits.HEADER_FIELDS) -> GreetingLimits:
    """The limits of proto/limits.py for C."""
    return GreetingLimits({name: getattr(limits, name) for name in LIMITS}, most_fields)


@dataclasses.dataclass(frozen=True, slots=True)
class GreetingStop:
    """Why C reads no further."""

    error_code: ErrorCode | None
    """Of the GOAWAY that it asks for; None: it leaves the client to Python."""
    limit: str | None = None
    """The limit that is broken."""


class NativeGreeting:
    """One client's opening, and what it sends while it is held. See proto/greeting.py."""

    __slots__ = ("_c", "_kept", "_outbox", "_reader", "_removed", "stopped")

    def __init__(self, reader: GreetingReader) -> None:
        self._reader = reader
        self._c = reader.c
        self._kept = bytearray()
        self._outbox = b""
        self._removed: list[tuple[int, int]] | None = None
        self.stopped: GreetingStop | None = None

    # -- what the edge reads -----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state that the client has reached."""
        return STATES[self._c.state]

    @property
    def spoke(self) -> bool:
        """Whether the client has our SETTINGS, so that a satellite's would be its second."""
        return self._c.settings_sent

    @property
    def announced(self) -> Announcement:
        """The values of our SETTINGS, if we send them."""
        return Announcement(self._c.streams, self._c.window_bytes)

    def announce(self, announced: Announcement) -> None:
        """Set the values of our SETTINGS, which have not been sent yet."""
        self._c.streams, self._c.window_bytes = announced.streams, announced.window_bytes

    @property
    def awaiting_ack(self) -> bool:
        """Whether the client's ACK of our SETTINGS is still missing."""
        return self._c.settings_sent and not self._c.acked

    @property
    def transcript_bytes(self) -> bytes:
        """The bytes to replay: complete frames, and the part of an incomplete one that `ack_filter` need not see first."""
        return bytes(self._kept[: self._c.framed] if self.awaiting_ack else self._kept)

    @property
    def opening(self) -> bytes:
        """The beginning of the transcript: preface and SETTINGS."""
        return bytes(self._kept[: self._c.opening_bytes])

    def take_all(self) -> bytes:
        """Everything that came, for another reader that goes on from here. This object keeps nothing of it."""
        data = bytes(self._kept)
        self._kept.clear()
        self._c.framed = 0
        return data

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the client are kept."""
        return len(self._kept)

    @property
    def transcript_full(self) -> bool:
        """Whether to stop reading."""
        return len(self._kept) >= limits.TRANSCRIPT_BYTES

    @property
    def open_streams(self) -> tuple[int, ...]:
        """The streams that the client has opened and not reset, in order."""
        return tuple(sorted(self._c.open[0 : self._c.open_count]))

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._c.last_stream

    @property
    def asks_nothing(self) -> bool:
        """Whether preface and SETTINGS have come whole, and no part of a request, nor of any other frame."""
        return self.state is State.OPENING and not self.unframed_bytes

    @property
    def leaving(self) -> bool:
        """Whether the client has sent GOAWAY and waits for no answer any more, or has left because of an error."""
        return self._c.failing or (self._c.going_away and not self._c.open_count)

    @property
    def unframed_bytes(self) -> int:
        """How many of the bytes that came belong to a frame that is not complete yet."""
        return len(self._kept) - self._c.framed

    def take_removed(self) -> tuple[tuple[int, int], ...]:
        """Take the ranges (offset, length) that came since the last call and do not belong to the transcript.

        They are remembered from the first call on.
        """
        removed, self._removed = tuple(self._removed or ()), []
        return removed

    @property
    def mark(self) -> int:
        """What the client has heard of us, in 64 bits, for `resume`."""
        return self._reader.mark

    def resume(self, mark: int) -> None:
        """Go on for another greeting, which had this mark. Call it before anything is read; its transcript is read again."""
        self._reader.resume(mark)

    def ack_filter(self) -> AckFilter:
        """Make a filter that goes on from exactly here, after `transcript_bytes`."""
        return AckFilter(bytes(self._kept[self._c.framed :]))

    def data_to_send(self) -> bytes:
        """Take the bytes that we must send."""
        words, self._outbox = self._outbox, b""
        return words

    def speak(self) -> None:
        """Send our SETTINGS now, since something must follow them."""
        self._outbox += self._reader.speak()

    def end_of_first_flight(self) -> None:
        """Note that nothing more can be read now. If the request is not complete, send SETTINGS first."""
        if self.state in _SPEAKS:
            self.speak()

    @property
    def request_fields(self) -> Pointer:
        """The fields of the first request, for native/request.py; until any greeting has read another one."""
        return self._reader.limits.fields

    # -- what the client says ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_s: float) -> list[Event]:
        """Read on, as far as C does. If `stopped` is set then, the caller goes on with `hand_over`."""
        kept, reader = self._kept, self._reader
        kept += data
        events: list[Event] = []
        while self.stopped is None and (verdict := reader.next(kept, now_s)) != GreetingVerdict.MORE:
            self._take(verdict, events)
        return events

    def _take(self, verdict: int, events: list[Event]) -> None:
        c = self._c
        match verdict:
            case GreetingVerdict.REQUEST:
                events.append(RequestHeaders(c.told_stream, self._reader.limits.decoded(), c.block_end_stream))
            case GreetingVerdict.ACKED:
                self._take_out()
            case GreetingVerdict.PINGED:
                self._take_out()
                self._outbox += self._reader.words()
                events.append(PingAnswered())
            case GreetingVerdict.RESET:
                events.append(StreamReset(c.told_stream, c.error_code))
            case GreetingVerdict.GOING_AWAY:
                events.append(GoAwayReceived(c.error_code))
            case GreetingVerdict.REFUSED:
                self.stopped = GreetingStop(ErrorCode(c.error_code), LIMITS[c.limit - 1] if c.limit else None)
            case _:
                self.stopped = GreetingStop(None)

    def _take_out(self) -> None:
        at, size = self._c.framed, self._c.removed
        del self._kept[at : at + size]
        if self._removed is not None:
            self._removed.append((self._c.passed - size, size))

    def hand_over(self) -> tuple[Greeting, bytes]:
        """Make a Greeting that has read all whole frames before the one at which C stopped. The rest is for it to read."""
        c = self._c
        framed, rest = bytes(self._kept[: c.framed]), bytes(self._kept[c.framed :])
        greeting = Greeting()
        greeting.go_on(
            ReadBefore(
                framed,
                self.mark,
                self.data_to_send(),
                c.counts[_PINGS],
                c.ping_tokens,
                c.ping_at_s,
                c.passed,
                self._removed,
            )
        )
        self._kept.clear()
        return greeting, rest
