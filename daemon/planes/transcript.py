"""The bytes of one connection that the data plane keeps until its hand-off. Pure.

Offsets count every byte that came. Ranges are dropped that were meant for the daemon (PINGs that it answered, the ACK of its
SETTINGS): they are not replayed. Bytes below `forget` are not kept at all.
"""

import dataclasses

from bentpipe.daemon.planes.codec import ProtocolBroken

MOST_DROPS = 4_096
"""Ranges that were dropped, in one connection. A held client is answered one PING a second in the long run."""


@dataclasses.dataclass(slots=True)
class _Piece:
    at: int
    data: bytearray


class PlaneTranscript:
    """The bytes that came and are kept."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._drops = 0
        self.end = 0
        """Offset behind the newest byte."""
        self.kept_bytes = 0

    def append(self, data: bytes) -> None:
        """The connection goes on."""
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.at + len(last.data) == self.end:
            last.data += data
        elif data:
            self._pieces.append(_Piece(self.end, bytearray(data)))
        self.end += len(data)
        self.kept_bytes += len(data)

    def drop(self, at: int, size: int) -> None:
        """Do not replay a range. Raises ProtocolBroken if it has not come yet, or was dropped or forgotten already."""
        self._drops += 1
        if self._drops > MOST_DROPS:
            raise ProtocolBroken("too many ranges of a transcript are dropped")
        for index in range(len(self._pieces) - 1, -1, -1):
            piece = self._pieces[index]
            first = at - piece.at
            if first < 0:
                continue
            if first + size > len(piece.data):
                break
            behind = piece.data[first + size :]
            del piece.data[first:]
            after = [_Piece(at + size, behind)] if behind else []
            self._pieces[index : index + 1] = ([piece] if piece.data else []) + after
            self.kept_bytes -= size
            return
        raise ProtocolBroken("a range that is not in the transcript is dropped")

    def forget(self, below: int) -> None:
        """Keep nothing below an offset."""
        while self._pieces and self._pieces[0].at < below:
            piece = self._pieces[0]
            size = min(below - piece.at, len(piece.data))
            del piece.data[:size]
            piece.at += size
            self.kept_bytes -= size
            if piece.data:
                break
            del self._pieces[0]

    def between(self, begin: int, end: int) -> bytes:
        """The kept bytes of [begin, end), without what was dropped."""
        found = bytearray()
        for piece in self._pieces:
            first = max(0, begin - piece.at)
            found += piece.data[first : max(first, end - piece.at)]
        return bytes(found)

    def begin_again(self) -> None:
        """Count the kept bytes from offset 0 on, for another control plane."""
        data = self.between(0, self.end)
        self._pieces, self._drops = [], 0
        self.end = self.kept_bytes = 0
        self.append(data)
