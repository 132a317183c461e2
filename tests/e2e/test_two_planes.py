"""The control plane dies, leaves and comes back while connections live in a data plane of its own."""

import concurrent.futures
import contextlib
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
        gone = [record for record in host.records() if record["message"] == "a data plane is gone"]
        assert [record["cut"] for record in gone] == [2]
        host.wait(lambda: host.states()[-1:] == ["sleep"], "leases are left")


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
