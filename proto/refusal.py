"""The daemon's answers to clients that it refuses: gRPC refusals, GOAWAY, and messages for clients at the wrong port.

The `h2` library writes the HTTP/2. It is fed everything that the client has sent, and so knows its streams, its header table
and its windows. It acknowledges the client's SETTINGS, which is correct: no satellite will ever see this connection.
"""

import functools

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.events import HeaderList
from bentpipe.proto.frame_guard import FrameGuard
from bentpipe.proto.grpc_status import GrpcStatus, encode_grpc_message
from bentpipe.proto.wellformed import why_malformed

_BODY = b"This port speaks gRPC over HTTP/2 (prior knowledge or ALPN h2) for satellites, not HTTP/1.1.\n"
HTTP1_ANSWER = (
    b"HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
"""RFC 9110 §15.5.22."""

_TLS_BODY = b"This port speaks TLS (gRPC over HTTP/2), and this request came without: use https.\n"
HTTP1_TLS_WANTED = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_TLS_BODY), _TLS_BODY)
)
"""For plaintext HTTP/1.1 on a port with TLS. nginx answers the same."""

TLS_ALERT = bytes.fromhex("15030100020246")
"""A fatal protocol_version alert (RFC 8446 §6.2), in plaintext: this port speaks no version of TLS. Clients show it, and try
again as after any failed connect, a second later and then more rarely. After handshake_failure people would look for errors
in their certificates."""

PIECE_BYTES = 1 << 10
"""Bytes to feed at once: at worst 80 tiny requests, which h2 reads in about 5 ms."""

BAD_REQUEST = [(b":status", b"400")]
NO_METHOD = [(b":status", b"405")]

STREAMS_AT_ONCE = 16
"""Streams to answer at once, in some 2 ms."""


class _Encoder(hpack.Encoder):
    """An encoder whose table stays small, however large a table the client would keep. RFC 7541 §4.2 leaves that to us.

    Words that a client chooses come back in our answers, each an entry of the table, and the library searches all entries
    for each field.
    """

    @property
    def header_table_size(self) -> int:
        """The bound of the table, in bytes as RFC 7541 §4.1 counts them."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        small = min(value, limits.TABLE_BYTES)
        if small != self.header_table.maxsize:
            self.header_table.maxsize = small
            self.table_size_changes.append(small)


class _Server(h2.connection.H2Connection):
    """An h2 connection that remembers only few closed streams: the library keeps 65,536, which takes 10 MiB."""

    MAX_CLOSED_STREAMS = 256


def server_connection(max_streams: int) -> h2.connection.H2Connection:
    """An h2 server that has sent its SETTINGS, within our limits. It accepts any fields: see proto/wellformed.py."""
    made = _Server(h2.config.H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=False))
    made.encoder = _Encoder()
    made.local_settings = h2.settings.Settings(
        client=False,
        initial_values={
            h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: limits.HEADER_LIST_BYTES,
        },
    )
    made.initiate_connection()
    return made


def dispose(connection: h2.connection.H2Connection) -> None:
    """Free it now. It refers to itself (by its table of frame handlers), so that only a full garbage collection would find
    it.

    A client that is refused makes a thousand objects. After a crowd, the collector would stop everything to free them.
    """
    vars(connection).clear()


class Refusal:
    """Answers instead of the satellite, on every stream that the client has opened and not reset."""

    def __init__(self) -> None:
        # The client opened its streams before it could know a limit: all that the greeting accepted are answered.
        self._h2 = server_connection(1 + limits.HELD_HEADERS)
        self._guard = FrameGuard(preface=True)
        self._unfinished: dict[int, bool] = {}
        self._malformed: set[int] = set()
        self._why_malformed: str | None = None
        self._connecting: set[int] = set()
        self._answered = False
        self._ended = False

    def receive_data(self, data: bytes) -> None:
        """Feed what the client has sent, PIECE_BYTES at most. Raises GreetingError; `close` then has h2's GOAWAY."""
        try:
            self._guard.receive_data(data)
        except GreetingError as exc:
            last_stream = self._h2.highest_inbound_stream_id
            self._h2.close_connection(int(exc.error_code), exc.message.encode(), last_stream)
            raise
        try:
            for event in self._h2.receive_data(data):
                match event:
                    case h2.events.RequestReceived(stream_id=stream_id, headers=headers):
                        self._unfinished[stream_id] = True
                        self._judge(stream_id, tuple((bytes(n), bytes(v)) for n, v in headers))
                    case h2.events.StreamEnded(stream_id=stream_id) if stream_id in self._unfinished:
                        self._unfinished[stream_id] = False
                    case h2.events.StreamReset(stream_id=stream_id):
                        self._unfinished.pop(stream_id, None)
                    case h2.events.ConnectionTerminated():
                        self._ended = True
                    case _:
                        pass
        except h2.exceptions.ProtocolError as exc:
            raise GreetingError(ErrorCode(exc.error_code), str(exc)) from exc

    def refuse_some(self, status: GrpcStatus, message: str, tail: str = "") -> bool:
        """Send trailers-only (gRPC PROTOCOL-HTTP2) on STREAMS_AT_ONCE open streams. Returns whether more are left.

        GOAWAY follows the last of them, and has the message if no stream was open. `tail` follows the message, and is never
        cut. A client that has sent GOAWAY gets no
        answer: h2 sends nothing more then, and the client did not intend to stay.
        """
        if self._ended:
            return False
        words = [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % status),
            (b"grpc-message", encode_grpc_message(message, limits.STATUS_MESSAGE_BYTES, tail)),
        ]
        for stream_id in list(self._unfinished)[:STREAMS_AT_ONCE]:
            self._refuse(stream_id, words)
        if self._unfinished:
            return True
        debug = self._why_malformed or ("" if self._answered else message + tail)
        self._h2.close_connection(
            additional_data=debug.encode() or None, last_stream_id=self._h2.highest_inbound_stream_id
        )
        return False

    def _judge(self, stream_id: int, fields: HeaderList) -> None:
        """Remember which requests do not get a gRPC answer. The fields are not kept, since there are many."""
        if (why := why_malformed(fields)) is not None:
            self._malformed.add(stream_id)
            self._why_malformed = why
        elif (b":method", b"CONNECT") in fields:
            # 200 would mean that the tunnel is open (RFC 9110 §9.3.6).
            self._connecting.add(stream_id)

    def _refuse(self, stream_id: int, words: list[tuple[bytes, bytes]]) -> None:
        unfinished = self._unfinished.pop(stream_id)
        if stream_id in self._malformed:
            # A stream error; a server may send a response before it (RFC 9113 §8.1.1).
            self._h2.send_headers(stream_id, BAD_REQUEST)
            self._h2.reset_stream(stream_id, int(ErrorCode.PROTOCOL_ERROR))
            return
        self._h2.send_headers(stream_id, NO_METHOD if stream_id in self._connecting else words, end_stream=True)
        if unfinished:
            # The server does not wait for the end of the request (RFC 9113 §8.1).
            self._h2.reset_stream(stream_id, int(ErrorCode.NO_ERROR))
        self._answered = True

    def close(self) -> bytes:
        """Take the bytes to send. The object must not be used after that."""
        words = self._h2.data_to_send()
        dispose(self._h2)
        return words


def goaway(error_code: ErrorCode, words: str, last_stream: int = 0) -> bytes:
    """SETTINGS, which must come first and may come again, and GOAWAY with a message for people (RFC 9113 §5.4.1, §6.8)."""
    made = server_connection(1 + limits.HELD_HEADERS)
    made.close_connection(int(error_code), words.encode(), last_stream)
    said = made.data_to_send()
    dispose(made)
    return said


TOO_LATE_WORDS = "no complete request before greeting_deadline"
_FILLER = "~"


def too_late(tail: str = "") -> bytes:
    """GOAWAY for a client that speaks HTTP/2 but sent no request in time; `tail`, in ASCII, follows the words.

    Nothing is lost: the client may connect again at once. Thousands may be late together, so h2 writes the frame once.
    """
    filler = _FILLER * len(tail)
    return _too_late(len(tail)).replace(filler.encode(), tail.encode()) if tail else _too_late(0)


@functools.cache
def _too_late(tail_chars: int) -> bytes:
    return goaway(ErrorCode.NO_ERROR, TOO_LATE_WORDS + _FILLER * tail_chars)
