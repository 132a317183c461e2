"""A gRPC proxy as a user would write it in Python: `python_obvious.py PLAIN_PORT TLS_PORT PEM UPSTREAM_PORT SATELLITE`.

asyncio's streams on uvloop, the h2 library on both legs: every request is decoded, routed by its metadata and encoded
again, and windows are kept on both sides. One connection to the satellite for each client.
"""

import asyncio
import ssl
import sys

import uvloop
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import StreamClosedError

READ_BYTES = 65536
Headers = list[tuple[bytes, bytes]]


class Side:
    """One side: h2's connection, asyncio's streams, and the bytes that wait for its windows."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client_side: bool) -> None:
        self.reader, self.writer = reader, writer
        config = H2Configuration(client_side=client_side, header_encoding=None, validate_inbound_headers=False)
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        self.streams: dict[int, int] = {}
        """This side's stream for each stream of the other side."""
        self.waiting: dict[int, bytearray] = {}
        self.ending: set[int] = set()

    def flush(self) -> None:
        """Give h2's output to the socket."""
        self.writer.write(self.h2.data_to_send())

    def pump(self, stream_id: int) -> int:
        """Send what the windows allow of a stream. Returns how many bytes that was."""
        waiting = self.waiting.get(stream_id)
        if waiting is None:
            return 0
        sent = 0
        while waiting:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(waiting))
            if room <= 0:
                return sent
            self.h2.send_data(stream_id, bytes(waiting[:room]))
            del waiting[:room]
            sent += room
        if stream_id in self.ending:
            self.ending.discard(stream_id)
            del self.waiting[stream_id]
            self.h2.end_stream(stream_id)
        return sent


class Proxied:
    """One client and, once it has asked for one, its satellite."""

    def __init__(self, client: Side, ports: dict[bytes, int]) -> None:
        self._client = client
        self._ports = ports
        self._satellite: Side | None = None
        self._back: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the client until it leaves."""
        self._client.flush()
        try:
            while data := await self._client.reader.read(READ_BYTES):
                for event in self._client.h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        await self._route(event)
                    elif self._satellite is not None:
                        self._pass_on(event, self._client, self._satellite)
                await self._flush()
        finally:
            if self._satellite is not None:
                self._satellite.writer.close()
            self._client.writer.close()

    async def _run_back(self, satellite: Side) -> None:
        while data := await satellite.reader.read(READ_BYTES):
            for event in satellite.h2.receive_data(data):
                self._pass_on(event, satellite, self._client)
            await self._flush()
        self._client.writer.close()

    async def _route(self, event: RequestReceived) -> None:
        headers: Headers = list(event.headers or [])
        stream_id = event.stream_id or 0
        port = self._ports.get(dict(headers).get(b"satellite_name", b""))
        if port is None:
            self._client.h2.send_headers(stream_id, [(b":status", b"404")], end_stream=True)
            return
        if self._satellite is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            self._satellite = Side(reader, writer, client_side=True)
            self._back = asyncio.create_task(self._run_back(self._satellite))
        satellite = self._satellite
        theirs = satellite.h2.get_next_available_stream_id()
        satellite.streams[stream_id], self._client.streams[theirs] = theirs, stream_id
        satellite.waiting[theirs], self._client.waiting[stream_id] = bytearray(), bytearray()
        satellite.h2.send_headers(theirs, headers)

    def _pass_on(self, event: Event, source: Side, target: Side) -> None:
        stream_id = target.streams.get(getattr(event, "stream_id", None) or 0)
        try:
            if isinstance(event, WindowUpdated):
                for waiting in [event.stream_id] if event.stream_id else list(source.waiting):
                    self._pump(source, waiting, target)
            elif isinstance(event, ConnectionTerminated):
                target.writer.close()
            elif stream_id is None:
                return
            elif isinstance(event, DataReceived):
                target.waiting.setdefault(stream_id, bytearray()).extend(event.data or b"")
                self._pump(target, stream_id, source)
            elif isinstance(event, ResponseReceived):
                target.h2.send_headers(stream_id, list(event.headers or []))
            elif isinstance(event, TrailersReceived):
                target.waiting.pop(stream_id, None)
                target.h2.send_headers(stream_id, list(event.headers or []), end_stream=True)
            elif isinstance(event, StreamEnded) and stream_id in target.waiting:
                target.ending.add(stream_id)
                target.pump(stream_id)
            elif isinstance(event, StreamReset):
                target.h2.reset_stream(stream_id, int(event.error_code or 0))
        except StreamClosedError:
            target.waiting.pop(stream_id or 0, None)

    def _pump(self, target: Side, stream_id: int, source: Side) -> None:
        """Send data on, and give the sender the same amount of window back."""
        sent = target.pump(stream_id)
        if sent:
            source.h2.acknowledge_received_data(sent, source.streams[stream_id])

    async def _flush(self) -> None:
        for side in (self._client, self._satellite):
            if side is not None:
                side.flush()
                await side.writer.drain()


async def main() -> None:
    """Listen until killed."""
    plain_port, tls_port, identity, upstream_port, satellite = sys.argv[1:]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(identity)
    tls.set_alpn_protocols(["h2"])
    ports = {satellite.encode(): int(upstream_port)}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Proxied(Side(reader, writer, client_side=False), ports).run()
        except ConnectionError:
            return

    for port, context in ((plain_port, None), (tls_port, tls)):
        await asyncio.start_server(serve, "127.0.0.1", int(port), ssl=context, backlog=16384)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
