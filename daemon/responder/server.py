"""The responder's loop: one thread, sockets that do not block, TLS. It reads no disk and waits for nothing but clients."""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import time
from typing import Callable, Optional

from bentpipe.daemon.responder.http2 import MAX_OUT_BYTES, NO_ERROR, Http2Connection
from bentpipe.daemon.responder.looks import INFO, WARNING, Look, log
from bentpipe.daemon.responder.service import ResponderService
from bentpipe.daemon.responder.settings import ResponderSettings
from bentpipe.daemon.responder.wire import MAX_FRAME, Fields

MAX_CLIENTS = 32
"""Connections. If there are more, the one that has been useful the longest ago ends, strangers' first."""
ACCEPTS_PER_TURN = 8
BACKLOG = 64
HANDSHAKE_DEADLINE_S = 10.0
IDLE_DEADLINE_S = 600.0
"""Without a byte from the client."""
WRITE_DEADLINE_S = 20.0
"""Without a byte taken by the client, while there is something for it."""
TICK_S = 0.5
SLOW_TURN_S = 1.0
READS_PER_TURN = 4
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))
"""After a resume the other side of a connection may be gone."""


class TlsLook(Look[Optional[ssl.SSLContext]]):
    """Reads the certificate, its key and the CA, and again when one of the files has changed."""

    name = "tls"
    period_s = 1.0

    def __init__(self, settings: ResponderSettings) -> None:
        super().__init__()
        self._settings = settings
        self._read: list[tuple[int, int, int]] = []

    def read(self) -> ssl.SSLContext | None:
        """Raises OSError, ssl.SSLError. The last context that could be made stays in use."""
        settings = self._settings
        stats = [os.stat(path) for path in (settings.certificate, settings.key, settings.client_ca) if path]
        seen = [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]
        if seen == self._read:
            return self.result
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(settings.client_ca)
        self._read = seen
        log(INFO, "tls: the certificate has been read")
        return context

    def fields(self, _result: ssl.SSLContext | None, _now: float) -> Fields:
        """Nothing: it is not a section."""
        return []


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket, source: str, now: float) -> None:
        self.socket, self.source = sock, source
        self.born = self.heard_at = self.useful_at = self.taken_at = now
        self.http: Http2Connection | None = None
        """Once the TLS handshake is over."""


class ResponderServer:
    """Accepts clients and serves them, until `stopping` is set. `beat` is called in each tick."""

    def __init__(
        self, settings: ResponderSettings, service: ResponderService, tls: TlsLook | None, beat: Callable[[], None]
    ) -> None:
        self._settings, self._service, self._tls, self._beat = settings, service, tls, beat
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, Client] = {}
        host, port = settings.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        dual = family == socket.AF_INET6 and host == "::"
        self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.stopping = False

    @property
    def port(self) -> int:
        """The port that is open."""
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve."""
        next_tick = time.monotonic()
        while not self.stopping:
            ready = self._selector.select(max(0.0, next_tick - time.monotonic()))
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd in self._clients:
                    self._serve(self._clients[key.fd])
            now = time.monotonic()
            if now >= next_tick:
                if now - next_tick > SLOW_TURN_S:
                    self._service.slow_turns += 1
                next_tick = now + TICK_S
                self._tick(now)
        self._listener.close()
        for client in list(self._clients.values()):
            if client.http:
                client.http.close(NO_ERROR, "the responder ends")
                self._serve(client)
            self._drop(client)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                # No descriptor or no memory: the listener stays ready, and would keep this loop busy until the next tick.
                log(WARNING, f"no client can be accepted: {exc}")
                self._selector.unregister(self._listener)
                return
            try:
                self._add(sock, str(address[0]))
            except (OSError, ValueError):
                sock.close()

    def _add(self, sock: socket.socket, source: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        now = time.monotonic()
        if self._tls is not None:
            context = self._tls.result
            if context is None:
                raise ValueError("there is no certificate yet")
            sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        client = Client(sock, source, now)
        if self._tls is None:
            client.http = Http2Connection(self._service.respond, now)
        if len(self._clients) >= MAX_CLIENTS:
            self._drop(self._least_useful())
        self._clients[sock.fileno()] = client
        self._selector.register(sock, selectors.EVENT_READ)
        self._serve(client)

    def _least_useful(self) -> Client:
        """Of strangers, one of the address that has the most; without strangers, of all clients."""
        clients = list(self._clients.values())
        pool = [each for each in clients if each.http is None] or clients
        sources = [each.source for each in pool]
        return max(pool, key=lambda each: (sources.count(each.source), -each.useful_at))

    def _serve(self, client: Client) -> None:
        """Do all that can be done for a client without waiting. Never raises an Exception."""
        try:
            events = self._work(client)
        except ssl.SSLWantReadError:
            events = selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            events = selectors.EVENT_WRITE
        except (OSError, EOFError):
            self._drop(client)
            return
        except Exception as exc:  # a mistake of ours ends one connection
            log(WARNING, f"a connection from {client.source} ended by a bug: {type(exc).__name__}: {exc}")
            self._drop(client)
            return
        self._selector.modify(client.socket, events)

    def _work(self, client: Client) -> int:
        """Handshake, read, answer, write. Returns what to wait for. Raises OSError, EOFError."""
        now = time.monotonic()
        if client.http is None:
            self._shake_hands(client)
            client.http = Http2Connection(self._service.respond, now)
            client.useful_at = now
        http = client.http
        for _ in range(READS_PER_TURN):
            if len(http.out) >= MAX_OUT_BYTES or http.closing:
                break
            try:
                data = client.socket.recv(MAX_FRAME)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not data:
                raise EOFError
            client.heard_at = now
            http.receive(data, now)
        while http.out:
            try:
                sent = client.socket.send(http.out[:MAX_FRAME])
            except (BlockingIOError, ssl.SSLWantWriteError):
                return selectors.EVENT_WRITE
            del http.out[:sent]
            client.taken_at = client.useful_at = now
            http.receive(b"", now)
        if http.closing:
            raise EOFError
        client.taken_at = now
        pending = isinstance(client.socket, ssl.SSLSocket) and client.socket.pending()
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if pending else 0)

    def _shake_hands(self, client: Client) -> None:
        """Raises OSError, of which ssl.SSLWantReadError and ssl.SSLWantWriteError mean that it goes on."""
        sock = client.socket
        assert isinstance(sock, ssl.SSLSocket)
        sock.do_handshake()
        if self._settings.client_name:
            names = (sock.getpeercert() or {}).get("subjectAltName", ())
            if not {("DNS", self._settings.client_name), ("URI", self._settings.client_name)} & set(names):
                log(WARNING, f"a client from {client.source} has a certificate of another name")
                raise ssl.SSLError("the certificate has another name")

    def _tick(self, now: float) -> None:
        self._beat()
        if self._listener.fileno() not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ)
        for client in list(self._clients.values()):
            http = client.http
            if http is None:
                if now - client.born > HANDSHAKE_DEADLINE_S:
                    self._drop(client)
                continue
            if http.out and now - client.taken_at > WRITE_DEADLINE_S:
                self._drop(client)
                continue
            if now - client.heard_at > IDLE_DEADLINE_S and not http.streams:
                http.close(NO_ERROR, "no request for a long time")
            http.tick(now)
            if http.out:
                self._serve(client)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.socket.fileno(), None):
            self._selector.unregister(client.socket)
        client.socket.close()
