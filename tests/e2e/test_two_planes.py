"""The control plane dies, leaves and comes back while connections live in a data plane of its own."""

import concurrent.futures
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.two_planes import DEADLINE_S, PLAIN, SLEEPER, TLS, TwoPlanes, two_planes
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.cloud import CREDENTIALS

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_PIDFD_GETFD = 438
"""The same number on every architecture."""
BULK_BYTES, CHUNK_BYTES = 30_000_000, 100_000


@pytest.mark.parametrize("form", ["inside", "process"])
def test_calls_by_both_forms(tmp_path: Path, form: str) -> None:
    with two_planes(tmp_path, form=form) as host:
        for port in (PLAIN, TLS):
            with contextlib.closing(host.client(port)) as client:
                assert client.unary("Echo", b"hello") == b"hello"
                sent, got = client.bulk(5_000_000, 100_000)
                assert sent == got


@contextlib.contextmanager
def in_threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        yield pool


def test_a_killed_control_plane_cuts_nothing_and_its_successor_adopts(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, in_threads() as pool:
        clients = [host.client(port) for port in (PLAIN, TLS, PLAIN, TLS)]
        for client in clients:
            assert client.unary("Echo", b"hello") == b"hello"
        bulks = [pool.submit(client.bulk, BULK_BYTES, CHUNK_BYTES) for client in clients]
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        for client in clients:
            assert client.unary("Echo", b"nobody decides anything now") == b"nobody decides anything now"
        newcomer = pool.submit(host.client(TLS).unary, "Echo", b"parked")
        time.sleep(0.3)
        host.start()
        assert newcomer.result() == b"parked"
        for bulk in bulks:
            sent, got = bulk.result()
            assert sent == got
        assert [record["adopted"] for record in seated(host)] == [0, len(clients)]
        # Nothing ends them, though they are silent: they count as use of the satellite.
        time.sleep(2.5)
        assert SatelliteState.STOPPING.value not in host.states()
        for client in clients:
            assert client.unary("Echo", b"again") == b"again"
            client.close()
        host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep after its last client")


def test_a_control_plane_that_leaves_cuts_nothing_and_a_held_client_goes_on(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, in_threads() as pool:
        client = host.client(TLS)
        assert client.unary("Echo", b"hello") == b"hello"
        host.emulator.control.slow(action="StartInstances", delay_s=2.0)
        held = pool.submit(host.client(PLAIN, SLEEPER).unary, "Echo", b"held")
        host.wait(lambda: "starting" in host.states(SLEEPER), "nobody is held")
        assert host.end_control(signal.SIGUSR2) == 0
        assert client.unary("Echo", b"it has left") == b"it has left"
        host.start()
        assert held.result() == b"held"
        assert client.unary("Echo", b"adopted") == b"adopted"
        client.close()
        assert host.emulator.control.starts(instance_id=host.instances[SLEEPER]) == 1


def test_a_second_daemon_is_refused_in_words(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, contextlib.closing(host.client()) as client:
        assert client.unary("Echo", b"hello") == b"hello"
        other = subprocess.run(
            [sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "serve", "--config", host.config],
            capture_output=True,
            timeout=DEADLINE_S,
            env={**os.environ, **CREDENTIALS},
        )
        assert other.returncode not in (0, 1)
        assert b"another daemon has this data plane" in other.stderr
        assert b"Traceback" not in other.stderr
        assert client.unary("Echo", b"not disturbed") == b"not disturbed"


def test_a_killed_data_plane_is_started_again_and_what_was_cut_is_said(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host:
        clients = [host.client(PLAIN), host.client(TLS)]
        for client in clients:
            assert client.unary("Echo", b"hello") == b"hello"
        (first,) = host.plane_pids()
        os.kill(first, signal.SIGKILL)
        host.wait(lambda: len(host.plane_pids()) == 2, "it is not started again")
        for client in clients:
            assert client.unary("Echo", b"it has connected again") == b"it has connected again"
            client.close()
        host.wait(lambda: cut(host) == [2], "it is not said what was cut")
        host.wait(lambda: host.states()[-1:] == ["sleep"], "leases are left")


def cut(host: TwoPlanes) -> list[object]:
    """How many splices each data plane that is gone had."""
    return [record["cut"] for record in host.records() if record["message"] == "a data plane is gone"]


def test_a_data_plane_that_dies_slowly_is_accounted_for(tmp_path: Path) -> None:
    """The kernel may close the link of a dying process while the socket that it listens at is still open."""
    with two_planes(tmp_path) as host, contextlib.closing(host.client(PLAIN)) as client:
        assert client.unary("Echo", b"hello") == b"hello"
        (first,) = host.plane_pids()
        with held_open(first, listening_at(first)):
            os.kill(first, signal.SIGKILL)
            host.wait(lambda: host.count("cut off from a data plane that lives") == 1, "it is not taken for alive")
            assert cut(host) == []
        host.wait(lambda: cut(host) == [1], "it is not said what was cut")
        host.wait(lambda: host.states()[-1:] == ["sleep"], "leases are left")


def listening_at(pid: int) -> int:
    """The descriptor of the socket at which a data plane waits for its control plane."""
    # /proc/net/unix: Flags is __SO_ACCEPTCON, the seventh field the inode, the last the path that it was bound to.
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    inodes = {row[6] for row in rows if row[3] == "00010000" and Path(row[-1]).parent.name == "planes"}
    links = {int(entry.name): os.readlink(entry) for entry in Path("/proc", str(pid), "fd").iterdir()}
    [fd] = [fd for fd, link in links.items() if link.removeprefix("socket:[").removesuffix("]") in inodes]
    return fd


@contextlib.contextmanager
def held_open(pid: int, fd: int) -> Iterator[None]:
    """What a process has open stays open, even if it dies (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    copy = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
    os.close(pidfd)
    if copy < 0:
        pytest.skip(f"pidfd_getfd is refused: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(copy)


def test_both_planes_of_an_upgrade_report_to_one_control_plane(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, contextlib.closing(host.client(TLS)) as old:
        assert old.unary("Echo", b"old") == b"old"
        with host.log_path.open("ab") as log:
            newer = subprocess.Popen(
                [sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "dataplane", "--config", host.config],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            host.wait(lambda: newer.pid in host.plane_pids(), "the newer plane is not found")
            with contextlib.closing(host.client(PLAIN)) as client:
                assert client.unary("Echo", b"new") == b"new"
                assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
                host.start()
                assert {str(record["pid"]): record["adopted"] for record in seated(host)[-2:]} == {
                    str(host.plane_pids()[0]): 1,
                    str(newer.pid): 1,
                }
                assert old.unary("Echo", b"still") == b"still"
                assert client.unary("Echo", b"too") == b"too"
            assert host.end_control(signal.SIGTERM) in (0, 3)
            assert newer.wait(DEADLINE_S) in (0, 3)
        finally:
            newer.kill()
            newer.wait()


def seated(host: TwoPlanes) -> list[dict[str, object]]:
    return [record for record in host.records() if record["message"] == "data plane seated"]
