"""The page of the past shows a viewer its own satellites, in sums that add up, and causes to the operator alone."""

import time

import pytest
import trio

from bentpipe.config.prices import PricesSection
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.admin import history
from bentpipe.daemon.admin.history import DAY_US, History
from bentpipe.daemon.admin.past import past_page
from bentpipe.daemon.admin.viewer import EVERYTHING, Viewer
from bentpipe.daemon.api.operator import OperatorAccess
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Interval, LedgerSpan, Stretch
from bentpipe.daemon.model import SatelliteKey, SatelliteState

S = SatelliteState
MINE, THEIRS = SatelliteKey("acme", "mine"), SatelliteKey("other", "theirs")
HOUR_US = 3_600_000_000


def chains(until_us: int) -> list[Interval]:
    """Each satellite slept for twelve hours, was awake for six, failed for the last six."""
    found = []
    for key in (MINE, THEIRS):
        at_us = until_us - DAY_US
        for state, hours in ((S.SLEEP, 12), (S.STARTING, 1), (S.OPERATIONAL, 5), (S.STARTING, 1), (S.FAILED, 5)):
            end_us = at_us + hours * HOUR_US
            found.append(Interval(key, state, at_us, end_us, end_us - at_us, f"why {key}", "ci", is_open=False))
            at_us = end_us
    return found


def read_span(since_us: int, until_us: int) -> LedgerSpan:
    return LedgerSpan(since_us, until_us, (Stretch(since_us, until_us, chains(until_us)),), [], since_us)


def read_intervals(since_us: int, until_us: int) -> list[Interval]:
    return chains(until_us)


class OneOrg(OperatorAccess):
    def may(self, scope: Scope, org: str, satellite: str | None) -> bool:
        return org == "acme"


OPERATOR = Viewer("operator", EVERYTHING, sees_host=True, acts=True)
TENANT = Viewer("ci", OneOrg(()), sees_host=False, acts=True)


async def test_each_viewer_gets_its_own_satellites() -> None:
    prices = PricesSection.model_validate({"currency": "EUR", "awake_hour": 1.0, "always_hour": 0.0})
    facts = await History(read_span, read_intervals, lambda: prices).read("1d")
    everything, own = past_page(facts, OPERATOR), past_page(facts, TENANT)
    assert [row.name for row in everything.rows] == ["acme/mine", "other/theirs"]
    assert [row.name for row in own.rows] == ["acme/mine"]
    assert (everything.everything.awake, own.everything.awake) == ("14.0", "7.0")
    assert (own.everything.saved, own.everything.share, own.everything.money) == ("12.0", "63%", "12.00")
    assert (own.everything.wakes, own.everything.failed) == ("1", "1")
    assert [each.satellite for each in own.failures] == ["acme/mine"]
    assert {each.cause for each in own.failures} == {""}
    assert {each.cause for each in everything.failures} == {"why acme/mine", "why other/theirs"}
    assert (sum(bar.wakes for bar in everything.hours), sum(bar.wakes for bar in own.hours)) == (4, 2)
    assert max(bar.height for bar in own.hours) == 60
    [row] = own.rows
    assert {kind for kind, _ in row.paths} == {"asleep", "waking", "awake", "failed"}
    assert row.words == "acme/mine: awake 7.0 h, asleep 12.0 h, 1 wakes, 1 failed"


async def test_a_reading_is_shared_for_a_while() -> None:
    asked: list[float] = []

    def counted(since_us: int, until_us: int) -> LedgerSpan:
        asked.append(time.monotonic())
        return read_span(since_us, until_us)

    past = History(counted, read_intervals, lambda: None)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(past.read, "7d")
    assert len(asked) == 1
    await past.read("1d")
    assert len(asked) == 2
    assert past_page(await past.read("1d"), OPERATOR).currency == ""


async def test_a_ledger_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "DEADLINE_S", 0.2)
    answered = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hanging(since_us: int, until_us: int) -> LedgerSpan:
        trio.from_thread.run(answered.wait, trio_token=token)
        return read_span(since_us, until_us)

    past = History(hanging, read_intervals, lambda: None)
    for _ in range(2):
        with pytest.raises(StoreError, match="does not answer"):
            await past.read("1d")
    answered.set()
    monkeypatch.setattr(history, "DEADLINE_S", 30.0)
    assert (await past.read("1d")).sums


async def test_a_failing_ledger_is_tried_again() -> None:
    fails = True

    def failing(since_us: int, until_us: int) -> LedgerSpan:
        if fails:
            raise StoreError("malformed")
        return read_span(since_us, until_us)

    past = History(failing, read_intervals, lambda: None)
    with pytest.raises(StoreError, match="malformed"):
        await past.read("1d")
    fails = False
    assert (await past.read("1d")).lines
