"""Nobody reads the daemon's standard error (a stalled journald): it serves, is alive to systemd, and ends in time."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import trustme

from beds.hosts.form import first_port_of
from beds.hosts.in_process import TOKEN, write_config
from beds.ports import free_port
from bentpipe.daemon.log_rates import LINES_A_WINDOW, WINDOW_S
from bentpipe.daemon.records.lines import LINE

METADATA = (("satellite_name", "sat"), ("satellite_org", "acme"), ("satellite_token", TOKEN))
PIPE_BYTES = 4096
STRANGERS = 400
"""Each was a line of over 100 bytes: many pipes full."""
CALLS = 60
START_S, END_S = 60.0, 30.0
SECTIONS = '[daemon]\nlog_format = "json"\ndrain_deadline = "1s"\n[metrics]\naddress = "{metrics}"\n'


class Unread:
    """`bentpipe serve` on one plain port of `ports`, its log in a pipe."""

    def __init__(self, folder: Path, *, journal: bool = False, shell: str = 'exec "$@"') -> None:
        self.metrics_port = free_port()
        authority = trustme.CA()
        # It is killed in the end, and no daemon follows: its satellites end with it.
        outlive = '[processes]\noutlive = "0s"\n'
        sections = outlive + SECTIONS.format(metrics=f"127.0.0.1:{self.metrics_port}")
        config = write_config(folder, authority, authority, limits="", sections=sections)
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{free_port()}", 1))
        self.port = first_port_of(config)
        self.log, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        environment = dict(os.environ)
        if journal:
            found = os.fstat(write)
            environment["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                shell,
                "bash",
                sys.executable,
                "-P",
                "-m",
                "bentpipe.daemon.service.entry",
                "serve",
                "--config",
                config,
            ],
            stderr=write,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        os.close(write)

    def read_until(self, message: str) -> bytes:
        read = b""
        while message.encode() not in read:
            data = os.read(self.log, 65536)
            if not data:
                raise EOFError(read.decode())
            read += data
        return read

    def read_all(self) -> list[bytes]:
        read = b""
        while data := os.read(self.log, 65536):
            read += data
        return read.splitlines()


@contextlib.contextmanager
def unread(folder: Path, *, journal: bool = False) -> Iterator[Unread]:
    """From "listening" on nobody reads the log."""
    daemon = Unread(folder, journal=journal)
    try:
        daemon.read_until('"message": "metrics"')
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()
        os.close(daemon.log)


def call(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert channel.unary_unary("/bentpipe.demo.Satellite/Echo")(b"hello", metadata=METADATA, timeout=20) == b"hello"


def be_malformed(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x01\0\0\0\0\1")
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):
                pass


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    with unread(tmp_path) as daemon:
        for _ in range(STRANGERS):
            be_malformed(daemon.port)
        for _ in range(CALLS):
            call(daemon.port)
        daemon.process.terminate()
        assert daemon.process.wait(END_S) == 0


def test_strangers_get_some_lines_and_a_count(tmp_path: Path) -> None:
    with unread(tmp_path) as daemon:
        began = time.monotonic()
        for _ in range(STRANGERS):
            be_malformed(daemon.port)
        windows = 2 + (time.monotonic() - began) // WINDOW_S
        daemon.process.terminate()
        records = [json.loads(line) for line in daemon.read_all()]
    told = [record for record in records if record["message"] == LINE]
    more = [record["lines"] for record in records if record.get("kind") == f"{LINE}: malformed"]
    assert len(told) <= windows * LINES_A_WINDOW
    assert len(told) + sum(more) == STRANGERS
    statistics = next(record["log"] for record in records if record["message"] == "statistics")
    assert statistics["dropped"] == 0
    assert statistics["withheld"] == sum(more)


def test_the_journal_is_told_priorities(tmp_path: Path) -> None:
    with unread(tmp_path, journal=True) as daemon:
        be_malformed(daemon.port)
        daemon.process.terminate()
        lines = daemon.read_all()
    assert lines
    for line in lines:
        assert json.loads(line.removeprefix(b"<6>"))["level"] == "info"


def test_no_socket_gets_the_number_of_a_closed_standard_error(tmp_path: Path) -> None:
    daemon = Unread(tmp_path, shell='exec "$@" 0<&- 1>&- 2>&-')
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if daemon.process.poll() is None and Path(f"/proc/{daemon.process.pid}/fd/2").exists():
                with contextlib.suppress(AssertionError, grpc.RpcError):
                    call(daemon.port)
                    break
            time.sleep(0.05)
        else:
            raise AssertionError("it never served")
        for fd in range(3):
            assert Path(f"/proc/{daemon.process.pid}/fd/{fd}").readlink() == Path(os.devnull)
    finally:
        daemon.process.kill()
        daemon.process.wait()
