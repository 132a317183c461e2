"""Halves: connections to satellites that the control plane has opened, until a GO takes them or they are shut.

The joiner's thread connects and completes the TLS handshake. A half has a task here only while its satellite's name has to
be looked up, and while it is closed in order. When the control plane is gone, its halves are closed: nobody knows what for
they were opened.
"""

import errno
import functools
import os
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.connections.dial_once import (
    NO_CONTEXT,
    SatelliteTls,
    SocketAddress,
    numeric,
    reason_of,
    resolve,
)
from bentpipe.daemon.connections.transport import Transport, transport_error
from bentpipe.daemon.dataplane.stream import Order, Stream, close_in_order
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes.bounds import OPEN_HALVES, WORDS_BYTES
from bentpipe.daemon.planes.records import ClosedRecord, FailedAt, FailedRecord, OpenRecord, WentRecord
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.joiner import News, StreamFailure
from bentpipe.native.tls import TlsConnection, TlsError, failure_of

MOST_DIAL_S = 60.0
"""For one attempt, whatever the control plane asks."""
NO_ANSWER = "no answer in time"


class Half:
    """One of them."""

    def __init__(self, about: int, tasks: trio.Nursery) -> None:
        self.id = about
        self.tasks = tasks
        self.stream: Stream | None = None
        """None until it has a socket."""
        self.connected = False
        self.lookup = trio.CancelScope()
        """The look-up of its satellite's name."""

    def shut(self, order: Order) -> None:
        """End it: closed, or given to a GO."""
        if self.stream is None:
            self.lookup.cancel()
        else:
            self.stream.give(order)


class Halves:
    """All halves of the present control plane."""

    def __init__(self, streams: Streams, find_trust: Callable[[str], SatelliteTls | None]) -> None:
        """`find_trust` finds a satellite's TLS by the name that the control plane uses."""
        self._streams = streams
        self._reports = streams.reports
        self._find_trust = find_trust
        self._halves: dict[int, Half] = {}

    def __len__(self) -> int:
        return len(self._halves)

    def find(self, about: int) -> Half | None:
        """The half of this id; None if it is gone."""
        return self._halves.get(about)

    def open(self, record: OpenRecord, tasks: trio.Nursery) -> None:
        """Connect. What has to wait is done in `tasks`."""
        if record.id in self._halves or len(self._halves) >= OPEN_HALVES:
            self._fail(record.id, FailedAt.REFUSED, errno.EMFILE, "too many halves are open")
            return
        half = self._halves[record.id] = Half(record.id, tasks)
        address = Address(record.host, record.port)
        target = numeric(address)
        if target is None:
            owner = Owner("half", str(address), Decision.GIVE_UP)
            tasks.start_soon(run_owned, owner, self._look_up, half, record, address)
        else:
            self._connect(half, record, target, record.deadline_ms / 1000)

    def find_connected(self, about: int) -> Stream | None:
        """The stream of a half that a GO may have; None if it is not connected, or is being shut."""
        half = self._halves.get(about)
        if half is None or half.stream is None or not half.connected:
            return None
        return None if half.stream.order is not None or half.stream.broken else half.stream

    def give_away(self, stream: Stream) -> None:
        """A GO has it from now on."""
        del self._halves[stream.id]
        stream.give(Order.JOIN)

    def close_all(self) -> None:
        """The control plane is gone."""
        for half in list(self._halves.values()):
            half.shut(Order.RESET)

    def _fail(self, about: int, step: FailedAt, error: int, words: str) -> None:
        self._reports.send(FailedRecord(about, step, error, "", words[: WORDS_BYTES // 4]))

    def _give_up(self, half: Half, step: FailedAt, error: Exception) -> None:
        """Tell that it cannot be connected, and forget it."""
        del self._halves[half.id]
        self._fail(half.id, step, (error.errno or 0) if isinstance(error, OSError) else 0, reason_of(error))

    async def _look_up(self, half: Half, record: OpenRecord, address: Address) -> None:
        limit_s = min(record.deadline_ms / 1000, MOST_DIAL_S)
        until = trio.current_time() + limit_s
        target: SocketAddress | None = None
        with half.lookup, trio.move_on_after(limit_s):
            try:
                target = await resolve(address)
            except Exception as exc:  # whatever the resolver raises
                self._give_up(half, FailedAt.DIAL, exc)
                return
        if half.lookup.cancelled_caught:
            del self._halves[half.id]
            self._reports.send(ClosedRecord(half.id))
        elif target is None:
            del self._halves[half.id]
            self._fail(half.id, FailedAt.DIAL, errno.ETIMEDOUT, NO_ANSWER)
        else:
            self._connect(half, record, target, until - trio.current_time())

    def _connect(self, half: Half, record: OpenRecord, target: SocketAddress, limit_s: float) -> None:
        step, sock = FailedAt.DIAL, None
        try:
            trust = self._find_trust(record.trust) if record.trust else None
            if record.trust and trust is None:
                step = FailedAt.TLS
                raise TlsError(f"this data plane does not know {record.trust}")
            sock = start_connecting(target)
            step = FailedAt.TLS
            tls = None if trust is None else tls_of(trust, sock, record)
            limit_ms = round(1000 * min(limit_s, MOST_DIAL_S))
            native = self._streams.joiner.connect(sock.fileno(), tls, limit_ms)
        except Exception as exc:  # any: from TLS, or because no descriptor is left
            if sock is not None:
                sock.close()
            self._give_up(half, step, exc)
            return
        released, connected = functools.partial(self._released, half), functools.partial(self._connected, half)
        half.stream = Stream(half.id, sock, native, self._streams, released, connected)
        half.stream.told = True
        half.stream.let_read()

    def _connected(self, half: Half) -> None:
        half.connected = True
        self._reports.send(WentRecord(half.id))

    def _released(self, half: Half, news: News) -> None:
        stream = half.stream
        assert stream is not None
        if stream.order is Order.JOIN:
            return  # the GO has it
        transport = stream.take_back()
        if stream.order is Order.CLOSE and half.connected:
            owner = Owner("half", str(half.id), Decision.GIVE_UP)
            half.tasks.start_soon(run_owned, owner, self._close, half, transport, news.unsent)
            return
        transport.close()
        if stream.order is None:
            self._tell_failed(half, news)
        else:
            self._forget(half)

    async def _close(self, half: Half, transport: Transport, words: bytes) -> None:
        try:
            await close_in_order(transport, words)
        finally:
            self._forget(half)

    def _forget(self, half: Half) -> None:
        del self._halves[half.id]
        self._reports.send(ClosedRecord(half.id))

    def _tell_failed(self, half: Half, news: News) -> None:
        step = FailedAt.DIAL if news.failure is StreamFailure.CONNECT else FailedAt.TLS
        if news.result == -errno.ETIME:
            del self._halves[half.id]
            self._fail(half.id, step, errno.ETIMEDOUT, NO_ANSWER)
            return
        error = failure_of(news.result, news.words)
        if step is FailedAt.TLS:
            self._give_up(half, step, transport_error(error))
        else:
            self._give_up(half, step, error)


def start_connecting(target: SocketAddress) -> socket.socket:
    """Begin to connect a new socket. Raises OSError."""
    family, name = target
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    error = sock.connect_ex(name)
    if error not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(error, os.strerror(error))
    return sock


def tls_of(trust: SatelliteTls, sock: socket.socket, record: OpenRecord) -> TlsConnection:
    """The TLS of a socket to the satellite that an OPEN names. Raises TlsError, UnicodeError."""
    if trust.refused or trust.context is None:
        raise TlsError(trust.refused or NO_CONTEXT)
    name = record.server_name or trust.server_name or record.host
    return TlsConnection(trust.context, sock.fileno(), server_name=name)
