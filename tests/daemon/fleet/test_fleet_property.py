"""Whole fleets over the EC2 emulator, by chance: clients that come and go, machines and API that misbehave, others who
interfere, and a daemon that is restarted or dies; the fleet is then rebuilt from provider and store.

Each seed is one history. `calm` histories have nobody else in them: there every start must have been needed, and the
awake budget must hold at every moment.
"""

import itertools
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from beds.machines.emulated_fleet import SPEED, Bed, Use, section, speed_up
from bentpipe.config.model import BudgetSection
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.instance import Timings
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

TIMES = {"sleep_after": 0.15, "min_awake": 0.05, "wake_deadline": 3, "hold_limit": 5, "retry_after": 0.05}
NAMES = [f"n{number}" for number in range(6)]
LAUNCHED = ("n4", "n5")
BUDGET = BudgetSection(max_awake=4)
TIMINGS = Timings(hibernatable_s=0.0, unseen_s=20.0)
QUIET_DEADLINE_S = 30.0
AWAKE = ("pending", "running", "stopping")


class History:
    """One history of one fleet; every choice is `random`'s."""

    def __init__(self, bed: Bed, seed: int, *, calm: bool) -> None:
        self.bed = bed
        self.control = bed.control
        self.random = random.Random(seed)
        self.calm = calm
        self.fleet: Fleet | None = None
        self.most_awake = 0
        self._daemon = trio.CancelScope()
        self._crash = trio.Event()
        self._gone = trio.Event()

    # -- the daemon --------------------------------------------------------------------------------------------------

    async def start_daemon(self, nursery: trio.Nursery) -> None:
        self._daemon, self._crash, self._gone = trio.CancelScope(), trio.Event(), trio.Event()
        scope, gone = self._daemon, self._gone

        async def run(task_status: trio.TaskStatus[Fleet]) -> None:
            with scope:
                ec2 = self.bed.ec2(poll=0.02, sweep=0.05)
                await self.bed.run_daemon(ec2, BUDGET, self._crash, task_status=task_status)
            gone.set()

        self.fleet = await nursery.start(run)

    async def restart_daemon(self, nursery: trio.Nursery) -> None:
        """Connections die with the daemon; half of the times the ledger is left as by kill -9."""
        if self.random.random() < 0.5:
            self._crash.set()
        for use in self.bed.uses:
            use.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        self._daemon.cancel()
        await self._gone.wait()
        await self.start_daemon(nursery)

    # -- what happens ------------------------------------------------------------------------------------------------

    def come(self, nursery: trio.Nursery, count: int) -> None:
        assert self.fleet is not None
        for _ in range(count):
            use = Use(SatelliteKey("acme", self.random.choice(NAMES)), trio.CancelScope())
            self.bed.uses.append(use)
            nursery.start_soon(self.bed.use, self.fleet, use, self.random.choice([0.0, 0.05, 0.3]))

    def leave(self) -> None:
        here = [use for use in self.bed.uses if not use.end]
        for use in self.random.sample(here, k=min(3, len(here))):
            use.scope.cancel()

    def instance(self) -> str | None:
        """One that the API knows."""
        ids = [str(each["instance_id"]) for each in self.control.describe() if each["state"] != "terminated"]
        return self.random.choice(ids) if ids else None

    def misbehave(self) -> None:
        if (chosen := self.instance()) is not None:
            self.control.script(
                instance_id=chosen,
                on_start=self.random.choice(["run", "run", "no-capacity", "no-key"]),
                on_stop=self.random.choice(["stop", "stop", "hang"]),
                on_hibernate=self.random.choice(
                    ["keep", "keep", "refuse", "too-early", "fall-back", "hang", "cold-boot"]
                ),
                new_address=self.random.random() < 0.3,
            )

    def fail(self) -> None:
        action = self.random.choice(["StartInstances", "StopInstances", "DescribeInstances", "RunInstances"])
        match self.random.randrange(4 if self.calm else 5):
            case 0:
                self.control.fail(action=action, code="RequestLimitExceeded", status=503, times=3)
            case 1:
                self.control.fail(action=action, code="InternalError", status=500, times=2)
            case 2:
                self.control.reset(action=action)
            case 3:
                code = self.random.choice(["InsufficientInstanceCapacity", "UnauthorizedOperation"])
                self.control.fail(action=action, code=code, status=403)
            case _:
                self.control.reset(action=action, after=True)

    def interfere(self) -> None:
        if (chosen := self.instance()) is None:
            return
        match self.random.randrange(5):
            case 0 | 1:
                self.control.others_start(instance_id=chosen)
            case 2 | 3:
                self.control.others_stop(instance_id=chosen, hibernate=self.random.random() < 0.5)
            case _:
                self.control.others_terminate(instance_id=chosen)

    def mend(self) -> None:
        """The operator has looked after everything."""
        assert self.fleet is not None
        self.control.clear_faults()
        for each in self.control.describe():
            self.control.script(
                instance_id=str(each["instance_id"]), on_start="run", on_stop="stop", on_hibernate="keep"
            )
        self.fleet.reset()

    async def play(self, nursery: trio.Nursery, for_s: float) -> None:
        steps: list[tuple[int, Callable[[], object]]] = [
            (10, lambda: self.come(nursery, 1)),
            (3, lambda: self.come(nursery, 15)),
            (4, self.leave),
            (3, self.misbehave),
            (2, self.fail),
            (2, self.mend),
        ]
        if not self.calm:
            steps.append((3, self.interfere))
        weights = [weight for weight, _ in steps]
        until = trio.current_time() + for_s
        while trio.current_time() < until:
            if not self.calm and self.random.random() < 0.02:
                await self.restart_daemon(nursery)
            ((_, step),) = self.random.choices(steps, weights)
            step()
            await trio.sleep(self.random.choice([0.0, 0.02, 0.1]))

    async def wait_quiet(self) -> None:
        """Everything is mended and nobody comes any more: all clients end, and all machines go to sleep."""
        self.mend()
        with trio.fail_after(QUIET_DEADLINE_S):
            while not all(use.end for use in self.bed.uses):
                await trio.sleep(0.02)
            while self.awake():
                for each in self.control.describe():
                    # What others have stopped, and what is stuck since, is theirs to cut off.
                    if each["state"] == "stopping" and self.control.instance(str(each["instance_id"])).due is None:
                        self.control.others_stop(instance_id=str(each["instance_id"]), force=True)
                await trio.sleep(0.05)

    # -- what is looked at -------------------------------------------------------------------------------------------

    def awake(self) -> int:
        return sum(each["state"] in AWAKE for each in self.control.describe())

    async def watch(self) -> None:
        while True:
            self.most_awake = max(self.most_awake, self.awake())
            await trio.sleep(0.01)

    def satellite_of(self, instance_id: str) -> SatelliteKey:
        org, _, name = self.control.instance(instance_id).tags["bentpipe:satellite"].partition("/")
        return SatelliteKey(org, name)

    def check_calls(self) -> None:
        """No stop of what was in use. No start of what did not sleep, if nobody else could have started it."""
        for call in self.control.calls():
            if call.outcome != "ok":
                continue
            for instance_id, before, _ in call.changes:
                if call.action == "StopInstances" and before == "running":
                    key = self.satellite_of(instance_id)
                    for use in self.bed.uses:
                        if use.key == key and use.granted_at is not None:
                            released_at = math.inf if use.released_at is None else use.released_at
                            assert not use.granted_at < call.at < released_at, f"{key} was stopped under a client"
                if call.action == "StartInstances" and self.calm:
                    assert before == "stopped", f"a needless start of {instance_id}, which was {before}"

    async def check_ledger(self) -> None:
        """No overlaps, no holes, and at the end nobody watches."""
        intervals = await self.bed.intervals()
        for key in self.bed.keys:
            chain = [each for each in intervals if each.key == key]
            assert chain
            for before, after in itertools.pairwise(chain):
                assert before.to_us == after.from_us, (before, after)
                assert before.elapsed_us >= 0
                assert not before.is_open

    def check_transitions(self) -> None:
        for key in self.bed.keys:
            told = [each for each in self.bed.transitions if each.key == key]
            for before, after in itertools.pairwise(told):
                assert before.after is after.before or after.before.value == "unknown"


@asynccontextmanager
async def history(tmp_path: Path, seed: int, *, calm: bool) -> AsyncIterator[History]:
    sections = [section(name, launch=name in LAUNCHED, **TIMES) for name in NAMES]
    with Emulator(ScaledClock(SPEED), TIMINGS) as emulator:
        bed = Bed(emulator, tmp_path / "ledger.sqlite", sections)
        bed.add_instances()
        yield History(bed, seed, calm=calm)


async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, for_s: float, *, calm: bool) -> None:
    async with history(tmp_path, seed, calm=calm) as played:
        speed_up(monkeypatch, played.control)
        async with trio.open_nursery() as nursery:
            await played.start_daemon(nursery)
            nursery.start_soon(played.watch)
            await played.play(nursery, for_s)
            await played.wait_quiet()
            nursery.cancel_scope.cancel()
        ends = [use.end.partition(":")[0] for use in played.bed.uses]
        print(f"seed {seed}: { ({end: ends.count(end) for end in set(ends)}) }, {len(played.control.calls())} calls")
        assert set(ends) <= {"served", "refused", "cancelled"}
        assert "served" in ends
        if calm:
            assert BUDGET.max_awake is not None
            assert played.most_awake <= BUDGET.max_awake
        played.check_calls()
        played.check_transitions()
        await played.check_ledger()


@pytest.mark.usefixtures("aws_credentials")
@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
@pytest.mark.parametrize("seed", range(2))
async def test_a_fleet_in_any_weather(seed: int, calm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await live(tmp_path, monkeypatch, seed, 3.0, calm=calm)


@pytest.mark.slow
@pytest.mark.usefixtures("aws_credentials")
@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
@pytest.mark.parametrize("seed", range(100, 110))
async def test_a_fleet_in_any_weather_for_long(
    seed: int, calm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live(tmp_path, monkeypatch, seed, 20.0, calm=calm)
