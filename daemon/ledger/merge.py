"""One chain out of several: what hosts that share a fleet each saw of the same satellite.

Every host keeps books of its own, under all of the ledger's laws; they agree but for the moments between one host's look
at the provider and another's. For any moment the most awake state counts that any host saw: whoever used or woke the
satellite knew it first, and whoever paid for it paid from then on. Who saw nothing (UNKNOWN, OFFLINE) counts only if
nobody saw anything. Pure.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.model import NO_WAITS, Resume, SatelliteKey, SatelliteState, Waits

S = SatelliteState

PRECEDENCE = (
    *(S.OPERATIONAL, S.STARTING, S.CREATING, S.UPDATING, S.STOPPING, S.DESTROYING),
    *(S.FAILED, S.SLEEP, S.UNKNOWN, S.OFFLINE),
)

NO_BOOKS = "no host kept books"


def merge(chains: Iterable[Sequence[Interval]]) -> list[Interval]:
    """Merge chains of one satellite, each without overlaps and holes, into one that has none either.

    What lasted no time at all is left out. Clients that waited are added up. Phases and who woke it are those of the
    host that woke it.
    """
    intervals = [interval for chain in chains for interval in chain]
    bounds = sorted({at for interval in intervals for at in (interval.from_us, interval.to_us)})
    merged: list[Interval] = []
    for from_us, to_us in itertools.pairwise(bounds):
        seen = [each for each in intervals if each.from_us <= from_us and each.to_us >= to_us]
        # A hole in all of them is where no host was left, and another came later.
        state = min((each.state for each in seen), key=PRECEDENCE.index, default=S.UNKNOWN)
        leading = [each for each in seen if each.state is state]
        if leading and merged and merged[-1].state is state:
            merged[-1] = _joined(merged[-1], leading, to_us)
        else:
            merged.append(_begun(leading, from_us, to_us) if leading else _hole(intervals[0].key, from_us, to_us))
    return _with_waits(merged, intervals)


def _hole(key: SatelliteKey, from_us: int, to_us: int) -> Interval:
    return Interval(key, S.UNKNOWN, from_us, to_us, to_us - from_us, NO_BOOKS, "", (), NO_WAITS, is_open=False)


def _begun(leading: Sequence[Interval], from_us: int, to_us: int) -> Interval:
    first = min(leading, key=lambda each: (not each.who, not each.phases, each.from_us))
    return dataclasses.replace(
        first,
        from_us=from_us,
        to_us=to_us,
        elapsed_us=_share_us(first, from_us, to_us),
        waits=NO_WAITS,
        is_open=False,
        resume=_resume_of(*leading),
    )


def _joined(before: Interval, leading: Sequence[Interval], to_us: int) -> Interval:
    best = min(leading, key=lambda each: (not each.who, not each.phases, each.from_us))
    told = best if (best.who or best.phases) and not (before.who or before.phases) else before
    return dataclasses.replace(
        before,
        to_us=to_us,
        elapsed_us=before.elapsed_us + _share_us(best, before.to_us, to_us),
        cause=told.cause,
        who=told.who,
        phases=told.phases,
        resume=_resume_of(before, *leading),
    )


def _resume_of(*intervals: Interval) -> Resume:
    """What any host has found out; they asked the same machine."""
    return next((each.resume for each in intervals if each.resume is not Resume.UNKNOWN), Resume.UNKNOWN)


def _share_us(interval: Interval, from_us: int, to_us: int) -> int:
    """How long a part of it really lasted."""
    whole_us = interval.to_us - interval.from_us
    return round(interval.elapsed_us * (to_us - from_us) / whole_us) if whole_us else 0


def _with_waits(merged: list[Interval], intervals: Sequence[Interval]) -> list[Interval]:
    """Give everybody's waits to the interval in which the one that has them ended; the last is open if any is."""
    waits = [NO_WAITS] * len(merged)
    for interval in intervals:
        if interval.waits != NO_WAITS:
            at = next((n for n, each in enumerate(merged) if each.to_us >= interval.to_us), len(merged) - 1)
            waits[at] = Waits(
                waits[at].clients + interval.waits.clients,
                waits[at].total_s + interval.waits.total_s,
                max(waits[at].longest_s, interval.waits.longest_s),
            )
    found = [dataclasses.replace(each, waits=own) for each, own in zip(merged, waits, strict=True)]
    if found and any(interval.is_open for interval in intervals):
        found[-1] = dataclasses.replace(found[-1], is_open=True)
    return found
