"""EC2's oddities, each by itself, from a client's lease to the emulator's API and back."""

import contextlib
import dataclasses
import datetime
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from beds.machines.emulated_fleet import FAST_TRAITS, SPEED, Bed, section, speed_up
from bentpipe.daemon.errors import BentpipeError, SatelliteUnusable, WakeFailed
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.messages import SleepProblem, SleepReason
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import MachineState, MachineTraits, SatelliteKey, SatelliteState
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.instance import Timings
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

KEY = SatelliteKey("acme", "a")
TIMES = {"sleep_after": 0.1, "min_awake": 0.0, "wake_deadline": 5, "hold_limit": 10, "retry_after": 0.1}
DEADLINE_S = 20.0

pytestmark = pytest.mark.usefixtures("aws_credentials")


class Stage:
    """One satellite, its fleet, and the hand behind the cloud."""

    def __init__(self, bed: Bed, fleet: Fleet) -> None:
        self.bed = bed
        self.control = bed.control
        self.satellite: Satellite = fleet.get(KEY)

    @property
    def instance_id(self) -> str:
        (found,) = (str(each["instance_id"]) for each in self.control.describe() if each["state"] != "terminated")
        return found

    async def use(self) -> None:
        with trio.fail_after(DEADLINE_S):
            async with self.satellite.lease():
                assert self.control.state(instance_id=self.instance_id) == "running"

    async def refused(self) -> BentpipeError:
        with trio.fail_after(DEADLINE_S), pytest.raises(BentpipeError) as caught:
            async with self.satellite.lease():
                raise AssertionError("unreachable")
        return caught.value

    async def reach(self, state: SatelliteState) -> None:
        with trio.fail_after(DEADLINE_S):
            while self.satellite.state is not state:
                await trio.sleep(0.01)

    def calls(self, action: str) -> list[str]:
        return [call.outcome for call in self.control.calls(action=action)]


@contextlib.asynccontextmanager
async def staged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    timings: Timings,
    *,
    launch: bool = False,
    before: Callable[[Bed], None] = lambda bed: None,
    traits: MachineTraits = FAST_TRAITS,
) -> AsyncIterator[Stage]:
    with Emulator(ScaledClock(SPEED), timings) as emulator:
        bed = Bed(emulator, tmp_path / "ledger.sqlite", [section(KEY.name, launch=launch, **TIMES)])
        bed.add_instances()
        before(bed)
        speed_up(monkeypatch, bed.control, traits)
        async with trio.open_nursery() as nursery:
            fleet = await nursery.start(bed.run_daemon, bed.ec2(), None, trio.Event())
            yield Stage(bed, fleet)
            nursery.cancel_scope.cancel()


SOON = Timings(hibernatable_s=0.0)


async def test_a_missing_kms_grant_is_failed_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        stage.control.script(instance_id=stage.instance_id, on_start="no-key")
        error = await stage.refused()
        assert isinstance(error, SatelliteUnusable)
        assert "Client.InternalError" in str(error)
        assert isinstance(await stage.refused(), SatelliteUnusable)
        assert stage.calls("StartInstances") == ["ok"]
        assert stage.satellite.state is SatelliteState.FAILED
        stage.control.script(instance_id=stage.instance_id, on_start="run")
        stage.satellite.reset()
        await stage.use()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_no_capacity_is_remembered_and_passes(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        if asynchronous:
            stage.control.script(instance_id=stage.instance_id, on_start="no-capacity")
        else:
            stage.control.fail(action="StartInstances", code="InsufficientInstanceCapacity")
        error = await stage.refused()
        assert "InsufficientInstanceCapacity" in str(error)
        assert "the next attempt is possible in" in error.peer_hint
        assert type(await stage.refused()) is type(error)
        assert len(stage.calls("StartInstances")) == 1
        stage.control.script(instance_id=stage.instance_id, on_start="run")
        await trio.sleep(180 / SPEED)
        await stage.use()


async def test_a_client_that_comes_while_it_hibernates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        await stage.use()
        with trio.fail_after(DEADLINE_S):
            # Not the satellite's STOPPING: a client that comes before the call has been sent takes it back.
            while not stage.calls("StopInstances"):
                await trio.sleep(0.01)
        await stage.use()
        assert stage.control.starts(instance_id=stage.instance_id) == 2
        assert "IncorrectInstanceState" not in stage.calls("StartInstances")


async def test_too_early_to_hibernate_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        stage.control.script(instance_id=stage.instance_id, on_hibernate="too-early")
        await stage.use()
        with trio.fail_after(DEADLINE_S):
            while len(stage.calls("StopInstances")) < 2:
                await trio.sleep(0.01)
        await stage.reach(SatelliteState.OPERATIONAL)
        stage.control.script(instance_id=stage.instance_id, on_hibernate="keep")
        await stage.reach(SatelliteState.SLEEP)
        assert stage.satellite._machine.known.machine is not None
        assert stage.satellite._machine.known.machine.state is MachineState.HIBERNATED
        *early, last = stage.calls("StopInstances")
        assert last == "ok"
        assert "ok" not in early
        assert not stage.satellite.sleep_problems


@pytest.mark.parametrize(
    ("habit", "problem"),
    [("refuse", SleepProblem.HIBERNATE_REFUSED), ("fall-back", SleepProblem.FELL_BACK), ("hang", SleepProblem.FORCED)],
)
async def test_hibernations_that_fail(
    habit: str, problem: SleepProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traits = dataclasses.replace(FAST_TRAITS, stuck_stopping_s=1.0)
    async with staged(tmp_path, monkeypatch, SOON, traits=traits) as stage:
        stage.control.script(instance_id=stage.instance_id, on_hibernate=habit)
        await stage.use()
        await stage.reach(SatelliteState.SLEEP)
        assert stage.satellite.sleep_problems[problem] == 1
        assert stage.control.state(instance_id=stage.instance_id) == "stopped"
        await stage.use()


async def test_a_resume_that_cannot_be_reached_is_stopped_and_started_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        stage.control.script(instance_id=stage.instance_id, on_hibernate="unreachable")
        await stage.use()
        await stage.reach(SatelliteState.SLEEP)
        before = len(stage.bed.transitions)
        await stage.use()
        assert stage.satellite.sleep_problems[SleepProblem.UNREACHABLE_RESUME] == 1
        assert stage.control.starts(instance_id=stage.instance_id) == 3
        since = stage.bed.transitions[before:]
        assert [each.after.value for each in since[:4]] == ["starting", "stopping", "sleep", "starting"]
        assert since[1].cause == SleepReason.UNREACHABLE.value
        await stage.reach(SatelliteState.SLEEP)
    (found,) = [each for each in await stage.bed.intervals() if each.cause == SleepReason.UNREACHABLE.value]
    assert found.state is SatelliteState.STOPPING


async def test_a_launched_machine_that_ec2_does_not_know_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, Timings(hibernatable_s=0.0, unseen_s=30.0), launch=True) as stage:
        await stage.use()
        assert stage.calls("RunInstances") == ["ok"]
        states = [each.after for each in stage.bed.transitions]
        assert states[:3] == [SatelliteState.SLEEP, SatelliteState.CREATING, SatelliteState.OPERATIONAL]


async def test_terminated_by_others_it_is_launched_anew_by_another_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, SOON, launch=True) as stage:
        await stage.use()
        stage.control.others_terminate(instance_id=stage.instance_id)
        await stage.reach(SatelliteState.SLEEP)
        with trio.fail_after(DEADLINE_S):
            while stage.control.describe()[0]["state"] != "terminated":
                await trio.sleep(0.01)
        await stage.use()
        tokens = {call.client_token for call in stage.control.calls(action="RunInstances") if call.outcome == "ok"}
        assert len(tokens) == 2


async def test_a_changed_address_is_the_one_that_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        hosts = []
        for _ in range(2):
            with trio.fail_after(DEADLINE_S):
                async with stage.satellite.lease() as lease:
                    hosts.append(lease.address.host)
            await stage.reach(SatelliteState.SLEEP)
            stage.control.script(instance_id=stage.instance_id, new_address=True)
        assert len(set(hosts)) == 2


async def test_stopped_by_others_under_a_client_it_is_woken_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        async with stage.satellite.lease():
            stage.control.others_stop(instance_id=stage.instance_id)
            await stage.reach(SatelliteState.STOPPING)
            await stage.use()
        assert stage.calls("StopInstances") == []


async def test_a_start_that_is_throttled_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        stage.control.fail(action="StartInstances", code="RequestLimitExceeded", status=503, times=2)
        await stage.use()
        assert stage.calls("StartInstances") == ["RequestLimitExceeded"] * 2 + ["ok"]


async def test_a_start_whose_answer_is_lost_is_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(tmp_path, monkeypatch, SOON) as stage:
        stage.control.reset(action="StartInstances", after=True)
        await stage.use()
        assert stage.control.starts(instance_id=stage.instance_id) == 1


async def test_hibernated_for_fifty_days_it_is_woken_and_stopped_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hibernated_long_ago(bed: Bed) -> None:
        control = bed.control
        (instance_id,) = control.cloud.instances
        for act in (
            control.others_start,
            lambda *, instance_id: control.others_stop(instance_id=instance_id, hibernate=True),
        ):
            act(instance_id=instance_id)
            while control.instance(instance_id).due is not None:
                control.advance_to_next()
        asleep_since = datetime.datetime.fromtimestamp(control.cloud.clock.now(), datetime.UTC) - datetime.timedelta(
            days=51
        )
        control.instance(instance_id).transition_reason = f"User initiated ({asleep_since:%Y-%m-%d %H:%M:%S} GMT)"

    async with staged(tmp_path, monkeypatch, SOON, before=hibernated_long_ago) as stage:
        with trio.fail_after(DEADLINE_S):
            while stage.calls("StopInstances") != ["ok"]:
                await trio.sleep(0.01)
        await stage.reach(SatelliteState.SLEEP)
        assert stage.satellite._machine.known.machine is not None
        assert stage.satellite._machine.known.machine.state is MachineState.STOPPED
        assert [each.cause for each in stage.bed.transitions][1:3] == ["hibernated for too long", "ready"]


async def test_pending_to_stopped_by_a_user_is_a_wake_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, Timings(hibernatable_s=0.0, pending_s=100.0)) as stage:

        async def interfere() -> None:
            while stage.control.state(instance_id=stage.instance_id) != "pending":
                await trio.sleep(0.005)
            stage.control.others_stop(instance_id=stage.instance_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(interfere)
            with contextlib.suppress(WakeFailed):
                await stage.use()
        await stage.use()
