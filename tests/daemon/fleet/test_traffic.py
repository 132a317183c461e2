"""Health checks are no use of a satellite; anything more is."""

from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.traffic import QUIET_BYTES_AT_ONCE, QUIET_BYTES_PER_WINDOW, WINDOW_S, TrafficWatch
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


def test_health_checks_every_five_seconds_are_quiet_however_the_looks_fall() -> None:
    for looks_s in (0.5, 3.0, 5.0, 60.0):
        watch = TrafficWatch()
        pipe, _ = watched(watch)
        next_look = looks_s
        for check in range(200):
            now = 5.0 * check
            while next_look <= now:
                assert not watch.look(next_look)
                next_look += looks_s
            pipe.moved += 1000


def test_a_build_that_says_little_is_a_use() -> None:
    watch = TrafficWatch()
    pipe, _ = watched(watch)
    assert not watch.look(WINDOW_S)
    pipe.moved += QUIET_BYTES_PER_WINDOW + 1
    assert watch.look(2 * WINDOW_S)
    assert not watch.look(3 * WINDOW_S)


def test_what_begins_at_the_last_moment_is_seen() -> None:
    watch = TrafficWatch()
    pipe, _ = watched(watch)
    watch.look(WINDOW_S)
    pipe.moved += QUIET_BYTES_AT_ONCE + 1
    assert watch.look(WINDOW_S + 0.5)


def test_one_in_use_is_enough_and_those_released_do_not_count() -> None:
    watch = TrafficWatch()
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
    watch = TrafficWatch()
    pipes = [watched(watch)[0] for _ in range(3)]
    assert watch.end_all(cut=False) == 3
    assert watch.end_all(cut=True) == 3
    assert [pipe.ended for pipe in pipes] == [[False, True]] * 3


def test_a_lease_is_measured_once_and_not_after_its_end() -> None:
    watch = TrafficWatch()
    _, lease = watched(watch)
    lease.measure(Pipe())
    assert len(watch) == 1
    late = Lease(Address("192.0.2.1", 1), watch.remove, watch.add)
    late.release()
    late.measure(Pipe())
    assert late.meter is None
    assert len(watch) == 1
