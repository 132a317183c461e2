"""The disk under the store does not answer, or another process holds the file: routing, start and end go on without."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.edge_daemons import config_text, edge_daemon
from beds.peers.clients import CallError
from beds.peers.edge_clients import status_of, wait_status
from beds.programs import BENTPIPE, bentpipe
from bentpipe.daemon.coordination.shared import START_DEADLINE_S
from bentpipe.daemon.ledger.recorder import BEAT_S
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.tokens import FIRST_LOOK_S, TOKEN_REFRESH_S
from bentpipe.daemon.store.sqlite_file import CALL_DEADLINE_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

SLACK_S = 15.0
END_S = 25.0
"""The drain, the last words of ledger and registry, and a slow machine; systemd would wait for 90 s."""

HANGING_DISK = """
# Python runs this at its start: every use of SQLite waits while the flag is there, as read(2) of a hung disk does.
import os, sqlite3, time

def wait():
    while os.path.exists(os.environ["HANG_FLAG"]):
        time.sleep(0.05)

class Hanging(sqlite3.Connection):
    def execute(self, *arguments):
        wait()
        return super().execute(*arguments)

    def executescript(self, *arguments):
        wait()
        return super().executescript(*arguments)

connect = sqlite3.connect

def hanging_connect(*arguments, **options):
    wait()
    return connect(*arguments, factory=Hanging, **options)

sqlite3.connect = hanging_connect
"""


class Disk:
    """Hangs the daemon's store, and lets it go on."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(HANGING_DISK)
        self._flag = folder / "hang"
        self.ledger = folder / "ledger.sqlite"
        self.environment = {"PYTHONPATH": str(folder), "HANG_FLAG": str(self._flag)}

    def hang(self) -> None:
        self._flag.touch()

    def go_on(self) -> None:
        self._flag.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def host(disk: Disk) -> EdgeHost:
    return EdgeHost(
        [DemoSatellite("one"), DemoSatellite("two")],
        sleep_after_s=600,
        drain_deadline_s=1,
        ledger=disk.ledger,
        environment=disk.environment,
    )


def add_token(edge: EdgeHost) -> str:
    return bentpipe(edge.config_path, "token", "add", "--name", "ci", "--grant", f"{ORG}/*").split()[-1]


def ends_in_time(edge: EdgeHost) -> None:
    began = time.monotonic()
    assert edge.stop() == 0
    assert time.monotonic() - began < END_S


def test_a_disk_that_hangs_at_the_start(disk: Disk) -> None:
    edge = host(disk)
    stored = add_token(edge)
    disk.hang()
    began = time.monotonic()
    with edge:
        assert time.monotonic() - began < FIRST_LOOK_S + SLACK_S
        assert status_of(edge, "one", edge.token) is GrpcStatus.OK
        # It may be a good one: nobody knows yet.
        assert status_of(edge, "one", stored) is GrpcStatus.UNAVAILABLE
        disk.go_on()
        wait_status(edge, "one", stored, GrpcStatus.OK, TOKEN_REFRESH_S + SLACK_S)
        assert status_of(edge, "one", "bp_wrong") is GrpcStatus.UNAUTHENTICATED
        ends_in_time(edge)
        assert states(disk) >= {SatelliteState.OPERATIONAL.value}


def test_a_daemon_that_is_told_to_end_before_it_has_started(disk: Disk, tmp_path: Path) -> None:
    """It has nobody to drain."""
    edge = host(disk)
    disk.hang()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BENTPIPE, "serve", "--config", edge.config_path], stderr=file, env={**os.environ, **disk.environment}
        )
    try:
        deadline = time.monotonic() + SLACK_S
        while '"descriptors"' not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        assert process.wait(END_S) == 0
        assert '"listening"' not in log.read_text(), "it does not first go on with its start"
    finally:
        disk.go_on()
        process.kill()
        process.wait()
        edge.__exit__(None, None, None)


def test_a_disk_that_hangs_while_the_daemon_runs(disk: Disk) -> None:
    with host(disk) as edge:
        stored = add_token(edge)
        wait_status(edge, "one", stored, GrpcStatus.OK, TOKEN_REFRESH_S + SLACK_S)
        disk.hang()
        assert status_of(edge, "two", stored) is GrpcStatus.OK
        edge.wait_message("ledger fails", CALL_DEADLINE_S + SLACK_S)
        edge.wait_message("tokens cannot be read", CALL_DEADLINE_S + SLACK_S)
        assert status_of(edge, "two", stored) is GrpcStatus.OK
        disk.go_on()
        edge.wait_message("ledger works again", SLACK_S)
        ends_in_time(edge)
        assert states(disk, "two") >= {SatelliteState.OPERATIONAL.value}


def test_a_disk_that_hangs_at_the_end(disk: Disk) -> None:
    with host(disk) as edge:
        assert status_of(edge, "one", edge.token) is GrpcStatus.OK
        disk.hang()
        ends_in_time(edge)


def test_a_file_that_another_process_holds(disk: Disk) -> None:
    edge = host(disk)
    stored = add_token(edge)
    with locked(disk.ledger):
        began = time.monotonic()
        with edge:
            assert time.monotonic() - began < FIRST_LOOK_S + SLACK_S
            assert status_of(edge, "one", edge.token) is GrpcStatus.OK
            assert status_of(edge, "one", stored) is GrpcStatus.OK  # readers need no lock
            ends_in_time(edge)


def test_a_file_that_is_deleted_or_replaced_while_the_daemon_runs(disk: Disk) -> None:
    """SQLite would go on with a file that nobody else can see: books are lost, and a new token is never heard of."""
    kept = disk.ledger.with_name("kept")
    with host(disk) as edge:
        stored = add_token(edge)
        wait_status(edge, "one", stored, GrpcStatus.OK, TOKEN_REFRESH_S + SLACK_S)
        disk.ledger.rename(kept)
        edge.wait_message("tokens cannot be read", TOKEN_REFRESH_S + SLACK_S)
        edge.wait_message("ledger fails", BEAT_S + SLACK_S)
        assert status_of(edge, "two", stored) is GrpcStatus.OK
        assert not disk.ledger.exists(), "books that begin in the middle are not begun unasked"
        disk.ledger.write_bytes(kept.read_bytes())  # another file, and an older one
        time.sleep(TOKEN_REFRESH_S + 1.0)
        assert status_of(edge, "two", stored) is GrpcStatus.OK
        kept.rename(disk.ledger)
        edge.wait_message("ledger works again", BEAT_S + SLACK_S)
        ends_in_time(edge)
    assert states(disk, "two") >= {SatelliteState.OPERATIONAL.value}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@pytest.mark.parametrize(
    "trickle",
    [pytest.param(False, id="silent"), pytest.param(True, id="a byte at a time", marks=pytest.mark.slow)],
)
def test_a_service_that_does_not_answer(tmp_path: Path, trickle: bool) -> None:
    """Connections are taken and never answered, or by a byte a second, which no read timeout ends."""
    satellites = {
        SatelliteKey(ORG, name): f"""[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]"""
        for name in ("one", "two")
    }
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken: list[socket.socket] = []
        thread = threading.Thread(target=answer_slowly, args=(silent, taken, trickle), daemon=True)
        thread.start()
        store = f"""[store]
kind = "dynamodb"
table = "bentpipe"
region = "eu-central-1"
endpoint = "http://127.0.0.1:{silent.getsockname()[1]}"
"""
        began = time.monotonic()
        with edge_daemon(tmp_path, config_text(satellites, sections=store)) as edge:
            assert edge.port
            # The tokens' first look, and the host's first sign of life.
            assert time.monotonic() - began < FIRST_LOOK_S + START_DEADLINE_S + SLACK_S
            for name in ("one", "two"):
                edge.ask(ORG, name, timeout_s=60)
            with pytest.raises(CallError, match="cannot be checked"):
                edge.ask(ORG, "one", token="bp_stored")
            edge.process.terminate()
            assert edge.process.wait(END_S) == 0
        assert taken
    for sock in taken:
        sock.close()


def answer_slowly(silent: socket.socket, taken: list[socket.socket], trickle: bool) -> None:
    """Take every connection and keep it."""
    silent.settimeout(0.2)
    with contextlib.suppress(OSError, ValueError):
        while True:
            with contextlib.suppress(TimeoutError):
                taken.append(silent.accept()[0])
            for sock in taken if trickle else ():
                with contextlib.suppress(OSError):
                    sock.send(b"H")


def states(disk: Disk, satellite: str = "one") -> set[str]:
    """Those of which the ledger has an interval."""
    with contextlib.closing(sqlite3.connect(disk.ledger)) as ledger:
        rows = ledger.execute(
            "SELECT DISTINCT state FROM interval JOIN satellite ON satellite.id = interval.satellite WHERE name = ?",
            (satellite,),
        ).fetchall()
    return {state for (state,) in rows}
