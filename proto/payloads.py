"""Checks payloads of frames that are meant for the satellite: padding, SETTINGS, WINDOW_UPDATE (RFC 9113 §6).

A satellite would find the same errors, but it may sleep for minutes yet, and the daemon tells the client at once. Errors of
one stream end the connection, which is allowed (§5.4.1), since the daemon sends no RST_STREAM before the splice. A stream's
own window is not checked, since it depends on the SETTINGS of both ends.
"""

from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import PADDED, FrameHeader, FrameType

ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 4, 5
SETTING_BYTES = 6

LARGEST_WINDOW = (1 << 31) - 1
INITIAL_WINDOW = 65_535
"""The connection's initial window; SETTINGS do not change it (RFC 9113 §6.9.2)."""
FRAME_SIZES = range(1 << 14, 1 << 24)


def unpadded(header: FrameHeader, payload: bytes) -> bytes:
    """Return DATA's or HEADERS' payload without its padding (§6.1, §6.2). Raises GreetingError."""
    if not header.flags & PADDED:
        return payload
    if not payload:
        raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"padded {FrameType(header.type).name} of 0 bytes")
    if payload[0] >= len(payload):
        raise GreetingError(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]


def check_settings(payload: bytes) -> None:
    """Raise GreetingError if a setting has a value that it may not have; unknown settings are ignored (§6.5.2)."""
    for at in range(0, len(payload), SETTING_BYTES):
        setting, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + SETTING_BYTES])
        if setting == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise GreetingError(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
        if setting == ENABLE_PUSH and value > 1:
            raise GreetingError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
        if setting == MAX_FRAME_SIZE and value not in FRAME_SIZES:
            raise GreetingError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")


class ConnectionWindow:
    """How many bytes the client allows its server to send in all. Nothing uses this before the splice."""

    def __init__(self) -> None:
        self._bytes = INITIAL_WINDOW

    def update(self, stream_id: int, payload: bytes) -> None:
        """Take a WINDOW_UPDATE. Raises GreetingError."""
        increment = int.from_bytes(payload) & LARGEST_WINDOW
        if not increment:
            raise GreetingError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if stream_id:
            return
        self._bytes += increment
        if self._bytes > LARGEST_WINDOW:
            raise GreetingError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is over 2^31-1")
