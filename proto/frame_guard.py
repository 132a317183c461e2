"""Checks frames before the h2 library does: counts them, and refuses header blocks that are small but costly to decode.

h2 decodes every block, and each frame, however small, costs it some tens of microseconds. This module looks only at where
frames begin and at header blocks. h2 checks everything else.
"""

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import END_HEADERS, HEADER_BYTES, PREFACE, FrameHeader, FrameType, parse_header
from bentpipe.proto.header_block import HeaderBlock

BLOCKS = {FrameType.HEADERS, FrameType.CONTINUATION}


class FrameGuard:
    """One direction of a connection, from its first byte on. Keeps the present header block, HEADER_BLOCK_BYTES at most."""

    def __init__(self, *, preface: bool) -> None:
        self._skip = len(PREFACE) if preface else 0
        self._head = bytearray()
        self._header: FrameHeader | None = None
        self._left = 0
        self._payload = bytearray()
        self._block: HeaderBlock | None = None

    def receive_data(self, data: bytes) -> int:
        """Check received bytes.

        Returns how many frames begin in them. Raises GreetingError over a limit of header blocks.
        """
        begun, at = 0, min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            if self._header is None:
                part = data[at : at + HEADER_BYTES - len(self._head)]
                self._head += part
                at += len(part)
                if len(self._head) < HEADER_BYTES:
                    break
                self._header = parse_header(self._head)
                self._head.clear()
                self._left = self._header.length
                begun += 1
                if self._left > limits.FRAME_BYTES:
                    raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {self._left} bytes", "FRAME_BYTES")
            end = min(at + self._left, len(data))
            if self._header.type in BLOCKS:
                self._payload += data[at:end]
            self._left -= end - at
            at = end
            if not self._left:
                self._end_frame(self._header)
                self._header = None
        return begun

    def _end_frame(self, header: FrameHeader) -> None:
        if header.type not in BLOCKS:
            return
        payload = bytes(self._payload)
        self._payload.clear()
        if header.type == FrameType.HEADERS:
            self._block = HeaderBlock(header, payload, kept=True)
        elif self._block is not None:
            self._block.extend(payload)
        if header.flags & END_HEADERS and self._block is not None:
            self._block.check()
            self._block = None
