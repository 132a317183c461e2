"""A thousand clients for three hundred sleeping satellites, and an account whose API is nearly used up by others.

Counts are judged, times are printed: how long all took, beside what the slowest start needs by itself.
"""

import collections
from pathlib import Path

import pytest
import trio

from beds.machines.emulated_fleet import Bed, Use, section, wait_port
from bentpipe.config.rates import Ec2RatesSection
from bentpipe.daemon.fleet import satellite
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.instance import Timings
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

FLEET = 300
WAITERS = 1_000
SPEED = 5.0
TIMINGS = Timings()
STOLEN_CALLS = 2
"""Starts, and looks, that AWS throttles though we are under our limit: somebody else has used up the account's. After each
the provider pauses, for longer every time."""
DEADLINE_S = 60.0


@pytest.mark.usefixtures("aws_credentials")
async def test_a_storm_wakes_everybody_once_and_stays_under_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = [section(f"n{number}", sleep_after="1h") for number in range(FLEET)]
    with Emulator(ScaledClock(SPEED), TIMINGS, limited=True) as emulator:
        bed = Bed(emulator, tmp_path / "ledger.sqlite", sections)
        bed.add_instances()
        control = bed.control
        monkeypatch.setattr(satellite, "wait_listening", lambda address, tell: wait_port(control, address, tell))
        rates = Ec2RatesSection()
        ec2 = bed.ec2(poll=0.3, sweep=60, rates=rates.model_dump())
        async with trio.open_nursery() as nursery:
            fleet: Fleet = await nursery.start(bed.run_daemon, ec2, None, trio.Event())
            control.clear_calls()
            for action in ("StartInstances", "DescribeInstances"):
                control.fail(action=action, code="RequestLimitExceeded", status=503, times=STOLEN_CALLS)
            began = trio.current_time()
            with trio.fail_after(DEADLINE_S):
                async with trio.open_nursery() as clients:
                    for number in range(WAITERS):
                        use = Use(SatelliteKey("acme", f"n{number % FLEET}"), trio.CancelScope())
                        bed.uses.append(use)
                        clients.start_soon(bed.use, fleet, use, 0.0)
            took_s = trio.current_time() - began
            assert {each.state for each in fleet.satellites} == {SatelliteState.OPERATIONAL}
            nursery.cancel_scope.cancel()
        assert collections.Counter(use.end for use in bed.uses) == {"served": WAITERS}
        assert [control.starts(instance_id=each) for each in control.cloud.instances] == [1] * FLEET
        outcomes = collections.Counter((call.action, call.outcome) for call in control.calls())
        print(
            f"all awake in {took_s:.1f} s; one start needs {TIMINGS.pending_s / SPEED:.1f} s; calls: {dict(outcomes)}"
        )
        assert {outcome for _, outcome in outcomes} == {"ok", "RequestLimitExceeded"}
        for action, rate in (("StartInstances", rates.start), ("DescribeInstances", rates.describe)):
            throttled = outcomes[action, "RequestLimitExceeded"]
            assert throttled == STOLEN_CALLS, "throttled by our own doing"
            assert outcomes[action, "ok"] + throttled <= rate.burst + rate.per_s * took_s
        # However slow this host is: a hundred machines a call, not one each.
        assert outcomes["StartInstances", "ok"] <= FLEET / 10
