"""What the satellite's machine goes by: its section of the configuration, what its provider states of its machine, and the
fixed times of the loops, with reasons. What is a fact of one cloud is not here: see `MachineTraits`.

All times are in seconds.
"""

import dataclasses

from bentpipe.daemon.model import MachineTraits, SleepMode

RETRY_START_S = 1.0
"""Between attempts to start while the provider says that it may work a moment later. A machine that is stopping cannot be
started, and a look that is a second old may not show that it is."""

THROTTLE_FIRST_S, THROTTLE_MOST_S = 2.0, 30.0
"""Between calls that are throttled, doubling: every call less helps all others."""

CAPACITY_MOST_S = 1800.0
"""Bound of `capacity_retry_after`, which doubles like `retry_after`."""

FAILURE_MOST_S = 300.0
"""Bound of `retry_after`, which doubles with every wake that fails in a row. No cause of failure is final: the slowest
attempts are minutes apart."""

BLOCKED_FIRST_S = 15.0
"""The first wait after a failure that people must mend (a permission, a wrong template, missing credentials), doubling up
to FAILURE_MOST_S: they may mend it at any moment, and need not tell us."""

PATIENCE_S = 60.0
"""For so long every call may fail, with passing trouble or throttling, until those who wait are told the reason. Most
troubles of a cloud's API pass within it; a client that has less time itself is told before its own deadline."""

LOOK_FIRST_S, LOOK_MOST_S = 1.0, 15.0
"""Between looks at one machine that we ask for beside the provider's own rounds, doubling while they show nothing new: a
port that stays broken must not cost a call a second."""

LOOK_WAIT_S = 2.0
"""Who wants a machine that is gone, or that nobody can see, waits for the next look if it is no further off: it may have a
successor by then. Others are told at once what is known."""

BOOT_LOOK_S = 5.0
"""For so long after a start, or since its machine runs, a satellite that is not ready yet is no reason to look: it boots."""

STOPS_FORGIVEN = 1
"""So often a machine that we have started may be stopped by others before it is ready, and is started again at once for
those who wait. After that it counts as a failure: something stops it each time."""

SLEEP_RETRY_FIRST_S, SLEEP_RETRY_MOST_S = 60.0, 900.0
"""After a stop that failed otherwise, doubling; meanwhile the satellite serves."""

VAIN_HIBERNATIONS = 2
"""Hibernations in a row that kept nothing (stopped instead, or booted cold) until plain stops are used: they are
quicker, and a hibernation is billed until it is done."""

LESSON_S = 86_400.0
"""After so long a lesson about hibernation is forgotten, and it is tried again: an image, a type or a policy may have
been mended. A refusal once a day costs nothing."""

UNREADY_ROUNDS = 2
"""Wake deadlines that may pass while the machine runs and its port does not listen; then it is stopped, so that it costs
nothing and the next start is a clean one."""

CLOSE_QUIET_S = 5.0
"""For quiet connections to end in good order before a sleep; then they are cut."""

QUIET_WINDOW_S = 60.0
"""Over which the bytes of open connections are counted. However short `sleep_after` is, so long at least is looked before
they are called quiet: in a few seconds the most silent build moves nothing (docs/buildkit.md)."""

RENEW_AT = 5 / 6
"""Of the time for which a machine may stay hibernated: then it is woken, and stopped plainly. What is left is for wakes that
fail and for hosts that are down."""

HOLD_FACTOR, HOLD_FLOOR_S = 3.5, 120.0
"""A client is held for so many times the usual wake (Cloud Run's factor), but not for less than the floor: a wake can
begin with a minute in which the machine is still falling asleep."""


LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S = 1.0, 30.0
"""Between attempts to look at a machine while the provider cannot say, doubling; what was seen last is believed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """The satellite's section of the configuration, as the machine needs it."""

    sleep_mode: SleepMode
    sleep_after_s: float
    min_awake_s: float
    wake_deadline_s: float
    hold_limit_s: float
    retry_after_s: float
    max_waiters: int
    traits: MachineTraits
    """What the satellite's machine is like, as its provider states it."""
    capacity_retry_s: float = 180.0
    quiet_window_s: float = QUIET_WINDOW_S
    launch: bool = False
    """A machine that does not exist is created."""
    budgeted: bool = False
    """A wake needs a place in the awake budget first."""
    ends_quiet: bool = False
    """Connections that move no more than keepalives do not keep it awake: they are ended."""


def backed_off(first_s: float, most_s: float, before: int) -> float:
    """The wait after the (`before` + 1)-th failure in a row: doubling from `first_s`, `most_s` at most."""
    # The exponent is bounded because floats are not.
    return float(min(first_s * 2 ** min(before, 30), max(first_s, most_s)))
