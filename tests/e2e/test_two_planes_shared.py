"""Two hosts share a fleet, and the connections of one of them outlive its control plane."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.shared_world import EXPIRY, PATIENCE_S, Daemon, World, shared_world, wait
from beds.ports import free_port


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with shared_world(tmp_path, monkeypatch) as world:
        yield world


@pytest.mark.slow  # with real daemons and moto; the contract of coordination has it without
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_no_other_host_stops_a_machine_under_a_splice(world: World, number: signal.Signals) -> None:
    """The control plane is away for longer than a host that is silent counts as alive."""
    port = free_port()
    with world.daemon("other", sleep_after="300ms") as other:
        with world.daemon("mine", sleep_after="300ms", port=port) as mine:
            client = mine.client()
            assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
            refused = refusals(other)
            wait(lambda: refusals(other) > refused, "the other host would put it to sleep")
            os.kill(mine.process.pid, number)
            mine.process.wait(PATIENCE_S)
        until = time.monotonic() + 2.5 * float(EXPIRY.removesuffix("s"))
        while time.monotonic() < until:
            assert client.unary("Echo", b"nobody decides here now") == b"nobody decides here now"
            assert world.calls("StopInstances") == 0
            time.sleep(0.1)
        refused = refusals(other)
        wait(lambda: refusals(other) > refused, "it tries still")
        with world.daemon("mine", sleep_after="300ms", port=port) as successor:
            wait(lambda: successor.said("serving"), "it serves")
            before = {each for each in world.row().entered if each.startswith("mine/")}
            assert client.unary("Echo", b"adopted") == b"adopted"
            refused = refusals(other)
            wait(lambda: refusals(other) > refused, "it is used still")
            assert before, "the successor has entered before it served"
            assert world.calls("StopInstances") == 0
            client.close()
            wait(world.is_asleep, "what its predecessor had entered was given back")


def refusals(daemon: Daemon) -> int:
    """How often a sleep was refused because the first host uses the satellite."""
    return sum("in use at mine" in str(record.get("error")) for record in daemon.records())
