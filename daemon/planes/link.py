"""One connection between a control plane and a data plane: a SOCK_SEQPACKET socket, records out and records in.

Owns: the socket, from its making to `aclose`. It never drops a record that was read, and never waits to queue one.
"""

import contextlib
import enum
import errno
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.planes.batching import Batching, QueueFull
from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, WORDS_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import LINK_ID, ByeCode, ByeRecord, Record
from bentpipe.daemon.planes.table import Plane

READS_A_TURN = 16
"""Messages that are read before other tasks have their turn: up to 1 MiB."""

NO_BUFFERS_S = 0.01
"""Pause after the kernel has found no memory for a message (ENOBUFS); there is no event for more."""


class LinkEnd(enum.Enum):
    """Why `run_link` returned."""

    PEER_GONE = "the other process has closed the connection, or has died"
    PEER_LEFT = "the other process has said that it ends the connection"
    PROTOCOL = "the other process has broken the protocol"
    SLOW = "the other process does not read"


class Link:
    """One end. `peer` is the role of the other process. Takes the socket over."""

    def __init__(self, sock: socket.socket, peer: Plane) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._batching = Batching(peer)
        self._wake = trio.Event()
        self._slow = trio.Event()
        self.bye: ByeRecord | None = None
        """The peer's last words, if it has said any."""
        self.broken = ""
        """How the peer has broken the protocol, if it has."""

    def send_nowait(self, record: Record) -> None:
        """Queue a record; `run_link` sends it. If the peer does not read at all, the link ends, and records are dropped."""
        try:
            self._batching.queue(record)
        except QueueFull:
            self._slow.set()
        self._wake.set()

    @property
    def queued_bytes(self) -> int:
        """What waits for the socket."""
        return self._batching.queued_bytes

    async def run_link(
        self,
        receive: Callable[[Record], None],
        gather: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> LinkEnd:
        """Send and receive until the link ends; `receive` gets each record, and may raise ProtocolBroken.

        `gather` makes a block in which several records are received. A record that came before the end was given to
        `receive`, even if the peer has died meanwhile.
        """
        end = LinkEnd.PEER_GONE
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                nonlocal end
                end = await self._read_all(receive, gather)
                nursery.cancel_scope.cancel()

            async def wait_slow() -> None:
                nonlocal end
                await self._slow.wait()
                end = LinkEnd.SLOW
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            nursery.start_soon(wait_slow)
            nursery.start_soon(self._write_all)
        if end is LinkEnd.PROTOCOL:
            self.say_bye(ByeCode.BROKEN, self.broken)
        elif end is LinkEnd.SLOW:
            self.say_bye(ByeCode.SLOW, "nothing was read for too long")
        return end

    async def _read_all(
        self, receive: Callable[[Record], None], gather: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> LinkEnd:
        while True:
            for _ in range(READS_A_TURN):
                try:
                    message = self._sock.recv(MESSAGE_BYTES + 1)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    # The peer died with unread messages of ours. What it had sent before is still to be read: the next
                    # calls return it, and b"" after the last message.
                    continue
                except OSError:
                    return LinkEnd.PEER_GONE
                if not message:
                    return LinkEnd.PEER_LEFT if self.bye is not None else LinkEnd.PEER_GONE
                try:
                    with gather():
                        self._take(message, receive)
                except ProtocolBroken as exc:
                    self.broken = str(exc)
                    return LinkEnd.PROTOCOL
            self._wake.set()  # the peer is told what was seen
            await trio.lowlevel.wait_readable(self._sock)

    def _take(self, message: bytes, receive: Callable[[Record], None]) -> None:
        for record in self._batching.receive(message):
            if isinstance(record, ByeRecord):
                self.bye = record
            else:
                receive(record)

    async def _write_all(self) -> None:
        """Send for ever. The end of the connection is the reader's to find, since messages may wait there."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while (message := self._batching.next_message()) is not None:
                try:
                    self._sock.send(message)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                except OSError as exc:
                    if exc.errno != errno.ENOBUFS:
                        await trio.sleep_forever()
                    await trio.sleep(NO_BUFFERS_S)
                else:
                    self._batching.sent(message)

    def flush_nowait(self) -> bool:
        """Send what waits, as far as the socket takes it at once. Returns whether it took everything."""
        with contextlib.suppress(OSError):
            while (message := self._batching.next_message(flush=True)) is not None:
                self._sock.send(message)
                self._batching.sent(message)
            return True
        return False

    def say_bye(self, code: ByeCode, words: str) -> None:
        """Say that this side ends the link, if the socket takes it at once."""
        with contextlib.suppress(QueueFull):
            self._batching.queue(ByeRecord(LINK_ID, code, words[: WORDS_BYTES // 4]))
        self.flush_nowait()

    def close_soon(self) -> None:
        """Have `run_link` return, as if the peer had gone."""
        self._slow.set()

    def close(self) -> None:
        """Close the socket; idempotent. The peer can still read what was sent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
