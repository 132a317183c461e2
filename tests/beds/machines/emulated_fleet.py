"""A whole fleet over the EC2 emulator: real boto3, a real ledger, clients that keep their leases; all but the sockets.

The emulator's clock runs `SPEED` times as fast as the fleet's, so that a wake takes a fraction of a second.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import pytest
import trio

from beds.machines.emulated_ec2 import TEMPLATE, ec2_section, tags_of
from bentpipe.config.model import BudgetSection, Ec2Section, SatelliteSection
from bentpipe.daemon.errors import BentpipeError, StoreError
from bentpipe.daemon.fleet import satellite
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine import descent, failures, known, sleeping, waiting
from bentpipe.daemon.fleet.readiness import SILENT, Tell
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.ledger.contract import Interval, Stamp, StampedTransition
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import Address, MachineTraits, SatelliteKey, Transition
from bentpipe.daemon.providers.ec2 import provider as ec2_provider
from bentpipe.daemon.providers.ec2.entry import Ec2Machine
from bentpipe.daemon.providers.ec2.provider import Ec2Provider
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

SPEED = 100.0
LISTEN_POLL_S = 0.005
FAST = {
    failures: (
        "CAPACITY_MOST_S",
        "FAILURE_MOST_S",
        "RETRY_START_S",
        "THROTTLE_FIRST_S",
        "THROTTLE_MOST_S",
    ),
    sleeping: ("SLEEP_RETRY_FIRST_S", "SLEEP_RETRY_MOST_S"),
    known: ("SILENT_LEAST_S",),
    descent: ("CLOSE_QUIET_S",),
    waiting: ("HOLD_FLOOR_S",),
}
"""The loops' fixed times run as fast as the emulator's clock."""
FAST_TRAITS = dataclasses.replace(
    TRAITS,
    appear_grace_s=TRAITS.appear_grace_s / SPEED,
    start_grace_s=TRAITS.start_grace_s / SPEED,
    stop_grace_s=TRAITS.stop_grace_s / SPEED,
    stuck_stopping_s=TRAITS.stuck_stopping_s / SPEED,
    too_early_retry_s=TRAITS.too_early_retry_s / SPEED,
)
CAPACITY_RETRY_S = 180.0


def section(name: str, *, launch: bool = False, **more: object) -> SatelliteSection:
    ec2 = {"launch_template": TEMPLATE} if launch else {}
    own = {"org": "acme", "name": name, "provider": "ec2", "ec2": ec2, "capacity_retry_after": CAPACITY_RETRY_S / SPEED}
    return SatelliteSection.model_validate({**own, **more})


async def wait_port(control: Control, address: Address, tell: Tell) -> None:
    """Stands for the probe: an instance's port listens as soon as it runs, unless it is not to be reached."""
    told = False
    while True:
        with control.cloud.lock:
            control.cloud.settle()
            there = [
                each
                for each in control.cloud.instances.values()
                if each.private_ip == address.host and each.state.label == "running"
            ]
        if any(each.reachable for each in there):
            return
        if there and not told:
            tell(SILENT.format(address.port), True)
            told = True
        await trio.sleep(LISTEN_POLL_S)


def speed_up(monkeypatch: pytest.MonkeyPatch, control: Control, traits: MachineTraits = FAST_TRAITS) -> None:
    """Let the loops run as fast as the emulator, and its instances have ports that listen. Before the fleet is made."""
    monkeypatch.setattr(ec2_provider, "TRAITS", traits)
    for owner, names in FAST.items():
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name) / SPEED)
    monkeypatch.setattr(satellite, "wait_listening", lambda address, tell: wait_port(control, address, tell))


class _MortalLedger(SqliteLedger):
    """Writes nothing more once its daemon has crashed."""

    def __init__(self, path: Path, crash: trio.Event) -> None:
        super().__init__(path)
        self._crash = crash

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        self._live()
        await super().record(transitions)

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        self._live()
        await super().end(at, in_use)

    def _live(self) -> None:
        if self._crash.is_set():
            raise StoreError("the daemon is dead")


@dataclasses.dataclass
class Use:
    """A client: what it wanted, when it had it (by the emulator's clock), and how it ended."""

    key: SatelliteKey
    scope: trio.CancelScope
    granted_at: float | None = None
    released_at: float | None = None
    end: str = ""


class Bed:
    """One daemon's fleet at a time, over one cloud and one ledger file."""

    def __init__(self, emulator: Emulator, ledger: Path, sections: Iterable[SatelliteSection]) -> None:
        self.emulator = emulator
        self.control = emulator.control
        self.sections = list(sections)
        self.keys = [SatelliteKey(each.org, each.name) for each in self.sections]
        self.uses: list[Use] = []
        self.transitions: list[Transition] = []
        self._ledger = ledger

    def add_instances(self) -> None:
        """An instance for each satellite that is not launched."""
        self.control.add_template(name=TEMPLATE)
        for each in self.sections:
            if each.ec2 is not None and each.ec2.launch_template is None:
                self.control.add_instance(tags=tags_of(f"{each.org}/{each.name}"))

    def ec2(self, **more: object) -> Ec2Section:
        return ec2_section(self.emulator.url, **more)

    async def run_daemon(
        self,
        ec2: Ec2Section,
        budget: BudgetSection | None,
        crash: trio.Event,
        *,
        task_status: trio.TaskStatus[Fleet] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a fleet until cancelled. If `crash` is set then, the ledger gets no last words, as by kill -9."""
        provider = Ec2Provider(
            ec2,
            {
                machine_id_of(SatelliteKey(each.org, each.name)): Ec2Machine(f"{each.org}/{each.name}", each.ec2)
                for each in self.sections
                if each.ec2
            },
        )
        recorder = Recorder(_MortalLedger(self._ledger, crash), self.keys)

        def observe(transition: Transition) -> None:
            self.transitions.append(transition)
            recorder.record_nowait(transition)

        context = FleetContext(provider, observe, crowd=Crowd(2000))
        fleet = Fleet(self.sections, context, max_held=1000, budget=budget)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.run_recorder)
                await nursery.start(provider.run)
                await nursery.start(fleet.run)
                task_status.started(fleet)
        finally:
            with trio.CancelScope(shield=True):
                await provider.aclose()

    async def use(self, fleet: Fleet, use: Use, stay_s: float) -> None:
        """Be a client."""
        with use.scope:
            try:
                async with fleet.get(use.key).lease("somebody"):
                    use.granted_at = self.emulator.cloud.clock.now()
                    try:
                        await trio.sleep(stay_s)
                    finally:
                        use.released_at = self.emulator.cloud.clock.now()
                use.end = "served"
            except BentpipeError as exc:
                use.end = f"refused: {exc}"
        use.end = use.end or "cancelled"

    async def intervals(self) -> list[Interval]:
        ledger = SqliteLedger(self._ledger, read_only=True)
        found = await ledger.intervals(0, 1 << 62)
        await ledger.aclose()
        return found
