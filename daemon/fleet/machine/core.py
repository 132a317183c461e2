"""The ground that the satellite's machine stands on: its state, the one way to change it, and words to clients. Pure."""

import dataclasses
import math

from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.looking import LookPace, Trouble
from bentpipe.daemon.fleet.machine.messages import Action, WaiterId
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.fleet.machine.setbacks import Setbacks
from bentpipe.daemon.fleet.machine.sleeping import SleepBook
from bentpipe.daemon.fleet.machine.states import TRANSITIONS, UP
from bentpipe.daemon.fleet.machine.waiting import WaitingRoom
from bentpipe.daemon.model import Machine, MachineState, SatelliteState, SleepMode

WAKING = (SatelliteState.CREATING, SatelliteState.STARTING)
IN_REACH = frozenset({SatelliteState.OPERATIONAL, SatelliteState.STOPPING, *WAKING})
"""While it is awake it stays in use, to the other hosts, until this one finds it idle: then it asks to put it to sleep."""


@dataclasses.dataclass(slots=True)
class Wake:
    """A wake under way."""

    began: float
    by: float
    call_at: float
    """When to call start or launch; infinity once it was called, unless that is to be repeated."""
    came_up: bool
    """It was seen up since the wake began."""
    measured: bool
    """Whether it began with a machine asleep, so that what it takes says something about others."""
    settle_by: float = 0.0
    """Until when a start or launch that was accepted may not be seen to work."""
    rounds: int = 0
    """Wake deadlines that have passed."""


@dataclasses.dataclass(slots=True)
class Descent:
    """A sleep under way. `mode` is None if others brought it about."""

    mode: SleepMode | None
    pending: bool = False
    """The stop call is still to be made."""
    cut_at: float = math.inf
    """When quiet connections are cut that do not end by themselves."""
    dropped: bool = False
    """The machine has been seen going down since the call."""
    heed_by: float = math.inf
    """When a machine that still runs is taken as awake."""
    force_at: float = math.inf


def about(kind: type[BentpipeError], words: str, machine: Machine | None) -> BentpipeError:
    """Make an error of our words and what is known of the machine: to the log its reason, to clients its hint."""
    reason, hint = ("", "") if machine is None else (machine.reason, machine.hint)
    return kind(": ".join(filter(None, (words, reason))), peer_hint=": ".join(filter(None, (words, hint))))


class Core:
    """State of one satellite; times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self.state = SatelliteState.UNKNOWN
        self.machine: Machine | None = None
        self.busy = False
        """A provider call is under way."""
        self.leases = 0
        self.wakes = 0
        """Wakes begun for a client, or for upkeep."""
        self._rules = rules
        self._actions: list[Action] = []
        self._metered = 0
        self._room = WaitingRoom(rules.hold_limit_s)
        self._setbacks = Setbacks(rules.retry_after_s, rules.capacity_retry_s)
        self._sleep = SleepBook(rules)
        self._wake = Wake(0, 0, 0, came_up=False, measured=False)
        self._stops = 0
        """Since it was last ready: how often others have stopped it after a start of ours."""
        self._start_trouble = Trouble()
        self._look_trouble = Trouble()
        self._pace = LookPace()
        self._suspected = False
        self._boots_until = 0.0
        self._probe_words = ""
        self._descent = Descent(None)
        self._generation = 0
        self._probing = False
        self._keep_awake = False
        self._renewing = False
        self._draining = False

    def take_over(self, broken: "Core", *, leases: int, metered: int, draining: bool) -> None:
        """Begin where another one of the same satellite has broken, with what is certain beside the leases."""
        self.leases, self._metered = leases, metered
        self.busy, self.wakes = broken.busy, broken.wakes
        self._generation = broken._generation
        self._draining, self._keep_awake = draining, broken._keep_awake

    def no_look_is_under_way(self) -> None:
        """Looks that were asked for have ended with their tasks, and their ends will not be told."""
        self._pace.under_way = False

    @property
    def waiters(self) -> tuple[WaiterId, ...]:
        """Who waits, first come first."""
        return self._room.waiters

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._room)

    def _is(self, *states: MachineState) -> bool:
        return self.machine is not None and self.machine.state in states

    @property
    def _up(self) -> bool:
        return self._is(*UP)

    @property
    def _trouble(self) -> Trouble:
        """What keeps the satellite from being had, as far as calls that failed tell."""
        return self._start_trouble if self._start_trouble.error is not None else self._look_trouble

    def _fail(self, waiter: WaiterId, error: BentpipeError) -> None:
        self._actions.append(msg.Fail(waiter, error))

    def _fail_all(self, error: BentpipeError) -> None:
        for waiter in self._room.empty():
            self._fail(waiter, error)

    def _grant(self, waiter: WaiterId, now: float) -> None:
        if self.machine is None or self.machine.address is None:
            raise AssertionError("operational without an address")
        self.leases += 1
        self._renewing = False
        self._sleep.used(now)
        self._actions.append(msg.Grant(waiter, self.machine.address))

    def _enter_operational(self, cause: str, now: float) -> None:
        self._move(SatelliteState.OPERATIONAL, cause)
        for waiter in self._room.empty():
            self._grant(waiter, now)

    def _end_probe(self) -> None:
        self._probe_words = ""
        if self._probing:
            self._probing = False
            self._actions.append(msg.EndProbe())

    def _move(self, after: SatelliteState, cause: str) -> None:
        if after not in TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state.name} to {after.name}: {cause}")
        self._actions.append(msg.Moved(self.state, after, cause))
        if after not in WAKING:
            self._end_probe()
            self._room.wake_ends()
        self.state = after
