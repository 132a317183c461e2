"""One request for each connection: for clients that are frontends and send the requests of several tenants on one
connection.

A connection is admitted by its first request and belongs to one satellite from then on. So after the first request the
daemon tells the client to open no more streams here. It sends GOAWAY, and a PING. The PING's ACK shows that the client has
read the GOAWAY, since frames are read in order. If the client has begun another request before that, the daemon refuses it
with REFUSED_STREAM and passes none of its bytes on. REFUSED_STREAM promises that the request was not processed, so the
client may send it again on another connection (RFC 9113 §8.7). From the ACK on there is nothing to watch, and the connection
is spliced like any other.

The GOAWAY has the stream number 2^31-1, as at the beginning of a graceful shutdown (§6.8). The satellite may send a GOAWAY
of its own later, and its number may not be higher than ours.

Two things follow. DATA that is dropped has used up some of the connection's flow-control window, so the daemon gives that
back. A header block that is dropped may have changed the client's header table, so no block that needs the table may follow:
until the ACK, trailers of the first request end the connection. gRPC requests have no trailers.
"""

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.frames import (
    ACK,
    END_HEADERS,
    HEADER_BYTES,
    PREFACE,
    STREAM_MASK,
    FrameHeader,
    FrameType,
    frame,
    parse_header,
)

PING_PAYLOAD = b"bentpipe"
_HEADER_TYPES = (FrameType.HEADERS, FrameType.CONTINUATION)


class OneRequest:
    """Filters the client's bytes before the greeting: it removes everything that belongs to further requests."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._pass_bytes = len(PREFACE)
        self._drop_bytes = 0
        self._first: int | None = None
        self._asked = False
        """Whether the first header block is complete."""
        self._last = 0
        self._dropped_block = False
        self._dropped_frames = 0
        self._words = bytearray()
        self._told = False
        self.done = False
        """Whether the client is known to send nothing more on another stream; bytes need no filter from then on."""
        self.refused = 0
        """Requests that were refused here."""

    def tell(self) -> bytes:
        """The bytes to send after our SETTINGS, once the first request is complete."""
        self._told = True
        goaway = STREAM_MASK.to_bytes(4) + ErrorCode.NO_ERROR.to_bytes(4) + b"one request for each connection"
        return frame(FrameType.GOAWAY, 0, 0, goaway) + frame(FrameType.PING, 0, 0, PING_PAYLOAD)

    def data_to_send(self) -> bytes:
        """Take the answers to refused requests. They must be sent after `tell`."""
        words = bytes(self._words)
        self._words.clear()
        return words

    def receive_data(self, data: bytes) -> bytes:
        """Return the bytes for the greeting. Raises GreetingError."""
        if self.done:
            return data
        data, at, out = bytes(self._kept) + data, 0, bytearray()
        self._kept.clear()
        while at < len(data):
            if self._pass_bytes or self._drop_bytes:
                at += self._payload(data, at, out)
                continue
            if len(data) - at < HEADER_BYTES:
                break
            header = parse_header(data[at : at + HEADER_BYTES])
            end = at + HEADER_BYTES + len(PING_PAYLOAD)
            if header.type == FrameType.PING and header.flags & ACK and header.length == len(PING_PAYLOAD):
                if len(data) < end:
                    break
                if self._told and data[end - len(PING_PAYLOAD) : end] == PING_PAYLOAD:
                    self.done = True
                    return bytes(out) + data[end:]
            if self._is_further(header):
                self._drop(header)
                self._drop_bytes = header.length
            else:
                self._follow(header)
                out += data[at : at + HEADER_BYTES]
                self._pass_bytes = header.length
            at += HEADER_BYTES
        self._kept += data[at:]
        return bytes(out)

    def _payload(self, data: bytes, at: int, out: bytearray) -> int:
        """Pass or drop the available part of a payload (or of the preface). Returns its length."""
        size = min(self._pass_bytes or self._drop_bytes, len(data) - at)
        if self._pass_bytes:
            out += data[at : at + size]
            self._pass_bytes -= size
        else:
            self._drop_bytes -= size
        return size

    def _is_further(self, header: FrameHeader) -> bool:
        """Whether the frame belongs to another request than the first, whose header block is complete."""
        return self._asked and header.stream_id not in (0, self._first)

    def _follow(self, header: FrameHeader) -> None:
        """Notice where the first header block ends, and refuse frames that may not follow it."""
        if header.type not in _HEADER_TYPES:
            return
        if self._dropped_block:
            raise GreetingError(ErrorCode.PROTOCOL_ERROR, "trailers after requests that were refused")
        if self._first is None:
            self._first = header.stream_id
        self._asked = self._asked or bool(header.flags & END_HEADERS)

    def _drop(self, header: FrameHeader) -> None:
        if header.length > limits.FRAME_BYTES:
            raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {header.length} bytes", "FRAME_BYTES")
        self._dropped_frames += 1
        if self._dropped_frames > limits.FURTHER_FRAMES:
            raise over("FURTHER_FRAMES")
        if header.type == FrameType.DATA and header.length:
            self._words += frame(FrameType.WINDOW_UPDATE, 0, 0, header.length.to_bytes(4))
        if header.type in _HEADER_TYPES:
            self._dropped_block = True
        if header.type == FrameType.HEADERS and header.stream_id > self._last:
            self._last = header.stream_id
            self.refused += 1
            self._words += frame(FrameType.RST_STREAM, 0, header.stream_id, ErrorCode.REFUSED_STREAM.to_bytes(4))
