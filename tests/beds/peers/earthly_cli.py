"""The Earthly CLI v0.8.15 as a recorder has seen it: its calls, byte for byte where it matters. All of it blocks.

The CLI cannot be built here. So `tests/e2e/earthly_calls.json` has its calls of each command as they were recorded: on which
connection, in which order, with which headers in which order. Placeholders stand for what differs from run to run.
"""

import dataclasses
import json
import socket
import ssl
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from google.protobuf.json_format import Parse
from google.protobuf.message import Message

from bentpipe.proto.messages import MessageReader, encode_message

TIMEOUT_S = 60.0
Address = tuple[str, int]
Json = Mapping[str, object]

RECORDED: Mapping[str, list[Json]] = json.loads((Path(__file__).parents[2] / "e2e" / "earthly_calls.json").read_text())
"""The calls of each command, in their order."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a gRPC call came to."""

    messages: list[bytes]
    status: int
    words: str


def connect(address: Address, ca_pem: bytes, alpn: Sequence[str]) -> ssl.SSLSocket:
    """TLS as Go's standard library does it, with the CA of SSL_CERT_FILE."""
    context = ssl.create_default_context(cadata=ca_pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    raw = socket.create_connection(address, TIMEOUT_S)
    return context.wrap_socket(raw, server_hostname="localhost")


def _is_settings(event: h2.events.Event) -> bool:
    return isinstance(event, h2.events.RemoteSettingsChanged)


class GrpcWire:
    """One of the CLI's two gRPC connections: grpc-go 1.62.1 waits for the server's SETTINGS before it asks anything."""

    def __init__(self, address: Address, ca_pem: bytes) -> None:
        self._sock = connect(address, ca_pem, ["h2"])
        assert self._sock.selected_alpn_protocol() == "h2"
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", normalize_outbound_headers=False)
        self._h2 = h2.connection.H2Connection(config)
        self._h2.local_settings = h2.settings.Settings(client=True, initial_values={})
        self._h2.initiate_connection()
        self._next = 1
        self._pinged = 0
        self._unread: list[h2.events.Event] = []
        self._send()
        self._until(_is_settings)

    def close(self) -> None:
        self._sock.close()

    def ping(self) -> None:
        """Keepalive and the estimate of bandwidth: the answer must come."""
        self._pinged += 1
        data = self._pinged.to_bytes(8)
        self._h2.ping(data)
        self._send()

        def is_answer(event: h2.events.Event) -> bool:
            return isinstance(event, h2.events.PingAckReceived) and event.ping_data == data

        self._until(is_answer)

    def start(
        self, path: str, headers: Sequence[tuple[str, str]], bodies: Sequence[Message], *, end: bool = True
    ) -> int:
        """Begin a call. Returns its stream."""
        stream, self._next = self._next, self._next + 2
        self._h2.send_headers(stream, headers)
        for number, body in enumerate(bodies):
            last = end and number == len(bodies) - 1
            data = encode_message(body.SerializeToString())
            self._send()
            try:
                while self._h2.local_flow_control_window(stream) < len(data):
                    self._unread += self._read()
                self._h2.send_data(stream, data, end_stream=last)
            except h2.exceptions.StreamClosedError:
                break  # answered before it was complete
        self._send()
        assert dict(headers)[":path"] == path
        return stream

    def finish(self, stream: int) -> Answer:
        """Read a call to its end."""
        reader, messages = MessageReader(1 << 20, "test"), list[bytes]()
        trailers: dict[str, str] = {}
        others: list[h2.events.Event] = []
        ended = False
        while not ended:
            events, self._unread = self._unread or self._read(), []
            for event in events:
                if getattr(event, "stream_id", None) != stream:
                    others.append(event)
                elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    trailers.update({str(name): str(value) for name, value in event.headers})
                elif isinstance(event, h2.events.DataReceived):
                    messages += reader.receive_data(event.data)
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
                    self._send()
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    ended = True
        self._unread = others
        assert trailers[":status"] == "200"
        assert trailers["content-type"].startswith("application/grpc")
        return Answer(messages, int(trailers["grpc-status"]), trailers.get("grpc-message", ""))

    def _send(self) -> None:
        self._sock.sendall(self._h2.data_to_send())

    def _read(self) -> list[h2.events.Event]:
        data = self._sock.recv(65_536)
        assert data, "the server has ended the connection"
        events = self._h2.receive_data(data)
        self._send()
        return events

    def _until(self, condition: Callable[[h2.events.Event], bool]) -> None:
        while not any(condition(event) for event in self._read()):
            pass


class EarthlyCli:
    """One run of a command: two gRPC connections, and a new connection for each HTTP call."""

    def __init__(self, address: Address, ca_pem: bytes, token: str) -> None:
        self.address, self._ca_pem, self._token = address, ca_pem, token
        self.jwt = ""
        self.api = GrpcWire(address, ca_pem)
        self.logs = GrpcWire(address, ca_pem)
        """For the log stream alone: without one it says its preface and SETTINGS, and nothing more, ever."""

    def close(self) -> None:
        """On Ctrl-C and at its end the CLI just closes."""
        self.api.close()
        self.logs.close()

    def __enter__(self) -> "EarthlyCli":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _filled(self, headers: object) -> list[tuple[str, str]]:
        assert isinstance(headers, list)
        api = f"localhost:{self.address[1]}"
        values = {"API": api, "UUID": str(uuid.uuid4())}
        found = []
        for name, value in headers:
            filled = values.get(value, value).replace("JWT", self.jwt).replace("TOKEN", self._token)
            found.append((name, filled))
        return found

    def http(self, call: Json) -> tuple[int, Json]:
        """Make a recorded HTTP call. Returns the status and the JSON of the answer."""
        head = str(call["http"]) + "\r\n" + "".join(f"{n}: {v}\r\n" for n, v in self._filled(call["headers"])) + "\r\n"
        with connect(self.address, self._ca_pem, ()) as sock:
            assert sock.selected_alpn_protocol() is None
            sock.sendall(head.encode())
            received = b""
            while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < self._length(received):
                data = sock.recv(65_536)
                assert data, received
                received += data
        top, _, body = received.partition(b"\r\n\r\n")
        status = int(top.split(b" ")[1])
        answer: Json = json.loads(body)
        if "/account/login" in str(call["http"]) and status == 200:
            self.jwt = str(answer["token"])
        return status, answer

    @staticmethod
    def _length(received: bytes) -> int:
        for line in received.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line.partition(b":")[2])
        raise AssertionError("an answer without its length")

    def grpc(self, call: Json, kind: type[Message], more: Sequence[Message] = ()) -> Answer:
        """Make a recorded gRPC call."""
        wire, stream = self.begin(call, kind, more)
        return wire.finish(stream)

    def begin(self, call: Json, kind: type[Message], more: Sequence[Message] = ()) -> tuple[GrpcWire, int]:
        """Begin a recorded gRPC call. Its answer is to be read from the wire's stream."""
        path = str(call["grpc"])
        wire = self.logs if "LogStream" in path else self.api
        bodies = [Parse(json.dumps(call["body"]), kind())] if "body" in call else []
        return wire, wire.start(path, self._filled(call["headers"]), [*bodies, *more])
