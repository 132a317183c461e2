"""A satellite whose first frame is whatever the test says, and which holds its clients to it.

`python -P settings_satellite.py PORT [--settings 3=10,4=16384 | --settings @FILE] [--enforce now|ack] [--boot SECONDS]
[--first settings|bytes|late|nothing|http1|ping|hangup|hear-and-hangup] [--requests FILE]`. It echoes requests (with a
grpc-status where they are gRPC's) and answers /…/Upload with the SHA-256 of the messages. Each request that it reads is a
line of FILE, whatever becomes of its connection.

A server may enforce its SETTINGS once they are acknowledged (RFC 9113 §6.5.3): that is `ack`. `now` does it from its first
frame on, as some servers do. More calls than MAX_CONCURRENT_STREAMS are refused each; more DATA than a stream's window,
and an ACK that nothing asked for, end the connection.
"""

import argparse
import asyncio
import dataclasses
import hashlib
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4
FLOW_CONTROL_ERROR, PROTOCOL_ERROR, REFUSED_STREAM = 3, 1, 7
GRANT_BYTES = 16_384
"""What a stream is granted at once where the window is 0 at first."""
PREFACE_BYTES = 24
LATE_S = 1.0
HEAR_S = 0.1
UNLIMITED = 1 << 31
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def parse_settings(text: str) -> list[tuple[int, int]]:
    if text.startswith("@"):
        text = Path(text[1:]).read_text().strip()
    return [(int(k), int(v)) for k, v in (pair.split("=") for pair in text.split(",") if pair)]


@dataclasses.dataclass
class Stream:
    headers: dict[bytes, bytes]
    window: int
    body: bytearray = dataclasses.field(default_factory=bytearray)
    unsent: bytearray | None = None


class Peer(asyncio.Protocol):
    def __init__(self, settings: list[tuple[int, int]], enforce: str, first: str, requests: Path | None) -> None:
        self._said = settings
        self._requests = requests
        self._first = first
        self._values = dict(settings)
        self._acked = False
        self._enforcing = enforce == "now"
        self._streams: dict[int, Stream] = {}
        self._granted: dict[int, int] = {}
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        # h2 itself must not mind: the limits are this program's to enforce.
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: UNLIMITED,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: LARGEST_WINDOW,
            },
        )
        self._h2.initiate_connection()
        self._h2.data_to_send()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        payload = b"".join(k.to_bytes(2) + v.to_bytes(4) for k, v in self._said)
        settings = frame(4, 0, 0, payload) + frame(8, 0, 0, (1 << 20).to_bytes(4))
        self._h2.increment_flow_control_window(1 << 20)
        self._h2.data_to_send()
        loop = asyncio.get_running_loop()
        self._ready = False
        self._early = b""
        self._unread = b""
        self._past_preface = False
        match self._first:
            case "settings":
                self._begin(settings)
            case "bytes":
                self._trickle = loop.create_task(self._one_by_one(settings))
            case "late":
                loop.call_later(LATE_S, self._begin, settings)
            case "http1":
                transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                transport.close()
            case "ping":
                self._begin(frame(6, 0, 0, bytes(8)) + settings)
            case "hangup":
                transport.close()
            case "hear-and-hangup":
                self._ready = True
                loop.call_later(HEAR_S, transport.abort)

    async def _one_by_one(self, data: bytes) -> None:
        for at in range(len(data)):
            self._transport.write(data[at : at + 1])
            await asyncio.sleep(0.002)
        self._begin(b"")

    def _begin(self, data: bytes) -> None:
        self._transport.write(data)
        self._ready = True
        early, self._early = self._early, b""
        self.data_received(early)

    def data_received(self, data: bytes) -> None:
        if not self._ready:
            self._early += data
            return
        self._unread += data
        try:
            # Frame by frame: h2 is ahead of its events, and what an ACK changes counts for the next frame.
            while size := self._next_size():
                piece = self._unread[:size]
                self._unread = self._unread[size:]
                for event in self._h2.receive_data(piece):
                    self._event(event)
        except h2.exceptions.ProtocolError:
            self._end(PROTOCOL_ERROR)
            return
        if not self._transport.is_closing():
            self._send_grants()
            for stream_id in list(self._streams):
                self._push(stream_id)
            if self._first != "hear-and-hangup":
                self._transport.write(self._h2.data_to_send())

    def _next_size(self) -> int:
        """Bytes of the next whole frame, or of the preface; 0 if it is not there yet."""
        if not self._past_preface:
            if len(self._unread) < PREFACE_BYTES:
                return 0
            self._past_preface = True
            return PREFACE_BYTES
        size = 9 + int.from_bytes(self._unread[:3])
        return size if 9 <= size <= len(self._unread) else 0

    def _end(self, code: int) -> None:
        self._transport.write(frame(7, 0, 0, bytes(4) + code.to_bytes(4)))
        self._transport.close()

    def _limit(self, setting: int, otherwise: int) -> int:
        return self._values.get(setting, otherwise) if self._enforcing else otherwise

    def _event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.SettingsAcknowledged():
                if self._acked:
                    self._end(PROTOCOL_ERROR)
                self._acknowledged()
            case h2.events.RequestReceived(stream_id=stream_id, headers=headers):
                if self._requests is not None:
                    with self._requests.open("ab") as file:
                        file.write(dict(headers)[b":path"] + b"\n")
                if len(self._streams) >= self._limit(MAX_CONCURRENT_STREAMS, UNLIMITED):
                    self._h2.reset_stream(stream_id, REFUSED_STREAM)
                    return
                window = self._limit(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
                self._streams[stream_id] = Stream(dict(headers), window)
                if not self._values.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW):
                    self._grant(stream_id, GRANT_BYTES)
            case h2.events.DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size):
                if size:
                    self._h2.increment_flow_control_window(size)
                stream = self._streams.get(stream_id)
                if stream is None:
                    return
                if size and stream.window < size:
                    self._end(FLOW_CONTROL_ERROR)
                    return
                stream.window -= size
                stream.body += data
                if size:
                    self._grant(stream_id, size)
            case h2.events.StreamEnded(stream_id=stream_id) if stream_id in self._streams:
                self._answer(stream_id)
            case h2.events.StreamReset(stream_id=stream_id):
                self._streams.pop(stream_id, None)

    def _acknowledged(self) -> None:
        self._acked = True
        if not self._enforcing:
            self._enforcing = True
            for stream in self._streams.values():
                stream.window += self._values.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW) - DEFAULT_WINDOW
        self._h2.decoder.max_allowed_table_size = self._values.get(HEADER_TABLE_SIZE, 4096)

    def _grant(self, stream_id: int, size: int) -> None:
        self._granted[stream_id] = self._granted.get(stream_id, 0) + size

    def _send_grants(self) -> None:
        """Only now, behind all that has come: what came with it was sent without them."""
        granted, self._granted = self._granted, {}
        for stream_id, size in granted.items():
            if stream_id in self._streams:
                self._streams[stream_id].window += size
                self._transport.write(self._h2.data_to_send() + frame(8, 0, stream_id, size.to_bytes(4)))

    def _answer(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        grpc = stream.headers.get(b"content-type", b"").startswith(b"application/grpc")
        body = bytes(stream.body)
        if stream.headers[b":path"].endswith(b"/Upload"):
            digest, at = hashlib.sha256(), 0
            while at < len(body):
                size = int.from_bytes(body[at + 1 : at + 5])
                digest.update(body[at + 5 : at + 5 + size])
                at += 5 + size
            words = digest.hexdigest().encode()
            body = b"\0" + len(words).to_bytes(4) + words
        kind = b"application/grpc" if grpc else b"text/plain"
        self._h2.send_headers(stream_id, [(b":status", b"200"), (b"content-type", kind)])
        stream.unsent = bytearray(body)

    def _push(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        if stream.unsent is None:
            return
        while stream.unsent:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            self._h2.send_data(stream_id, bytes(stream.unsent[:room]))
            del stream.unsent[:room]
        if stream.headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self._h2.send_headers(stream_id, [(b"grpc-status", b"0")], end_stream=True)
        else:
            self._h2.end_stream(stream_id)
        del self._streams[stream_id]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--settings", default="")
    parser.add_argument("--enforce", choices=["now", "ack"], default="ack")
    parser.add_argument("--first", default="settings")
    parser.add_argument("--boot", type=float, default=0.0)
    parser.add_argument("--requests", type=Path)
    arguments = parser.parse_args()
    time.sleep(arguments.boot)
    settings = parse_settings(arguments.settings)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Peer(settings, arguments.enforce, arguments.first, arguments.requests), "127.0.0.1", arguments.port
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
