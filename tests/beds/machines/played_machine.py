"""The satellite's machine with a clock that a test moves, and the rules that such tests go by."""

import dataclasses
from typing import Any

from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import Action, Arrived, Input, Seen, Tick, WaiterId
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, SatelliteState, SleepMode
from bentpipe.daemon.providers.ec2.traits import TRAITS

RULES = Rules(
    sleep_mode=SleepMode.HIBERNATE,
    sleep_after_s=100,
    min_awake_s=30,
    wake_deadline_s=60,
    hold_limit_s=90,
    retry_after_s=5,
    max_waiters=4,
    traits=TRAITS,
)
"""Short, so that a test passes a limit soon, and with few waiters."""
LONG_RULES = dataclasses.replace(
    RULES, sleep_after_s=1800, min_awake_s=150, wake_deadline_s=300, hold_limit_s=600, max_waiters=1000
)
"""As an operator has them."""
ADDRESS = Address("10.0.0.1", 8372)


class PlayedMachine:
    """A machine with a clock that a story moves; Ticks come when they are due."""

    def __init__(self, rules: Rules) -> None:
        self.machine = SatelliteMachine(rules)
        self.now = 1000.0
        self.waiters = 0

    @property
    def state(self) -> SatelliteState:
        return self.machine.known.state

    def feed(self, event: Input) -> list[Action]:
        return self.machine.handle(event, self.now)

    def come(self, tell_s: float = float("inf"), since: float | None = None) -> list[Action]:
        """Let a client come, who is told within `tell_s`."""
        self.waiters += 1
        return self.feed(Arrived(WaiterId(self.waiters), since=since, tell_by=self.now + tell_s))

    def see(  # type: ignore[explicit-any]  # fields of Machine
        self, state: MachineState, *, address: Address = ADDRESS, **more: Any
    ) -> list[Action]:
        """Let the provider say that the machine is in that state, and `more` of it."""
        machine = Machine(MachineId("m"), state, address if state is MachineState.RUNNING else None)
        return self.feed(Seen(dataclasses.replace(machine, **more)))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass; returns all that was done meanwhile."""
        until = self.now + seconds
        done: list[Action] = []
        while (deadline := self.machine.known.next_deadline()) is not None and deadline <= until:
            self.now = deadline
            done += self.feed(Tick())
        self.now = until
        return done
