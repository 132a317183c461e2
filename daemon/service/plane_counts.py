"""Adds what data planes have counted to the daemon's own counters."""

import collections
from collections.abc import Mapping

from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome

OUTCOMES = {outcome.value: outcome for outcome in Outcome}
"""By the names that records have."""


def add_counters(
    counters: ConnectionCounters, reached: collections.Counter[str], before: Mapping[str, int], now: Mapping[str, int]
) -> None:
    """Add what a plane has counted since `before`: connections accepted, those that ended before they were offered, and how
    often it has `reached` a limit."""
    for name, count in now.items():
        more = count - before.get(name, 0)
        kind, _, what = name.partition(".")
        match kind:
            case "accepted":
                counters.accepted += more
            case "accept_errors":
                counters.accept_errors += more
            case "ended" if what in OUTCOMES and more:
                counters.ended[OUTCOMES[what]] += more
            case "malformed" if more:
                counters.malformed[what] += more
            case "limit" if more:
                reached[what] += more
            case _:
                pass  # numbers of the present moment, and those of a later version
