"""What the daemon says to those who go no further: gRPC refusals, GOAWAY, and words for those who are at the wrong port.

HTTP/2 is said by the `h2` library: it is fed what the client said so far and so knows its streams, its header table and
its windows. It acknowledges the client's SETTINGS, as it may: no satellite will ever see this connection.
"""

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

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
"""For HTTP/1.1 in the clear on a port with TLS, as nginx has it."""

TLS_ALERT = bytes.fromhex("15030100020246")
"""A fatal protocol_version alert (RFC 8446 §6.2), in the clear: no version of TLS is spoken here. Clients show it, and try
again as after any failed connect, a second later and then more seldom; handshake_failure would have people look for faults
in certificates."""

PIECE_BYTES = 1 << 10
"""What to feed at once: 80 requests of a byte or so at worst, which h2 reads in about 5 ms."""

BAD_REQUEST = [(b":status", b"400")]
NO_METHOD = [(b":status", b"405")]

STREAMS_AT_ONCE = 16
"""To answer at once, in some 2 ms."""


class _Server(h2.connection.H2Connection):
    """An h2 connection that remembers of few closed streams how they ended: the library keeps 65,536, 10 MiB."""

    MAX_CLOSED_STREAMS = 256


def server_connection(max_streams: int) -> h2.connection.H2Connection:
    """An h2 server that has said its SETTINGS, within our limits. It takes any fields: see proto/wellformed.py."""
    made = _Server(h2.config.H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=False))
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
    """Let it go now. It refers to itself (its table of frame handlers), so that only a full collection would find it.

    A crowd that is refused at once makes a thousand objects each: the collector would stop everybody for its sake.
    """
    vars(connection).clear()


class Refusal:
    """Answers in place of the satellite, on every stream that the client opened and did not reset."""

    def __init__(self) -> None:
        # Streams were opened before anybody could name a limit: all that the greeting let pass are answered.
        self._h2 = server_connection(1 + limits.HELD_HEADERS)
        self._guard = FrameGuard(preface=True)
        self._unfinished: dict[int, bool] = {}
        self._malformed: set[int] = set()
        self._why_malformed: str | None = None
        self._connecting: set[int] = set()
        self._answered = False
        self._ended = False

    def receive_data(self, data: bytes) -> None:
        """Take what the client said, PIECE_BYTES at most. Raises GreetingError; `close` then has h2's GOAWAY."""
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

    def refuse_some(self, status: GrpcStatus, message: str) -> bool:
        """Say trailers-only (gRPC PROTOCOL-HTTP2) on STREAMS_AT_ONCE open streams. Returns whether more are left.

        With the last of them goes GOAWAY, which has the words if no stream was open. Nothing is said to a client that
        said GOAWAY: h2 sends nothing more then, and the client did not mean to stay.
        """
        if self._ended:
            return False
        words = [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % status),
            (b"grpc-message", encode_grpc_message(message, limits.STATUS_MESSAGE_BYTES)),
        ]
        for stream_id in list(self._unfinished)[:STREAMS_AT_ONCE]:
            self._refuse(stream_id, words)
        if self._unfinished:
            return True
        debug = self._why_malformed or ("" if self._answered else message)
        self._h2.close_connection(
            additional_data=debug.encode() or None, last_stream_id=self._h2.highest_inbound_stream_id
        )
        return False

    def _judge(self, stream_id: int, fields: HeaderList) -> None:
        """Remember what is not to be answered in gRPC's words, and not the fields, which are many."""
        if (why := why_malformed(fields)) is not None:
            self._malformed.add(stream_id)
            self._why_malformed = why
        elif (b":method", b"CONNECT") in fields:
            # 200 would mean that the way is open (RFC 9110 §9.3.6).
            self._connecting.add(stream_id)

    def _refuse(self, stream_id: int, words: list[tuple[bytes, bytes]]) -> None:
        unfinished = self._unfinished.pop(stream_id)
        if stream_id in self._malformed:
            # A stream error, of which a server may say more before it (RFC 9113 §8.1.1).
            self._h2.send_headers(stream_id, BAD_REQUEST)
            self._h2.reset_stream(stream_id, int(ErrorCode.PROTOCOL_ERROR))
            return
        self._h2.send_headers(stream_id, NO_METHOD if stream_id in self._connecting else words, end_stream=True)
        if unfinished:
            # The request's own end is not awaited (RFC 9113 §8.1).
            self._h2.reset_stream(stream_id, int(ErrorCode.NO_ERROR))
        self._answered = True

    def close(self) -> bytes:
        """Take what there is to say; the object is then of no more use."""
        words = self._h2.data_to_send()
        dispose(self._h2)
        return words


def goaway(error_code: ErrorCode, words: str, last_stream: int = 0) -> bytes:
    """SETTINGS, which must come first or may come again, and GOAWAY with words for people (RFC 9113 §5.4.1, §6.8)."""
    made = server_connection(1 + limits.HELD_HEADERS)
    made.close_connection(int(error_code), words.encode(), last_stream)
    said = made.data_to_send()
    dispose(made)
    return said


TOO_LATE = goaway(ErrorCode.NO_ERROR, "no complete request before greeting_deadline")
"""For whoever speaks HTTP/2 but did not ask for anything in time. Nothing was lost: a client may come again at once."""
