"""Control planes that die at random moments, and a data plane that is killed: no byte is lost, and nothing is left."""

import contextlib
import os
import random
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.planes.scripted import OPENING, PlaneBed, ScriptedControl, plane_bed, wait_until
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.service.plane_start import live_planes

CLIENTS = 40
BODY = 300_000


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path) as bed:
        yield bed


class Echo:
    """A satellite that sends back what it gets, until its end."""

    def __init__(self, bed: PlaneBed) -> None:
        self._bed = bed
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock = self._bed.satellite.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    @staticmethod
    def _echo(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(60)
            while data := sock.recv(65536):
                sock.sendall(data)


class Admitting:
    """A control plane that lets every client go to the satellite, until it dies in the middle of anything."""

    def __init__(self, bed: PlaneBed, halves: Iterator[int], chance: random.Random) -> None:
        self._control = ScriptedControl(live_planes(bed.folder)[-1])
        self._port = bed.satellite_port
        self._halves = halves
        self._chance = chance
        self._client_of: dict[int, int] = {}
        self.live = [record.id for record in self._control.records if isinstance(record, r.LiveRecord)]

    def run(self, for_s: float) -> None:
        """Serve for a while, then die."""
        until = time.monotonic() + for_s
        control = self._control
        while time.monotonic() < until and control.read(0.01):
            for record in control.records:
                self._answer(record)
            control.records.clear()
        control.close()

    def _answer(self, record: r.Record) -> None:
        match record:
            case r.ArrivedRecord():
                half = r.HALF_BIT | next(self._halves)
                self._client_of[half] = record.id
                if not record.mark and self._chance.random() < 0.5:  # it was not spoken to yet
                    self._control.send(r.SayRecord(record.id, r.SayFlag.NONE, 1, b"settings"))
                self._control.send(r.OpenRecord(half, self._port, 5_000, "127.0.0.1", "", ""))
            case r.WentRecord() if record.id in self._client_of:
                self._control.go(self._client_of.pop(record.id), record.id, tag=b"tag")
            case r.EndedRecord():
                self._control.send(r.KeptRecord(r.LINK_ID, record.seq))
            case _:
                pass


def converse_at_once(sock: socket.socket, body: bytes, size: int) -> bytes:
    """Send and receive in one thread: a TLS connection allows no two. Returns `size` bytes, and our SETTINGS if any."""
    sock.setblocking(False)
    found, rest, until = b"", memoryview(body), time.monotonic() + 120
    while len(found) < size + 8 * found.startswith(b"settings"):
        assert time.monotonic() < until, f"{len(found)} bytes came"
        select.select([sock], [sock] if rest else [], [], 0.05)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while rest:
                rest = rest[sock.send(rest[:16384]) :]
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while data := sock.recv(65536):
                found += data
            return found  # the end
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_control_planes_that_die_at_any_moment_lose_no_byte(bed: PlaneBed, seed: int) -> None:
    chance = random.Random(seed)
    Echo(bed)
    failures: list[str] = []

    def converse(number: int) -> None:
        body = random.Random(number).randbytes(BODY)
        time.sleep(number * 0.05)
        with bed.client(tls=bool(number % 2)) as client:
            found = converse_at_once(client, body, len(OPENING) + BODY).removeprefix(b"settings")
            if found != OPENING + body:
                failures.append(f"client {number}: {len(found)} bytes, {found[:50]!r}")

    before = bed.sockets()
    halves = iter(range(1, 1 << 30))
    threads = [threading.Thread(target=converse, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    deaths = 0
    while any(thread.is_alive() for thread in threads):
        Admitting(bed, halves, chance).run(chance.uniform(0.0, 0.6))
        deaths += 1
        assert deaths < 200, bed.log
    assert failures == []
    assert deaths > 3
    last = bed.control()
    wait_until(lambda: last.read(0.05) and bed.sockets() <= before + 1, f"sockets are left: {bed.sockets()}")


def test_a_data_plane_that_is_killed_ends_its_connections_and_leaves_nothing(bed: PlaneBed) -> None:
    for _ in range(3):
        control = bed.control()
        clients = [bed.client(tls=bool(number % 2)) for number in range(10)]
        for _ in clients:
            control.expect(r.ArrivedRecord)
        os.kill(bed.process.pid, signal.SIGKILL)
        bed.process.wait()
        control.wait_closed()
        for client in clients:
            with contextlib.suppress(OSError):
                assert client.recv(1) == b""
        children = Path("/proc").glob("[0-9]*/cmdline")
        assert not [path for path in children if str(bed.config).encode() in read_or_empty(path)]
        bed.start()
    control = bed.control()
    client = bed.client()
    assert control.expect(r.ArrivedRecord).port == client.getsockname()[1]


def read_or_empty(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_what_a_waiting_client_costs(bed: PlaneBed, tls: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory of the process for each client that was offered, and its CPU time for a new connection. Loose bounds."""
    control = bed.control()
    for _ in range(30):
        bed.client(tls=tls)
        control.expect(r.ArrivedRecord)
    memory, used_s, count = bed.rss_bytes(), bed.cpu_s(), 400
    for _ in range(count):
        bed.client(tls=tls)
        control.read(0.0)
    for _ in range(count):
        control.expect(r.ArrivedRecord)
    each, cpu_us = (bed.rss_bytes() - memory) / count, 1e6 * (bed.cpu_s() - used_s) / count
    with capsys.disabled():
        print(
            f"\ndata plane, {'TLS' if tls else 'plain'}: {each / 1024:.1f} KiB a client, {cpu_us:.0f} us of CPU a connection"
        )
    assert each < 100 << 10
