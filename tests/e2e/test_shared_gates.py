"""Two hosts share a satellite, and one's data plane brings clients to it without asking: nobody stops it under them.

The machine serves TLS by a name of its own. Gates are good for a quarter of the time after which a host counts as dead.
"""

import concurrent.futures
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.shared_world import EXPIRY, KEY, PATIENCE_S, TOKEN, Daemon, World, shared_world, wait
from beds.peers.clients import GrpcioClient
from beds.ports import free_port
from beds.suspended import suspended

AWAY_S = 2.5 * float(EXPIRY.removesuffix("s"))
"""Longer than a silent host counts as alive."""
METADATA = (("satellite_name", KEY.name), ("satellite_org", KEY.org), ("satellite_token", TOKEN))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with shared_world(tmp_path, monkeypatch, proven=True) as world:
        yield world


def admitted(daemon: Daemon) -> int:
    """How many clients the data plane of a host has admitted, as far as its control planes have said so."""
    return sum(each["message"] == "spliced" and each.get("by") == "data plane" for each in daemon.records())


def refusals(daemon: Daemon, host: str) -> int:
    """How often a host did not put the satellite to sleep, since another one uses it."""
    return sum(f"in use at {host}" in str(each.get("error")) for each in daemon.records())


def echo(daemon: Daemon, words: bytes = b"hello") -> None:
    with contextlib.closing(daemon.client()) as client:
        assert client.unary("Echo", words, timeout_s=PATIENCE_S) == words


def until_admitted(daemon: Daemon) -> None:
    before = admitted(daemon)

    def one_more() -> bool:
        echo(daemon)
        return admitted(daemon) > before

    wait(one_more, "the data plane admits somebody")


def plane_of(daemon: Daemon) -> int:
    """The process of the host's newest data plane."""
    return [int(str(each["pid"])) for each in daemon.records() if each["message"] == "data plane seated"][-1]


def wait_refused(daemon: Daemon, host: str) -> None:
    before = refusals(daemon, host)
    wait(lambda: refusals(daemon, host) > before, f"a sleep is refused for {host}")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["control plane", "data plane", "both"])
def test_no_host_stops_it_while_another_is_suspended(world: World, whom: str) -> None:
    """For longer than a silent host counts as alive. Clients that come meanwhile are served as soon as it goes on."""
    port = free_port()
    with world.daemon("other", sleep_after="300ms") as other, world.daemon("mine", port=port) as mine:
        echo(other)
        until_admitted(mine)
        client = mine.client()
        assert client.unary("Echo", b"before") == b"before"
        done = world.calls("StartInstances"), world.calls("StopInstances")  # the other one may have stopped it before
        pids = {"control plane": [mine.process.pid], "data plane": [plane_of(mine)]}
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as pool:
            for pid in pids.get(whom, [pid for each in pids.values() for pid in each]):
                stack.enter_context(suspended(pid))
            time.sleep(AWAY_S)
            come = pool.submit(echo, mine, b"came meanwhile")
            wait_refused(other, "mine")
            stack.close()
            come.result(PATIENCE_S)
        assert client.unary("Echo", b"after") == b"after"
        until_admitted(mine)
        assert (world.calls("StartInstances"), world.calls("StopInstances")) == done
        client.close()


@pytest.mark.slow
def test_a_host_without_the_store_admits_and_nobody_stops_it(world: World) -> None:
    port = free_port()
    with world.daemon("other", sleep_after="300ms") as other, world.daemon("mine", port=port) as mine:
        until_admitted(mine)
        wait_refused(other, "mine")
        with contextlib.closing(mine.client()) as client:
            assert client.unary("Echo", b"before") == b"before"
            mine.wire.cut()
            time.sleep(AWAY_S)
            echo(mine, b"without the store")
            wait_refused(other, "mine")
            assert client.unary("Echo", b"still") == b"still"
            mine.wire.heal()
            wait_refused(other, "mine")
        assert world.calls("StopInstances") == 0
        until_admitted(mine)
        assert world.calls("StartInstances") == 1


@pytest.mark.parametrize("seconds", [3, pytest.param(45, marks=pytest.mark.slow)])
def test_clients_come_and_go_while_hosts_put_it_to_sleep_and_processes_die(world: World, seconds: int) -> None:
    """Both hosts put it to sleep as soon as they may. No call fails, and it is woken once after each stop."""
    failures: list[str] = []
    over, port, chance = threading.Event(), free_port(), random.Random()
    calls = 0

    def come_and_go(at: int, pause_s: float) -> None:
        nonlocal calls
        while not over.is_set():
            try:
                with contextlib.closing(GrpcioClient(at, None, METADATA)) as client:
                    for _ in range(3):
                        assert client.unary("Echo", b"words", timeout_s=PATIENCE_S) == b"words"
                        calls += 1
            except Exception as exc:
                failures.append(repr(exc))
            over.wait(pause_s * random.uniform(0.2, 2.0))

    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(3) as pool:
        other = stack.enter_context(world.daemon("other", sleep_after="100ms"))
        mine = stack.enter_context(world.daemon("mine", sleep_after="100ms", port=port))
        until_admitted(mine)
        workers = [pool.submit(come_and_go, *each) for each in ((port, 0.1), (port, 0.7), (other.port, 0.7))]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.2, 1.0))
            match chance.randrange(3):
                case 0:
                    mine = stack.enter_context(killed_and_started(world, mine, port))
                case 1:
                    with suspended(plane_of(mine)):
                        time.sleep(chance.uniform(0.1, 1.5))
                case _:
                    with suspended(mine.process.pid):
                        time.sleep(chance.uniform(0.1, 1.5))
        over.set()
        for worker in workers:
            worker.result(PATIENCE_S)
        assert failures == []
        assert calls > 10
        assert admitted(mine) > 0
        wait(world.is_asleep, "it sleeps after its last client")
    assert_one_start_for_each_stop(world)


@contextlib.contextmanager
def killed_and_started(world: World, daemon: Daemon, port: int) -> Iterator[Daemon]:
    """Kill a host's control plane, and serve with the next one."""
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait(PATIENCE_S)
    said = len(daemon.records())
    with world.daemon("mine", sleep_after="100ms", port=port) as successor:
        wait(lambda: any(each["message"] == "serving" for each in successor.records()[said:]), "the next one serves")
        yield successor


def assert_one_start_for_each_stop(world: World) -> None:
    """Its machine was started once after each stop. A stop of a machine that stops already changes nothing."""
    calls = world.cloud.control.calls(action="StopInstances")
    stops = sum(before == "running" for call in calls for _, before, _ in call.changes)
    assert world.cloud.control.starts(instance_id=world.instance_id) == stops
