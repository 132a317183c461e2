"""One socket, with or without TLS, as the edge uses it before the hand-off.

Owns: a non-blocking socket and its TLS connection, until `detach` gives both away, once. A read is split into a wait, which
may be cancelled, and a read that cannot block, so a cancelled reader never loses a byte. It never buffers.
"""

import contextlib
import select
import socket

import trio

from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.native.engine import Leg
from bentpipe.native.tls import TlsConnection, TlsError, TlsFlood, TlsTruncated, WantRead, WantWrite

RECEIVE_BYTES = 16 * 1024
"""Bytes of one read: the size of a TLS record and of HTTP/2's default frame, so that neither is split without need."""

LINGER_S = 1.0
"""For how long unread input is drained before the close. A close with unread input sends RST, which destroys what the peer
has not read yet (RFC 9112 §9.6; grpc-go waits as long for the same reason)."""

LINGER_BYTES = 1 << 20
"""How much is drained meanwhile, at most."""

HANGUP_LOOK_S = 0.25
"""Pause between two looks whether a client whose transcript is full is still connected. There are few such clients:
limits.held_bytes bounds them, at 256 KiB each."""

READS_A_TURN = 4
"""Reads of one peer before other peers get a turn: 64 KiB, or fewer bytes if they come in small TLS records."""

GOODBYE_POLL_S = 0.01
"""Pause between two looks at what the kernel's TLS still queues; the kernel has no event for it."""

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 6
USER_TIMEOUT_MS = 120_000
"""A dead peer is found after about two minutes: a silent one by keepalive, one that does not acknowledge by TCP_USER_TIMEOUT
(tcp(7))."""


class TransportError(Exception):
    """The connection broke; `str()` has the kernel's or OpenSSL's words."""


class OverLimit(TransportError):
    """The peer sent too much that carries no data; `limit` names the limit. It can be written to, and not read any more."""

    def __init__(self, words: str, limit: str) -> None:
        super().__init__(words)
        self.limit = limit


class PeerLeft(TransportError):
    """The peer left by RST, or ended TLS without close_notify (RFC 8446 §6.1). Health checks do both."""


def transport_error(error: TlsError | OSError) -> TransportError:
    """What the failure of a read or a write means."""
    if isinstance(error, TlsFlood):
        return OverLimit(str(error), error.limit)
    kind = PeerLeft if isinstance(error, TlsTruncated | ConnectionError) else TransportError
    return kind(str(error))


def tune_socket(sock: socket.socket) -> None:
    """Turn off Nagle's delay, and turn on what finds dead peers. A socket that is not TCP is only made non-blocking.

    What a listening socket accepts has the same, except that it blocks: the kernel makes it a copy (sk_clone_lock).
    """
    sock.setblocking(False)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


class Transport:
    """A connected socket, which it takes over. All methods raise TransportError when the connection is broken."""

    def __init__(self, sock: socket.socket, *, tuned: bool = False) -> None:
        """`tuned`: the socket is what `tune_socket` makes it already."""
        if not tuned:
            tune_socket(sock)
        self._sock = sock
        self._tls: TlsConnection | None = None
        self._open = True
        self._said = False
        """Whether we have sent anything that an RST could still destroy."""
        self._dry = True
        """Whether OpenSSL has nothing left that a read could return; it reads ahead of the present record."""
        self._reads = 0
        self._resting = False
        self.received_bytes = 0
        """What was read of the peer, and what was sent to it; TLS itself is not counted."""
        self.sent_bytes = 0

    @property
    def fileno(self) -> int:
        """The socket's descriptor, still owned by this object."""
        return self._sock.fileno()

    @property
    def tls(self) -> TlsConnection | None:
        """The TLS connection, once `start_tls` was called."""
        return self._tls

    @classmethod
    def tuned(cls, sock: socket.socket, tls: TlsConnection | None, sent_bytes: int) -> "Transport":
        """The transport of a socket that native threads have tuned, and have sent so much to. Takes both."""
        sock.setblocking(False)
        made = cls(sock, tuned=True)
        made._tls, made._said, made._dry = tls, tls is not None or sent_bytes > 0, False
        made.sent_bytes = sent_bytes
        return made

    async def start_tls(self, tls: TlsConnection) -> None:
        """Take `tls` (made for this socket) and complete its handshake."""
        self._tls = tls
        self._said = True
        while True:
            await take_turn()
            try:
                tls.do_handshake()
                self._dry = False  # the first request may have come with the handshake's last bytes
                return
            except WantRead:
                await trio.lowlevel.wait_readable(self._sock)
            except WantWrite:
                await trio.lowlevel.wait_writable(self._sock)
            except (TlsError, OSError) as exc:
                raise transport_error(exc) from exc

    async def peek(self, max_bytes: int) -> bytes:
        """Wait for bytes of the socket's own and return them without consuming them; b"" if the peer closed first."""
        while True:
            try:
                return self._sock.recv(max_bytes, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as exc:
                raise transport_error(exc) from exc

    def receive_nowait(self, max_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Read what has come: b"" at the end of the stream, None if nothing has come or the peer has had its turn.

        After None await `wait_readable`.
        """
        self._dry = False
        if self._reads == READS_A_TURN:
            self._reads, self._resting = 0, True
            return None
        try:
            data = self._sock.recv(max_bytes) if self._tls is None else self._tls.read(max_bytes)
            self._reads += 1
            self.received_bytes += len(data)
            return data
        except (BlockingIOError, WantRead, WantWrite):
            self._dry = True
            self._reads = 0
            # WantWrite on a read is rare: an answer to KeyUpdate that does not fit. The next write flushes it.
            return None
        except (TlsError, OSError) as exc:
            raise transport_error(exc) from exc

    async def wait_readable(self) -> None:
        """Wait until `receive_nowait` may return more. If it is cancelled, no byte is lost."""
        if not self._resting and (self._tls is None or self._dry):
            await trio.lowlevel.wait_readable(self._sock)
        else:
            await trio.lowlevel.checkpoint()
        self._resting = False
        await take_turn()

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """Read at least a byte; b"" at the end of the stream."""
        while True:
            data = self.receive_nowait(max_bytes)
            if data is not None:
                return data
            await self.wait_readable()

    async def wait_hangup(self) -> None:
        """Wait until the peer has ended or reset the connection, whatever lies unread before that.

        While bytes are left in the socket on purpose, it is always readable; POLLRDHUP still tells (poll(2)). It is polled,
        because Trio cannot wait for it, and an epoll instance for each client would cost a further descriptor.
        """
        watch = select.poll()
        watch.register(self._sock, select.POLLRDHUP)
        while not watch.poll(0):
            await trio.sleep(HANGUP_LOOK_S)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write as much as the socket takes, and return how much; 0 if it takes nothing.

        After a partial write the next one must begin with the same bytes (SSL_write(3)).
        """
        self._said = True
        try:
            sent = self._sock.send(data) if self._tls is None else self._tls.write(memoryview(data))
            self.sent_bytes += sent
            return sent
        except (BlockingIOError, WantRead, WantWrite):
            return 0
        except (TlsError, OSError) as exc:
            raise transport_error(exc) from exc

    async def wait_writable(self) -> None:
        """Wait until `send_nowait` may take more."""
        await trio.lowlevel.wait_writable(self._sock)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything. If cancelled, an unknown part was written, and the stream can only be closed."""
        rest = memoryview(data)
        while rest:
            sent = self.send_nowait(rest)
            if sent:
                rest = rest[sent:]
            else:
                await self.wait_writable()

    def take_socket(self) -> socket.socket:
        """Give the socket away, which has no TLS yet. Trio forgets it first, as in `detach`."""
        trio.lowlevel.notify_closing(self._sock)
        self._open = False
        return self._sock

    def detach(self) -> Leg:
        """Make the socket and its TLS ready for the engine; call `detached` when the engine has taken them.

        Trio forgets the descriptor first: its epoll must not watch a socket that another thread owns.
        """
        trio.lowlevel.notify_closing(self._sock)
        return Leg(self._sock.fileno(), self._tls)

    def detached(self) -> None:
        """Forget the descriptor and the TLS connection without closing them: the engine owns them now."""
        self._sock.detach()
        self._tls = None
        self._open = False

    async def close_gracefully(self) -> None:
        """Half-close, drain what the peer still sends, close; bounded by LINGER_S and LINGER_BYTES. Idempotent.

        Never raises TransportError. If it is cancelled, or if nothing was sent to the peer, the socket is closed at once.
        """
        try:
            if self._open and self._said:
                with contextlib.suppress(TransportError, OSError), trio.move_on_after(LINGER_S):
                    if self._tls is not None:
                        await self._say_goodbye(self._tls)
                    self._sock.shutdown(socket.SHUT_WR)
                    await self._drain()
        finally:
            self.close()

    async def _drain(self) -> None:
        """Read the socket to the end of the stream, whatever comes: bytes that cannot be decrypted are drained too."""
        drained = 0
        while drained < LINGER_BYTES:
            try:
                # With room for a control message: the kernel's TLS stops at a record that is not data otherwise.
                size = len(self._sock.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(1))[0])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if not size:
                return
            drained += size

    async def _say_goodbye(self, tls: TlsConnection) -> None:
        """Send close_notify. If TLS is the kernel's, wait until it has passed on what FIN would overtake."""
        with contextlib.suppress(WantRead, TlsError):
            while True:
                try:
                    tls.shutdown()
                    return
                except WantWrite:
                    await self.wait_writable()
                    await trio.sleep(GOODBYE_POLL_S)

    def close(self) -> None:
        """Close at once; idempotent. If input is unread, the peer gets RST, and may lose our last words."""
        if not self._open:
            return
        self._open = False
        if self._tls is not None:
            self._tls.close()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
