"""What the daemon says itself: proper gRPC refusals, GOAWAY, and words for those who are at the wrong port."""

import hpack

from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import (
    EMPTY_SETTINGS,
    END_HEADERS,
    END_STREAM,
    FrameType,
    frame,
    goaway,
)
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.grpc_status import GrpcStatus, encode_grpc_message

MESSAGE_BYTES = 4096
"""Of a status message; the frame that carries it stays far below 16,384 bytes."""

_BODY = b"This port speaks gRPC over HTTP/2 (prior knowledge or ALPN h2) for satellites, not HTTP/1.1.\n"
HTTP1_ANSWER = (
    b"HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
"""RFC 9110 §15.5.22."""

TLS_ALERT = bytes.fromhex("15030100020228")
"""A fatal handshake_failure alert (RFC 8446 §6), in the clear: tells a TLS client that this port has no TLS."""


class Responder:
    """Answers in place of the satellite, on every stream that the client opened."""

    def __init__(self, greeting: Greeting) -> None:
        self._greeting = greeting

    def refuse(self, status: GrpcStatus, message: str) -> bytes:
        """Trailers-only (gRPC PROTOCOL-HTTP2) on every open stream, then GOAWAY."""
        encoder = hpack.Encoder()
        words = encode_grpc_message(message)[:MESSAGE_BYTES]
        out = b"" if self._greeting.settings_sent else EMPTY_SETTINGS
        for stream_id in self._greeting.open_streams:
            block = encoder.encode(
                [
                    (b":status", b"200"),
                    (b"content-type", b"application/grpc"),
                    (b"grpc-status", b"%d" % status),
                    (b"grpc-message", words),
                ]
            )
            out += frame(FrameType.HEADERS, END_HEADERS | END_STREAM, stream_id, block)
            # The request's own end is not awaited (RFC 9113 §8.1).
            out += frame(FrameType.RST_STREAM, 0, stream_id, ErrorCode.NO_ERROR.to_bytes(4))
        return out + goaway(self._greeting.last_stream, ErrorCode.NO_ERROR)

    def goaway(self, error: GreetingError) -> bytes:
        """GOAWAY with the error's code and words (RFC 9113 §5.4.1)."""
        start = b"" if self._greeting.settings_sent else EMPTY_SETTINGS
        return start + goaway(self._greeting.last_stream, error.error_code, error.message)

    @staticmethod
    def wrong_port(words: str) -> bytes:
        """Tell a plaintext HTTP/2 client of a TLS port why it is sent away."""
        return EMPTY_SETTINGS + goaway(0, ErrorCode.PROTOCOL_ERROR, words)
