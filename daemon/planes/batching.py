"""Puts records into messages, without a timer, and takes messages apart. Sans-IO.

A record is sent at once if the peer has seen all messages before it. Else it waits until the peer has seen them, and goes
with all that waits beside it, or until a message is full. So one record alone is fast, and a storm of records makes few
messages and few wake-ups. Each message says how many messages its sender has seen. A side that has nothing else to say sends
a message without records, which the peer does not have to acknowledge.
"""

import collections

from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, QUEUE_BYTES, UNSEEN_MESSAGES
from bentpipe.daemon.planes.codec import ProtocolBroken, decode_message, encode_record
from bentpipe.daemon.planes.records import Record
from bentpipe.daemon.planes.table import MAGIC, MESSAGE_HEADER, Plane

_MODULO = 1 << 32


class QueueFull(Exception):
    """The peer does not read: more waits for it than may."""


class Batching:
    """One side's messages, out and in. `peer` is the role of the other side."""

    def __init__(self, peer: Plane) -> None:
        self._peer = peer
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0
        self._sent = 0
        """Messages with records that we have sent."""
        self._acknowledged = 0
        """How many of them the peer says that it has seen."""
        self._seen = 0
        """Messages with records that we have seen."""
        self._told = self._offered = 0
        """How many the peer knows that we have seen, and how many our newest message says."""

    @property
    def queued_bytes(self) -> int:
        """What waits to be put into a message."""
        return self._queued_bytes

    def queue(self, record: Record) -> None:
        """Take a record. Raises QueueFull, TooLong."""
        data = encode_record(record)
        if self._queued_bytes + len(data) > QUEUE_BYTES:
            raise QueueFull(f"{self._queued_bytes} bytes wait for the other process, which does not read")
        self._queue.append(data)
        self._queued_bytes += len(data)

    def next_message(self, *, flush: bool = False) -> bytes | None:
        """Say what to send now; None if nothing has to be. `flush`: send what waits whatever the peer has seen.

        The caller calls `sent` once the socket has taken it, and otherwise asks again.
        """
        unseen = self._sent - self._acknowledged
        room = MESSAGE_BYTES - MESSAGE_HEADER.size
        full = self._queued_bytes >= room
        self._offered = self._seen
        parts, size = [MESSAGE_HEADER.pack(MAGIC, self._seen % _MODULO)], 0
        if self._queue and (flush or not unseen or (full and unseen < UNSEEN_MESSAGES)):
            for data in self._queue:
                if size + len(data) > room:
                    break
                parts.append(data)
                size += len(data)
            return b"".join(parts)
        return parts[0] if self._seen != self._told else None

    def sent(self, message: bytes) -> None:
        """The socket has taken what `next_message` returned."""
        left = len(message) - MESSAGE_HEADER.size
        if left:
            self._sent += 1
        while left:
            data = self._queue.popleft()
            left -= len(data)
            self._queued_bytes -= len(data)
        self._told = self._offered

    def receive(self, message: bytes) -> list[Record]:
        """Read a message of the peer. Raises ProtocolBroken."""
        seen, records = decode_message(message, self._peer)
        newly = (seen - self._acknowledged) % _MODULO
        if newly > self._sent - self._acknowledged:
            raise ProtocolBroken("the peer has seen messages that were never sent")
        self._acknowledged += newly
        if len(message) > MESSAGE_HEADER.size:
            self._seen += 1
        return records
