"""The greeting: reads a client's first bytes as HTTP/2 until its first header block is complete, then keeps listening.

Rules of this file: every byte is kept verbatim in the transcript, except what was meant for us (the ACK of our SETTINGS,
PINGs that we answered); the first header block is decoded and no other; we say one EMPTY SETTINGS at most, and PING
ACKs, nothing else, ever: any value we set would stay in force when the satellite's own SETTINGS omit it, and our ACK of
the client's SETTINGS would be its second. The satellite reads the transcript from the same start state as we did.

    PREFACE ──▶ SETTINGS ──▶ FRAMES ──▶ BLOCK (HEADERS without END_HEADERS: CONTINUATION only) ──▶ FRAMES …
"""

import enum

import hpack

from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.events import (
    Event,
    GoAwayReceived,
    HeaderList,
    NotHttp2,
    PeerKind,
    PingAnswered,
    RequestHeaders,
    StreamReset,
)
from bentpipe.proto.frames import (
    ACK,
    EMPTY_SETTINGS,
    END_HEADERS,
    END_STREAM,
    HEADER_BYTES,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    FrameHeader,
    FrameType,
    frame,
    parse_header,
)

HTTP1_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"PATCH ", b"CONNECT ", b"TRACE ")
TLS_HANDSHAKE = b"\x16\x03"

CONNECTION_TYPES = {FrameType.SETTINGS, FrameType.PING, FrameType.GOAWAY}
"""Frames of stream 0 alone (RFC 9113 §6.5, §6.7, §6.8)."""
STREAM_TYPES = {
    FrameType.DATA,
    FrameType.HEADERS,
    FrameType.PRIORITY,
    FrameType.RST_STREAM,
    FrameType.CONTINUATION,
}
FIXED_LENGTHS = {
    FrameType.PRIORITY: 5,
    FrameType.RST_STREAM: 4,
    FrameType.PING: 8,
    FrameType.WINDOW_UPDATE: 4,
}


class _State(enum.Enum):
    PREFACE = enum.auto()
    SETTINGS = enum.auto()
    FRAMES = enum.auto()
    BLOCK = enum.auto()
    ENDED = enum.auto()


class Greeting:
    """One client's opening."""

    def __init__(self) -> None:
        self._state = _State.PREFACE
        self._buffer = bytearray()
        self._transcript = bytearray()
        self._outbox = bytearray()
        self._settings_sent = False
        self._acked = False
        self._block = bytearray()
        self._block_stream = 0
        self._block_end_stream = False
        self._continuations = 0
        self._request_seen = False
        self._last_stream = 0
        self._open: set[int] = set()
        self._counts: dict[str, int] = {}
        self._data_bytes = 0
        self._ping_tokens = float(limits.PING_BURST)
        self._ping_at_s = 0.0

    # -- what the edge reads -----------------------------------------------------------------------------------------

    @property
    def settings_sent(self) -> bool:
        """Whether our empty SETTINGS went to the outbox."""
        return self._settings_sent

    @property
    def awaiting_ack(self) -> bool:
        """Whether the client still owes the ACK of our SETTINGS."""
        return self._settings_sent and not self._acked

    @property
    def transcript_bytes(self) -> bytes:
        """What to replay: complete frames, and of an incomplete one what `ack_filter` need not see first."""
        return bytes(self._transcript) if self.awaiting_ack else bytes(self._transcript + self._buffer)

    def take_all(self) -> bytes:
        """Everything that came, for somebody who goes on from here in our place; an ACK of our SETTINGS may follow."""
        return bytes(self._transcript + self._buffer)

    @property
    def transcript_full(self) -> bool:
        """Whether to stop reading."""
        return len(self._transcript) + len(self._buffer) >= limits.TRANSCRIPT_BYTES

    @property
    def open_streams(self) -> tuple[int, ...]:
        """Streams that the client opened and did not reset, in order."""
        return tuple(sorted(self._open))

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._last_stream

    def ack_filter(self) -> AckFilter:
        """Go on from exactly here, behind `transcript_bytes`; the incomplete frame at hand goes first."""
        return AckFilter(bytes(self._buffer))

    def data_to_send(self) -> bytes:
        """Take what we have to say."""
        words = bytes(self._outbox)
        self._outbox.clear()
        return words

    def end_of_first_flight(self) -> None:
        """Nothing more can be read for now: speak first if the request is not complete (grpc-go waits for it)."""
        if not self._request_seen and self._state in (_State.FRAMES, _State.BLOCK, _State.SETTINGS):
            self._send_settings()

    # -- what the client says ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_s: float) -> list[Event]:
        """Read on. Raises GreetingError, after which this object is of no more use."""
        if self._state is _State.ENDED:
            raise GreetingError(ErrorCode.PROTOCOL_ERROR, "bytes after the end")
        self._buffer += data
        events: list[Event] = []
        try:
            if self._state is _State.PREFACE:
                self._preface(events)
            while self._state in (_State.SETTINGS, _State.FRAMES, _State.BLOCK) and self._next_frame(events, now_s):
                pass
        except GreetingError:
            self._state = _State.ENDED
            raise
        if not self._request_seen and len(self._transcript) + len(self._buffer) > limits.GREETING_BYTES:
            self._state = _State.ENDED
            raise _over("GREETING_BYTES")
        return events

    def _preface(self, events: list[Event]) -> None:
        start = bytes(self._buffer[: len(PREFACE)])
        if start == PREFACE:
            self._transcript += PREFACE
            del self._buffer[: len(PREFACE)]
            self._state = _State.SETTINGS
        elif not PREFACE.startswith(start):
            # A method's name may still be incomplete: wait for it, unless no method begins like this.
            if any(method.startswith(start) and len(start) < len(method) for method in HTTP1_METHODS) or (
                len(start) == 1 and TLS_HANDSHAKE.startswith(start)
            ):
                return
            kind = PeerKind.OTHER
            if start.startswith(HTTP1_METHODS):
                kind = PeerKind.HTTP1
            elif start.startswith(TLS_HANDSHAKE):
                kind = PeerKind.TLS
            self._state = _State.ENDED
            events.append(NotHttp2(kind))

    def _next_frame(self, events: list[Event], now_s: float) -> bool:
        if len(self._buffer) < HEADER_BYTES:
            return False
        header = parse_header(self._buffer)
        self._check(header)
        size = HEADER_BYTES + header.length
        if len(self._buffer) < size:
            return False
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        if self._frame(header, raw[HEADER_BYTES:], events, now_s):
            self._transcript += raw
        return True

    def _check(self, header: FrameHeader) -> None:
        """Check what a frame's header alone tells."""
        kind = header.type
        if header.length > limits.FRAME_BYTES:
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {header.length} bytes", "FRAME_BYTES")
        if self._state is _State.SETTINGS and (kind != FrameType.SETTINGS or header.flags & ACK):
            raise _protocol("the first frame must be SETTINGS")
        if (kind == FrameType.CONTINUATION) is not (self._state is _State.BLOCK) or (
            self._state is _State.BLOCK and header.stream_id != self._block_stream
        ):
            raise _protocol("a header block must be contiguous")
        if (kind in CONNECTION_TYPES and header.stream_id) or (kind in STREAM_TYPES and not header.stream_id):
            raise _protocol(f"{FrameType(kind).name} on stream {header.stream_id}")
        if kind in FIXED_LENGTHS and header.length != FIXED_LENGTHS[FrameType(kind)]:
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"{FrameType(kind).name} of {header.length} bytes")
        if kind == FrameType.SETTINGS and (header.length % 6 or (header.flags & ACK and header.length)):
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {header.length} bytes")
        if kind == FrameType.GOAWAY and header.length < 8:
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of under 8 bytes")
        if kind == FrameType.PUSH_PROMISE:
            raise _protocol("PUSH_PROMISE from a client")

    def _frame(self, header: FrameHeader, payload: bytes, events: list[Event], now_s: float) -> bool:
        """Handle a complete frame. Returns whether it belongs to the transcript."""
        match header.type:
            case FrameType.SETTINGS:
                return self._settings(header)
            case FrameType.PING if not header.flags & ACK:
                self._ping(payload, now_s)
                events.append(PingAnswered())
                return False
            case FrameType.HEADERS:
                self._headers(header, payload)
                self._end_block(header, events)
            case FrameType.CONTINUATION:
                self._continuations += 1
                if self._continuations > limits.CONTINUATION_FRAMES:
                    raise _over("CONTINUATION_FRAMES")
                self._extend_block(payload)
                self._end_block(header, events)
            case FrameType.DATA:
                if not 0 < header.stream_id <= self._last_stream or not header.stream_id % 2:
                    raise _protocol("DATA on an idle stream")
                self._data_bytes += header.length
                if self._data_bytes > limits.WINDOW_BYTES:
                    raise GreetingError(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window", "WINDOW_BYTES")
            case FrameType.RST_STREAM:
                if header.stream_id > self._last_stream:
                    raise _protocol("RST_STREAM on an idle stream")
                self._count("RST_STREAM_FRAMES", limits.RST_STREAM_FRAMES)
                self._open.discard(header.stream_id)
                events.append(StreamReset(header.stream_id, int.from_bytes(payload)))
            case FrameType.GOAWAY:
                events.append(GoAwayReceived(int.from_bytes(payload[4:8])))
            case _:
                pass  # PRIORITY, WINDOW_UPDATE, PING ACK and unknown types are the satellite's (RFC 9113 §5.5)
        return True

    def _settings(self, header: FrameHeader) -> bool:
        if header.flags & ACK:
            if not self.awaiting_ack:
                raise _protocol("ACK of SETTINGS that were never sent")
            self._acked = True
            return False
        self._count("SETTINGS_FRAMES", limits.SETTINGS_FRAMES)
        if header.length // 6 > limits.SETTINGS_ENTRIES:
            raise _over("SETTINGS_ENTRIES")
        self._state = _State.FRAMES
        return True

    def _ping(self, payload: bytes, now_s: float) -> None:
        if self._request_seen:
            self._ping_tokens = min(
                float(limits.PING_BURST), self._ping_tokens + max(0.0, now_s - self._ping_at_s) * limits.PING_PER_S
            )
            self._ping_at_s = now_s
            self._ping_tokens -= 1
            if self._ping_tokens < 0:
                raise _over("PING_PER_S")
        else:
            self._count("PING_FRAMES", limits.PING_FRAMES)
        # SETTINGS must be a server's first frame (RFC 9113 §3.4).
        self._send_settings()
        self._outbox += frame(FrameType.PING, ACK, 0, payload)

    def _headers(self, header: FrameHeader, payload: bytes) -> None:
        if not header.stream_id % 2:
            raise _protocol("a client's streams are odd")
        if header.stream_id > self._last_stream:
            self._last_stream = header.stream_id
            self._open.add(header.stream_id)
        start, end = 0, len(payload)
        if header.flags & PADDED:
            start, end = 1, end - (payload[0] if payload else end + 1)
        if header.flags & PRIORITY_FLAG:
            start += 5
        if start > end:
            raise _protocol("padding longer than the frame")
        self._block_stream = header.stream_id
        self._block_end_stream = bool(header.flags & END_STREAM)
        self._continuations = 0
        self._block.clear()
        self._state = _State.BLOCK
        self._extend_block(payload[start:end])

    def _extend_block(self, fragment: bytes) -> None:
        self._block += fragment
        if len(self._block) > limits.HEADER_BLOCK_BYTES:
            raise _over("HEADER_BLOCK_BYTES")

    def _end_block(self, header: FrameHeader, events: list[Event]) -> None:
        if not header.flags & END_HEADERS:
            return
        self._state = _State.FRAMES
        if not self._request_seen:
            self._request_seen = True
            headers = _decode(bytes(self._block))
            events.append(RequestHeaders(self._block_stream, headers, self._block_end_stream))
        self._block.clear()

    def _send_settings(self) -> None:
        if not self._settings_sent:
            self._settings_sent = True
            self._outbox += EMPTY_SETTINGS

    def _count(self, name: str, limit: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        if self._counts[name] > limit:
            raise _over(name)


def _decode(block: bytes) -> HeaderList:
    decoder = hpack.Decoder(max_header_list_size=limits.HEADER_LIST_BYTES)
    decoder.max_allowed_table_size = limits.TABLE_BYTES
    try:
        fields = tuple((bytes(field[0]), bytes(field[1])) for field in decoder.decode(block, raw=True))
    except hpack.OversizedHeaderListError as exc:
        raise _over("HEADER_LIST_BYTES") from exc
    except hpack.HPACKError as exc:
        # hpack's own words can hold an address in our memory, and these go to the client.
        raise GreetingError(ErrorCode.COMPRESSION_ERROR, "the header block cannot be decoded") from exc
    if len(fields) > limits.HEADER_FIELDS:
        raise _over("HEADER_FIELDS")
    return fields


def _protocol(message: str) -> GreetingError:
    return GreetingError(ErrorCode.PROTOCOL_ERROR, message)


def _over(limit: str) -> GreetingError:
    return GreetingError(ErrorCode.ENHANCE_YOUR_CALM, f"over the limit {limit}", limit)
