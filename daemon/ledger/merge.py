"""Makes one chain of several: hosts that share a fleet have each seen the same satellite. Pure.

Each host records chains of its own, which keep all of the ledger's laws. They differ only in the moments at which the hosts
looked at the provider. For each moment the most awake state counts that any host saw: the host that woke or used the
satellite knew of it first, and the machine costs money from then on. A host that saw nothing (UNKNOWN, OFFLINE) counts only
if no other host saw anything.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.ledger.facts import MergeRule, add_sums, has_facts, merge_seen
from bentpipe.daemon.model import NO_FACTS, SatelliteKey, SatelliteState

S = SatelliteState

PRECEDENCE = (
    *(S.OPERATIONAL, S.STARTING, S.CREATING, S.UPDATING, S.STOPPING, S.DESTROYING),
    *(S.FAILED, S.SLEEP, S.UNKNOWN, S.OFFLINE),
)

NO_HOST = "no host recorded it"


def merge(chains: Iterable[Sequence[Interval]]) -> list[Interval]:
    """Merge chains of one satellite, each without overlaps and holes, into one that has none either.

    An interval that lasted no time is left out. The cause and the principal are those of the host that woke the satellite;
    each fact follows its MergeRule.
    """
    intervals = [interval for chain in chains for interval in chain]
    bounds = sorted({at for interval in intervals for at in (interval.from_us, interval.to_us)})
    merged: list[Interval] = []
    for from_us, to_us in itertools.pairwise(bounds):
        seen = [each for each in intervals if each.from_us <= from_us and each.to_us >= to_us]
        # All chains have a hole where the last host stopped and another host came later.
        state = min((each.state for each in seen), key=PRECEDENCE.index, default=S.UNKNOWN)
        leading = [each for each in seen if each.state is state]
        if leading and merged and merged[-1].state is state:
            merged[-1] = _joined(merged[-1], leading, to_us)
        else:
            merged.append(_begun(leading, from_us, to_us) if leading else _hole(intervals[0].key, from_us, to_us))
    return _with_sums(merged, intervals)


def _hole(key: SatelliteKey, from_us: int, to_us: int) -> Interval:
    return Interval(key, S.UNKNOWN, from_us, to_us, to_us - from_us, NO_HOST, "", is_open=False)


def _begun(leading: Sequence[Interval], from_us: int, to_us: int) -> Interval:
    first = _waker(leading)
    return dataclasses.replace(
        first,
        from_us=from_us,
        to_us=to_us,
        elapsed_us=_share_us(first, from_us, to_us),
        is_open=False,
        facts=merge_seen(first.facts, (each.facts for each in leading)),
    )


def _joined(before: Interval, leading: Sequence[Interval], to_us: int) -> Interval:
    best = _waker(leading)
    told = best if _woke(best) and not _woke(before) else before
    return dataclasses.replace(
        before,
        to_us=to_us,
        elapsed_us=before.elapsed_us + _share_us(best, before.to_us, to_us),
        cause=told.cause,
        who=told.who,
        facts=merge_seen(told.facts, (each.facts for each in (before, *leading))),
    )


def _waker(leading: Sequence[Interval]) -> Interval:
    """The interval of the host that most likely woke the satellite."""
    return min(leading, key=lambda each: (not each.who, not has_facts(each.facts, MergeRule.OF_WAKER), each.from_us))


def _woke(interval: Interval) -> bool:
    return bool(interval.who) or has_facts(interval.facts, MergeRule.OF_WAKER)


def _share_us(interval: Interval, from_us: int, to_us: int) -> int:
    """How long a part of it really lasted."""
    whole_us = interval.to_us - interval.from_us
    return round(interval.elapsed_us * (to_us - from_us) / whole_us) if whole_us else 0


def _with_sums(merged: list[Interval], intervals: Sequence[Interval]) -> list[Interval]:
    """Add each host's sums to the interval in which that host's own interval ended. The last is open if any host's is."""
    sums = [NO_FACTS] * len(merged)
    for interval in intervals:
        if has_facts(interval.facts, MergeRule.SUM):
            at = next((n for n, each in enumerate(merged) if each.to_us >= interval.to_us), len(merged) - 1)
            sums[at] = add_sums(sums[at], interval.facts)
    found = [dataclasses.replace(each, facts=add_sums(each.facts, own)) for each, own in zip(merged, sums, strict=True)]
    if found and any(interval.is_open for interval in intervals):
        found[-1] = dataclasses.replace(found[-1], is_open=True)
    return found
