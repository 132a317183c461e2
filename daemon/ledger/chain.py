"""How a satellite's chain goes on, and the rules that every ledger keeps when a run of the daemon begins. Pure."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Self, TypeVar

from bentpipe.daemon.ledger.contract import NOT_CONFIGURED, NOT_LOOKED_AT, Stamp, StampedTransition, storable
from bentpipe.daemon.model import NO_FACTS, SatelliteState, StateFacts

K = TypeVar("K")

UNWATCHED = frozenset({SatelliteState.UNKNOWN, SatelliteState.OFFLINE})
"""States in which no daemon watches the satellite. All others end at the last heartbeat if the daemon crashes."""


USED = frozenset({SatelliteState.OPERATIONAL, SatelliteState.STARTING, SatelliteState.CREATING})
"""States of a satellite whose open interval goes on though no daemon watches, because clients use it (law 4).

A daemon that begins finds a satellite up that clients use, and probes it: it is STARTING for that moment. A client may also
have come through before the ledger was told that the satellite is OPERATIONAL. The daemon may end at either moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """A satellite's chain goes on: its open interval ends with `facts`, and one of `state` begins at the same moment.

    `cause` and `who` belong to the interval that begins, in the form that stores take.
    """

    state: SatelliteState
    at: Stamp
    cause: str
    who: str = ""
    facts: StateFacts = NO_FACTS

    @classmethod
    def of(cls, stamped: StampedTransition) -> Self:
        """The move that records a transition."""
        told = stamped.transition
        return cls(told.after, stamped.at, storable(told.cause), storable(told.who), told.facts)


def first_moves(open_now: Mapping[K, SatelliteState | None], wanted: Collection[K], at: Stamp) -> list[tuple[K, Move]]:
    """Satellites to move as a run begins at `at`.

    `open_now` has the state of every open interval, None if it cannot be read; `wanted` are the configured satellites.
    """
    offline = SatelliteState.OFFLINE
    begin = [key for key in wanted if open_now.get(key, offline) is offline]
    leave = [key for key, state in open_now.items() if key not in wanted and state is not offline]
    return [
        *((key, Move(SatelliteState.UNKNOWN, at, NOT_LOOKED_AT)) for key in begin),
        *((key, Move(offline, at, NOT_CONFIGURED)) for key in leave),
    ]
