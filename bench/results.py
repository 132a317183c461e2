"""Reads results back and answers the one question that tables, pictures and claims ask: what did this peer do there?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from hdrh.histogram import HdrHistogram

from bench.load import merge
from bench.session import CaseValue, Sample
from bench.stats import Summary, summarize

CaseKey = tuple[tuple[str, CaseValue], ...]


class Results:
    """One file of results."""

    def __init__(self, path: Path) -> None:
        raw = json.loads(path.read_text())
        self.name = path.stem
        self.environment = cast(Mapping[str, object], raw["environment"])
        self.absent = cast(Mapping[str, str], raw["absent"])
        self.seconds = cast(Mapping[str, float], raw["seconds"])
        self.samples = [Sample(**sample) for sample in raw["samples"]]

    def cases(self, question: str) -> list[CaseKey]:
        """The cases of a question, sorted."""
        found = {tuple(sample.case.items()) for sample in self.samples if sample.question == question}
        return sorted(found, key=lambda case: [(isinstance(value, str), value) for _, value in case])

    def peers(self, question: str) -> list[str]:
        """The peers that were measured, in the catalogue's order."""
        names = {sample.peer: None for sample in self.samples if sample.question == question}
        order = {name: index for index, name in enumerate(PEER_ORDER)}
        return sorted(names, key=lambda name: order.get(name, len(order)))

    def values(self, question: str, peer: str, value: str, case: Mapping[str, CaseValue]) -> list[float]:
        """Every repetition of one value where the case is at least as given."""
        return [
            sample.values[value]
            for sample in self.samples
            if sample.question == question
            and sample.peer == peer
            and value in sample.values
            and case.items() <= sample.case.items()
        ]

    def values_by_name(self, question: str, peer: str, prefix: str, case: Mapping[str, CaseValue]) -> dict[str, float]:
        """The medians of all values whose names begin with `prefix`, by the rest of the name."""
        names = {
            name
            for sample in self.samples
            if sample.question == question and sample.peer == peer and case.items() <= sample.case.items()
            for name in sample.values
            if name.startswith(prefix)
        }
        return {name.removeprefix(prefix): self.median(question, peer, name, case) or 0.0 for name in names}

    def summary(self, question: str, peer: str, value: str, case: Mapping[str, CaseValue]) -> Summary | None:
        """The median of the repetitions; None if there are none."""
        values = self.values(question, peer, value, case)
        return summarize(values) if values else None

    def median(self, question: str, peer: str, value: str, case: Mapping[str, CaseValue]) -> float | None:
        """Only the median."""
        found = self.summary(question, peer, value, case)
        return None if found is None else found.median

    def histogram(self, question: str, peer: str, name: str, case: Mapping[str, CaseValue]) -> HdrHistogram | None:
        """The histograms of all repetitions, added up."""
        found = [
            HdrHistogram.decode(sample.histograms[name])
            for sample in self.samples
            if sample.question == question
            and sample.peer == peer
            and name in sample.histograms
            and case.items() <= sample.case.items()
        ]
        return merge(found) if found else None


PEER_ORDER = (
    "direct",
    "direct again",
    "bentpipe",
    "bentpipe off",
    "bentpipe always",
    "bentpipe stalled",
    "bentpipe realtime",
    "bentpipe polling",
    "bentpipe accepting at once",
    "bentpipe two processes",
    "bentpipe two processes snapshot",
    "haproxy tcp",
    "haproxy tcp splice",
    "haproxy tcp polling",
    "socket-proxyd",
    "haproxy http",
    "envoy",
    "nginx",
    "python uvloop",
    "python obvious",
)
