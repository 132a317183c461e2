"""What each state of a satellite is to a health check, and what a Watch is told of its changes."""

from typing import cast

import h2.connection
import h2.events
import pytest
import trio
import trio.testing

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.edge.health import HealthBoard, HealthService
from bentpipe.daemon.edge.identity import Identities, TlsIdentity
from bentpipe.daemon.fleet.batched_release import WAKES_A_TURN
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.health import ServingStatus

KEY = SatelliteKey("acme", "sat")


class OneSatellite:
    """Stands for the fleet: the board asks it for a satellite's state and for nothing else."""

    def __init__(self, state: SatelliteState) -> None:
        self.shown_state = state

    def get(self, key: SatelliteKey) -> "OneSatellite":
        assert key == KEY
        return self


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (SatelliteState.SLEEP, ServingStatus.SERVING),
        (SatelliteState.STARTING, ServingStatus.SERVING),
        (SatelliteState.OPERATIONAL, ServingStatus.SERVING),
        (SatelliteState.STOPPING, ServingStatus.SERVING),
        (SatelliteState.UPDATING, ServingStatus.SERVING),
        (SatelliteState.CREATING, ServingStatus.NOT_SERVING),
        (SatelliteState.OFFLINE, ServingStatus.NOT_SERVING),
        (SatelliteState.FAILED, ServingStatus.NOT_SERVING),
        (SatelliteState.DESTROYING, ServingStatus.NOT_SERVING),
        (SatelliteState.UNKNOWN, ServingStatus.UNKNOWN),
    ],
)
def test_states(state: SatelliteState, status: ServingStatus) -> None:
    board = HealthBoard(cast(Fleet, OneSatellite(state)))
    assert board.status(KEY) is status
    assert board.status(None) is ServingStatus.SERVING
    board.drain()
    assert board.status(KEY) is ServingStatus.NOT_SERVING


def test_a_watch_gets_the_newest_status_when_its_window_opens() -> None:
    fleet = OneSatellite(SatelliteState.SLEEP)
    board = HealthBoard(cast(Fleet, fleet))
    token = TokenSection(name="t", hash="sha256:" + TOKEN_HASH, grants=("acme/*",))
    ours = Answering()
    service = HealthService(board, Identities(Admission([token]), Certificates([])), ours, TlsIdentity(), None)
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.update_settings({4: 7})
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", "/grpc.health.v1.Health/Watch"),
            ("content-type", "application/grpc"),
            ("satellite_token", "t"),
        ],
    )
    client.send_data(1, b"\0\0\0\0\x0a\x0a\x08acme/sat", end_stream=True)

    def turn() -> list[bytes]:
        for call in ours.receive_data(client.data_to_send(), 0.0):
            assert isinstance(call, AnsweredCall)
            assert service.handle(call) == "Watch SERVING"
        service.publish()
        return [e.data for e in client.receive_data(ours.data_to_send()) if isinstance(e, h2.events.DataReceived)]

    assert turn() == [b"\0\0\0\0\2\x08\1"]
    for state in (SatelliteState.FAILED, SatelliteState.SLEEP, SatelliteState.OFFLINE):
        fleet.shown_state = state
        assert turn() == []
    client.increment_flow_control_window(100, 1)
    assert turn() == [b"\0\0\0\0\2\x08\2"]
    assert service.watching
    service.end(1)
    assert not service.watching


TOKEN_HASH = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8"
"""SHA-256 of "t"."""


class StepsATurn(trio.abc.Instrument):
    """How many steps of tasks the longest turn had."""

    def __init__(self) -> None:
        self.most = self._now = 0

    def after_io_wait(self, timeout: float) -> None:
        self._now = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now += 1
        self.most = max(self.most, self._now)


async def test_a_crowd_hears_news_a_few_at_a_time() -> None:
    """600 connections that watched all heard of the drain in one turn of a quarter of a second."""
    board = HealthBoard(cast(Fleet, OneSatellite(SatelliteState.SLEEP)))
    crowd = 1_000
    heard = 0

    async def hear() -> None:
        nonlocal heard
        await board.wait_change(0)
        heard += 1

    async with trio.open_nursery() as nursery:
        for _ in range(crowd):
            nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        steps = StepsATurn()
        trio.lowlevel.add_instrument(steps)
        board.drain()
    trio.lowlevel.remove_instrument(steps)
    assert heard == crowd
    assert steps.most <= 4 * WAKES_A_TURN


async def test_news_that_came_before_the_wait_are_not_missed(autojump_clock: trio.testing.MockClock) -> None:
    board = HealthBoard(cast(Fleet, OneSatellite(SatelliteState.SLEEP)))
    seen = board.changes
    board.change()
    with trio.fail_after(1):
        await board.wait_change(seen)
    with trio.move_on_after(1) as waited:
        await board.wait_change(board.changes)
    assert waited.cancelled_caught
    board.change()  # nobody waits any more
