"""Local satellites outlive the daemon: killed at any moment, told to leave, or with its keeper killed."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from beds.peers.edge_clients import call_once
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.service.serve import EXIT_OK
from bentpipe.daemon.testbed.client import DemoClient
from bentpipe.daemon.testbed.edge_host import DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 30.0
KILLS = 4
MANY_KILLS = int(os.environ.get("BENTPIPE_TEST_KILLS", "60"))
"""For `make soak`."""
SATELLITE = "bentpipe.daemon.testbed.satellite"


def processes_of(host: EdgeHost, program: str) -> list[psutil.Process]:
    """The living processes of a program whose keeper is this host's."""
    keepers = [each for each in psutil.process_iter() if is_keeper_of(each, host)]
    if program == "keeper":
        return keepers
    found = []
    for keeper in keepers:
        for child in keeper.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.status() != psutil.STATUS_ZOMBIE and program in " ".join(child.cmdline()):
                    found.append(child)
    return found


def is_keeper_of(process: psutil.Process, host: EdgeHost) -> bool:
    from bentpipe.daemon.providers.process.place import keeper_socket_of

    try:
        return f"socket={keeper_socket_of(host.config_path)}" in process.cmdline()
    except psutil.Error:
        return False


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_daemon(host: EdgeHost) -> None:
    os.kill(host.pid, signal.SIGKILL)
    assert host.wait() == -signal.SIGKILL


def test_a_killed_daemons_satellites_are_found_again() -> None:
    with EdgeHost([DemoSatellite("awake"), DemoSatellite("idle")], sleep_after_s=600) as host:
        with DemoClient(host, "awake") as client:
            assert client.echo(b"x") == b"x"
        (before,) = processes_of(host, SATELLITE)
        (keeper,) = processes_of(host, "keeper")
        kill_daemon(host)
        time.sleep(0.2)
        assert before.is_running(), "it does not die with the daemon"
        host.start()
        host.wait_state("awake", SatelliteState.OPERATIONAL, PATIENCE_S)  # nobody asks for it
        assert host.state_of("idle") is SatelliteState.SLEEP
        with DemoClient(host, "awake") as client:
            assert client.echo(b"y") == b"y"
        assert [each.pid for each in processes_of(host, SATELLITE)] == [before.pid]
        assert host.stop() == EXIT_OK
        wait_for(lambda: not before.is_running() and not keeper.is_running())


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int) -> None:
    """Never two processes of one satellite, and never none while it was awake; the last stop leaves nothing."""
    chance = random.Random(7)
    names = ("a", "b", "c")
    with EdgeHost([DemoSatellite(name) for name in names], sleep_after_s=600) as host:
        for _ in range(kills):
            for name in chance.sample(names, 2):
                if chance.random() < 0.5:
                    call_once(host, name)
            before = {each.pid: each.cmdline() for each in processes_of(host, SATELLITE)}
            time.sleep(chance.uniform(0, 0.3))
            kill_daemon(host)
            host.start()
            if chance.random() < 0.3:  # again, before it has done anything
                kill_daemon(host)
                host.start()
            after = {each.pid: each.cmdline() for each in processes_of(host, SATELLITE)}
            assert before.items() <= after.items()
            assert len(processes_of(host, "keeper")) <= 1
        for name in names:
            assert call_once(host, name)[0] is GrpcStatus.OK
        assert len(processes_of(host, SATELLITE)) == len(names)
        assert host.stop() == EXIT_OK
        wait_for(lambda: not processes_of(host, "keeper"))


@pytest.fixture
def awake() -> Iterator[EdgeHost]:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600) as host:
        assert call_once(host, "sat")[0] is GrpcStatus.OK
        yield host


def test_a_killed_keeper_takes_its_satellites_and_is_replaced(awake: EdgeHost) -> None:
    (keeper,) = processes_of(awake, "keeper")
    (satellite,) = processes_of(awake, SATELLITE)
    keeper.kill()
    awake.wait_state("sat", SatelliteState.SLEEP, PATIENCE_S)
    wait_for(lambda: not satellite.is_running() or satellite.status() == psutil.STATUS_ZOMBIE)
    wait_for(lambda: call_once(awake, "sat")[0] is GrpcStatus.OK)
    (after,) = processes_of(awake, "keeper")
    assert after.pid != keeper.pid
    assert awake.stop() == EXIT_OK


def test_sigusr2_leaves_and_the_next_daemon_finds(awake: EdgeHost) -> None:
    (satellite,) = processes_of(awake, SATELLITE)
    os.kill(awake.pid, signal.SIGUSR2)
    assert awake.wait() == EXIT_OK
    assert satellite.is_running()
    awake.start()
    awake.wait_state("sat", SatelliteState.OPERATIONAL, PATIENCE_S)
    assert [each.pid for each in processes_of(awake, SATELLITE)] == [satellite.pid]
    assert awake.stop() == EXIT_OK
    wait_for(lambda: not satellite.is_running())


def test_what_died_meanwhile_is_told(awake: EdgeHost) -> None:
    (satellite,) = processes_of(awake, SATELLITE)
    kill_daemon(awake)
    satellite.send_signal(signal.SIGSEGV)
    awake.start()
    wait_for(lambda: awake.state_of("sat") is SatelliteState.SLEEP)
    wait_for(lambda: "killed by SIGSEGV" in awake.log_path.read_text())
    wait_for(lambda: call_once(awake, "sat")[0] is GrpcStatus.OK)
    assert awake.stop() == EXIT_OK


def test_a_satellite_that_is_configured_no_more_is_stopped(awake: EdgeHost) -> None:
    (satellite,) = processes_of(awake, SATELLITE)
    kill_daemon(awake)
    text = awake.config_path.read_text()
    awake.config_path.write_text(text.replace('name = "sat"', 'name = "other"'))
    awake.start()
    wait_for(lambda: not satellite.is_running())
    assert awake.stop() == EXIT_OK


def test_without_a_daemon_the_keeper_ends_in_time(tmp_path: Path) -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600, settings='[processes]\noutlive = "1s"') as host:
        assert call_once(host, "sat")[0] is GrpcStatus.OK
        (satellite,) = processes_of(host, SATELLITE)
        (keeper,) = processes_of(host, "keeper")
        kill_daemon(host)
        wait_for(lambda: not satellite.is_running() and not keeper.is_running())
