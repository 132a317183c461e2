"""Adds what data planes have counted to the daemon's own counters, and reads what else their counters tell."""

import collections
from collections.abc import Iterable, Mapping

from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.planes.records import CERTIFICATE_COUNTERS

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
            case "unadmitted" if more:
                counters.unadmitted[what] += more
            case "malformed" if more:
                counters.malformed[what] += more
            case "limit" if more:
                reached[what] += more
            case _:
                pass  # numbers of the present moment, and those of a later version


def told_certificate_ends(planes: Iterable[Mapping[str, int]]) -> dict[str, float]:
    """Until when the certificates of data planes hold, by their file. `planes` are the counters of each, the newest last."""
    return {
        name.removeprefix(CERTIFICATE_COUNTERS): float(end)
        for counters in planes
        for name, end in counters.items()
        if name.startswith(CERTIFICATE_COUNTERS)
    }
