"""Keepalives and health checks do not count as use of a satellite; anything more does."""

import pytest

from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine.rules import QUIET_WINDOW_S
from bentpipe.daemon.fleet.traffic import QUIET_BYTES_PER_WINDOW, TrafficWatch
from bentpipe.daemon.model import Address


class Pipe:
    def __init__(self) -> None:
        self.moved = 1000
        self.ended: list[bool] = []

    def moved_bytes(self) -> int:
        return self.moved

    def end(self, *, cut: bool) -> None:
        self.ended.append(cut)


def watched(watch: TrafficWatch) -> tuple[Pipe, Lease]:
    pipe = Pipe()
    lease = Lease(Address("192.0.2.1", 1), watch.remove, watch.add)
    lease.measure(pipe)
    return pipe, lease


WINDOW_S = QUIET_WINDOW_S
LOOKS_S = (0.5, 3.0, 5.0, 60.0, 90.0)


def used_windows(moved_bytes: int, every_s: float, looks_s: float) -> int:
    """How many looks find a connection used that moves so much, so often, for a quarter of an hour."""
    watch = TrafficWatch(WINDOW_S)
    pipe, _ = watched(watch)
    found = 0
    next_look = looks_s
    for number in range(int(900 / every_s)):
        while next_look <= every_s * number:
            found += watch.look(next_look)
            next_look += looks_s
        pipe.moved += moved_bytes
    return found


@pytest.mark.parametrize("looks_s", LOOKS_S)
@pytest.mark.parametrize(("moved_bytes", "every_s"), [(34, 5.0), (150, 10.0)], ids=["keepalive", "health check"])
def test_keepalives_and_health_checks_are_quiet_however_the_looks_fall(
    moved_bytes: int, every_s: float, looks_s: float
) -> None:
    assert used_windows(moved_bytes, every_s, looks_s) == 0


@pytest.mark.parametrize("looks_s", LOOKS_S)
def test_a_build_that_says_nothing_is_a_use_however_the_looks_fall(looks_s: float) -> None:
    """214 bytes up and 187 down every 5 s: what a silent RUN was seen to move."""
    assert used_windows(214 + 187, 5.0, looks_s) >= 900 // max(looks_s, WINDOW_S) - 1


def test_a_build_that_says_little_is_a_use() -> None:
    watch = TrafficWatch(WINDOW_S)
    pipe, _ = watched(watch)
    assert not watch.look(WINDOW_S)
    pipe.moved += QUIET_BYTES_PER_WINDOW + 1
    assert watch.look(2 * WINDOW_S)
    assert not watch.look(3 * WINDOW_S)


def test_what_begins_at_the_last_moment_is_seen() -> None:
    watch = TrafficWatch(WINDOW_S)
    pipe, _ = watched(watch)
    watch.look(WINDOW_S)
    pipe.moved += QUIET_BYTES_PER_WINDOW + 1
    assert watch.look(WINDOW_S + 0.5)


def test_one_in_use_is_enough_and_those_released_do_not_count() -> None:
    watch = TrafficWatch(WINDOW_S)
    _, quiet_lease = watched(watch)
    busy, busy_lease = watched(watch)
    busy.moved += 10 * QUIET_BYTES_PER_WINDOW
    assert watch.look(WINDOW_S)
    busy.moved += 10 * QUIET_BYTES_PER_WINDOW
    busy_lease.release()
    busy_lease.release()
    assert not watch.look(2 * WINDOW_S)
    assert len(watch) == 1
    quiet_lease.release()
    assert len(watch) == 0


def test_all_are_ended() -> None:
    watch = TrafficWatch(WINDOW_S)
    pipes = [watched(watch)[0] for _ in range(3)]
    assert watch.end_all(cut=False) == 3
    assert watch.end_all(cut=True) == 3
    assert [pipe.ended for pipe in pipes] == [[False, True]] * 3


def test_a_lease_is_measured_once_and_not_after_its_end() -> None:
    watch = TrafficWatch(WINDOW_S)
    _, lease = watched(watch)
    lease.measure(Pipe())
    assert len(watch) == 1
    late = Lease(Address("192.0.2.1", 1), watch.remove, watch.add)
    late.release()
    late.measure(Pipe())
    assert late.meter is None
    assert len(watch) == 1
