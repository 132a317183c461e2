"""What all clients together have us keep before their hand-off, counted and bounded.

Owns: one number. A client is counted from its first byte, a stranger too: its greeting is kept like a held one's.
"""

from bentpipe.daemon.errors import LimitReached

FAIR_BYTES = 4 << 10
"""What a client may have kept though the limit is reached: an opening with its metadata and a small request. So whoever
brings much is refused, not whoever comes next. In all, at most `limits.held_bytes` and this and one read a connection."""

CLIENT_BYTES = 64 << 10
"""What a held client may cost beside what it said: its tasks and objects, and OpenSSL's state. With this, the memory that
all held clients take is bounded: `limits.held_bytes` and CLIENT_BYTES for each of `limits.max_connections`."""


class Memory:
    """Counts the bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Kept now."""
        return self._used_bytes

    def change(self, before_bytes: int, after_bytes: int) -> None:
        """A client's share has changed. Raises LimitReached (and counts it still) if it must not grow."""
        self._used_bytes += after_bytes - before_bytes
        if after_bytes > before_bytes and self._used_bytes > self._max_bytes and after_bytes > FAIR_BYTES:
            raise LimitReached("limits.held_bytes is used up", peer_hint="too much is held here for other clients")
