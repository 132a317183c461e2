"""An HTTP/2 connection that the daemon answers itself, from its first byte to its last, on the h2 library. Sans-IO.

It is fed the greeting's transcript and then whatever comes; h2 speaks for itself (SETTINGS, ACKs, windows). Answers wait
here for the client's windows, a bounded few bytes a stream. What the client breaks ends in GreetingError, with h2's
GOAWAY ready to be sent.
"""

import dataclasses

import h2.events
import h2.exceptions

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.events import HeaderList
from bentpipe.proto.frame_guard import FrameGuard
from bentpipe.proto.frames import FrameType, frame
from bentpipe.proto.grpc_status import GrpcStatus, encode_grpc_message
from bentpipe.proto.refusal import BAD_REQUEST, dispose, server_connection
from bentpipe.proto.wellformed import why_malformed, why_malformed_trailers

ANSWERING_BYTES = 20 << 10
"""What the library keeps of a connection beside its streams: measured 16 KiB, and the tables of header fields."""
STREAM_BYTES, FIELD_BYTES = 1 << 10, 96
"""What an open stream costs beside what was said on it (measured, with the fields of a health check, 1.4 KiB), and each of
its header fields beside its own bytes."""

CONTENT_TYPE = (b"content-type", b"application/grpc")

Field = tuple[bytes, bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A complete request."""

    stream_id: int
    headers: HeaderList
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CallEnded:
    """The client gave a stream up."""

    stream_id: int


@dataclasses.dataclass(slots=True)
class _Stream:
    headers: HeaderList
    body: bytearray = dataclasses.field(default_factory=bytearray)
    too_long: bool = False
    malformed: bool = False
    request_ended: bool = False
    answered: bool = False
    unsent: bytearray = dataclasses.field(default_factory=bytearray)
    header_bytes: int = 0
    trailers: list[Field] | None = None
    ending: bool = False


class Answering:
    """One connection, our side of it."""

    def __init__(self) -> None:
        self._h2 = server_connection(limits.ANSWERED_STREAMS)
        self._guard = FrameGuard(preface=True)
        self._streams: dict[int, _Stream] = {}
        self._tokens = float(limits.ANSWERED_BURST)
        self._at_s = 0.0
        self._ended = False
        self._announcement = b""

    @property
    def kept_bytes(self) -> int:
        """The memory that the connection takes here."""
        streams = sum(
            STREAM_BYTES + stream.header_bytes + len(stream.body) + len(stream.unsent)
            for stream in self._streams.values()
        )
        return ANSWERING_BYTES + streams

    @property
    def ended(self) -> bool:
        """Whether the client said GOAWAY."""
        return self._ended

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._h2.highest_inbound_stream_id

    def data_to_send(self) -> bytes:
        """Take what there is to say."""
        said, self._announcement = self._announcement, b""
        return self._h2.data_to_send() + said

    def dispose(self) -> None:
        """Let go of everything; the object is then of no more use."""
        self._streams.clear()
        dispose(self._h2)

    def announce_end(self) -> None:
        """Say GOAWAY for all streams to come (RFC 9113 §6.8, before a graceful shutdown); those under way go on."""
        if not self._ended:
            every_stream = (2**31 - 1).to_bytes(4)
            self._announcement = frame(FrameType.GOAWAY, 0, 0, every_stream + int(ErrorCode.NO_ERROR).to_bytes(4))

    def receive_data(self, data: bytes, now_s: float) -> list[Call | CallEnded]:
        """Read on. Raises GreetingError; `data_to_send` then has the GOAWAY."""
        self._tokens = min(
            float(limits.ANSWERED_BURST), self._tokens + max(0.0, now_s - self._at_s) * limits.ANSWERED_PER_S
        )
        self._at_s = now_s
        out: list[Call | CallEnded] = []
        self._pay(data)
        try:
            for event in self._h2.receive_data(data):
                self._event(event, out)
            # Only now: h2 is ahead of its events, and a stream may have ended since the one that asked for an answer.
            for stream_id, stream in list(self._streams.items()):
                if stream.malformed:
                    self._end_malformed(stream_id)
                elif stream.too_long and not stream.ending:
                    self.finish(stream_id, GrpcStatus.RESOURCE_EXHAUSTED, "over the limit ANSWERED_MESSAGE_BYTES")
                else:
                    self._push(stream_id)
        except h2.exceptions.ProtocolError as exc:
            raise GreetingError(ErrorCode(exc.error_code), str(exc)) from exc
        return out

    def _event(self, event: h2.events.Event, out: list[Call | CallEnded]) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream_id, headers=headers):
                fields = tuple((bytes(n), bytes(v)) for n, v in headers)
                size = sum(FIELD_BYTES + len(n) + len(v) for n, v in fields)
                malformed = why_malformed(fields) is not None
                self._streams[stream_id] = _Stream(fields, malformed=malformed, header_bytes=size)
                self._bound()
            case h2.events.TrailersReceived(stream_id=stream_id, headers=headers):
                stream = self._streams.get(stream_id)
                if stream is not None and why_malformed_trailers(tuple((bytes(n), bytes(v)) for n, v in headers)):
                    stream.malformed = True
            case h2.events.DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                if size:
                    self._h2.acknowledge_received_data(size, stream_id)
                stream = self._streams.get(stream_id)
                if stream is not None and not stream.ending and not stream.too_long:
                    stream.body += data
                    if len(stream.body) > limits.ANSWERED_MESSAGE_BYTES:
                        stream.too_long = True
                        stream.body.clear()
            case h2.events.StreamEnded(stream_id=stream_id):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.request_ended = True
                    if not stream.ending and not stream.too_long and not stream.malformed:
                        out.append(Call(stream_id, stream.headers, bytes(stream.body)))
                    stream.headers, stream.header_bytes = (), 0
                    stream.body.clear()
            case h2.events.StreamReset(stream_id=stream_id):
                if self._streams.pop(stream_id, None) is not None:
                    out.append(CallEnded(stream_id))
            case h2.events.ConnectionTerminated():
                # h2 sends nothing on a connection whose client said GOAWAY.
                self._ended = True
                self._streams.clear()
            case _:
                pass

    def _bound(self) -> None:
        if self.kept_bytes > limits.ANSWERED_BYTES:
            self.close(ErrorCode.ENHANCE_YOUR_CALM)
            raise over("ANSWERED_BYTES")

    def _pay(self, data: bytes) -> None:
        """Take a token for each frame, before h2 works on it."""
        try:
            self._tokens -= self._guard.receive_data(data)
            if self._tokens < 0:
                raise over("ANSWERED_PER_S")
        except GreetingError as exc:
            self.close(exc.error_code)
            raise

    # -- answers -----------------------------------------------------------------------------------------------------

    def unsent(self, stream_id: int) -> bool:
        """Whether an answer still waits for the client's windows."""
        stream = self._streams.get(stream_id)
        return stream is not None and bool(stream.unsent)

    def send_message(self, stream_id: int, message: bytes) -> None:
        """Send one length-prefixed message. Like all answers, nothing happens if the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending:
            return
        if not stream.answered:
            stream.answered = True
            self._h2.send_headers(stream_id, [(b":status", b"200"), CONTENT_TYPE])
        stream.unsent += message
        self._push(stream_id)

    def finish(self, stream_id: int, status: GrpcStatus, message: str = "") -> None:
        """End a call with its status: in trailers, or alone if nothing was answered (gRPC Trailers-Only)."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending:
            return
        trailers: list[Field] = [(b"grpc-status", b"%d" % status)]
        if message:
            trailers.append((b"grpc-message", encode_grpc_message(message, limits.STATUS_MESSAGE_BYTES)))
        stream.trailers = trailers if stream.answered else [(b":status", b"200"), CONTENT_TYPE, *trailers]
        stream.answered = stream.ending = True
        self._push(stream_id)

    def send_text(self, stream_id: int, http_status: int, text: bytes) -> None:
        """Answer in plain HTTP what is no gRPC request."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending:
            return
        stream.answered = stream.ending = True
        self._h2.send_headers(
            stream_id,
            [
                (b":status", b"%d" % http_status),
                (b"content-type", b"text/plain"),
                (b"content-length", b"%d" % len(text)),
            ],
        )
        stream.unsent += text
        self._push(stream_id)

    def _end_malformed(self, stream_id: int) -> None:
        """A stream error, of which a server may say more before it (RFC 9113 §8.1.1)."""
        if not self._streams.pop(stream_id).answered:
            self._h2.send_headers(stream_id, BAD_REQUEST)
        self._h2.reset_stream(stream_id, int(ErrorCode.PROTOCOL_ERROR))

    def close(self, error_code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Say GOAWAY; no more answers after that."""
        self._streams.clear()
        self._ended = True
        self._h2.close_connection(int(error_code), last_stream_id=self.last_stream)

    def _push(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        while stream.unsent:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            part = bytes(stream.unsent[:room])
            del stream.unsent[:room]
            last = stream.ending and stream.trailers is None and not stream.unsent
            self._h2.send_data(stream_id, part, end_stream=last)
        if not stream.ending:
            return
        if stream.trailers is not None:
            self._h2.send_headers(stream_id, stream.trailers, end_stream=True)
        if not stream.request_ended:
            # The rest of the request is not awaited (RFC 9113 §8.1).
            self._h2.reset_stream(stream_id, int(ErrorCode.NO_ERROR))
        del self._streams[stream_id]
