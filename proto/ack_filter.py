"""Takes the ACK of our SETTINGS out of the client's stream, wherever it comes, and passes everything else on at once."""

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, HEADER_BYTES, FrameType, parse_header


class AckFilter:
    """Frames one direction. Keeps back an incomplete 9-byte header at most."""

    def __init__(self, pending: bytes = b"") -> None:
        self._header = bytearray()
        self._left = 0
        self._done = False
        self._first = pending

    @property
    def done(self) -> bool:
        """Whether the ACK was taken out; from then on bytes need no filter."""
        return self._done

    def receive_data(self, data: bytes) -> bytes:
        """Return what goes on. Raises GreetingError on a frame that is too large."""
        data, self._first = self._first + data, b""
        out = bytearray()
        while data and not self._done:
            if self._left:
                out += data[: self._left]
                data, self._left = data[self._left :], max(0, self._left - len(data))
                continue
            take = HEADER_BYTES - len(self._header)
            self._header += data[:take]
            data = data[take:]
            if len(self._header) < HEADER_BYTES:
                break
            header = parse_header(self._header)
            if header.length > limits.FRAME_BYTES:
                raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {header.length} bytes", "FRAME_BYTES")
            if header.type == FrameType.SETTINGS and header.flags & ACK:
                self._done = True
            else:
                out += self._header
                self._left = header.length
            self._header.clear()
        return bytes(out) + data if self._done else bytes(out)
