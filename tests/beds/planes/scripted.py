"""A data plane of its own process, a control plane that a test scripts record by record, clients, and a satellite."""

import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import trustme

from beds.memory import resident_bytes
from beds.ports import free_port
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.batching import Batching
from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, UP_WINDOW
from bentpipe.daemon.planes.sockets import connect_private
from bentpipe.daemon.planes.table import Plane
from bentpipe.daemon.service.plane_start import PROGRAM, live_planes
from bentpipe.proto.frames import PREFACE, FrameType, frame

WAIT_S = 30.0
"""Nothing in these tests takes as long; on a machine with much to do it may take some seconds."""
OPENING = PREFACE + frame(FrameType.SETTINGS, 0, 0)
HALF = r.HALF_BIT | 1

R = TypeVar("R", bound=r.Record)


def wait_until(found: Callable[[], bool], words: str) -> None:
    until = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < until, words
        time.sleep(0.01)


class PlaneBed:
    """A data plane with a plain listener, one with TLS and one with the control API, and a satellite's listening socket."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder / "planes"
        self.plain, self.tls, self.api = self.ports = free_port(), free_port(), free_port()
        self.log_path = folder / "log"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        self.authority = authority
        self.config = folder / "bentpipe.toml"
        self.config.write_text(
            f'[daemon]\ndata_plane = "process"\nplanes = "{self.folder}"\ndrain_deadline = "5s"\n{more}\n'
            f'[[listener]]\naddress = "127.0.0.1:{self.plain}"\n'
            f'[[listener]]\naddress = "127.0.0.1:{self.tls}"\n'
            f'tls = {{ certificate = "{folder}/cert.pem", key = "{folder}/key.pem" }}\n'
            f'[[listener]]\naddress = "127.0.0.1:{self.api}"\napi = true\n'
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.opened: list[socket.socket] = []
        self.satellite = socket.create_server(("127.0.0.1", 0))
        self.satellite.settimeout(WAIT_S)

    def start(self) -> subprocess.Popen[bytes]:
        known = set(live_planes(self.folder))
        command = [sys.executable, "-P", "-c", PROGRAM, "dataplane", "--config", str(self.config)]
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self.processes.append(process)

        def listens() -> bool:
            assert process.poll() is None, self.log
            return bool(set(live_planes(self.folder)) - known)

        wait_until(listens, self.log)
        return process

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes[-1]

    def close_connections(self) -> None:
        for sock in self.opened:
            sock.close()
        self.opened.clear()

    def close_connections_but(self, kept: socket.socket) -> None:
        self.opened.remove(kept)
        self.close_connections()
        self.opened.append(kept)

    def cpu_idle(self, for_s: float) -> bool:
        """Whether the process rests for a while."""
        before = self.cpu_s()
        time.sleep(for_s)
        return self.cpu_s() - before < for_s / 4

    def close(self) -> None:
        self.close_connections()
        self.satellite.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def control(self, *, take_over: bool = False, window: bool = True) -> "ScriptedControl":
        control = ScriptedControl(live_planes(self.folder)[-1], take_over=take_over, window=window)
        self.opened.append(control.sock)
        return control

    def client(self, *, tls: bool = False, said: bytes = OPENING, to: int | None = None) -> socket.socket:
        """`to`: another port than the one for what the client speaks."""
        port = to or (self.tls if tls else self.plain)
        sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        if tls:
            context = ssl.create_default_context()
            self.authority.configure_trust(context)
            context.set_alpn_protocols(["h2"])
            sock = context.wrap_socket(sock, server_hostname="localhost")
        self.opened.append(sock)
        if said:
            sock.sendall(said)
        return sock

    def accept(self) -> socket.socket:
        sock = self.satellite.accept()[0]
        sock.settimeout(WAIT_S)
        self.opened.append(sock)
        return sock

    def accept_tls(self, context: ssl.SSLContext) -> bool:
        """Accept a half and complete its handshake. Returns whether it trusts us."""
        try:
            self.opened.append(context.wrap_socket(self.accept(), server_side=True))
        except (ssl.SSLError, OSError):
            return False
        return True

    @property
    def satellite_port(self) -> int:
        return int(self.satellite.getsockname()[1])

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def sockets(self) -> int:
        """How many sockets the process has. The engine keeps pipes for later."""
        found = 0
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += os.readlink(path).startswith("socket:")
        return found

    def rss_bytes(self) -> int:
        return resident_bytes(self.process.pid)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ScriptedControl:
    """One control plane. It reads and writes only when the test says so."""

    def __init__(self, path: Path, *, take_over: bool = False, window: bool = True, seat: bool = True) -> None:
        self._window = window
        self.sock = connect_private(path)
        self._batching = Batching(Plane.DATA)
        self.records: list[r.Record] = []
        """Read, and not taken yet."""
        self.counters: dict[str, int] = {}
        """The newest."""
        self.closed = False
        self._ponged = False
        self.send(r.HelloRecord(r.LINK_ID, 1, 1, 0, os.getpid(), "test", "", b""))
        self.hello = self.expect(r.HelloRecord)
        if seat:
            self.send(r.SeatRecord(r.LINK_ID, take_over))
            self.seated = self.expect(r.SeatedRecord)
            self.synced = self.expect(r.SyncedRecord)

    def send(self, *records: r.Record) -> None:
        for record in records:
            self._batching.queue(record)
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while (message := self._batching.next_message(flush=True)) is not None:
                try:
                    self.sock.send(message)
                except BlockingIOError:
                    select.select([], [self.sock], [], WAIT_S)
                    continue
                self._batching.sent(message)

    def read(self, timeout_s: float) -> bool:
        """Read what has come. Returns whether the link is still there."""
        if not select.select([self.sock], [], [], timeout_s)[0]:
            return True
        try:
            message = self.sock.recv(MESSAGE_BYTES + 1)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return self.read(timeout_s)
        if not message:
            self.closed = True
            return False
        for record in self._batching.receive(message):
            if isinstance(record, r.PingRecord):
                self._batching.queue(r.PongRecord(r.LINK_ID, record.number))
            elif isinstance(record, r.ArrivedRecord) and self._window:
                self._batching.queue(r.WindowRecord(record.id, UP_WINDOW, 0))
                self.records.append(record)
            elif isinstance(record, r.CountersRecord):
                self.counters = dict(record.counters)
            elif isinstance(record, r.PongRecord):
                self._ponged = True
            else:
                self.records.append(record)
        self.flush()
        return True

    def expect(self, kind: type[R], about: int | None = None) -> R:
        """The next record of a kind (about one connection); earlier ones of other kinds stay."""
        until = time.monotonic() + WAIT_S
        while True:
            for index, record in enumerate(self.records):
                if isinstance(record, kind) and (about is None or record.id == about):
                    del self.records[index]
                    return record
            assert not self.closed, f"the link has ended; unread: {self.records}"
            assert time.monotonic() < until, f"no {kind.__name__}; unread: {self.records}"
            self.read(0.1)

    def wait_counted(self, name: str, exactly: int) -> None:
        """Wait until the data plane has counted so many, and not more."""

        def enough() -> bool:
            self.read(0.1)
            return self.counters.get(name, 0) >= exactly

        wait_until(enough, f"{name} is not {exactly}")
        assert self.counters.get(name, 0) == exactly, self.counters

    def wait_closed(self) -> None:
        wait_until(lambda: not self.read(0.05), "the link does not end")

    def none_of(self, kind: type[R], within_s: float = 0.3) -> bool:
        """Whether no record of this kind comes for a while."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            self.read(0.05)
        return not any(isinstance(record, kind) for record in self.records)

    def ping(self) -> None:
        """Ask, and wait for the answer: the data plane knows then that this one is well."""
        self.send(r.PingRecord(r.LINK_ID, 1))
        until = time.monotonic() + WAIT_S
        while not self._ponged and time.monotonic() < until:
            self.read(0.1)
        self._ponged = False

    def close(self) -> None:
        self.sock.close()

    # -- what most scripts do ----------------------------------------------------------------------------------------

    def open(self, port: int, half: int = HALF) -> None:
        self.send(r.OpenRecord(half, port, 5_000, "127.0.0.1", "", ""))
        self.expect(r.WentRecord, half)

    def go(
        self, client: int, half: int = HALF, *, flags: r.GoFlag = r.GoFlag.NONE, tag: bytes = b"", **at: int
    ) -> None:
        self.send(
            r.GoRecord(
                *(client, half, flags, at.get("client_from", 0), at.get("frame_at", 0), at.get("half_from", 0)),
                *(at.get("deadline_ms", 5_000), tag, b""),
            )
        )

    def splice(self, bed: PlaneBed, client: int, half: int = HALF, tag: bytes = b"") -> socket.socket:
        self.open(bed.satellite_port, half)
        satellite = bed.accept()
        self.go(client, half, tag=tag)
        self.expect(r.WentRecord, client)
        return satellite


def read_exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return found


def read_to_end(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while data := sock.recv(65536):
            found += data
    return found


@contextlib.contextmanager
def plane_bed(folder: Path, more: str = "") -> Iterator[PlaneBed]:
    bed = PlaneBed(folder, more)
    try:
        bed.start()
        yield bed
    finally:
        bed.close()
