"""The states of a satellite as two tables: which may follow which, and what a look at the machine means in each.

These are all transitions, our own and those that others force on us (`tests/daemon/fleet/machine/test_states.py` compares):

    UNKNOWN ─▶ SLEEP ─▶ STARTING ─▶ OPERATIONAL ─▶ STOPPING ─▶ SLEEP      the daily round
    SLEEP ─▶ CREATING ─▶ OPERATIONAL                                     there was no machine: one is launched
    CREATING ─▶ STARTING                                                 ... or there was one after all
    UNKNOWN ─▶ STARTING ─▶ SLEEP                                         found running; a wake that failed
    UNKNOWN ─▶ STOPPING ─▶ STARTING                                      found going down; it came up again instead
    UNKNOWN ─▶ FAILED ─▶ SLEEP ─▶ FAILED                                 it is gone, or only people can help
    STOPPING ─▶ OPERATIONAL ─▶ STARTING                                  sleep cancelled; restarted by others
    OPERATIONAL ─▶ SLEEP ─▶ STOPPING                                     others acted between our looks
    STARTING ─▶ STOPPING ─▶ FAILED                                       stopped by others; gone
    CREATING ─▶ STOPPING                                                 stopped by others
    CREATING ─▶ SLEEP                                                    the launch failed
    FAILED ─▶ STARTING ─▶ FAILED ─▶ STOPPING                             others have revived it
    OPERATIONAL ─▶ FAILED                                                terminated by others
    CREATING ─▶ FAILED                                                   launching it is forbidden
"""

import enum

from bentpipe.daemon.model import MachineState, SatelliteState

S = SatelliteState
M = MachineState

TRANSITIONS: dict[SatelliteState, frozenset[SatelliteState]] = {
    S.UNKNOWN: frozenset({S.SLEEP, S.STARTING, S.STOPPING, S.FAILED}),
    S.SLEEP: frozenset({S.CREATING, S.STARTING, S.STOPPING, S.FAILED}),
    S.CREATING: frozenset({S.OPERATIONAL, S.STARTING, S.SLEEP, S.STOPPING, S.FAILED}),
    S.STARTING: frozenset({S.OPERATIONAL, S.SLEEP, S.STOPPING, S.FAILED}),
    S.OPERATIONAL: frozenset({S.STOPPING, S.SLEEP, S.STARTING, S.FAILED}),
    S.STOPPING: frozenset({S.SLEEP, S.STARTING, S.OPERATIONAL, S.FAILED}),
    S.FAILED: frozenset({S.SLEEP, S.STARTING, S.STOPPING}),
}
"""Every legal change of state; the machine refuses any other."""

WAKING = (S.CREATING, S.STARTING)
ASLEEP = frozenset({M.STOPPED, M.HIBERNATED})
UP = frozenset({M.PENDING, M.RUNNING})


class Meaning(enum.Enum):
    """The meaning of a look at the machine, given the satellite's state."""

    NOTHING = "as it should be"
    ROSE = "it comes up though we have not started it"
    COMING = "the wake goes on"
    LOOKS_UP = "it runs; unless its address has changed, as it should"
    RESTARTED = "it was restarted: no client is let in before its port has answered"
    FALLING = "others have stopped it, and it goes down"
    DROPPED = "it goes down as we asked"
    RISEN = "it is up while we wait for it to go down; whether that means anything depends on our call"
    DOWN = "asleep in the middle of a wake: not started yet, or come up and gone down again"
    ASLEEP = "it has fallen asleep"
    STILL_ASLEEP = "asleep; if it has failed like this, there is no reason to try again"
    VANISHED = "launched and not visible, perhaps not visible yet"
    GONE = "there is no such machine"


MEANINGS: dict[SatelliteState, dict[MachineState, Meaning]] = {
    S.UNKNOWN: {
        M.PENDING: Meaning.ROSE,
        M.RUNNING: Meaning.ROSE,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.ASLEEP,
        M.HIBERNATED: Meaning.ASLEEP,
        M.TERMINATED: Meaning.GONE,
    },
    S.SLEEP: {
        M.PENDING: Meaning.ROSE,
        M.RUNNING: Meaning.ROSE,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.NOTHING,
        M.HIBERNATED: Meaning.NOTHING,
        M.TERMINATED: Meaning.GONE,
    },
    S.CREATING: {
        M.PENDING: Meaning.COMING,
        M.RUNNING: Meaning.COMING,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.DOWN,
        M.HIBERNATED: Meaning.DOWN,
        M.TERMINATED: Meaning.VANISHED,
    },
    S.STARTING: {
        M.PENDING: Meaning.COMING,
        M.RUNNING: Meaning.COMING,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.DOWN,
        M.HIBERNATED: Meaning.DOWN,
        M.TERMINATED: Meaning.GONE,
    },
    S.OPERATIONAL: {
        M.PENDING: Meaning.RESTARTED,
        M.RUNNING: Meaning.LOOKS_UP,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.ASLEEP,
        M.HIBERNATED: Meaning.ASLEEP,
        M.TERMINATED: Meaning.GONE,
    },
    S.STOPPING: {
        M.PENDING: Meaning.RISEN,
        M.RUNNING: Meaning.RISEN,
        M.STOPPING: Meaning.DROPPED,
        M.STOPPED: Meaning.ASLEEP,
        M.HIBERNATED: Meaning.ASLEEP,
        M.TERMINATED: Meaning.GONE,
    },
    S.FAILED: {
        M.PENDING: Meaning.ROSE,
        M.RUNNING: Meaning.ROSE,
        M.STOPPING: Meaning.FALLING,
        M.STOPPED: Meaning.STILL_ASLEEP,
        M.HIBERNATED: Meaning.STILL_ASLEEP,
        M.TERMINATED: Meaning.NOTHING,
    },
}
