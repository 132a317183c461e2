"""Several real daemons that share one fleet: their store is moto's DynamoDB, their cloud the EC2 emulator.

What is judged is what happened (the cloud's own log of calls), never how long it took; leases are short to be quick.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beds.hosts.shared_world import CLIENTS, KEY, PATIENCE_S, TOKEN, Daemon, World, shared_world, wait
from beds.programs import BENTPIPE
from bentpipe.daemon.api.client import Server, call
from bentpipe.proto import compute_pb2 as pb


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with shared_world(tmp_path, monkeypatch) as world:
        yield world


def test_two_hundred_clients_over_three_hosts_wake_it_once(world: World) -> None:
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(world.daemon(f"edge-{number}")) for number in range(3)]
        clients = [daemons[number % 3].client() for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda client: client.unary("Echo", b"hello", timeout_s=PATIENCE_S), clients))
        assert answers == [b"hello"] * CLIENTS
        assert world.calls("StartInstances") == 1
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        users = {each.partition("/")[0] for each in world.row().entered}
        assert users == {"edge-0", "edge-1", "edge-2"}
        for client in clients:
            client.close()
    found = world.books()
    assert all(before.to_us == after.from_us for before, after in itertools.pairwise(found))
    assert 0 < sum(interval.facts.waits.clients for interval in found) <= CLIENTS
    report = subprocess.run(
        [BENTPIPE, "report", "--config", world.folder / "init.toml", "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(report.stdout)["everything"]["wakes"] == 1


def test_a_hundred_reserves_over_two_hosts_start_it_once(world: World) -> None:
    """Each caller hears states in a legal order, and the satellite is kept awake for each host's callers."""

    def reserve(daemon: Daemon) -> list[str]:
        server = Server(f"http://127.0.0.1:{daemon.port}", TOKEN)
        request = pb.ReserveSatelliteRequest(org_id=KEY.org, name=KEY.name)
        answers = call(server, "/api.public.compute.Compute/ReserveSatellite", request, pb.ReserveSatelliteResponse)
        return [pb.SatelliteStatus.Name(each.status).removeprefix("SATELLITE_STATUS_") for each in answers]

    with world.daemon("edge-0", "1s") as first, world.daemon("edge-1", "1s") as second:
        with ThreadPoolExecutor(100) as pool:
            streams = list(pool.map(reserve, [first, second] * 50))
        assert world.calls("StartInstances") == 1
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        for states in streams:
            assert re.fullmatch("(SLEEP )?(STARTING )*OPERATIONAL", " ".join(states)), states
        time.sleep(3.0)
        assert not world.is_asleep(), "it is reserved, though sleep_after is over"
        assert {each.partition("/")[0] for each in world.row().entered} == {"edge-0", "edge-1"}


def test_an_owner_that_is_killed_while_it_starts_is_replaced(world: World) -> None:
    with world.daemon("edge-0") as first, world.daemon("edge-1") as second, ThreadPoolExecutor(2) as pool:
        world.cloud.control.hold(action="StartInstances")
        lost, kept = first.client(), second.client()
        pool.submit(lost.unary, "Echo", b"hello")
        wait(lambda: world.calls("StartInstances") or world.row().owner.startswith("edge-0/"), "edge-0 acts")
        answer = pool.submit(kept.unary, "Echo", b"hello", timeout_s=PATIENCE_S)
        wait(lambda: any(each.startswith("edge-1/") for each in world.row().entered), "edge-1 wants it")
        assert world.row().owner.startswith("edge-0/")
        os.kill(first.process.pid, signal.SIGKILL)
        wait(lambda: second.said("turn taken over"), "edge-1 takes over")
        world.cloud.control.release(action="StartInstances")
        assert answer.result(PATIENCE_S) == b"hello"
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        lost.close()
        kept.close()


def test_an_owner_that_was_paused_cannot_stop_a_machine_in_use(world: World) -> None:
    """Between the write that closes the row and the call that stops the machine: the worst moment there is."""
    paused: list[int] = []
    with world.daemon("edge-0", sleep_after="300ms") as owner, world.daemon("edge-1") as other:

        def pause(body: bytes) -> None:
            if b"closing = :closing" in body and not paused:
                paused.append(owner.process.pid)
                os.kill(owner.process.pid, signal.SIGSTOP)

        world.store.after = pause
        first = owner.client()
        assert first.unary("Echo", b"hello") == b"hello"
        first.close()
        wait(lambda: paused, "edge-0 closes the row")
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        assert other.said("turn taken over", **{"from": "edge-0/"})
        assert world.calls("StopInstances") == 0
        os.kill(owner.process.pid, signal.SIGCONT)
        wait(lambda: owner.said("sleep refused"), "edge-0 finds out")
        assert client.unary("Echo", b"again") == b"again"
        assert world.calls("StopInstances") == 0
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        client.close()


@pytest.mark.slow  # with real daemons; tests/daemon/fleet/test_coordinated.py has it without
def test_a_host_without_the_store_serves_and_puts_nobody_to_sleep(world: World) -> None:
    with world.daemon("edge-0", sleep_after="300ms") as cut, world.daemon("edge-1") as other:
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        cut.wire.cut()
        ours = cut.client()
        assert ours.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        ours.close()
        wait(lambda: cut.said("sleep refused"), "edge-0 would put it to sleep")
        assert client.unary("Echo", b"again") == b"again"
        assert world.calls("StopInstances") == 0
        cut.wire.heal()
        wait(lambda: cut.said("sleep refused", error="in use at edge-1"), "edge-0 knows who uses it")
        assert world.calls("StopInstances") == 0
        client.close()


@pytest.mark.slow  # with real daemons; tests/daemon/fleet/test_coordinated.py has it without
def test_a_dead_hosts_machine_falls_asleep(world: World) -> None:
    with world.daemon("edge-0", sleep_after="300ms") as left, world.daemon("edge-1") as dead:
        client = dead.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        wait(lambda: left.said("sleep refused", error="in use at edge-1"), "edge-1 is known to use it")
        assert world.calls("StopInstances") == 0
        os.kill(dead.process.pid, signal.SIGKILL)
        wait(world.is_asleep, "nobody is left, and it sleeps")
        assert left.said("a host is gone", host="edge-1/")
        client.close()


def test_an_owner_that_was_paused_repeats_no_stop(world: World) -> None:
    """Its call is under way when it is paused, and the connection breaks when it goes on: another has had the turn since."""
    with world.daemon("edge-0", sleep_after="300ms") as owner, world.daemon("edge-1") as other:
        control = world.cloud.control
        control.hold(action="StopInstances")
        first = owner.client()
        assert first.unary("Echo", b"hello") == b"hello"
        first.close()
        wait(lambda: control.held(action="StopInstances"), "edge-0 puts it to sleep")
        os.kill(owner.process.pid, signal.SIGSTOP)
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        assert other.said("turn taken over", **{"from": "edge-0/"})
        control.reset(action="StopInstances")
        control.release(action="StopInstances")
        os.kill(owner.process.pid, signal.SIGCONT)
        wait(lambda: owner.said("sleep refused"), "edge-0 finds out")
        time.sleep(2.0)
        assert client.unary("Echo", b"again") == b"again"
        assert [call.outcome for call in control.calls(action="StopInstances")] == ["reset"]
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        client.close()
