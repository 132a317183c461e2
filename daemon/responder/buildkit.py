"""Asks buildkitd over its own socket: which builds run (ListenBuildHistory), and to prune (Control.Prune).

Both moby's and Earthly's fork have the two methods with these field numbers (api/services/control/control.proto).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

from bentpipe.daemon.responder.hpack import HeaderDecoder, encode_headers
from bentpipe.daemon.responder.looks import Look, milliseconds
from bentpipe.daemon.responder.wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    MAX_FRAME,
    PADDED,
    PING,
    PREFACE,
    PREFIX_BYTES,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    WireError,
    decode_fields,
    encode_fields,
    frame,
    grpc_message,
    read_head,
)

SERVICE = "/moby.buildkit.v1.Control/"
MAX_KEPT_BYTES = 65536
"""Of one message. What follows is skipped: a record's first field is its reference, and a client chooses the others."""
MAX_ANSWER_BYTES = 256 << 20
MAX_RUNNING = 64
"""Builds whose references are kept; the others are counted."""
MAX_REF_BYTES = 128
ANSWER_DEADLINE_S = 4.0
STREAM = 1
SIGN_BIT = 1 << 63


class BuildKitError(Exception):
    """buildkitd cannot be asked, or refuses; `str()` says why."""


class _Call:
    """One call that answers with a stream of messages, on a connection of its own (blocking, with a deadline)."""

    def __init__(self, path: str, method: str, request: bytes, deadline_s: float) -> None:
        self._until = time.monotonic() + deadline_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        self._decoder = HeaderDecoder()
        self._block = bytearray()
        self._message = bytearray()
        self._skip = 0
        """Bytes of the current message that are still to come."""
        try:
            self._wait()
            self._socket.connect(path)
            headers = [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", (SERVICE + method).encode()),
                (b":authority", b"localhost"),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            ]
            self._socket.sendall(
                PREFACE
                + frame(SETTINGS, 0, 0)
                + frame(HEADERS, END_HEADERS, STREAM, encode_headers(headers))
                + frame(DATA, END_STREAM, STREAM, grpc_message(request))
            )
        except OSError as exc:
            self.close()
            raise BuildKitError(f"{path}: {exc}") from exc

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def messages(self) -> Iterator[bytes]:
        """The beginnings of the answer's messages. Raises BuildKitError, WireError, HpackError."""
        left, ended = MAX_ANSWER_BYTES, False
        while True:
            kind, flags, payload = self._frame()
            if kind == DATA:
                left -= len(payload)
                if left < 0:
                    raise BuildKitError("the answer is too large")
                yield from self._take(_body(flags, payload))
                if payload:
                    update = struct.pack(">I", len(payload))
                    self._send(frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, STREAM, update))
            elif kind in (HEADERS, CONTINUATION):
                self._block += _body(flags, payload) if kind == HEADERS else payload
                if len(self._block) > MAX_KEPT_BYTES:
                    raise BuildKitError("the answer's headers are too large")
                if kind == HEADERS:
                    ended = bool(flags & END_STREAM)
                if flags & END_HEADERS:
                    self._check(ended)
                    if ended:
                        return
            elif kind == SETTINGS and not flags & ACK:
                self._send(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self._send(frame(PING, ACK, 0, payload))
            elif kind in (RST_STREAM, GOAWAY):
                raise BuildKitError("buildkitd has ended the call")

    def _check(self, ended: bool) -> None:
        """Raises BuildKitError if the headers say that the call has failed."""
        headers = dict(self._decoder.decode(bytes(self._block)))
        self._block.clear()
        status = headers.get(b"grpc-status", b"0" if not ended else b"2")
        if status != b"0" or headers.get(b":status", b"200") != b"200":
            said = headers.get(b"grpc-message", b"").decode("ascii", "replace")
            raise BuildKitError(f"buildkitd answers with status {status.decode('ascii', 'replace')}: {said}")

    def _take(self, data: bytes) -> Iterator[bytes]:
        """Cut the stream into messages, of which the beginnings are kept."""
        while data or (not self._skip and len(self._message) >= PREFIX_BYTES):
            if not self._skip and len(self._message) < PREFIX_BYTES:
                need = PREFIX_BYTES - len(self._message)
                self._message += data[:need]
                data = data[need:]
                if len(self._message) < PREFIX_BYTES:
                    return
                self._skip = struct.unpack(">I", self._message[1:])[0]
            part, data = data[: self._skip], data[self._skip :]
            self._skip -= len(part)
            self._message += part[: max(0, MAX_KEPT_BYTES - len(self._message))]
            if not self._skip:
                yield bytes(self._message[PREFIX_BYTES:])
                self._message.clear()

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise BuildKitError("buildkitd does not answer in time")
        self._socket.settimeout(left)

    def _send(self, data: bytes) -> None:
        self._wait()
        try:
            self._socket.sendall(data)
        except OSError as exc:
            raise BuildKitError(f"buildkitd: {exc}") from exc

    def _frame(self) -> tuple[int, int, bytes]:
        while True:
            if len(self._buffer) >= HEAD_BYTES:
                length, kind, flags, _ = read_head(self._buffer)
                if length > MAX_FRAME:
                    raise WireError("a frame is too large")
                if len(self._buffer) >= HEAD_BYTES + length:
                    payload = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + length])
                    del self._buffer[: HEAD_BYTES + length]
                    return kind, flags, payload
            self._wait()
            try:
                data = self._socket.recv(MAX_FRAME)
            except OSError as exc:
                raise BuildKitError(f"buildkitd: {exc}") from exc
            if not data:
                raise BuildKitError("buildkitd has hung up")
            self._buffer += data


def _body(flags: int, payload: bytes) -> bytes:
    """Without padding and priority."""
    start, end = 0, len(payload)
    if flags & PADDED:
        start, end = 1, end - payload[0]
    if flags & HAS_PRIORITY:
        start += 5
    return payload[start:end]


def call(path: str, method: str, request: bytes, deadline_s: float) -> Iterator[bytes]:
    """Call a method of BuildKit's Control. Raises BuildKitError, WireError, HpackError."""
    one = _Call(path, method, request, deadline_s)
    try:
        yield from one.messages()
    finally:
        one.close()


class Running:
    """The builds that run: how many, and the oldest ones' references with the wall clock's time of their beginning."""

    def __init__(self) -> None:
        self.count = 0
        self.builds: list[tuple[float, str]] = []


class BuildKitLook(Look[Running]):
    """Asks which builds run."""

    name = "buildkit"
    period_s = 2.0

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def read(self) -> Running:
        """Raises BuildKitError, WireError, HpackError."""
        found = Running()
        # BuildHistoryRequest: ActiveOnly, EarlyExit.
        request = encode_fields([(1, True), (3, True)])
        for event in call(self._path, "ListenBuildHistory", request, ANSWER_DEADLINE_S):
            build = _read_started(event)
            if build:
                found.count += 1
                found.builds.append(build)
                found.builds = sorted(found.builds)[:MAX_RUNNING]
        return found

    def fields(self, result: Running, _now: float) -> Fields:
        """BuildKit."""
        wall = time.time()
        builds = [
            encode_fields([(1, ref), (2, milliseconds(wall - began) if began else None)])
            for began, ref in result.builds
        ]
        return [(2, result.count), (3, builds)]

    def refs(self) -> list[str]:
        """References of the builds that ran at the last look."""
        return [ref for _, ref in self.result.builds] if self.result else []


def _read_started(event: bytes) -> tuple[float, str] | None:
    """Read a BuildHistoryEvent. Returns when its build began, by the wall clock, and its reference; None if it has ended."""
    fields = dict(decode_fields(event))
    record = fields.get(2, b"")
    if fields.get(1, 0) or not isinstance(record, bytes):
        return None
    inner = dict(decode_fields(record))
    ref, created = inner.get(1, b""), inner.get(6, b"")
    began = 0.0
    if isinstance(created, bytes):
        seconds = dict(decode_fields(created)).get(1, 0)
        began = float(seconds) if isinstance(seconds, int) else 0.0
    text = ref[:MAX_REF_BYTES].decode("ascii", "replace") if isinstance(ref, bytes) else ""
    return began, text


def prune(path: str, keep_bytes: int, deadline_s: float) -> Iterator[int]:
    """Have BuildKit remove what nobody uses, until it has `keep_bytes` by its own account. Yields the size of each record.

    Field 4 is `reservedSpace` of moby and `keepBytes` of the fork, and means the same in both. Raises as `call`.
    """
    for record in call(path, "Prune", encode_fields([(2, True), (4, keep_bytes)]), deadline_s):
        size = dict(decode_fields(record)).get(
            4, 0
        )  # UsageRecord.Size, signed: -1 is a size that BuildKit does not know
        yield size if isinstance(size, int) and size < SIGN_BIT else 0
