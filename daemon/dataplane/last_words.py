"""What the data plane itself says to a client in HTTP/2 before it closes the connection."""

from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import FrameType, frame

STREAM_BYTES, CODE_BYTES = 4, 4


def last_words(code: ErrorCode, words: str) -> bytes:
    """SETTINGS, which must come first and may come again, and GOAWAY with a message for people (RFC 9113 §6.8).

    GOAWAY with stream 0 says that no request was processed, so that clients try again.
    """
    payload = bytes(STREAM_BYTES) + int(code).to_bytes(CODE_BYTES) + words.encode()
    return frame(FrameType.SETTINGS, 0, 0, b"") + frame(FrameType.GOAWAY, 0, 0, payload)
