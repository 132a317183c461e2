"""The greeting: reads a client's first bytes as HTTP/2 until its first header block is complete, then keeps listening.

Rules of this file:

- The transcript keeps every byte verbatim, except those that were meant for the daemon (the ACK of our SETTINGS, and PINGs
  that we answered).
- The first header block is decoded, and no other.
- The daemon sends at most one SETTINGS frame, and ACKs of PINGs. It must never send anything else: an ACK of the client's
  SETTINGS would be the first of two. If it has sent SETTINGS, the satellite's own are the client's second, and must be
  changed: see proto/first_settings.py.
- The satellite reads the transcript from the same start state as this parser.

proto/states.py says which frame may come when, and proto/limits.py has every bound.
"""

import dataclasses

from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.events import (
    Event,
    GoAwayReceived,
    NotHttp2,
    PingAnswered,
    RequestHeaders,
    StreamReset,
)
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.frames import (
    ACK,
    HEADER_BYTES,
    PREFACE,
    FrameHeader,
    FrameType,
    frame,
    parse_header,
)
from bentpipe.proto.header_block import HeaderBlock
from bentpipe.proto.payloads import ConnectionWindow, check_settings, unpadded
from bentpipe.proto.preface import recognise
from bentpipe.proto.states import (
    COUNTED,
    FRAME_STATES,
    REQUEST_SEEN,
    TABLE,
    Input,
    State,
    check_shape,
    classify,
    illegal,
)

_VALUE = (1 << 31) - 1
"""Both values of an Announcement have at most 31 bits (RFC 9113 §6.5.2)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadBefore:
    """How far another reader of the same client has come."""

    transcript: bytes
    """Whole frames, without those that do not belong to the transcript."""
    mark: int
    """What the client has heard: see Greeting.mark."""
    words: bytes
    """What we must send still."""
    pings: int
    """PINGs before the first request."""
    ping_tokens: float
    """What is left of PING_BURST."""
    ping_at_s: float
    """When the last PING of a held client came."""
    framed_bytes: int
    """Bytes of whole frames, with those that do not belong to the transcript."""
    removed: list[tuple[int, int]] | None
    """What `take_removed` would take; None: nothing is remembered."""


class Greeting:
    """One client's opening, and what it sends while it is held."""

    def __init__(self) -> None:
        self._state = State.PREFACE
        self._buffer = bytearray()
        self._transcript = bytearray()
        self._opening_bytes = 0
        self._outbox = bytearray()
        self._announced = Announcement()
        self._settings_sent = False
        self._acked = False
        self._block: HeaderBlock | None = None
        self._last_stream = 0
        # A dictionary without values. It is empty in every half-open greeting, and an empty set is three times as large.
        self._open: dict[int, None] = {}
        self._going_away = False
        self._failing = False
        self._counts: dict[str, int] = {}
        self._data_bytes = 0
        self._window = ConnectionWindow()
        self._ping_tokens = float(limits.PING_BURST)
        self._ping_at_s = 0.0
        self._framed_bytes = 0
        self._removed: list[tuple[int, int]] | None = None

    # -- what the edge reads -----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state that the client has reached."""
        return self._state

    @property
    def spoke(self) -> bool:
        """Whether the client has our SETTINGS, so that a satellite's would be its second."""
        return self._settings_sent

    @property
    def announced(self) -> Announcement:
        """The values of our SETTINGS, if we send them."""
        return self._announced

    def announce(self, announced: Announcement) -> None:
        """Set the values of our SETTINGS, which have not been sent yet."""
        self._announced = announced

    @property
    def awaiting_ack(self) -> bool:
        """Whether the client's ACK of our SETTINGS is still missing."""
        return self._settings_sent and not self._acked

    @property
    def transcript_bytes(self) -> bytes:
        """The bytes to replay: complete frames, and the part of an incomplete one that `ack_filter` need not see first."""
        return bytes(self._transcript if self.awaiting_ack else self._transcript + self._buffer)

    @property
    def opening(self) -> bytes:
        """The beginning of the transcript:

        preface and SETTINGS. A server must answer it with its SETTINGS (RFC 9113 §3.4).
        """
        return bytes(self._transcript[: self._opening_bytes])

    def take_all(self) -> bytes:
        """Everything that came, for another reader that goes on from here. An ACK of our SETTINGS may follow.

        This object keeps nothing of it.
        """
        data = bytes(self._transcript + self._buffer)
        self._transcript.clear()
        self._buffer.clear()
        return data

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the client are kept."""
        return len(self._transcript) + len(self._buffer)

    @property
    def transcript_full(self) -> bool:
        """Whether to stop reading."""
        return self.kept_bytes >= limits.TRANSCRIPT_BYTES

    @property
    def open_streams(self) -> tuple[int, ...]:
        """The streams that the client has opened and not reset, in order."""
        return tuple(sorted(self._open))

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._last_stream

    @property
    def asks_nothing(self) -> bool:
        """Whether preface and SETTINGS have come whole, and no part of a request, nor of any other frame."""
        return self._state is State.OPENING and not self._buffer

    @property
    def leaving(self) -> bool:
        """Whether the client has sent GOAWAY and waits for no answer any more, or has left because of an error.

        A client that sends GOAWAY(NO_ERROR) finishes its open streams first (RFC 9113 §6.8).
        """
        return self._failing or (self._going_away and not self._open)

    @property
    def unframed_bytes(self) -> int:
        """How many of the bytes that came belong to a frame that is not complete yet."""
        return len(self._buffer)

    def take_removed(self) -> tuple[tuple[int, int], ...]:
        """Take the ranges (offset, length) that came since the last call and do not belong to the transcript.

        They are remembered from the first call on.
        """
        removed, self._removed = tuple(self._removed or ()), []
        return removed

    @property
    def mark(self) -> int:
        """What the client has heard of us, in 64 bits, for `resume`: SETTINGS, their ACK, and 31 bits for each value."""
        heard = self._settings_sent | self._acked << 1
        return heard | self._announced.streams << 2 | self._announced.window_bytes << 33

    def resume(self, mark: int) -> None:
        """Go on for another Greeting, which had this mark. Call it before anything is read; its transcript is read again."""
        self._settings_sent, self._acked = bool(mark & 1), bool(mark & 2)
        self._announced = Announcement(mark >> 2 & _VALUE, mark >> 33)

    def go_on(self, before: ReadBefore) -> None:
        """Go on for another reader, before anything is read. Raises GreetingError if that read what may not come."""
        self.resume(before.mark)
        self._buffer += before.transcript
        try:
            self._read([], before.ping_at_s)
        except GreetingError:
            self._state = State.ENDED
            raise
        self._outbox += before.words
        self._counts["PING_FRAMES"] = before.pings
        self._ping_tokens, self._ping_at_s = before.ping_tokens, before.ping_at_s
        self._framed_bytes, self._removed = before.framed_bytes, before.removed

    def ack_filter(self) -> AckFilter:
        """Make a filter that goes on from exactly here, after `transcript_bytes`.

        The present incomplete frame comes first.
        """
        return AckFilter(bytes(self._buffer))

    def data_to_send(self) -> bytes:
        """Take the bytes that we must send."""
        words = bytes(self._outbox)
        self._outbox.clear()
        return words

    def speak(self) -> None:
        """Send our SETTINGS now, since something must follow them."""
        self._send_settings()

    def end_of_first_flight(self) -> None:
        """Note that nothing more can be read now.

        If the request is not complete, send SETTINGS first: grpc-go waits for them.
        """
        if self._state in (State.SETTINGS, State.OPENING, State.OPENING_BLOCK):
            self._send_settings()

    # -- what the client says ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_s: float) -> list[Event]:
        """Read on. Raises GreetingError; after that only the properties of this object may be used."""
        self._buffer += data
        events: list[Event] = []
        try:
            if self._state is State.ENDED:
                raise illegal(self._state, Input.QUIET)
            self._read(events, now_s)
            if self._state not in REQUEST_SEEN and self.kept_bytes > limits.GREETING_BYTES:
                raise over("GREETING_BYTES")
        except GreetingError:
            self._state = State.ENDED
            raise
        return events

    def _read(self, events: list[Event], now_s: float) -> None:
        if self._state is State.PREFACE:
            self._preface(events)
        while self._state in FRAME_STATES and self._next_frame(events, now_s):
            pass

    def _move(self, seen: Input) -> None:
        self._state = TABLE[self._state][seen]

    def _preface(self, events: list[Event]) -> None:
        start = bytes(self._buffer[: len(PREFACE)])
        if start == PREFACE:
            self._transcript += PREFACE
            del self._buffer[: len(PREFACE)]
            self._framed_bytes = len(PREFACE)
            self._move(Input.PREFACE)
        elif (kind := recognise(start)) is not None:
            self._move(Input.NOT_HTTP2)
            events.append(NotHttp2(kind))

    def _next_frame(self, events: list[Event], now_s: float) -> bool:
        if len(self._buffer) < HEADER_BYTES:
            return False
        header = parse_header(self._buffer)
        seen = classify(header)
        self._check(header, seen)
        size = HEADER_BYTES + header.length
        if len(self._buffer) < size:
            return False
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._count(seen)
        was = self._state
        self._move(seen)
        if self._frame(was, seen, header, raw[HEADER_BYTES:], events, now_s):
            self._transcript += raw
        elif self._removed is not None:
            self._removed.append((self._framed_bytes, size))
        self._framed_bytes += size
        if was is State.SETTINGS:
            self._opening_bytes = len(self._transcript)
        return True

    def _check(self, header: FrameHeader, seen: Input) -> None:
        """Check a frame's header alone, before its payload has come."""
        if header.length > limits.FRAME_BYTES:
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {header.length} bytes", "FRAME_BYTES")
        if seen not in TABLE[self._state] or (self._block is not None and header.stream_id != self._block.stream_id):
            raise illegal(self._state, seen)
        check_shape(header)
        if seen is Input.SETTINGS and header.length // 6 > limits.SETTINGS_ENTRIES:
            raise over("SETTINGS_ENTRIES")

    def _count(self, seen: Input) -> None:
        name = COUNTED.get(self._state, {}).get(seen)
        if name is not None:
            self._count_name(name)

    def _count_name(self, name: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        limit: int = getattr(limits, name)
        if self._counts[name] > limit:
            raise over(name)

    def _frame(
        self, was: State, seen: Input, header: FrameHeader, payload: bytes, events: list[Event], now_s: float
    ) -> bool:
        """Process a complete frame that came in the state `was`. Returns whether it belongs to the transcript."""
        match seen:
            case Input.SETTINGS_ACK:
                if not self.awaiting_ack:
                    raise _protocol("ACK of SETTINGS that were never sent")
                self._acked = True
                return False
            case Input.PING:
                self._ping(was, payload, now_s)
                events.append(PingAnswered())
                return False
            case Input.HEADERS | Input.HEADERS_PART:
                self._open_stream(header.stream_id)
                self._block = HeaderBlock(header, payload, kept=was is State.OPENING)
                if seen is Input.HEADERS:
                    self._end_block(self._block, events)
            case Input.CONTINUATION | Input.CONTINUATION_PART if self._block is not None:
                self._block.extend(payload)
                if seen is Input.CONTINUATION:
                    self._end_block(self._block, events)
            case Input.DATA:
                self._data(header, payload)
            case Input.RST_STREAM:
                self._check_opened(header)
                self._open.pop(header.stream_id, None)
                events.append(StreamReset(header.stream_id, int.from_bytes(payload)))
            case Input.GOAWAY:
                error_code = int.from_bytes(payload[4:8])
                self._going_away = True
                self._failing = self._failing or error_code != ErrorCode.NO_ERROR
                events.append(GoAwayReceived(error_code))
            case Input.SETTINGS:
                check_settings(payload)
            case Input.QUIET if header.type == FrameType.WINDOW_UPDATE:
                if header.stream_id:
                    self._check_opened(header)
                self._window.update(header.stream_id, payload)
            case _:
                pass  # the other frames that need no answer are for the satellite
        return True

    def _check_opened(self, header: FrameHeader) -> None:
        if header.stream_id > self._last_stream or not header.stream_id % 2:
            raise _protocol(f"{FrameType(header.type).name} on an idle stream")

    def _open_stream(self, stream_id: int) -> None:
        if not stream_id % 2:
            raise _protocol("a client's streams are odd")
        if stream_id > self._last_stream:
            self._last_stream = stream_id
            self._open[stream_id] = None

    def _end_block(self, block: HeaderBlock, events: list[Event]) -> None:
        self._block = None
        if block.kept:
            events.append(RequestHeaders(block.stream_id, block.decode(), block.end_stream))

    def _data(self, header: FrameHeader, payload: bytes) -> None:
        self._check_opened(header)
        unpadded(header, payload)
        if not header.length:
            self._count_name("EMPTY_DATA_FRAMES")
        self._data_bytes += header.length
        if self._data_bytes > limits.WINDOW_BYTES:
            raise GreetingError(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window", "WINDOW_BYTES")

    def _ping(self, was: State, payload: bytes, now_s: float) -> None:
        if was is State.HELD:
            passed_s = max(0.0, now_s - self._ping_at_s)
            self._ping_tokens = min(float(limits.PING_BURST), self._ping_tokens + passed_s * limits.PING_PER_S)
            self._ping_at_s = now_s
            self._ping_tokens -= 1
            if self._ping_tokens < 0:
                raise over("PING_PER_S")
        # SETTINGS must be a server's first frame (RFC 9113 §3.4).
        self._send_settings()
        self._outbox += frame(FrameType.PING, ACK, 0, payload)

    def _send_settings(self) -> None:
        if not self._settings_sent:
            self._settings_sent = True
            self._outbox += self._announced.frame()


def _protocol(message: str) -> GreetingError:
    return GreetingError(ErrorCode.PROTOCOL_ERROR, message)
