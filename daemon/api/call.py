"""One gRPC call as its method sees it: who calls, messages in, messages out, and how it ends."""

import collections
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from bentpipe.daemon.accounts.contract import Access
from bentpipe.daemon.errors import BentpipeError, Draining, InvalidRequest
from bentpipe.proto import limits
from bentpipe.proto.events import HeaderList
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.grpc_timeout import tell_within_s, timeout_s
from bentpipe.proto.messages import MessageReader, encode_message

UNSENT_BYTES = 64 << 10
"""An answer that waits for the client's window is no longer than this and one message: then its method waits too."""
STALLED_S = 60.0
"""If a client opens no window for this long, it has forgotten its call."""

RETRIED = frozenset(
    {
        GrpcStatus.DEADLINE_EXCEEDED,
        GrpcStatus.INTERNAL,
        GrpcStatus.UNAVAILABLE,
        GrpcStatus.RESOURCE_EXHAUSTED,
        GrpcStatus.FAILED_PRECONDITION,
        GrpcStatus.DATA_LOSS,
    }
)
"""Statuses after which the Earthly CLI v0.8.15 repeats a Reserve, five times in 31 s, before it shows their words."""

Q = TypeVar("Q", bound=Message)


class Connection(Protocol):
    """What a call needs of its connection."""

    def send(self, stream_id: int, message: bytes) -> None:
        """Send a length-prefixed message, as far as the client's windows allow."""
        ...

    def acknowledge(self, stream_id: int, window_bytes: int) -> None:
        """Let the client send so much more."""
        ...

    async def wait_sent(self, stream_id: int, most_bytes: int) -> None:
        """Wait until at most so much of the call's answer is unsent."""
        ...


class Stalled(Exception):
    """The client takes no answer. Its stream is reset."""


@dataclasses.dataclass(slots=True)
class _Arrived:
    """A message of the request, and what its bytes took of the client's window."""

    message: bytes
    window_bytes: int


class Call:
    """One call, from its headers to its status."""

    def __init__(
        self,
        connection: Connection,
        stream_id: int,
        headers: HeaderList,
        access: Access,
        now: float,
        *,
        source: str | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.access = access
        """Who calls, and what it may do."""
        self.source = source
        """The IP address from which the call comes; None if it comes over a Unix socket."""
        fields = dict(headers)
        self.path = fields.get(b":path", b"").decode("latin-1")
        self.authority = fields.get(b":authority", b"").decode("latin-1")
        """HOST:PORT as the client dialled it; empty if it does not say."""
        self.began = now
        self.deadline = now + timeout_s(headers)
        """When the client stops waiting, on Trio's clock; infinity if it does not."""
        self.tell_by = now + tell_within_s(headers)
        """The last moment at which an answer still reaches the client in time."""
        self.scope = trio.CancelScope(deadline=self.deadline)
        """The scope of all work for the call."""
        self.ended_by_client = False
        self._connection = connection
        self._reader = MessageReader(limits.API_MESSAGE_BYTES, "API_MESSAGE_BYTES")
        self._inbox: collections.deque[_Arrived] = collections.deque()
        self._complete = False
        self._arrived = trio.Event()

    # -- the connection's side ---------------------------------------------------------------------------------------

    @property
    def kept_bytes(self) -> int:
        """What is kept of the request."""
        return self._reader.kept_bytes + sum(len(each.message) for each in self._inbox)

    def receive_data(self, data: bytes, window_bytes: int) -> None:
        """A part of the request's body has come. Raises MessageError.

        The client gets its window back at once for an incomplete message, which API_MESSAGE_BYTES bounds, and for
        complete ones when the method takes them.
        """
        messages = self._reader.receive_data(data)
        for message in messages[:-1]:
            self._inbox.append(_Arrived(message, 0))
        if messages:
            self._inbox.append(_Arrived(messages[-1], window_bytes))
            self._tell()
        else:
            self._connection.acknowledge(self.stream_id, window_bytes)

    def complete(self) -> None:
        """The request is complete. Raises MessageError if it was cut off in a message."""
        self._reader.end()
        self._complete = True
        self._tell()

    def _tell(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()

    # -- the method's side -------------------------------------------------------------------------------------------

    async def receive(self) -> bytes | None:
        """Take the next message of the request; None at its end."""
        while not self._inbox and not self._complete:
            await self._arrived.wait()
        if not self._inbox:
            return None
        arrived = self._inbox.popleft()
        self._connection.acknowledge(self.stream_id, arrived.window_bytes)
        return arrived.message

    async def only(self, kind: type[Q]) -> Q:
        """Take the one message of a request that must have one. Raises InvalidRequest."""
        data = await self.receive()
        if data is None or await self.receive() is not None:
            raise InvalidRequest("the request must be exactly one message")
        return decoded(kind, data)

    async def send(self, message: Message) -> None:
        """Send a message; waits while too much is unsent. Raises Stalled."""
        self._connection.send(self.stream_id, encode_message(message.SerializeToString()))
        with trio.move_on_after(STALLED_S) as patience:
            await self._connection.wait_sent(self.stream_id, UNSENT_BYTES)
        if patience.cancelled_caught:
            raise Stalled


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A method of a service. `serve` returns for OK, and raises BentpipeError for another status."""

    serve: Callable[[Call], Awaitable[None]]
    ends_at_once: bool = False
    """Whether a client must hear the reason at once: then no status is used that the Earthly CLI retries."""

    def status_of(self, error: BentpipeError) -> GrpcStatus:
        """The status that the client gets for an error; UNAVAILABLE stays where the daemon drains, to be retried."""
        return error.status if isinstance(error, Draining) else self.told(error.status)

    def told(self, status: GrpcStatus) -> GrpcStatus:
        """The status that the client gets for any reason but a drain."""
        return GrpcStatus.ABORTED if self.ends_at_once and status in RETRIED else status


def decoded(kind: type[Q], data: bytes) -> Q:
    """Read a message. Raises InvalidRequest."""
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise InvalidRequest(f"the message is not a {kind.DESCRIPTOR.name}") from exc


def waiting(kind: type[Q], answer: Callable[[Call, Q], Awaitable[Message]]) -> Method:
    """A method with one message either way that waits for others, and whose client hears a reason at once."""

    async def serve(call: Call) -> None:
        await call.send(await answer(call, await call.only(kind)))

    return Method(serve, ends_at_once=True)


def unary(kind: type[Q], answer: Callable[[Call, Q], Message]) -> Method:
    """A method with one message either way that needs no wait."""

    async def serve(call: Call) -> None:
        await call.send(answer(call, await call.only(kind)))

    return Method(serve)
