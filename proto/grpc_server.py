"""The server's side of an HTTP/2 connection with gRPC calls, on the h2 library: streams in, answers out. Sans-IO.

It is fed the connection from its first byte on. h2 speaks for itself (SETTINGS, ACKs of PING). The caller hands request
data back with `acknowledge` when it has taken it, which opens the client's window again; answers wait here for the client's
windows. Everything is bounded by a `ServerLimits`. What the client breaks ends in GreetingError, with h2's GOAWAY ready
to be sent.

Source: gRPC over HTTP2 (doc/PROTOCOL-HTTP2.md), RFC 9113.
"""

import dataclasses

import h2.connection
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
EVERY_STREAM = (2**31 - 1).to_bytes(4)

Field = tuple[bytes, bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one connection. `family` begins the names of their constants in proto/limits.py, which clients hear."""

    family: str
    streams: int
    """Open at once."""
    kept_bytes: int
    frames: int
    """Frames of any kind that may come at once, and per second."""
    frames_per_s: float
    resets: int
    """Streams that the client may give up at once, and per second."""
    resets_per_s: float
    paced: bool = False
    """Whether too many frames make the caller wait (`pause_s`) instead of ending the connection."""


API_BOUNDS = ServerLimits(
    family="API",
    streams=limits.API_STREAMS,
    kept_bytes=limits.API_BYTES,
    frames=limits.API_FRAMES,
    frames_per_s=limits.API_FRAMES_PER_S,
    resets=limits.API_RESETS,
    resets_per_s=limits.API_RESETS_PER_S,
    paced=True,
)
"""Of a connection of the control API."""


@dataclasses.dataclass(frozen=True, slots=True)
class CallBegan:
    """The headers of a request, well-formed by RFC 9113."""

    stream_id: int
    headers: HeaderList


@dataclasses.dataclass(frozen=True, slots=True)
class CallData:
    """A part of a request's body. `window_bytes` is what to acknowledge: the data, and its padding."""

    stream_id: int
    data: bytes
    window_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class CallComplete:
    """The client has sent its whole request."""

    stream_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class CallEnded:
    """The client gave a stream up."""

    stream_id: int


CallEvent = CallBegan | CallData | CallComplete | CallEnded


class _Bucket:
    """Tokens that come back with time."""

    def __init__(self, size: int, per_s: float) -> None:
        self._size, self._per_s = float(size), per_s
        self._tokens = float(size)
        self._at_s = 0.0

    def take(self, tokens: int, now_s: float) -> bool:
        """Take tokens, be they there or not. Returns whether they were."""
        self._tokens = min(self._size, self._tokens + max(0.0, now_s - self._at_s) * self._per_s) - tokens
        self._at_s = now_s
        return self._tokens >= 0

    @property
    def owed_s(self) -> float:
        """How long until none are owed."""
        return max(0.0, -self._tokens / self._per_s)


@dataclasses.dataclass(slots=True)
class _Stream:
    header_bytes: int
    malformed: bool
    begun: bool = False
    """Whether the caller knows of it."""
    request_ended: bool = False
    answered: bool = False
    unsent: bytearray = dataclasses.field(default_factory=bytearray)
    trailers: list[Field] | None = None
    ending: bool = False


class ServerConnection:
    """One connection, our side of it; what is made of its events is the subclass's."""

    def __init__(self, bounds: ServerLimits) -> None:
        self._bounds = bounds
        self._h2: h2.connection.H2Connection = server_connection(bounds.streams)
        self._guard = FrameGuard(preface=True)
        self._streams: dict[int, _Stream] = {}
        self._frames = _Bucket(bounds.frames, bounds.frames_per_s)
        self._resets = _Bucket(bounds.resets, bounds.resets_per_s)
        self._ended = False
        self._announcement = b""
        self.tail = ""
        """Follows the message of every status but OK: which connection this is, for a user to quote."""
        self.buffered_bytes = 0
        """Of answers, what the windows allow and `data_to_send` has still to take."""

    @property
    def kept_bytes(self) -> int:
        """The memory that the connection takes here."""
        return ANSWERING_BYTES + sum(
            STREAM_BYTES + stream.header_bytes + len(stream.unsent) for stream in self._streams.values()
        )

    @property
    def pause_s(self) -> float:
        """How long not to read: so many frames came that others have to be heard first."""
        return self._frames.owed_s if self._bounds.paced else 0.0

    @property
    def open_streams(self) -> int:
        """Calls whose answer is not complete."""
        return len(self._streams)

    @property
    def ended(self) -> bool:
        """Whether the client said GOAWAY, or we ended the connection: nothing can be sent any more."""
        return self._ended

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._h2.highest_inbound_stream_id

    def data_to_send(self) -> bytes:
        """Take what there is to say."""
        said, self._announcement = self._announcement, b""
        self.buffered_bytes = 0
        return self._h2.data_to_send() + said

    def dispose(self) -> None:
        """Let go of everything; the object is then of no more use."""
        self._streams.clear()
        dispose(self._h2)

    def announce_end(self) -> None:
        """Say GOAWAY for all streams to come (RFC 9113 §6.8, before a graceful shutdown); those under way go on."""
        if not self._ended:
            payload = EVERY_STREAM + int(ErrorCode.NO_ERROR).to_bytes(4)
            self._announcement = frame(FrameType.GOAWAY, 0, 0, payload)

    def _receive(self, data: bytes, now_s: float) -> list[CallEvent]:
        """Read on. Raises GreetingError; `data_to_send` then has the GOAWAY."""
        events: list[CallEvent] = []
        self._pay(data, now_s)
        try:
            for event in self._h2.receive_data(data):
                self._event(event, events, now_s)
            # Only now: h2 is ahead of its events, and a stream may have ended since the one that asked for an answer.
            for stream_id, stream in list(self._streams.items()):
                if stream.malformed:
                    self._end_malformed(stream_id)
                    if stream.begun:
                        events.append(CallEnded(stream_id))
                else:
                    self._push(stream_id)
        except h2.exceptions.ProtocolError as exc:
            # h2 has said GOAWAY.
            self._ended = True
            self._streams.clear()
            raise GreetingError(ErrorCode(exc.error_code), str(exc)) from exc
        return events

    def acknowledge(self, stream_id: int, window_bytes: int) -> None:
        """So much of a request's data was taken: the client may send as much again."""
        if window_bytes and not self._ended:
            self._h2.acknowledge_received_data(window_bytes, stream_id)

    def _event(self, event: h2.events.Event, events: list[CallEvent], now_s: float) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream_id, headers=headers):
                fields = tuple((bytes(n), bytes(v)) for n, v in headers)
                size = sum(FIELD_BYTES + len(n) + len(v) for n, v in fields)
                stream = self._streams[stream_id] = _Stream(size, malformed=why_malformed(fields) is not None)
                self.bound()
                if not stream.malformed:
                    stream.begun = True
                    events.append(CallBegan(stream_id, fields))
            case h2.events.TrailersReceived(stream_id=stream_id, headers=headers):
                open_stream = self._streams.get(stream_id)
                if open_stream is not None and why_malformed_trailers(tuple((bytes(n), bytes(v)) for n, v in headers)):
                    open_stream.malformed = True
            case h2.events.DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                open_stream = self._streams.get(stream_id)
                if open_stream is None or open_stream.ending or open_stream.malformed:
                    self.acknowledge(stream_id, size)
                else:
                    events.append(CallData(stream_id, data, size))
            case h2.events.StreamEnded(stream_id=stream_id):
                open_stream = self._streams.get(stream_id)
                if open_stream is not None:
                    open_stream.request_ended, open_stream.header_bytes = True, 0
                    if not open_stream.ending and not open_stream.malformed:
                        events.append(CallComplete(stream_id))
            case h2.events.StreamReset(stream_id=stream_id):
                if not self._resets.take(1, now_s):
                    self._refuse_all("RESETS_PER_S")
                if self._streams.pop(stream_id, None) is not None:
                    events.append(CallEnded(stream_id))
            case h2.events.ConnectionTerminated():
                # h2 sends nothing on a connection whose client said GOAWAY.
                self._ended = True
                self._streams.clear()
            case _:
                pass

    def bound(self, more_bytes: int = 0) -> None:
        """Check what is kept here, and `more_bytes` elsewhere. Raises GreetingError; `data_to_send` has the GOAWAY."""
        if self.kept_bytes + more_bytes > self._bounds.kept_bytes:
            self._refuse_all("BYTES")

    def _refuse_all(self, limit: str) -> None:
        self.close(ErrorCode.ENHANCE_YOUR_CALM)
        raise over(f"{self._bounds.family}_{limit}")

    def _pay(self, data: bytes, now_s: float) -> None:
        """Take a token for each frame, before h2 works on it."""
        try:
            frames = self._guard.receive_data(data)
        except GreetingError as exc:
            self.close(exc.error_code)
            raise
        if not self._frames.take(frames, now_s) and not self._bounds.paced:
            self._refuse_all("PER_S")

    # -- answers -----------------------------------------------------------------------------------------------------

    def unsent(self, stream_id: int) -> int:
        """How many bytes of an answer still wait for the client's windows; 0 if the stream is gone."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.unsent)

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
            tail = "" if status is GrpcStatus.OK else self.tail
            trailers.append((b"grpc-message", encode_grpc_message(message, limits.STATUS_MESSAGE_BYTES, tail)))
        stream.trailers = trailers if stream.answered else [(b":status", b"200"), CONTENT_TYPE, *trailers]
        stream.answered = stream.ending = True
        self._push(stream_id)

    def send_text(self, stream_id: int, http_status: int, text: bytes, content_type: bytes = b"text/plain") -> None:
        """Answer in plain HTTP a request that is not gRPC; without text for HEAD."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending:
            return
        stream.answered = stream.ending = True
        self._h2.send_headers(
            stream_id,
            [
                (b":status", b"%d" % http_status),
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(text)),
            ],
            end_stream=not text,
        )
        stream.unsent += text
        self._push(stream_id)

    def reset(self, stream_id: int, error_code: ErrorCode) -> None:
        """Give a stream up whose client takes no answer."""
        if self._streams.pop(stream_id, None) is not None:
            self._h2.reset_stream(stream_id, int(error_code))

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

    def turn_away(self, words: str) -> None:
        """Say GOAWAY, and that no stream of the client's was looked at: it makes its requests on another connection.

        That is safe for any request (RFC 9113 §6.8), and gRPC's clients do it by themselves.
        """
        self._streams.clear()
        self._ended = True
        self._h2.close_connection(int(ErrorCode.NO_ERROR), words.encode(), last_stream_id=0)

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
            self.buffered_bytes += len(part)
        if not stream.ending:
            return
        if stream.trailers is not None:
            self._h2.send_headers(stream_id, stream.trailers, end_stream=True)
        if not stream.request_ended:
            # The rest of the request is not awaited (RFC 9113 §8.1).
            self._h2.reset_stream(stream_id, int(ErrorCode.NO_ERROR))
        del self._streams[stream_id]


class GrpcServer(ServerConnection):
    """A connection whose calls are streams of messages either way."""

    def receive_data(self, data: bytes, now_s: float) -> list[CallEvent]:
        """Read on. Raises GreetingError; `data_to_send` then has the GOAWAY."""
        return self._receive(data, now_s)
