"""One connection of a daemon: packets in and out, never more than a few kept.

It reads the next request only when all answers to the earlier ones have been taken by the kernel. So a daemon that sends and
does not read fills its own socket buffers and nothing here.
"""

import collections
import socket
from collections.abc import Callable, Iterable

from bentpipe.daemon.keeper.loop import READ, WRITE, Loop
from bentpipe.daemon.keeper.protocol import (
    MESSAGE_BYTES,
    WORDS_BYTES,
    Field,
    Kind,
    Malformed,
    Message,
    Tag,
    decode,
    encode,
)
from bentpipe.daemon.private_socket import peer_of

TURN_MESSAGES = 64
"""The most requests that are read from one connection before others have their turn."""


class DaemonConnection:
    """A connected peer. Takes the socket. `serve` is called with each message, `gone` once after the last one."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        serve: Callable[["DaemonConnection", Message], None],
        gone: Callable[["DaemonConnection"], None],
    ) -> None:
        self._loop, self._sock, self._serve, self._gone = loop, sock, serve, gone
        self._waiting: collections.deque[bytes] = collections.deque()
        self.peer = peer_of(sock)
        self.is_open = True
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._ready)

    def send(self, kind: Kind, number: int, fields: Iterable[Field] = ()) -> None:
        """Send a message, or keep it until the peer reads. Does nothing once the connection is closed."""
        if not self.is_open:
            return
        self._waiting.append(encode(kind, number, fields))
        self._flush()

    def drain(self) -> None:
        """Read all that the peer has sent so far: it may be dead, and its last requests count."""
        while self.is_open and not self._waiting and self._read_some():
            pass

    def close(self) -> None:
        """Close it; does nothing the second time."""
        if self.is_open:
            self.is_open = False
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._waiting.clear()
            self._gone(self)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self.is_open and not self._waiting:
            self._read_some()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._sock.send(self._waiting[0])
            except BlockingIOError:
                self._loop.watch(self._sock.fileno(), self._ready, WRITE)
                return
            except OSError:  # the peer is dead. What it has sent before may still be read
                self._waiting.clear()
                break
            self._waiting.popleft()
        self._loop.watch(self._sock.fileno(), self._ready, READ)

    def _read_some(self) -> bool:
        """Serve a few requests. Returns whether there may be more."""
        for _ in range(TURN_MESSAGES):
            try:
                packet = self._sock.recv(MESSAGE_BYTES + 1)
            except BlockingIOError:
                return False
            except ConnectionResetError:  # it died with answers unread: its requests come after this
                continue
            except OSError:
                packet = b""
            if not packet:
                self.close()
                return False
            try:
                self._serve(self, decode(packet))
            except Malformed as error:
                self.send(Kind.REFUSED, 0, [(Tag.WORDS, str(error)[:WORDS_BYTES])])
                self.close()
            except Exception:
                self.close()
                raise
            if not self.is_open or self._waiting:
                return False
        return True
