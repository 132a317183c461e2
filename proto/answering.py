"""Calls of one message on a connection that the daemon answers itself, for anybody: few, small, and whole. Sans-IO.

Answers wait for the client's windows, a bounded few bytes a stream. The connection itself is proto/grpc_server.py's.
"""

import dataclasses

from bentpipe.proto import limits
from bentpipe.proto.events import HeaderList
from bentpipe.proto.grpc_server import (
    CallBegan,
    CallComplete,
    CallData,
    CallEnded,
    CallEvent,
    ServerConnection,
    ServerLimits,
)
from bentpipe.proto.grpc_status import GrpcStatus

BOUNDS = ServerLimits(
    family="ANSWERED",
    streams=limits.ANSWERED_STREAMS,
    kept_bytes=limits.ANSWERED_BYTES,
    frames=limits.ANSWERED_BURST,
    frames_per_s=limits.ANSWERED_PER_S,
    resets=limits.ANSWERED_BURST,
    resets_per_s=limits.ANSWERED_PER_S,
)


@dataclasses.dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A complete request."""

    stream_id: int
    headers: HeaderList
    body: bytes


@dataclasses.dataclass(slots=True)
class _Request:
    headers: HeaderList
    body: bytearray = dataclasses.field(default_factory=bytearray)


class Answering(ServerConnection):
    """One such connection, our side of it."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)
        self._requests: dict[int, _Request] = {}

    @property
    def kept_bytes(self) -> int:
        """The memory that the connection takes here."""
        return super().kept_bytes + sum(len(request.body) for request in self._requests.values())

    def dispose(self) -> None:
        """Let go of everything; the object is then of no more use."""
        self._requests.clear()
        super().dispose()

    def receive_data(self, data: bytes, now_s: float) -> list[AnsweredCall | CallEnded]:
        """Read on. Raises GreetingError; `data_to_send` then has the GOAWAY."""
        return [out for event in self._receive(data, now_s) if (out := self._take(event)) is not None]

    def _take(self, event: CallEvent) -> AnsweredCall | CallEnded | None:
        match event:
            case CallBegan(stream_id, headers):
                self._requests[stream_id] = _Request(headers)
            case CallData(stream_id, data, window_bytes):
                self.acknowledge(stream_id, window_bytes)
                request = self._requests.get(stream_id)
                if request is not None:
                    request.body += data
                    if len(request.body) > limits.ANSWERED_MESSAGE_BYTES:
                        del self._requests[stream_id]
                        self.finish(stream_id, GrpcStatus.RESOURCE_EXHAUSTED, "over the limit ANSWERED_MESSAGE_BYTES")
            case CallComplete(stream_id):
                request = self._requests.pop(stream_id, None)
                if request is not None:
                    return AnsweredCall(stream_id, request.headers, bytes(request.body))
            case CallEnded(stream_id):
                self._requests.pop(stream_id, None)
                return event
        return None
