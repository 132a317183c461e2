"""The end of what a satellite prints: read at a limited rate, so that a flood slows down the satellite, not the keeper."""

import contextlib
import os

KEPT_BYTES = 64 << 10
"""Kept for each satellite: older output is dropped."""
CHUNK_BYTES = 16 << 10
PAUSE_S = 0.005
"""Pause after a full read, so that at most 3 MB/s of each satellite go through the keeper."""
TAIL_BYTES = 4096
"""What a reader gets that names no offset: enough for the end of a traceback."""


class Output:
    """The output of one run. Takes `fd`, the reading end of its pipe."""

    def __init__(self, fd: int | None, kept: bytes = b"", end: int = 0) -> None:
        """`kept` and `end`: what was read before, by another program of this process. `fd` is None if the pipe is closed."""
        self._fd = fd
        self._kept = bytearray(kept)
        self.end = end
        """The number of bytes that were read so far: the offset of the next one."""

    @property
    def fd(self) -> int | None:
        """The pipe; None if it is closed."""
        return self._fd

    @property
    def kept(self) -> bytes:
        """What of it can still be read."""
        return bytes(self._kept)

    def read(self) -> bool | None:
        """Read one chunk. Returns whether it was full; None: every writer has closed the pipe."""
        if self._fd is None:
            return None
        data = os.read(self._fd, CHUNK_BYTES)
        self._kept += data
        self.end += len(data)
        del self._kept[:-KEPT_BYTES]
        return len(data) == CHUNK_BYTES if data else None

    def since(self, offset: int | None, limit: int) -> tuple[int, bytes]:
        """What was printed from `offset` on (None: the last TAIL_BYTES), `limit` bytes at most; and where it begins."""
        first = self.end - len(self._kept)
        begin = self.end - TAIL_BYTES if offset is None else offset
        begin = min(max(begin, first), self.end)
        return begin, bytes(self._kept[begin - first : begin - first + limit])

    @property
    def is_open(self) -> bool:
        """Whether the pipe is open."""
        return self._fd is not None

    def drain(self) -> None:
        """Read what is in the pipe now, at most its capacity."""
        with contextlib.suppress(BlockingIOError):  # a writer has left nothing
            for _ in range(KEPT_BYTES // CHUNK_BYTES):
                if self.read() is None:
                    break

    def finish(self) -> None:
        """Read what is left in the pipe, and close it. A writer that stays holds nothing up."""
        if self._fd is None:
            return
        try:
            self.drain()
        finally:
            os.close(self._fd)
            self._fd = None
