"""One connection as a session uses it: on a socket of this process (`Transport`), or of the data plane (`PlaneChannel`)."""

from typing import Protocol


class Channel(Protocol):
    """Bytes in and out. All methods raise TransportError when the connection is broken: see `Transport`, whose they are."""

    @property
    def received_bytes(self) -> int:
        """What was read of the peer so far; TLS itself is not counted."""
        ...

    @property
    def sent_bytes(self) -> int:
        """What was sent to it."""
        ...

    async def peek(self, max_bytes: int) -> bytes:
        """Wait for bytes and return them without consuming them; b"" if the peer closed first."""
        ...

    def receive_nowait(self) -> bytes | None:
        """Read what has come: b"" at the end of the stream, None if nothing has come. After None await `wait_readable`."""
        ...

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` may return more. If it is cancelled, no byte is lost."""
        ...

    async def receive_some(self) -> bytes:
        """Read at least a byte; b"" at the end of the stream."""
        ...

    async def wait_hangup(self) -> None:
        """Wait until the peer has ended or reset the connection, whatever lies unread before that."""
        ...

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Take as much as there is room for, and return how much."""
        ...

    async def wait_writable(self) -> None:
        """Wait until `send_nowait` may take more."""
        ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything. If cancelled, an unknown part was written, and the stream can only be closed."""
        ...

    async def close_gracefully(self) -> None:
        """Half-close, drain what the peer still sends, close; bounded. Idempotent."""
        ...

    def close(self) -> None:
        """Close at once; idempotent."""
        ...
