"""gRPC status codes and the encoding of `grpc-message`.

Source: gRPC core concepts, "Status codes and their use in gRPC" (doc/statuscodes.md), and "gRPC over HTTP2"
(doc/PROTOCOL-HTTP2.md, Status-Message is percent-encoded).
"""

import enum


class GrpcStatus(enum.IntEnum):
    """Status codes of gRPC (doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def encode_grpc_message(message: str, max_bytes: int, tail: str = "") -> bytes:
    """Percent-encode a status message: UTF-8, every byte outside 0x20 to 0x7E, and "%", becomes %XX (PROTOCOL-HTTP2).

    Words that would be longer than `max_bytes` are cut off after a whole character; `tail`, in ASCII, follows them whole.
    """
    if tail:
        return encode_grpc_message(message, max_bytes - len(tail)) + tail.encode()
    if message.isascii() and message.isprintable() and "%" not in message:
        return message[:max_bytes].encode()
    words = bytearray()
    for character in message:
        code = character.encode(errors="replace")
        encoded = b"".join(bytes((b,)) if 0x20 <= b <= 0x7E and b != 0x25 else b"%%%02X" % b for b in code)
        if len(words) + len(encoded) > max_bytes:
            break
        words += encoded
    return bytes(words)
