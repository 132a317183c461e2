"""The server's side of HTTP/2 (RFC 9113), without I/O: bytes of a client go in, bytes for it come out.

Everything that a client can make grow has a limit here. What costs work is charged to a budget of the connection.
"""

from __future__ import annotations

import struct
from typing import Callable

from bentpipe.daemon.responder.hpack import HeaderDecoder, Headers, HpackError, encode_headers
from bentpipe.daemon.responder.wire import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    read_head,
)

MAX_STREAMS = 16
"""SETTINGS_MAX_CONCURRENT_STREAMS. The daemon has one call at a time, and may watch."""
MAX_BLOCK_BYTES = 8192
"""Of one header block, compressed."""
MAX_BODY_BYTES = 1024
"""Of one request: a health check names a service. What is longer is counted, not kept, and its call fails."""
MAX_OUT_BYTES = 65536
"""If more than this waits for a slow client, no further frame is read."""
MAX_CLOSED = 64
"""Streams that are remembered after their end, so that late frames of theirs are told from wrong ones."""
STREAM_DEADLINE_S = 20.0
"""For a request to be complete, and for an answer to be taken; a watch has none."""
BUDGET_FRAMES, FRAMES_PER_S = 2000.0, 500.0
"""A client may send so many frames at once, and so many each second for long. A header block counts as five."""
HEADERS_COST = 5

(
    NO_ERROR,
    PROTOCOL_ERROR,
    _INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    _SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    _CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
) = range(12)
TABLE_SIZE, ENABLE_PUSH, CONCURRENT_STREAMS, INITIAL_WINDOW, FRAME_SIZE, LIST_SIZE = range(1, 7)
HOP_BY_HOP = (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
PSEUDO = (b":method", b":scheme", b":path", b":authority")


class Http2Error(Exception):
    """The client has broken the protocol: the end of the stream `stream`, or of the connection if that is 0."""

    def __init__(self, code: int, text: str, stream: int = 0) -> None:
        super().__init__(text)
        self.code, self.stream = code, stream


class Answer:
    """What follows a request. Without `trailers` the stream stays open, and `latest` has its newest message."""

    def __init__(
        self,
        headers: Headers,
        body: bytes,
        trailers: Headers | None = None,
        latest: Callable[[], bytes] | None = None,
    ) -> None:
        self.headers, self.body, self.trailers, self.latest = headers, body, trailers, latest


class RequestStream:
    """One request, and what is still to be sent of its answer."""

    def __init__(self, headers: Headers, window: int, now: float) -> None:
        self.headers, self.window, self.born = headers, window, now
        self.request = bytearray()
        """At most a byte more than MAX_BODY_BYTES."""
        self.length = 0
        self.complete = False
        self.answer: Answer | None = None
        self.unsent = bytearray()
        self.sent = b""
        """The last message of a watch."""


class Http2Connection:
    """A client's connection. `out` is to be sent; once `closing` is set, the connection ends after it."""

    def __init__(self, respond: Callable[[Headers, bytes], Answer], now: float) -> None:
        self._respond = respond
        self._decoder = HeaderDecoder()
        self._buffer = bytearray()
        self._greeted = self._configured = False
        self._block: bytearray | None = None
        self._block_stream = self._block_flags = 0
        self._last = 0
        self._closed: dict[int, bool] = {}
        """By number, whether we reset it."""
        self._window = self._first_window = DEFAULT_WINDOW
        self._budget, self._budget_at = BUDGET_FRAMES, now
        self._now = now
        self.streams: dict[int, RequestStream] = {}
        self.closing = False
        limits = ((CONCURRENT_STREAMS, MAX_STREAMS), (LIST_SIZE, MAX_BLOCK_BYTES))
        self.out = bytearray(frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in limits)))

    def receive(self, data: bytes, now: float) -> None:
        """Take what the client has sent, perhaps nothing, and do what can be done by now."""
        self._now = now
        self._buffer += data
        while not self.closing and len(self.out) < MAX_OUT_BYTES:
            try:
                if not self._next_frame():
                    break
            except HpackError as exc:
                self.close(COMPRESSION_ERROR, str(exc))
            except Http2Error as exc:
                if exc.stream:
                    self._reset(exc.stream, exc.code)
                else:
                    self.close(exc.code, str(exc))

    def tick(self, now: float) -> None:
        """End what is past its deadline, and send what is new to those that watch."""
        for number, exchange in list(self.streams.items()):
            if exchange.answer and exchange.answer.latest and not exchange.unsent:
                latest = exchange.answer.latest()
                if latest != exchange.sent:
                    exchange.sent = latest
                    exchange.unsent += latest
                exchange.born = now
            elif now - exchange.born > STREAM_DEADLINE_S:
                self._reset(number, CANCEL)
        self._flush()

    def close(self, code: int, text: str = "") -> None:
        """Send GOAWAY and end the connection."""
        if not self.closing:
            self.out += frame(GOAWAY, 0, 0, struct.pack(">II", self._last, code) + text.encode())
            self.closing = True

    def _next_frame(self) -> bool:
        if not self._greeted:
            if not PREFACE.startswith(self._buffer[: len(PREFACE)]):
                raise Http2Error(PROTOCOL_ERROR, "this port serves HTTP/2 alone")
            if len(self._buffer) < len(PREFACE):
                return False
            del self._buffer[: len(PREFACE)]
            self._greeted = True
        if len(self._buffer) < HEAD_BYTES:
            return False
        length, kind, flags, stream = read_head(self._buffer)
        if length > MAX_FRAME:
            raise Http2Error(FRAME_SIZE_ERROR, "a frame is larger than 16,384 bytes")
        if len(self._buffer) < HEAD_BYTES + length:
            return False
        payload = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + length])
        del self._buffer[: HEAD_BYTES + length]
        self._charge(HEADERS_COST if kind == HEADERS else 1)
        if not self._configured and kind != SETTINGS:
            raise Http2Error(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and (kind != CONTINUATION or stream != self._block_stream):
            raise Http2Error(PROTOCOL_ERROR, "a header block is interrupted")
        if kind < len(self._HANDLERS):
            self._HANDLERS[kind](self, flags, stream, payload)
        return True

    def _charge(self, cost: int) -> None:
        earned = (self._now - self._budget_at) * FRAMES_PER_S
        self._budget, self._budget_at = min(BUDGET_FRAMES, self._budget + earned) - cost, self._now
        if self._budget < 0:
            raise Http2Error(ENHANCE_YOUR_CALM, "too many frames")

    def _reset(self, number: int, code: int) -> None:
        self.out += frame(RST_STREAM, 0, number, struct.pack(">I", code))
        self._end(number, reset=True)

    def _end(self, number: int, *, reset: bool) -> None:
        self.streams.pop(number, None)
        self._closed[number] = reset
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        exchange = self._exchange(number)
        if payload:  # what is read is room again; the room of a stream is larger than what a request may have
            self.out += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload)))
        body = _unpadded(flags, payload)
        if exchange is None:
            if not self._closed.get(number):
                raise Http2Error(STREAM_CLOSED, "DATA on a stream that has ended", number)
            return
        if exchange.complete:
            raise Http2Error(STREAM_CLOSED, "DATA after the end of a request", number)
        exchange.length += len(body)
        exchange.request += body[: MAX_BODY_BYTES + 1 - len(exchange.request)]
        if flags & END_STREAM:
            self._complete(number, exchange)

    def _exchange(self, number: int) -> RequestStream | None:
        """The stream, if it is open. Raises Http2Error for one that has not begun."""
        if not number or number > self._last or not number % 2:
            raise Http2Error(PROTOCOL_ERROR, "a frame is on a stream that has not begun")
        return self.streams.get(number)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number % 2:
            raise Http2Error(PROTOCOL_ERROR, "a request is on a stream that is not a client's")
        block = _unpadded(flags, payload)
        if flags & HAS_PRIORITY:
            if len(block) < 5:
                raise Http2Error(FRAME_SIZE_ERROR, "HEADERS is too short")
            if struct.unpack_from(">I", block)[0] & MAX_WINDOW == number:
                raise Http2Error(PROTOCOL_ERROR, "a stream depends on itself")
            block = block[5:]
        self._block, self._block_stream, self._block_flags = bytearray(), number, flags
        self._on_continuation(flags, number, block)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if len(self._block) > MAX_BLOCK_BYTES:
            raise Http2Error(ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & END_HEADERS:
            block, self._block = self._block, None
            self._on_block(number, self._decoder.decode(bytes(block)), bool(self._block_flags & END_STREAM))

    def _on_block(self, number: int, headers: Headers, end: bool) -> None:
        exchange = self.streams.get(number)
        if exchange is not None:
            if exchange.complete:
                raise Http2Error(STREAM_CLOSED, "HEADERS after the end of a request", number)
            if not end or any(name.startswith(b":") for name, _ in headers):
                raise Http2Error(PROTOCOL_ERROR, "trailers are malformed", number)
        elif number <= self._last:
            if not self._closed.get(number):
                code = STREAM_CLOSED if number in self._closed else PROTOCOL_ERROR
                raise Http2Error(code, "HEADERS on a stream that has ended")
            return
        else:
            self._last = number
            if len(self.streams) >= MAX_STREAMS:
                raise Http2Error(REFUSED_STREAM, "too many streams", number)
            exchange = self.streams[number] = RequestStream(headers, self._first_window, self._now)
            _check_request(headers, number)
        _check_names(headers, number)
        if end:
            self._complete(number, exchange)

    def _complete(self, number: int, exchange: RequestStream) -> None:
        """Answer a request that is complete."""
        exchange.complete = True
        lengths = {value for name, value in exchange.headers if name == b"content-length"}
        if lengths and lengths != {b"%d" % exchange.length}:
            raise Http2Error(PROTOCOL_ERROR, "content-length is wrong", number)
        answer = exchange.answer = self._respond(exchange.headers, bytes(exchange.request))
        exchange.unsent += answer.body
        exchange.sent = answer.body
        self.out += frame(HEADERS, END_HEADERS, number, encode_headers(answer.headers))
        self._flush()

    def _flush(self) -> None:
        """Send what the windows allow."""
        for number, exchange in list(self.streams.items()):
            answer = exchange.answer
            if answer is None:
                continue
            while exchange.unsent:
                room = min(self._window, exchange.window, MAX_FRAME)
                if room <= 0:
                    break
                chunk = bytes(exchange.unsent[:room])
                del exchange.unsent[:room]
                self._window -= len(chunk)
                exchange.window -= len(chunk)
                last = not exchange.unsent and answer.trailers == []
                self.out += frame(DATA, END_STREAM if last else 0, number, chunk)
            if not exchange.unsent and answer.trailers is not None:
                if answer.trailers:
                    block = encode_headers(answer.trailers)
                    self.out += frame(HEADERS, END_HEADERS | END_STREAM, number, block)
                self._end(number, reset=False)

    def _on_priority(self, _flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise Http2Error(PROTOCOL_ERROR, "PRIORITY without a stream")
        if len(payload) != 5:
            raise Http2Error(FRAME_SIZE_ERROR, "PRIORITY has a wrong size", number)
        if struct.unpack_from(">I", payload)[0] & MAX_WINDOW == number:
            raise Http2Error(PROTOCOL_ERROR, "a stream depends on itself")

    def _on_rst_stream(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "RST_STREAM has a wrong size")
        if self._exchange(number):
            self._end(number, reset=False)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Http2Error(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise Http2Error(FRAME_SIZE_ERROR, "SETTINGS has a wrong size")
        if flags & ACK:
            return
        self._configured = True
        for key, value in struct.iter_unpack(">HI", payload):
            if key == ENABLE_PUSH and value > 1:
                raise Http2Error(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            if key == FRAME_SIZE:
                if not MAX_FRAME <= value < 1 << 24:
                    raise Http2Error(PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of its range")
            elif key == INITIAL_WINDOW:
                if value > MAX_WINDOW:
                    raise Http2Error(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
                for exchange in self.streams.values():
                    exchange.window = _window(exchange.window + value - self._first_window, 0)
                self._first_window = value
        self.out += frame(SETTINGS, ACK, 0)
        self._flush()

    def _on_push_promise(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise Http2Error(PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Http2Error(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise Http2Error(FRAME_SIZE_ERROR, "PING has a wrong size")
        if not flags & ACK:
            self.out += frame(PING, ACK, 0, payload)

    def _on_goaway(self, _flags: int, number: int, _payload: bytes) -> None:
        if number:
            raise Http2Error(PROTOCOL_ERROR, "GOAWAY on a stream")

    def _on_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "WINDOW_UPDATE has a wrong size")
        exchange = self._exchange(number) if number else None
        more = struct.unpack(">I", payload)[0] & MAX_WINDOW
        if not more:
            raise Http2Error(PROTOCOL_ERROR, "WINDOW_UPDATE of zero", number)
        if not number:
            self._window = _window(self._window + more, 0)
        elif exchange:
            exchange.window = _window(exchange.window + more, number)
        self._flush()

    _HANDLERS: tuple[Callable[[Http2Connection, int, int, bytes], None], ...] = (
        _on_data,
        _on_headers,
        _on_priority,
        _on_rst_stream,
        _on_settings,
        _on_push_promise,
        _on_ping,
        _on_goaway,
        _on_window_update,
        _on_continuation,
    )
    """By their types."""


def _window(size: int, stream: int) -> int:
    if size > MAX_WINDOW:
        raise Http2Error(FLOW_CONTROL_ERROR, "a window is too large", stream)
    return size


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _check_request(headers: Headers, stream: int) -> None:
    """RFC 9113, 8.3.1: a request's pseudo-header fields are there, once each, and before the others."""
    pseudo = [name for name, _ in headers if name.startswith(b":")]
    known = set(pseudo) <= set(PSEUDO) and len(set(pseudo)) == len(pseudo)
    first = [name for name, _ in headers[: len(pseudo)]] == pseudo
    if not known or not first or not all(dict(headers).get(name) for name in PSEUDO[:3]):
        raise Http2Error(PROTOCOL_ERROR, "a request is malformed", stream)


def _check_names(headers: Headers, stream: int) -> None:
    """RFC 9113, 8.2: no upper case, no control characters, nothing that belongs to one hop."""
    for name, value in headers:
        wrong_name = not name or name != name.lower() or min(name) <= 32 or max(name) >= 127 or b":" in name[1:]
        wrong_value = any(each in value for each in (b"\0", b"\r", b"\n"))
        if wrong_name or wrong_value or name in HOP_BY_HOP or (name == b"te" and value != b"trailers"):
            raise Http2Error(PROTOCOL_ERROR, "a header field is malformed", stream)
