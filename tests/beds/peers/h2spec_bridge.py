"""Lets h2spec at the daemon: between the two it supplies the words that h2spec waits for and the daemon leaves to others.

Before its first test h2spec wants its SETTINGS acknowledged. While the daemon does not know for whom a connection is, it
leaves ACKs to the satellite, or to itself once it answers in place; so no such connection would ever begin. The bridge
says those ACKs early, and takes as many late ones out, until the daemon says one itself. All else goes through byte by
byte, both ways, ends included.
"""

import functools

import trio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, ACK = 4, 1
HEADER_BYTES = 9
SETTINGS_ACK = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"


class Frames:
    """Cuts a stream into frames. `opening_bytes` at its start are none, and go with the first."""

    def __init__(self, opening_bytes: int = 0) -> None:
        self._buffer = bytearray()
        self._opening_bytes = opening_bytes

    def receive(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Type, flags, and the whole of every frame that is complete."""
        self._buffer += data
        found = []
        while len(self._buffer) >= self._opening_bytes + HEADER_BYTES:
            head = bytes(self._buffer[self._opening_bytes :][:HEADER_BYTES])
            size = self._opening_bytes + HEADER_BYTES + int.from_bytes(head[:3])
            if len(self._buffer) < size:
                break
            found.append((head[3], head[4], bytes(self._buffer[:size])))
            del self._buffer[:size]
            self._opening_bytes = 0
        return found


class EarlyAcks:
    """What h2spec is to read: the daemon's frames, with the ACKs of h2spec's SETTINGS moved forward."""

    def __init__(self) -> None:
        self.turn = trio.Lock()
        """Held from the making of words for h2spec until they are sent."""
        self._from_client = Frames(len(PREFACE))
        self._from_daemon = Frames()
        self._greeted = self._daemon_acks = self._ended = False
        self._owed = self._early = 0

    def sent(self, data: bytes) -> bytes:
        """Note what h2spec says. Returns what it is to read by now."""
        frames = self._from_client.receive(data)
        self._owed += sum(kind == SETTINGS and not flags & ACK for kind, flags, _ in frames)
        return self._acks()

    def received(self, data: bytes) -> bytes:
        """Take what the daemon said. Returns what h2spec is to read by now."""
        out = b""
        for kind, flags, raw in self._from_daemon.receive(data):
            if kind == SETTINGS and flags & ACK:
                self._daemon_acks = True
                if self._early:
                    self._early -= 1
                    continue
            out += raw
            if kind == SETTINGS and not flags & ACK:
                self._greeted = True
                out += self._acks()
        return out

    def end(self) -> None:
        """The daemon says no more: neither does the bridge."""
        self._ended = True

    def _acks(self) -> bytes:
        if not self._greeted or self._daemon_acks or self._ended:
            return b""
        owed, self._owed = self._owed, 0
        self._early += owed
        return SETTINGS_ACK * owed


async def _up(client: trio.SocketStream, daemon: trio.SocketStream, acks: EarlyAcks) -> None:
    async for data in client:
        async with acks.turn:
            if words := acks.sent(bytes(data)):
                await client.send_all(words)
        await daemon.send_all(data)
    await daemon.send_eof()


async def _down(client: trio.SocketStream, daemon: trio.SocketStream, acks: EarlyAcks) -> None:
    async for data in daemon:
        async with acks.turn:
            await client.send_all(acks.received(bytes(data)))
    async with acks.turn:
        acks.end()
        await client.send_eof()


async def bridge(address: tuple[str, int], client: trio.SocketStream) -> None:
    """Take one connection of h2spec's to the daemon; a reset of either leg ends both."""
    acks = EarlyAcks()
    try:
        async with client, await trio.open_tcp_stream(*address) as daemon, trio.open_nursery() as nursery:
            nursery.start_soon(_up, client, daemon, acks)
            nursery.start_soon(_down, client, daemon, acks)
    except* trio.BrokenResourceError:
        pass


async def serve_bridge(address: tuple[str, int], task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; starts with the port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, functools.partial(bridge, address), listeners)
        task_status.started(listeners[0].socket.getsockname()[1])
