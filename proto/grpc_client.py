"""The client's side of one gRPC call with one request message and any number of answers, on the h2 library. Sans-IO.

For our own command line, which asks a daemon. Source: gRPC over HTTP2 (doc/PROTOCOL-HTTP2.md).
"""

import urllib.parse
from collections.abc import Sequence

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from bentpipe.proto import limits
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.frame_guard import FrameGuard
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import MessageError, MessageReader, encode_message

Metadata = Sequence[tuple[str, str]]


class ClientError(Exception):
    """The other side does not speak gRPC, or breaks it."""


class ClientCall:
    """One call on a connection of its own."""

    def __init__(self, path: str, message: bytes, *, authority: str, scheme: str, metadata: Metadata = ()) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._guard = FrameGuard(preface=False)
        self._unsent = encode_message(message)
        self._reader = MessageReader(limits.API_MESSAGE_BYTES, "API_MESSAGE_BYTES")
        self._trailers: dict[str, str] = {}
        self.status: GrpcStatus | None = None
        """None until the call has ended."""
        self.words = ""
        """The status message."""
        self._h2.initiate_connection()
        headers = [(":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority)]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), *metadata]
        self._h2.send_headers(1, headers)
        self._push()

    def data_to_send(self) -> bytes:
        """The bytes to send now."""
        return self._h2.data_to_send()

    def receive_data(self, data: bytes) -> list[bytes]:
        """Process received bytes; b"" is the end of the stream. Returns complete messages. Raises ClientError."""
        if not data and self.status is None:
            raise ClientError("the connection ended before the call")
        messages: list[bytes] = []
        try:
            self._guard.receive_data(data)
            for event in self._h2.receive_data(data):
                messages += self._take(event)
            self._push()
        except (h2.exceptions.ProtocolError, GreetingError, MessageError) as exc:
            raise ClientError(str(exc)) from exc
        return messages

    def _push(self) -> None:
        """Send of the request what the server's windows allow."""
        while self._unsent and self.status is None:
            room = min(self._h2.local_flow_control_window(1), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            part, self._unsent = self._unsent[:room], self._unsent[room:]
            self._h2.send_data(1, part, end_stream=not self._unsent)

    def _take(self, event: h2.events.Event) -> list[bytes]:
        match event:
            case h2.events.ResponseReceived(headers=headers) | h2.events.TrailersReceived(headers=headers):
                self._trailers.update((str(name), str(value)) for name, value in headers or ())
            case h2.events.DataReceived(data=data, flow_controlled_length=size):
                self._h2.acknowledge_received_data(size or 0, 1)
                return self._reader.receive_data(data or b"")
            case h2.events.StreamEnded():
                self._end()
            case h2.events.StreamReset(error_code=code) if self.status is None:
                raise ClientError(f"the server reset the call: error {code}")
            case h2.events.ConnectionTerminated(additional_data=words, error_code=code) if self.status is None:
                raise ClientError((words or b"").decode(errors="replace") or f"the server said GOAWAY: error {code}")
            case _:
                pass
        return []

    def _end(self) -> None:
        status = self._trailers.get("grpc-status", "")
        if not status.isdecimal() or int(status) not in set(GrpcStatus):
            raise ClientError(f"this is not a gRPC answer: HTTP status {self._trailers.get(':status')}")
        self.status = GrpcStatus(int(status))
        self.words = urllib.parse.unquote(self._trailers.get("grpc-message", ""))
