"""The few statistics that the bench needs: medians with their spread, and whether two sets of samples differ."""

import dataclasses
import math
import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The median of some repetitions and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int


def summarize(samples: Sequence[float]) -> Summary:
    """Median and range. Raises statistics.StatisticsError without samples."""
    return Summary(statistics.median(samples), min(samples), max(samples), len(samples))


def bootstrap_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 1) -> tuple[float, float, float]:
    """The ratio of the medians, and its 95 % interval by resampling both."""
    draw = random.Random(seed)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(theirs, k=len(theirs)))
        for _ in range(RESAMPLES)
    )
    tail = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return statistics.median(ours) / statistics.median(theirs), ratios[tail], ratios[-1 - tail]


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of Mann and Whitney's test, by the normal approximation with the correction for ties."""
    n1, n2 = len(first), len(second)
    if not n1 or not n2:
        raise ValueError("a rank test needs samples on both sides")
    pooled = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    rank_sum = tie_sum = 0.0
    start = 0
    while start < len(pooled):
        end = start
        while end < len(pooled) and pooled[end][0] == pooled[start][0]:
            end += 1
        rank = (start + 1 + end) / 2
        rank_sum += rank * sum(1 for _, side in pooled[start:end] if side == 0)
        tie_sum += (end - start) ** 3 - (end - start)
        start = end
    n = n1 + n2
    mean = n1 * n2 / 2
    variance = n1 * n2 / 12 * (n + 1 - tie_sum / (n * (n - 1))) if n > 1 else 0.0
    if variance <= 0:
        return 1.0
    distance = max(0.0, abs(rank_sum - n1 * (n1 + 1) / 2 - mean) - 0.5)
    return math.erfc(distance / math.sqrt(variance) / math.sqrt(2))
