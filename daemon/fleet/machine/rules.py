"""The rules of the satellite's machine: its section of the configuration, its provider's traits, and the fixed times of the
loops, with reasons. The facts of a single cloud are not here: see `MachineTraits`.

All times are in seconds.
"""

import dataclasses

from bentpipe.daemon.model import MachineTraits, SatelliteState, SleepMode

RETRY_START_S = 1.0
"""Pause between attempts to start while the provider says that a start may work a moment later. A stopping machine cannot be
started, and a look that is a second old may not show that it is stopping."""

THROTTLE_FIRST_S, THROTTLE_MOST_S = 2.0, 30.0
"""Pause between calls that are throttled, doubling: fewer calls help all others."""

CAPACITY_MOST_S = 1800.0
"""Upper bound of `capacity_retry_after`, which doubles like `retry_after`."""

FAILURE_MOST_S = 300.0
"""Upper bound of `retry_after`, which doubles with every wake that fails in a row. No failure is final: the slowest attempts
are minutes apart."""

BLOCKED_FIRST_S = 15.0
"""The first wait after a failure that people must mend (a permission, a wrong template, missing credentials), doubling up
to FAILURE_MOST_S. They may mend it at any moment, and do not have to tell us."""

PATIENCE_S = 60.0
"""How long all calls may fail, by passing failures or throttling, before the waiting clients are told the reason. Most
failures of a cloud's API pass in this time. A client with less time is told before its own deadline."""

UNREACHABLE_PATIENCE_S = 5.0
"""The same if there is certainly no provider at its address, as with a misspelt region. A proxy or a name server that is
being restarted answers so for some seconds."""

LOOK_FIRST_S, LOOK_MOST_S = 1.0, 15.0
"""Pause between looks at one machine beside the provider's own rounds. It doubles while they show nothing new: a port that
stays broken must not cost a call every second."""

LOOK_WAIT_S = 2.0
"""If a machine is gone or cannot be seen, a client waits for the next look if that is at most so far away: the machine may
have a successor by then. Otherwise the client is told at once."""

BOOT_LOOK_S = 5.0
"""For this long after a start, or since its machine runs, there is no reason to look if a satellite is not ready: it
boots."""

STOPS_FORGIVEN = 1
"""How often others may stop a machine that we have started, before it is ready, so that it is started again at once for the
waiting clients. After that it counts as a failure: something stops it each time."""

SLEEP_RETRY_FIRST_S, SLEEP_RETRY_MOST_S = 60.0, 900.0
"""Pause after a stop that failed for another reason, doubling. Meanwhile the satellite serves."""

VAIN_HIBERNATIONS = 2
"""After this many hibernations in a row that kept nothing (stopped instead, or booted cold), plain stops are used: they are
quicker, and a hibernation is billed until it is done."""

SLEEP_PROBLEM_S = 86_400.0
"""After this time a finding about hibernation is forgotten, and hibernation is tried again: somebody may have mended an
image, a type or a policy. One refusal a day costs nothing."""

UNREADY_ROUNDS = 2
"""How many wake deadlines may pass while the machine runs and its port does not listen. Then it is stopped, so that it costs
nothing and the next start is a clean one."""

RESTART_AT, SILENT_LEAST_S = 0.75, 30.0
"""Share of a client's hold, or of the wake deadline if that is shorter, after which a machine that has resumed and is silent
is stopped and started: before the clients are given up, and as late as that allows, since a large memory is read for long.
It must have been silent for some time too. If it refuses connections, it is not silent: it can be reached."""

FRESH_S = 1.0
"""A count of builds that is not older is the last look before a sleep."""

CLOSE_QUIET_S = 5.0
"""How long quiet connections may take to end in good order before a sleep. Then they are cut."""

QUIET_WINDOW_S = 60.0
"""The time over which the bytes of open connections are counted. It is also the least time before a connection counts as
quiet, however short `sleep_after` is: in a few seconds the most silent build moves nothing (docs/buildkit.md)."""

RENEW_AT = 5 / 6
"""Share of the time for which a machine may stay hibernated. After it the machine is woken, and stopped plainly. The rest is
for wakes that fail and for hosts that are down."""

HOLD_FACTOR, HOLD_FLOOR_S = 3.5, 120.0
"""A client is held for this many times the usual wake (Cloud Run's factor), but at least for the floor: a wake can begin
with a minute in which the machine is still falling asleep."""


LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S = 1.0, 30.0
"""Pause between attempts to look at a machine while the provider cannot answer, doubling. The last look stays valid."""


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
    """The traits of the satellite's machine, as its provider states them."""
    capacity_retry_s: float = 180.0
    quiet_window_s: float = QUIET_WINDOW_S
    launch: bool = False
    """Whether a machine that does not exist is created."""
    budgeted: bool = False
    """Whether a wake needs a place in the awake budget first."""
    ends_quiet: bool = False
    """Whether connections that move no more than keepalives are ended, and do not keep it awake."""
    counts_builds: bool = False
    """Whether the satellite can be asked how many builds run on it."""
    builds_stale_s: float = 60.0
    """A count of builds that is older counts as unknown."""
    trust_builds_s: float = 86_400.0
    """For how long after its last client a satellite is kept awake by its own word that builds run on it."""
    owned: bool = True
    """Whether its machine is started and stopped here. A machine that has registered itself is not."""

    def as_told(self, state: SatelliteState) -> SatelliteState:
        """The state's name for others: a machine of others that cannot be used is OFFLINE, and nobody here can mend it."""
        return SatelliteState.OFFLINE if state is SatelliteState.FAILED and not self.owned else state


def backed_off(first_s: float, most_s: float, before: int) -> float:
    """The wait after the (`before` + 1)-th failure in a row: doubling from `first_s`, `most_s` at most."""
    # The exponent is bounded because floats are not.
    return float(min(first_s * 2 ** min(before, 30), max(first_s, most_s)))
