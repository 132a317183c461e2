"""What a real daemon leaves in its ledger: at a good end, after kill -9, and when there is no writing it."""

import itertools
import os
import signal
from pathlib import Path

import trio

from beds.peers.clients import GrpcioClient
from bentpipe.daemon.ledger.contract import ENDED_BADLY, STOPPED, Interval
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteState, WakePhase
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

S = SatelliteState
SATELLITE = DemoSatellite("builder")


def call(edge: EdgeHost) -> None:
    metadata = (("satellite_name", "builder"), ("satellite_org", ORG), ("satellite_token", edge.token))
    client = GrpcioClient(edge.port, edge.ca_pem, metadata)
    assert client.unary("Echo", b"hello") == b"hello"
    client.close()


async def read(path: Path) -> list[Interval]:
    ledger = SqliteLedger(path, read_only=True)
    found = await ledger.intervals(0, 1 << 60)
    await ledger.aclose()
    return found


async def wait_last(path: Path, state: SatelliteState) -> None:
    with trio.fail_after(20):
        while (await read(path))[-1].state is not state:
            pass


async def test_a_wake_is_in_the_books_and_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with EdgeHost([SATELLITE], sleep_after_s=600, ledger=path) as edge:
        call(edge)
        assert edge.stop() == 0
    found = await read(path)
    assert [i.state for i in found] == [S.UNKNOWN, S.SLEEP, S.STARTING, S.OPERATIONAL, S.UNKNOWN]
    assert found[-1].cause == STOPPED
    waking = found[2]
    assert [phase for phase, _ in waking.facts.phases] == list(WakePhase)
    assert sum(seconds for _, seconds in waking.facts.phases) <= waking.elapsed_us / 1e6 + 0.1
    assert (waking.facts.waits.clients, waking.facts.start_attempts) == (1, 1)
    assert 0 < waking.facts.waits.longest_s <= waking.elapsed_us / 1e6 + 0.1
    with EdgeHost([SATELLITE], sleep_after_s=600, ledger=path) as edge:
        call(edge)
        await wait_last(path, S.OPERATIONAL)
        os.kill(edge.pid, signal.SIGKILL)
        assert edge.wait() == -signal.SIGKILL
    with EdgeHost([SATELLITE], sleep_after_s=600, ledger=path) as edge:
        edge.wait_state("builder", S.SLEEP, 20)
        await wait_last(path, S.SLEEP)
    found = await read(path)
    assert [i.state for i in found[5:]] == [S.SLEEP, S.STARTING, S.OPERATIONAL, S.UNKNOWN, S.SLEEP, S.UNKNOWN]
    assert found[8].cause == ENDED_BADLY
    assert all(before.to_us == after.from_us for before, after in itertools.pairwise(found))


def test_a_ledger_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with EdgeHost([SATELLITE], sleep_after_s=600, ledger=tmp_path / "file" / "ledger.sqlite") as edge:
        call(edge)
        edge.wait_message("ledger fails", 10)
        assert edge.stop() == 0
