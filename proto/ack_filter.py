"""Removes the ACK of our SETTINGS from the client's bytes, wherever it comes, and passes everything else on at once."""

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, HEADER_BYTES, FrameType, parse_header
from bentpipe.proto.states import check_shape


class AckFilter:
    """Parses one direction into frames. It keeps back at most an incomplete 9-byte header."""

    def __init__(self, pending: bytes = b"") -> None:
        self._kept = bytearray(pending)
        self._left = 0
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the ACK has been removed; from then on bytes need no filter."""
        return self._done

    def receive_data(self, data: bytes) -> bytes:
        """Return the bytes to pass on. Raises GreetingError on a frame that is too large, or an ACK with a payload."""
        if self._done:
            return data
        data, at, out = bytes(self._kept) + data, 0, bytearray()
        self._kept.clear()
        while True:
            end = min(at + self._left, len(data))
            out += data[at:end]
            self._left -= end - at
            at = end
            if len(data) - at < HEADER_BYTES:
                self._kept += data[at:]
                return bytes(out)
            header = parse_header(data[at : at + HEADER_BYTES])
            if header.length > limits.FRAME_BYTES:
                raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {header.length} bytes", "FRAME_BYTES")
            if header.type == FrameType.SETTINGS and header.flags & ACK:
                check_shape(header)
                self._done = True
                return bytes(out) + data[at + HEADER_BYTES :]
            out += data[at : at + HEADER_BYTES]
            at += HEADER_BYTES
            self._left = header.length
