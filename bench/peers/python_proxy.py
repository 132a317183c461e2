"""The leanest Python proxy that does bentpipe's job, on uvloop: `python_proxy.py PLAIN_PORT TLS_PORT PEM UPSTREAM_PORT _`.

It reads the greeting with bentpipe's own parser, then two asyncio protocols hand bytes to each other's transports, with
flow control. A proxy that goes on speaking HTTP/2 does more work for each byte. So this is the hardest one to beat.
"""

import asyncio
import ssl
import sys
from typing import cast

import uvloop

from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.request import parse_request


class Leg(asyncio.Protocol):
    """One side of a connection; `other` is where its bytes go."""

    def __init__(self, other: "Leg | None" = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Stop reading the other side while this one is full."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side ends too."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class ClientLeg(Leg):
    """The client's side: greets until it knows the satellite, then filters until it has removed the ACK of our SETTINGS."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__()
        self._upstream_port = upstream_port
        self._greeting = Greeting()
        self._filter: AckFilter | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Greet, or pass on."""
        if self.other is None:
            self._greet(data)
            return
        if self._filter is not None:
            data = self._filter.receive_data(data)
            self._filter = None if self._filter.done else self._filter
        super().data_received(data)

    def _greet(self, data: bytes) -> None:
        if self.transport is None:
            return
        for event in self._greeting.receive_data(data, self._loop.time()):
            if isinstance(event, RequestHeaders) and parse_request(event.headers).satellite:
                self.transport.pause_reading()
                self._dialling = self._loop.create_task(self._dial())
        self._greeting.end_of_first_flight()
        self.transport.write(self._greeting.data_to_send())

    async def _dial(self) -> None:
        if self.transport is None:
            return
        # The other side is set before the first byte, since the upstream sends its SETTINGS at once.
        _, target = await self._loop.create_connection(lambda: Leg(self), "127.0.0.1", self._upstream_port)
        self.other = target
        if self._greeting.awaiting_ack:
            self._filter = self._greeting.ack_filter()
        if target.transport is not None:
            target.transport.write(self._greeting.transcript_bytes)
        self.transport.resume_reading()


async def main() -> None:
    """Listen until killed."""
    plain_port, tls_port, identity, upstream_port, _ = sys.argv[1:]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(identity)
    tls.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    backlog = 16384
    await loop.create_server(
        lambda: ClientLeg(int(upstream_port)), "127.0.0.1", int(tls_port), ssl=tls, backlog=backlog
    )
    await loop.create_server(lambda: ClientLeg(int(upstream_port)), "127.0.0.1", int(plain_port), backlog=backlog)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
