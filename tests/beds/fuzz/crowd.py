"""Random clients of a real data plane, and satellites of all names: what each of them has said and heard."""

import contextlib
import dataclasses
import ipaddress
import random
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import trustme

from beds.fuzz.admissions import MARKER, NAMES, ORGS, OUR_FRAME, ClientCase, PortKind, Step
from beds.planes.scripted import WAIT_S
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.frames import ACK, HEADER_BYTES, PREFACE, FrameType, frame, parse_header

TAIL = b"these are the last words"
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)
LOOK_S = 0.002


@dataclasses.dataclass(slots=True)
class SeenClient:
    """What one client has said and heard."""

    case: ClientCase
    said: bytes = b""
    heard: bytes = b""
    over: bool = False
    """It has heard the end."""
    stuck: bool = False
    """It waited too long."""

    @property
    def spoke(self) -> bool:
        """Whether the data plane's SETTINGS were the first that it heard."""
        return self.heard.startswith(OUR_FRAME)


def host_of(number: int) -> str:
    """The address of a client."""
    return f"127.9.{number >> 8}.{number & 255}"


def client_at(host: str) -> int:
    """The number of the client at an address."""
    return int.from_bytes(ipaddress.ip_address(host).packed[2:])


class FuzzClient:
    """Goes through the steps of a case."""

    def __init__(self, case: ClientCase, port: int, certificate: trustme.LeafCert) -> None:
        self.seen = SeenClient(case)
        self._to = port
        self._certificate = certificate
        self._acked = 0

    def run(self) -> None:
        """Until the connection is over."""
        try:
            with contextlib.ExitStack() as stack:
                sock = stack.enter_context(self._connected())
                if self.seen.case.speaks_tls:
                    sock = stack.enter_context(self._secured(sock))
                self._go(sock)
        except TimeoutError:
            self.seen.stuck = True
        except OSError:  # it was reset
            self.seen.over = True

    def _connected(self) -> socket.socket:
        """From an address of its own, by which others know it."""
        own = host_of(self.seen.case.number), 0
        return socket.create_connection(("127.0.0.1", self._to), WAIT_S, source_address=own)

    def _secured(self, sock: socket.socket) -> socket.socket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if self.seen.case.kind is PortKind.CLIENT_CA:
            self._certificate.configure_cert(context)
        return context.wrap_socket(sock, server_hostname=self.seen.case.server_name)

    def _go(self, sock: socket.socket) -> None:
        for step in self.seen.case.steps:
            if isinstance(step, bytes):
                self._say(sock, step)
            elif step is Step.RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            elif step is Step.FIN:
                self._end(sock)
                return
            elif step is Step.HEAR:
                self._wait(sock, lambda: bool(self._settings()))
            elif step is Step.ACK:
                self._acknowledge(sock)
            else:
                self._hear(sock, LOOK_S)
        self._wait(sock, lambda: TAIL in self.seen.heard)
        if not self.seen.over:
            self._acknowledge(sock)
            self._end(sock)

    def _say(self, sock: socket.socket, data: bytes) -> None:
        sock.settimeout(WAIT_S)
        sock.sendall(data)
        self.seen.said += data
        self._hear(sock, 0)

    def _acknowledge(self, sock: socket.socket) -> None:
        count = self._settings()
        for _ in range(count - self._acked):
            self._say(sock, SETTINGS_ACK)
        self._acked = count

    def _settings(self) -> int:
        at, found, heard = 0, 0, self.seen.heard
        while at + HEADER_BYTES <= len(heard):
            header = parse_header(heard[at : at + HEADER_BYTES])
            at += HEADER_BYTES + header.length
            found += at <= len(heard) and header.type == FrameType.SETTINGS and not header.flags & ACK
        return found

    def _wait(self, sock: socket.socket, is_there: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_S
        while not is_there() and not self.seen.over:
            if time.monotonic() > until:
                raise TimeoutError
            self._hear(sock, 0.05)

    def _hear(self, sock: socket.socket, timeout_s: float) -> None:
        sock.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            data = sock.recv(1 << 16)
            self.seen.heard += data
            self.seen.over = not data

    def _end(self, sock: socket.socket) -> None:
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(WAIT_S)
            sock.unwrap()
            self.seen.over = True
            return
        sock.shutdown(socket.SHUT_WR)
        self._wait(sock, lambda: False)


@dataclasses.dataclass(slots=True)
class SeenSatellite:
    """What one connection to a satellite has brought, and what it was told."""

    key: SatelliteKey
    first: bytes
    """What it says at once."""
    heard: bytes = b""
    said: bytes = b""

    @property
    def client(self) -> int | None:
        """The number of the client whose bytes it has got; None if it has got none."""
        return number_of(self.heard)


def number_of(said: bytes) -> int | None:
    """The number that a client has put into its first SETTINGS. None: they are not there yet."""
    at = said.find(MARKER.to_bytes(2), len(PREFACE) + HEADER_BYTES)
    return int.from_bytes(said[at + 2 : at + 6]) if at >= 0 and len(said) >= at + 6 else None


class Satellites:
    """A listening socket for each satellite, in a thread. They say SETTINGS, listen, and say their last words."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listening: dict[SatelliteKey, socket.socket] = {}
        self.seen: list[SeenSatellite] = []
        for org in ORGS:
            for name in NAMES:
                key = SatelliteKey(org, name)
                self._listening[key] = sock = socket.create_server(("127.0.0.1", 0), backlog=512)
                sock.setblocking(False)
                self._selector.register(sock, selectors.EVENT_READ, key)
        self._thread.start()

    def port(self, key: SatelliteKey) -> int:
        """Where a satellite listens."""
        return int(self._listening[key].getsockname()[1])

    def close(self) -> None:
        """End the thread, and all connections."""
        self._stop.set()
        self._thread.join()
        for entry in list(self._selector.get_map().values()):
            assert isinstance(entry.fileobj, socket.socket)
            entry.fileobj.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for entry, _ in self._selector.select(0.05):
                sock, about = entry.fileobj, entry.data
                assert isinstance(sock, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    if isinstance(about, SatelliteKey):
                        self._accept(sock, about)
                    else:
                        self._serve(sock, about)

    def _accept(self, listening: socket.socket, key: SatelliteKey) -> None:
        sock = listening.accept()[0]
        sock.setblocking(False)
        seen = SeenSatellite(key, self._first_words())
        self.seen.append(seen)
        self._selector.register(sock, selectors.EVENT_READ, seen)
        self._say(sock, seen, seen.first)

    def _first_words(self) -> bytes:
        chance = self._chance
        if chance.random() < 0.06:
            return chance.choice((b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        entries = b"".join(
            chance.choice((1, 3, 4, 5, 9)).to_bytes(2) + chance.choice((0, 1, 100, 65_535, 1 << 20)).to_bytes(4)
            for _ in range(chance.randrange(5))
        )
        return frame(FrameType.SETTINGS, 0, 0, entries) + chance.choice(
            (b"", frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\1\0"))
        )

    def _serve(self, sock: socket.socket, seen: SeenSatellite) -> None:
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        seen.heard += data
        if not data:
            self._selector.unregister(sock)
            sock.close()
        elif TAIL not in seen.said and len(seen.heard) > opening_bytes(seen.heard):
            self._say(sock, seen, frame(FrameType.DATA, 0, 1, TAIL))

    def _say(self, sock: socket.socket, seen: SeenSatellite, words: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(words)
        seen.said += words


def opening_bytes(heard: bytes) -> int:
    """How long preface and first SETTINGS are."""
    return len(PREFACE) + HEADER_BYTES + int.from_bytes(heard[len(PREFACE) : len(PREFACE) + 3])
