"""Lines, hours of wakes and failures of satellites, from intervals as a ledger gives them."""

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.report.timeline import LineRun, LineStyle, failures_of, lines_of, wakes_by_hour

S = SatelliteState
A, B = SatelliteKey("acme", "a"), SatelliteKey("acme", "b")
HOUR_US = 3_600_000_000


def interval(
    key: SatelliteKey, state: SatelliteState, begin_h: float, end_h: float, cause: str = "", who: str = ""
) -> Interval:
    begin_us, end_us = int(begin_h * HOUR_US), int(end_h * HOUR_US)
    return Interval(key, state, begin_us, end_us, end_us - begin_us, cause, who, is_open=False)


CHAINS = [
    interval(A, S.SLEEP, 0, 6),
    interval(A, S.CREATING, 6, 6.5, who="ci"),
    interval(A, S.STARTING, 6.5, 7, who="ci"),
    interval(A, S.OPERATIONAL, 7, 12),
    interval(A, S.SLEEP, 12, 30),
    interval(A, S.STARTING, 30, 30.5, who="ci"),
    interval(A, S.FAILED, 30.5, 40, "no capacity"),
    interval(B, S.STARTING, 1, 2, "found running"),
    interval(B, S.FAILED, 2, 2.5, "gone"),
    interval(B, S.OFFLINE, 2.5, 48),
]


def test_a_line_shows_in_each_column_what_took_most_of_it() -> None:
    lines = lines_of(CHAINS, 0, 48 * HOUR_US, 8)
    assert lines[A] == [
        LineRun(LineStyle.ASLEEP, 0, 1),
        LineRun(LineStyle.AWAKE, 1, 1),
        LineRun(LineStyle.ASLEEP, 2, 3),
        LineRun(LineStyle.FAILED, 5, 2),
    ]
    assert lines[B] == [LineRun(LineStyle.WAKING, 0, 1)]


def test_a_satellite_that_was_not_configured_has_no_line() -> None:
    assert lines_of([interval(A, S.OFFLINE, 0, 5)], 0, 5 * HOUR_US, 5) == {}
    assert lines_of([], 0, HOUR_US, 5) == {}


def test_a_wake_counts_once_in_the_hour_in_which_it_began() -> None:
    hours = wakes_by_hour(CHAINS, 0)
    assert {hour: count for hour, count in enumerate(hours[A]) if count} == {6: 2}
    assert B not in hours, "bentpipe did not wake it"
    assert wakes_by_hour(CHAINS, 7 * HOUR_US)[A][6] == 1


def test_a_wake_that_ends_asleep_has_failed() -> None:
    chain = [
        interval(A, S.STARTING, 0, 1, who="ci"),
        interval(A, S.SLEEP, 1, 2, "its process ended with exit status 1"),
        interval(A, S.STARTING, 2, 3, who="ci"),
        interval(A, S.OPERATIONAL, 3, 4, "ready"),
        interval(A, S.STARTING, 4, 5, who="ci"),
        interval(A, S.UNKNOWN, 5, 6, "the daemon stopped"),
        interval(B, S.SLEEP, 0, 6, "another satellite"),
    ]
    assert [each.cause for each in failures_of(chain, 0)] == ["its process ended with exit status 1"]


def test_failures_are_told_with_their_causes_the_newest_first() -> None:
    assert [(each.key, each.cause) for each in failures_of(CHAINS, 0)] == [(A, "no capacity"), (B, "gone")]
    assert [each.key for each in failures_of(CHAINS, 3 * HOUR_US)] == [A]
