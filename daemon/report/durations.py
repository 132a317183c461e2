"""Many durations and their distribution: exact, or as counts in buckets, which add up over a year of days. Pure.

Buckets grow by a factor, so a percentile of counted durations is at most 1 % off (Masson, Rim and Lee, "DDSketch", VLDB
2019). Their number and the longest one are exact.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from bentpipe.daemon.store.malformed import MalformedRow, number_of, whole_of

GROWTH = 1.02
SHORTEST_S = 1e-6
"""Shorter durations are counted as this one."""
MAX_BUCKETS = 3000
"""From SHORTEST_S to more than a year, with room. A row with more was not written by us."""
_LOG = math.log(GROWTH)


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a duration, by nearest rank, in seconds."""

    count: int
    p50_s: float
    p95_s: float
    longest_s: float


@dataclasses.dataclass(slots=True)
class Durations:
    """Durations in seconds. `counted` has those of which only the bucket is known; `longest_s` is of these."""

    exact: list[float] = dataclasses.field(default_factory=list)
    counted: Counter[int] = dataclasses.field(default_factory=Counter)
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one."""
        self.exact.append(seconds)

    def extend(self, other: "Durations") -> None:
        """Add all of another."""
        self.exact.extend(other.exact)
        self.counted.update(other.counted)
        self.longest_s = max(self.longest_s, other.longest_s)

    def __len__(self) -> int:
        return len(self.exact) + self.counted.total()

    def spread(self) -> Spread:
        """The distribution; all zero if there are none."""
        if not self.counted:
            return spread_of(self.exact)
        counts = self._counts()
        total = counts.total()
        ranks = [math.ceil(total * share) for share in (0.5, 0.95)]
        p50, p95 = (_value_at(counts, rank) for rank in ranks)
        longest_s = max([self.longest_s, *self.exact])
        return Spread(total, min(p50, longest_s), min(p95, longest_s), longest_s)

    def shortfall_s(self, minimum_s: float) -> float:
        """How much longer they would be in all if each were at least `minimum_s`."""
        exact = sum(minimum_s - seconds for seconds in self.exact if seconds < minimum_s)
        counted = sum(count * max(0.0, minimum_s - _middle_of(bucket)) for bucket, count in self.counted.items())
        return exact + counted

    def to_plain(self) -> list[object]:
        """For JSON: the longest, then each bucket and its count."""
        flat = [number for pair in sorted(self._counts().items()) for number in pair]
        return [round(max([self.longest_s, *self.exact], default=0.0), 6), *flat]

    @classmethod
    def of_plain(cls, found: object) -> "Durations":
        """Reverse of `to_plain`. Raises MalformedRow."""
        if not isinstance(found, list) or not len(found) % 2 or len(found) > 2 * MAX_BUCKETS:
            raise MalformedRow("durations are not a list of a longest one and of pairs")
        longest_s, *flat = found
        numbers = [whole_of(each, "durations") for each in flat]
        if any(count < 1 for count in numbers[1::2]) or any(abs(bucket) > MAX_BUCKETS for bucket in numbers[::2]):
            raise MalformedRow("durations have a bucket or a count that is never written")
        return cls([], Counter(dict(zip(numbers[::2], numbers[1::2], strict=True))), number_of(longest_s, "durations"))

    def _counts(self) -> Counter[int]:
        return self.counted + Counter(_bucket_of(seconds) for seconds in self.exact)


def spread_of(durations: Iterable[float]) -> Spread:
    """Sort durations into a Spread; all zero if there are none."""
    ordered = sorted(durations)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0)
    p50, p95 = (ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.95))
    return Spread(len(ordered), p50, p95, ordered[-1])


def _bucket_of(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, SHORTEST_S)) / _LOG)


def _middle_of(bucket: int) -> float:
    """The value of which all of a bucket are at most 1 % away."""
    return float(2 * GROWTH**bucket / (1 + GROWTH))


def _value_at(counts: Mapping[int, int], rank: int) -> float:
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0:
            return _middle_of(bucket)
    raise AssertionError("a rank lies within the counts")
