"""Hours to be awake: days, nights, time zones, and the two nights a year on which clocks are changed."""

import datetime
import math
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bentpipe.config.model import KeepAwakeSection
from bentpipe.daemon.fleet.schedule import is_kept_awake, next_change

VIENNA = ZoneInfo("Europe/Vienna")
HOUR_S = 3600.0


def hours(hours: str, days: str = "mon-sun", zone: str = "Europe/Vienna") -> KeepAwakeSection:
    return KeepAwakeSection.model_validate({"days": days, "hours": hours, "zone": zone})


def at(text: str, zone: ZoneInfo = VIENNA, fold: int = 0) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def spans(sections: list[KeepAwakeSection], begin: float, end: float) -> list[tuple[str, float]]:
    """When each span of hours begins on the wall, and how many hours it lasts."""
    found = []
    moment = begin
    while (moment := next_change(sections, moment)) < end:
        until = next_change(sections, moment)
        if is_kept_awake(sections, moment):
            local = datetime.datetime.fromtimestamp(moment, VIENNA)
            found.append((local.strftime("%a %H:%M"), (until - moment) / HOUR_S))
    return found


def test_office_hours() -> None:
    week = spans([hours("08:00-18:00", "mon-fri")], at("2026-06-01T00:00"), at("2026-06-08T00:00"))
    assert week == [(f"{day} 08:00", 10.0) for day in ("Mon", "Tue", "Wed", "Thu", "Fri")]


def test_the_end_is_not_in_it_and_the_beginning_is() -> None:
    office = [hours("08:00-18:00", "mon-fri")]
    assert not is_kept_awake(office, at("2026-06-01T08:00") - 0.001)
    assert is_kept_awake(office, at("2026-06-01T08:00"))
    assert not is_kept_awake(office, at("2026-06-01T18:00"))


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    nights = [hours("22:00-06:00", "fri")]
    assert spans(nights, at("2026-06-01T00:00"), at("2026-06-08T00:00")) == [("Fri 22:00", 8.0)]
    assert is_kept_awake(nights, at("2026-06-06T05:59"))
    assert not is_kept_awake(nights, at("2026-06-05T05:59"))


def test_windows_that_touch_or_overlap_are_one() -> None:
    both = [hours("08:00-12:00", "mon"), hours("11:00-24:00", "mon"), hours("00:00-02:00", "tue")]
    assert spans(both, at("2026-06-01T00:00"), at("2026-06-08T00:00")) == [("Mon 08:00", 18.0)]


def test_always_and_never_do_not_change() -> None:
    assert next_change([hours("00:00-24:00")], at("2026-06-01T12:00")) == math.inf
    assert is_kept_awake([hours("08:00-08:00")], at("2026-06-01T12:00"))
    assert next_change([], 0) == math.inf
    assert not is_kept_awake([], 0)


@pytest.mark.parametrize(
    ("window", "night", "lasts_h"),
    [
        ("08:00-18:00", "2026-03-29", 10.0),  # after the change, as every day
        ("01:00-04:00", "2026-03-29", 2.0),  # an hour is left out
        ("01:00-04:00", "2026-10-25", 4.0),  # an hour comes twice
        ("02:15-02:45", "2026-10-25", 1.5),  # awake in both, and between
        ("22:00-06:00", "2026-03-28", 7.0),
        ("22:00-06:00", "2026-10-24", 9.0),
        ("00:00-24:00", "2026-03-29", 23.0),
    ],
)
def test_over_changes_of_the_clock(window: str, night: str, lasts_h: float) -> None:
    day = datetime.date.fromisoformat(night).strftime("%a").lower()
    begin = at(f"{night}T00:00") - 1
    ((_, lasted_h),) = spans([hours(window, day)], begin, begin + 26 * HOUR_S)
    assert lasted_h == lasts_h


def test_a_time_that_the_clock_leaves_out_still_makes_a_window() -> None:
    ((begins, lasted_h),) = spans([hours("02:15-02:45", "sun")], at("2026-03-29T00:00"), at("2026-03-30T00:00"))
    assert begins == "Sun 01:15"
    assert lasted_h == 1.5


@given(
    st.floats(at("2026-01-01T00:00"), at("2027-12-31T00:00")),
    st.sampled_from(["08:00-18:00", "22:00-06:00", "02:15-02:45", "00:00-24:00"]),
    st.sampled_from(["mon-fri", "sat,sun", "sun", "mon-sun"]),
    st.sampled_from(["Europe/Vienna", "America/New_York", "UTC", "Australia/Lord_Howe", "Pacific/Apia"]),
)
def test_nothing_changes_before_the_next_change(now: float, window: str, days: str, zone: str) -> None:
    sections = [hours(window, days, zone)]
    kept = is_kept_awake(sections, now)
    change = next_change(sections, now)
    assert change > now
    if change != math.inf:
        assert is_kept_awake(sections, change) is not kept
        latest = max(now, change - 1e-5)  # dates have microseconds: what is nearer may be rounded to the change
        for share in (0.1, 0.5, 0.999999):
            assert is_kept_awake(sections, min(now + share * (change - now), latest)) is kept
