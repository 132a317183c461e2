"""The moves of a satellite's state machine: the only place that changes its state, and that answers its waiters.

`SatelliteMachine` decides by these steps. They are apart because every part of it needs them.
"""

from bentpipe.daemon.errors import BentpipeError, LimitReached
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.known import Known
from bentpipe.daemon.fleet.machine.messages import Action, WaiterId
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.fleet.machine.states import TRANSITIONS, WAKING
from bentpipe.daemon.model import SatelliteState

S = SatelliteState


class Moves:
    """What is known of one satellite, and the actions of the step under way. Times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self.known = Known(rules)
        """Others may read it. Only this class and `SatelliteMachine` change it."""
        self._actions: list[Action] = []

    def _grant(self, waiter: WaiterId, now: float) -> None:
        known = self.known
        if known.machine is None or known.machine.address is None:
            raise AssertionError("operational without an address")
        known.leases += 1
        known.renewing = False
        known.sleep.used(now)
        self._actions.append(msg.GrantLease(waiter, known.machine.address))

    def _fail(self, waiter: WaiterId, error: BentpipeError) -> None:
        self._actions.append(msg.Fail(waiter, error))

    def _fail_all(self, error: BentpipeError) -> None:
        for waiter in self.known.queue.empty():
            self._fail(waiter, error)

    def _expire(self, now: float) -> None:
        known = self.known
        if known.reason_is_known:
            for waiter in known.queue.untold(now):
                self._fail(waiter, known.troubles.last_reason("the satellite is not ready"))
        queued = known.wants_place(now)
        for waiter, waited_s in known.queue.expired(now):
            if queued:
                words = f"in {waited_s:.0f} s no place became free among the satellites that may be awake at once"
                self._fail(waiter, LimitReached(words))
            else:
                self._fail(waiter, known.not_ready(waited_s))

    def _enter_operational(self, cause: str, now: float) -> None:
        self._move(S.OPERATIONAL, cause)
        for waiter in self.known.queue.empty():
            self._grant(waiter, now)

    def _end_probe(self) -> None:
        self.known.probe_words = ""
        self.known.silent_since = None
        if self.known.probing:
            self.known.probing = False
            self._actions.append(msg.EndProbe())

    def _move(self, after: SatelliteState, cause: str) -> None:
        if after not in TRANSITIONS[self.known.state]:
            raise AssertionError(f"{self.known.state.name} to {after.name}: {cause}")
        self._actions.append(msg.Moved(self.known.state, after, cause))
        if after not in WAKING:
            self._end_probe()
            self.known.queue.wake_ends()
        if after is not S.OPERATIONAL:
            self.known.builds.forget()
        self.known.state = after
