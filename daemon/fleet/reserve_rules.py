"""What becomes of a machine of the reserve: pure decisions over its row and the newest look at the cloud.

            launched, warm, laid down           taken for a satellite            operational with it
    FILLING ─────────────────────────▶ READY ───────────────────────▶ TAKEN ───────────────────────▶ (no row)
       │          ◀───── started by others │                             │ its satellite is gone,
       ▼                                   ▼ old, or another digest      ▼ or it does not come up
    DOOMED ──────────────────────────────────────────────────────────── destroyed ▶ (no row, or the next machine)

The stored state says what the machine is for, and the look says what it does. So a daemon that dies between any two steps
leaves nothing that the next look does not tell. `now` and all times are in seconds of the wall clock.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from bentpipe.daemon.model import MachineState, SatelliteKey, SleepMode
from bentpipe.daemon.providers.reserve import SpareMachine
from bentpipe.daemon.registry.reserve import SpareState, StoredSpare

ASLEEP = (MachineState.STOPPED, MachineState.HIBERNATED)
UP = (MachineState.PENDING, MachineState.RUNNING)

UNSEEN_S = 120.0
"""A machine that was launched may not be shown for so long. After that the launch is repeated, or the machine is lost."""
WARM_MOST_S = 900.0
"""A machine that is not asleep so long after its start is given up: something is broken, and it costs money."""
UNFINISHED_S = 150.0
"""A machine that was taken and has not got its satellite's tag after this time is destroyed: the host that gave it away has
died, and no client has asked for the satellite again."""
SETTLED_S = 3600.0
"""A machine that has been a satellite's for so long is its own matter, whether it was operational with it or not."""
ORPHAN_S = 60.0
"""A machine with the reserve's tag that no row knows is destroyed after this time."""
FAILURE_FIRST_S, FAILURE_MOST_S = 60.0, 3600.0
"""Before the next launch for a place whose launch was refused or whose machine has died, doubling. Tenants' launches have
the better claim on what capacity there is."""


class ReserveStep(enum.Enum):
    """What to do with a machine, or with its row."""

    NOTHING = enum.auto()
    LAUNCH = enum.auto()
    LAY_DOWN = enum.auto()
    DESTROY = enum.auto()
    RELEASE = enum.auto()
    """It is a satellite's: take the reserve's tag away, and delete the row."""
    STORE = enum.auto()
    """Store the row as `Verdict.row` says."""
    FORGET = enum.auto()
    """Delete the row: its place is free."""
    RENEW = enum.auto()
    """The place gets another machine, once the row's time has come."""
    DESTROY_TAKEN = enum.auto()
    """Destroy it, unless it is its taker's by now: that is asked again in that satellite's turn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The next step, and why."""

    step: ReserveStep
    reason: str = ""
    row: StoredSpare | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a place of the configuration wants."""

    digest: str
    life_s: float
    least_awake_s: float
    """A machine that has just launched cannot hibernate, and its own preparations take time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What is known beside the row and the look."""

    now: float
    is_warm: bool = True
    """Whether the machine answers, as far as that can be known."""
    up_s: float = 0.0
    """For how long this host has seen it up. By the cloud's clock it may be up for longer."""
    missing_s: float = 0.0
    """For how long looks have not shown the machine of the row."""
    may_replace: bool = True
    """Whether a machine may be destroyed because the configuration has changed: one after the other."""
    generations: Mapping[SatelliteKey, int] = dataclasses.field(default_factory=dict)
    """The newest generation of each satellite that exists."""
    settled: frozenset[SatelliteKey] = frozenset()
    """Satellites that are operational."""


NOTHING = Verdict(ReserveStep.NOTHING)


def failed(row: StoredSpare, reason: str, now: float) -> StoredSpare:
    """The next version of a row whose machine is given up, with the time until the place gets another one."""
    wait_s = min(FAILURE_FIRST_S * 2 ** min(row.failures, 30), FAILURE_MOST_S)
    doomed = row.changed(SpareState.DOOMED, reason)
    return dataclasses.replace(doomed, failures=row.failures + 1, again_us=int((now + wait_s) * 1e6))


def refused(row: StoredSpare, reason: str, now: float) -> StoredSpare:
    """The next version of a row whose launch has made no machine."""
    return dataclasses.replace(failed(row, reason, now), state=SpareState.FILLING)


def successor(row: StoredSpare, spare: str, now: float, digest: str) -> StoredSpare:
    """The first row of the next machine in a place, which waits as long as the one before was told to."""
    return StoredSpare(
        *(row.place, spare, 1, SpareState.FILLING, digest, int(now * 1e6)),
        failures=row.failures,
        again_us=row.again_us,
        reason=row.reason,
    )


def decide(row: StoredSpare, seen: SpareMachine | None, wanted: Wanted | None, facts: Facts) -> Verdict:
    """The next step for one machine. `seen` is None if no look shows it, `wanted` if its place is not wanted any more."""
    if seen is not None and seen.state is MachineState.TERMINATED:
        return _gone(row, seen, wanted, facts)
    match row.state:
        case SpareState.FILLING:
            return _fill(row, seen, wanted, facts)
        case SpareState.READY:
            return _keep(row, seen, wanted, facts)
        case SpareState.TAKEN:
            return _follow_taken(row, seen, facts)
        case SpareState.DOOMED:
            return _destroy(row, seen, wanted, facts)


def _doom(row: StoredSpare, reason: str) -> Verdict:
    return Verdict(ReserveStep.STORE, reason, row.changed(SpareState.DOOMED, reason))


def _fail(row: StoredSpare, reason: str, facts: Facts) -> Verdict:
    return Verdict(ReserveStep.STORE, reason, failed(row, reason, facts.now))


def _fill(row: StoredSpare, seen: SpareMachine | None, wanted: Wanted | None, facts: Facts) -> Verdict:
    if wanted is None:
        return _doom(row, "it is not wanted any more")
    if seen is None:
        if wanted.digest != row.digest:
            return _doom(row, "the configuration has changed")
        if row.instance:
            gone = facts.missing_s >= UNSEEN_S
            return _fail(row, f"{row.instance} is gone", facts) if gone else NOTHING
        return Verdict(ReserveStep.LAUNCH) if facts.now >= row.again_us / 1e6 else NOTHING
    if seen.satellite:
        return Verdict(ReserveStep.RELEASE, f"others have given it the tag of {seen.satellite}")
    if seen.instance != row.instance:
        stored = dataclasses.replace(row.changed(SpareState.FILLING), instance=seen.instance)
        return Verdict(ReserveStep.STORE, "it was launched", stored)
    if seen.state in ASLEEP:
        if seen.fault is not None:
            return _fail(row, f"it did not come up: {seen.reason}", facts)
        ready = dataclasses.replace(row.changed(SpareState.READY), failures=0, again_us=0)
        return Verdict(ReserveStep.STORE, "it is ready", ready)
    if facts.up_s >= WARM_MOST_S:
        return _fail(row, f"it is {seen.state.value} for more than {WARM_MOST_S:g} s", facts)
    if seen.state is not MachineState.RUNNING or not facts.is_warm:
        return NOTHING
    up_s = max(facts.up_s, facts.now - seen.up_since)
    return Verdict(ReserveStep.LAY_DOWN) if up_s >= wanted.least_awake_s else NOTHING


def _keep(row: StoredSpare, seen: SpareMachine | None, wanted: Wanted | None, facts: Facts) -> Verdict:
    if wanted is None:
        return _doom(row, "it is not wanted any more")
    if seen is None:
        gone = facts.missing_s >= UNSEEN_S
        return _fail(row, f"{row.instance} is gone", facts) if gone else NOTHING
    if seen.satellite:
        return Verdict(ReserveStep.RELEASE, f"others have given it the tag of {seen.satellite}")
    if seen.state in UP:
        return Verdict(
            ReserveStep.STORE, "others have started it", row.changed(SpareState.FILLING, "others have started it")
        )
    if facts.may_replace and wanted.digest != row.digest:
        return _doom(row, "the configuration has changed")
    if facts.may_replace and facts.now - row.created_us / 1e6 >= wanted.life_s:
        return _doom(row, "it is older than reserve_life")
    return NOTHING


def _follow_taken(row: StoredSpare, seen: SpareMachine | None, facts: Facts) -> Verdict:
    taker = row.taker
    if taker is None:
        return _doom(row, "nobody has taken it")
    if seen is None:
        return Verdict(ReserveStep.FORGET, "it is gone") if facts.missing_s >= UNSEEN_S else NOTHING
    if taker.key not in facts.generations:
        return _doom(row, f"{taker.key} is gone")
    has_tag = seen.satellite == str(taker.key)
    taken_s = facts.now - taker.at_us / 1e6
    is_over = facts.generations[taker.key] != taker.generation or taker.key in facts.settled
    if not is_over and taken_s < (SETTLED_S if has_tag else UNFINISHED_S):
        return NOTHING
    if has_tag:
        return Verdict(ReserveStep.RELEASE, f"{taker.key} has it")
    return _doom(row, f"{taker.key} has not got it")


def _destroy(row: StoredSpare, seen: SpareMachine | None, wanted: Wanted | None, facts: Facts) -> Verdict:
    if seen is None:
        # If its launch was not answered, it may not be shown yet.
        return _free(row, wanted) if facts.missing_s >= UNSEEN_S else NOTHING
    taker = row.taker
    if taker is not None and seen.satellite in ("", str(taker.key)):
        if seen.satellite and taker.key in facts.generations:
            return Verdict(ReserveStep.RELEASE, f"{taker.key} has it, and its own life decides")
        return Verdict(ReserveStep.DESTROY_TAKEN, row.reason)
    if seen.satellite:
        return Verdict(ReserveStep.RELEASE, f"others have given it the tag of {seen.satellite}")
    return Verdict(ReserveStep.DESTROY, row.reason)


def _gone(row: StoredSpare, seen: SpareMachine, wanted: Wanted | None, facts: Facts) -> Verdict:
    match row.state:
        case SpareState.FILLING | SpareState.READY:
            return _fail(row, f"{seen.instance} is gone: {seen.reason}", facts)
        case SpareState.TAKEN:
            return Verdict(ReserveStep.FORGET, "it is gone")
        case SpareState.DOOMED:
            return _free(row, wanted)


def _free(row: StoredSpare, wanted: Wanted | None) -> Verdict:
    return Verdict(ReserveStep.RENEW if row.failures and wanted is not None else ReserveStep.FORGET, row.reason)


def chosen(row: StoredSpare, machines: Sequence[SpareMachine]) -> SpareMachine | None:
    """Of several machines with one id, the one of the row, or else the one with the smallest name."""
    living = [each for each in machines if each.state is not MachineState.TERMINATED or each.instance == row.instance]
    return min(living, key=lambda each: (each.instance != row.instance, each.instance), default=None)


def sleep_mode_of(wanted: SleepMode, seen: SpareMachine, *, refused: bool) -> SleepMode:
    """How to lay it down. `refused`: its type has refused to hibernate."""
    return wanted if seen.can_hibernate and not refused else SleepMode.STOP
