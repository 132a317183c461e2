"""Rules that every ledger keeps when a run of the daemon begins or ends, whatever store it writes to. Pure."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from bentpipe.daemon.ledger.contract import NOT_CONFIGURED, NOT_LOOKED_AT
from bentpipe.daemon.model import SatelliteState

K = TypeVar("K")

UNWATCHED = frozenset({SatelliteState.UNKNOWN, SatelliteState.OFFLINE})
"""States in which no daemon watches the satellite. All others end at the last heartbeat if the daemon crashes."""


def first_moves(
    open_now: Mapping[K, SatelliteState | None], wanted: Collection[K]
) -> list[tuple[K, SatelliteState, str]]:
    """Satellites to move as a run begins, each with its new state and the cause.

    `open_now` has the state of every open interval, None if it cannot be read; `wanted` are the configured satellites.
    """
    offline = SatelliteState.OFFLINE
    begin = [key for key in wanted if open_now.get(key, offline) is offline]
    leave = [key for key, state in open_now.items() if key not in wanted and state is not offline]
    return [
        *((key, SatelliteState.UNKNOWN, NOT_LOOKED_AT) for key in begin),
        *((key, offline, NOT_CONFIGURED) for key in leave),
    ]
