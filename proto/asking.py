"""One unary gRPC call by the daemon, on a connection of its own, on the h2 library. Sans-IO.

It is for questions to a satellite, which may be any server. An answer that is not a gRPC answer raises AnswerError.
"""

import urllib.parse

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from bentpipe.proto import limits
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import HeaderList
from bentpipe.proto.first_settings import UNLIMITED_STREAMS, Announcement
from bentpipe.proto.frame_guard import FrameGuard
from bentpipe.proto.messages import MessageError, MessageReader

MAX_ANSWER_BYTES = 64 << 10
"""The most that a server may send on such a connection: some frames, two header blocks, a message of some KiB. It fits into
the first window of a stream (RFC 9113 §6.9.2), so that no window has to be enlarged."""
MAX_WORDS = 200
"""Of a server's own words, for the log."""


class AnswerError(Exception):
    """The other side does not speak HTTP/2, breaks it, or sends too much."""


def printable(text: str, most: int) -> str:
    """Make a text of another machine fit for the log: one printable line, shortened to `most` characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])


class Asking:
    """A call from its first byte to its last."""

    def __init__(self, path: str, body: bytes, *, authority: str = "localhost") -> None:
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._guard = FrameGuard(preface=False)
        self._received_bytes = self._received_frames = 0
        self.headers: HeaderList = ()
        """The fields that have come so far: the answer's header fields, then its trailers."""
        self.ended = False
        """Whether the answer is complete, or the other side has given it up."""
        self._body = bytearray()
        self._h2.initiate_connection()
        self._h2.send_headers(
            1,
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", authority.encode()),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            ],
        )
        self._h2.send_data(1, body, end_stream=True)

    @property
    def announced(self) -> Announcement:
        """The other side's SETTINGS, as far as they have come."""
        said = self._h2.remote_settings
        return Announcement(min(said.max_concurrent_streams, UNLIMITED_STREAMS), said.initial_window_size)

    def message(self) -> bytes:
        """The one message of the complete answer. Raises AnswerError if the call has failed, in the server's own words."""
        fields = dict(self.headers)
        if (status := fields.get(b"grpc-status", b"missing")) != b"0":
            words = urllib.parse.unquote(fields.get(b"grpc-message", b"").decode(errors="replace"))
            raise AnswerError(printable(f"grpc-status {status.decode(errors='replace')}: {words}", MAX_WORDS))
        reader = MessageReader(MAX_ANSWER_BYTES, "MAX_ANSWER_BYTES")
        try:
            messages = reader.receive_data(bytes(self._body))
            reader.end()
        except MessageError as exc:
            raise AnswerError(str(exc)) from exc
        if len(messages) != 1:
            raise AnswerError(f"{len(messages)} messages instead of one")
        return messages[0]

    def data_to_send(self) -> bytes:
        """The bytes to send now."""
        return self._h2.data_to_send()

    def receive_data(self, data: bytes) -> None:
        """Process received bytes. Raises AnswerError."""
        self._received_bytes += len(data)
        if self._received_bytes > MAX_ANSWER_BYTES:
            raise AnswerError(f"more than {MAX_ANSWER_BYTES} bytes")
        try:
            self._received_frames += self._guard.receive_data(data)
            if self._received_frames > limits.ASKED_FRAMES:
                raise AnswerError("over the limit ASKED_FRAMES")
            events = self._h2.receive_data(data)
        except (h2.exceptions.ProtocolError, GreetingError) as exc:
            raise AnswerError(str(exc)) from exc
        for event in events:
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    self.headers += tuple((bytes(name), bytes(value)) for name, value in event.headers or ())
                case h2.events.DataReceived(data=data):
                    self._body += data or b""
                case h2.events.StreamEnded() | h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    self.ended = True
                case _:
                    pass  # frames of the connection, which h2 answers
