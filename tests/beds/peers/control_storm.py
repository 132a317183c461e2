"""Clients of every kind that go on while the control plane is killed: each says what went wrong, if anything did."""

import contextlib
import random
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings

from beds.hosts.one_satellite import KEY, METADATA
from beds.hosts.two_planes import PLAIN, SLEEPER, TLS, TwoPlanes
from beds.peers.clients import SERVICE, CallError
from bentpipe.daemon.testbed.satellite import HEALTHY

BULK_BYTES, CHUNK_BYTES = 3_000_000, 64_000
PATIENCE_S = 60.0
"""For a client that is greeted, held or parked: longer than any restart on a busy host."""
STOP_S = 180.0
"""For all clients to end: longer than the deadline of each of their calls. One that does not end by then hangs."""
PINGS = 3
MESSAGE = b"\0\0\0\0\x05slow!"


class EndedEarly(Exception):
    """The other side has ended the connection before it has answered."""


def _is_cut(failure: Exception) -> bool:
    """Whether this is how a client sees that its connection is cut, or that nothing listens."""
    match failure:
        case EndedEarly() | ConnectionError() | ssl.SSLError():
            return True
        case CallError():
            return bool(failure.code == grpc.StatusCode.UNAVAILABLE.value[0])
        case grpc.RpcError():
            return bool(failure.code() is grpc.StatusCode.UNAVAILABLE)
        case _:
            return False


class Storm:
    """Runs kinds of clients in threads, each over and over, until `stop`."""

    def __init__(self, host: TwoPlanes, *, may_be_cut: bool = False) -> None:
        """`may_be_cut`: the data plane is killed, so a cut connection is counted, and is not a failure."""
        self._host = host
        self._may_be_cut = may_be_cut
        self.cut = 0
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: dict[str, int] = {}
        self.failures: list[str] = []

    def run(self, kind: str, once: Callable[[TwoPlanes, int], None], port: int, pause_s: float = 0.0) -> None:
        """Run `once` over and over."""
        self.done.setdefault(kind, 0)

        def go_on() -> None:
            while not self._over.is_set():
                with self._told(kind, port):
                    once(self._host, port)
                    self.done[kind] += 1
                self._over.wait(pause_s)

        self._start(go_on, f"{kind} {port}")

    def _start(self, go_on: Callable[[], None], name: str) -> None:
        # A daemon thread: one that hangs is told by `stop`, and does not keep the test's process.
        self._threads.append(threading.Thread(target=go_on, name=name, daemon=True))
        self._threads[-1].start()

    @contextlib.contextmanager
    def _told(self, kind: str, port: int) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            if self._may_be_cut and _is_cut(exc):
                self.cut += 1
            else:
                self.failures.append(f"{kind} on port {port}: {type(exc).__name__}: {exc}")

    def run_spliced(self, port: int) -> None:
        """One connection that is spliced all the while: no call on it may fail, whichever process dies."""
        client = self._host.client(port)
        kind = "spliced"
        self.done.setdefault(kind, 0)

        def go_on() -> None:
            with contextlib.closing(client):
                while not self._over.is_set():
                    with self._told(kind, port):
                        assert client.unary("Echo", b"spliced") == b"spliced"
                    self.done[kind] += 1
                    self._over.wait(0.01)

        assert client.unary("Echo", b"first", timeout_s=PATIENCE_S) == b"first"
        self._start(go_on, f"{kind} {port}")

    def stop(self) -> None:
        """End all clients in good order. One that does not end is a failure, which says where each thread waits."""
        self._over.set()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        if hung:
            self.failures.append(f"{', '.join(hung)} did not end in {STOP_S:g} s:\n{_where_threads_are()}")


def _where_threads_are() -> str:
    """The stack of each thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, '?')}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def new_call(host: TwoPlanes, port: int) -> None:
    """A new connection with one call."""
    with contextlib.closing(host.client(port)) as client:
        assert client.unary("Echo", b"new", timeout_s=PATIENCE_S) == b"new"


def held_call(host: TwoPlanes, port: int) -> None:
    """A call to a satellite that sleeps, with keepalive PINGs while it is held."""
    with contextlib.closing(host.client(port, SLEEPER, keepalive_s=0.2)) as client:
        assert client.unary("Echo", b"held", timeout_s=PATIENCE_S) == b"held"


def bulk_call(host: TwoPlanes, port: int) -> None:
    """Bytes both ways on a new connection, by their hashes."""
    with contextlib.closing(host.client(port)) as client:
        sent, came = client.bulk(BULK_BYTES, CHUNK_BYTES)
        assert sent == came, "the hashes differ"


def connected(host: TwoPlanes, port: int) -> None:
    """A connection that is taken, kept while it says nothing, and ended by the client alone."""
    with socket.create_connection(("127.0.0.1", host.ports[port]), PATIENCE_S) as sock:
        sock.setblocking(False)
        time.sleep(random.uniform(0, 0.5))
        try:
            if not sock.recv(1):
                raise EndedEarly
        except BlockingIOError:
            return


def polite_health_call(host: TwoPlanes, port: int) -> None:
    """A health check whose connection may be ended by a GOAWAY, as those of a daemon that leaves, and by nothing else."""
    try:
        health_call(host, port, patience_s=0)
    except grpc.RpcError as exc:
        words = str(exc.details()).lower()
        if any(rude in words for rude in ("reset", "refused", "broken pipe")):
            raise
    health_call(host, port)


def health_call(host: TwoPlanes, port: int, patience_s: float = PATIENCE_S) -> None:
    """A health check, which the control plane answers itself: it may have to be asked again, and is then answered."""
    deadline = time.monotonic() + patience_s
    while True:
        target = f"{'localhost' if port == TLS else '127.0.0.1'}:{host.ports[port]}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(host.ca_pem), options=options)
            if port == TLS
            else grpc.insecure_channel(target, options=options)
        )
        try:
            with channel:
                assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=PATIENCE_S) == HEALTHY
            return
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise


def slow_greeting(host: TwoPlanes, port: int) -> None:
    """A client that waits for SETTINGS before it asks, as grpc-go does, sends PINGs, and pauses at every step.

    Each PING must be answered exactly once, and SETTINGS must come once before the satellite's.
    """
    with _connect(host, port) as sock:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        peer = _Peer(sock, connection)
        peer.read_until(lambda: peer.settings >= 1)
        for number in range(PINGS):
            time.sleep(random.uniform(0, 0.1))
            connection.ping(b"%08d" % number)
            sock.sendall(connection.data_to_send())
        peer.read_until(lambda: len(peer.pings) >= PINGS)
        headers = [(":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/Echo"), (":authority", "edge")]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), *METADATA]
        connection.send_headers(1, headers)
        sock.sendall(connection.data_to_send())
        time.sleep(random.uniform(0, 0.05))
        peer.read_until(lambda: connection.local_flow_control_window(1) >= len(MESSAGE))
        connection.send_data(1, MESSAGE, end_stream=True)
        sock.sendall(connection.data_to_send())
        peer.read_until(lambda: peer.ended)
        assert peer.data == MESSAGE, peer.data
        assert sorted(peer.pings) == [b"%08d" % number for number in range(PINGS)], peer.pings


def _connect(host: TwoPlanes, port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", host.ports[port]), PATIENCE_S)
    if port == PLAIN:
        return sock
    context = ssl.create_default_context(cadata=host.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(sock, server_hostname="localhost")


class _Peer:
    """What the other side has said."""

    def __init__(self, sock: socket.socket, connection: h2.connection.H2Connection) -> None:
        self._sock = sock
        self._connection = connection
        self.settings = 0
        self.pings: list[bytes] = []
        self.data = b""
        self.ended = False

    def read_until(self, true: Callable[[], bool]) -> None:
        while not true():
            data = self._sock.recv(65_536)
            if not data:
                raise EndedEarly
            for event in self._connection.receive_data(data):
                match event:
                    case h2.events.RemoteSettingsChanged():
                        self.settings += 1
                    case h2.events.PingAckReceived():
                        self.pings.append(bytes(event.ping_data or b""))
                    case h2.events.DataReceived():
                        self.data += event.data or b""
                    case h2.events.StreamEnded():
                        self.ended = True
                    case h2.events.ConnectionTerminated() | h2.events.StreamReset():
                        raise AssertionError(f"ended: {event}")
            self._sock.sendall(self._connection.data_to_send())


def start_all(storm: Storm, *, polite: bool = False) -> None:
    """Every kind of client, on both ports. With `polite` none of them may be refused, reset or cut, for whatever reason."""
    for port in (PLAIN, TLS):
        storm.run_spliced(port)
        storm.run("new", new_call, port, 0.02)
        storm.run("held", held_call, port, 1.0)
        storm.run("bulk", bulk_call, port, 0.1)
        storm.run("in place", polite_health_call if polite else health_call, port, 0.05)
        if polite:
            storm.run("silent", connected, port, 0.02)
        storm.run("greeting", slow_greeting, port, 0.02)


__all__ = ["KEY", "Storm", "start_all"]
