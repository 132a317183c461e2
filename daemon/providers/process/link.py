"""One connection to the keeper: requests and their answers by number, and events.

Owns the socket. It never starts a keeper and never connects again; `keeper` does.
"""

import errno
import socket
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import trio

from bentpipe.daemon.errors import ProviderError, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.keeper.protocol import (
    MESSAGE_BYTES,
    OLDEST_VERSION,
    VERSION,
    Field,
    Kind,
    Malformed,
    Message,
    Tag,
    decode,
    encode,
)
from bentpipe.daemon.private_socket import peer_of

AWAY = "the keeper of local satellites is away"
PASSING_ERRNOS = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EINTR, errno.ESHUTDOWN}
)
"""Failures that may not happen a moment later."""
CALL_DEADLINE_S = 10.0
"""The keeper answers within milliseconds. One that does not is given up, and asked again on a new connection."""


class KeeperLost(ProviderRetryable):
    """The connection ended before the answer: whether the request was carried out is not known."""


class KeeperLink:
    """A connection that has the keeper's seat, after `open_link`."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._sending = trio.Lock()
        self._number = 0
        self._answers: dict[int, tuple[trio.Event, list[Message]]] = {}
        self._is_open = True
        self.hello = Message(Kind.DONE, 0, ())

    async def call(
        self, kind: Kind, fields: Iterable[Field] = (), deadline_s: float | None = CALL_DEADLINE_S
    ) -> Message:
        """Ask for something. Returns the answer, DONE.

        Raises ProviderPermanent or ProviderRetryable with the keeper's words if it refuses; KeeperLost. The request may
        still be carried out if this is cancelled.
        """
        self._number += 1
        number = self._number
        try:
            packet = encode(kind, number, fields)
        except ValueError as error:
            raise ProviderPermanent(f"cannot start: {error}") from error
        event: trio.Event = trio.Event()
        answer: list[Message] = []
        self._answers[number] = event, answer
        try:
            with trio.move_on_after(float("inf") if deadline_s is None else deadline_s) as scope:
                await self._send(packet)
                await event.wait()
        finally:
            del self._answers[number]
        if scope.cancelled_caught:
            self.close()
            raise KeeperLost(f"the keeper of local satellites has not answered for {deadline_s:g} s")
        if not answer:
            raise KeeperLost(AWAY)
        if answer[0].kind != Kind.DONE:
            raise refusal_of(answer[0])
        return answer[0]

    async def run_reader(self, told: Callable[[Message], None]) -> None:
        """Receive until the keeper or `close` ends the connection. `told` is called with each event."""
        try:
            while self._is_open and (message := await self._receive()) is not None:
                if message.number == 0:
                    told(message)
                elif message.number in self._answers:
                    event, answer = self._answers[message.number]
                    answer.append(message)
                    event.set()
        finally:
            self.close()

    def close(self) -> None:
        """End the connection, and all calls with KeeperLost. Does nothing the second time."""
        if self._is_open:
            self._is_open = False
            self._sock.close()
            for event, _ in self._answers.values():
                event.set()

    async def _send(self, packet: bytes) -> None:
        try:
            async with self._sending:
                await self._sock.send(packet)
        except OSError as error:
            raise KeeperLost(AWAY) from error

    async def _receive(self) -> Message | None:
        """The next message; None at the end."""
        while True:
            try:
                packet = await self._sock.recv(MESSAGE_BYTES + 1)
            except ConnectionResetError:  # it died with requests unread: what it has sent before comes after this
                continue
            except (OSError, trio.ClosedResourceError):
                return None
            try:
                return decode(packet) if packet else None
            except Malformed:
                return None


def refusal_of(answer: Message) -> ProviderError:
    """What the keeper has refused, as an exception."""
    kind = ProviderRetryable if answer.value(Tag.ERRNO) in PASSING_ERRNOS else ProviderPermanent
    return kind(answer.text(Tag.WORDS))


async def connect(path: Path) -> trio.socket.SocketType:
    """Connect to a keeper that runs as this user or root. Raises OSError."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        await sock.connect(str(path))
        peer = peer_of(sock)
        if not peer.is_trusted:
            raise PermissionError(errno.EPERM, f"user {peer.uid} listens at {path}, who is not a keeper's user")
    except BaseException:
        sock.close()
        raise
    return sock


def hello_fields() -> list[Field]:
    """What the daemon says of itself."""
    return [(Tag.OLDEST, OLDEST_VERSION), (Tag.NEWEST, VERSION), (Tag.PROGRAM, f"bentpipe {version('bentpipe')}")]
