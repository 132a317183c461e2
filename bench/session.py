"""One run of the bench: which peers there are, how long to measure, and every sample that was taken."""

import contextlib
import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hdrh.histogram import HdrHistogram

from bench.lab import Lab, LabError
from bench.load import ENOUGH, LoadReport, LoadSpec, encode
from bench.peers.base import Peer, Wire
from bench.peers.catalogue import all_peers
from bench.usage import Cpu, cpu_used

CaseT = TypeVar("CaseT")
CaseValue = str | int | float


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: each sample's length, and how often each is repeated."""

    quick: bool
    seconds: float
    repetitions: int

    def seconds_at(self, rate: float) -> float:
        """How long to measure at a low rate so that p99 means something; STRETCH times as long as others at most."""
        return round(min(max(self.seconds, ENOUGH / rate), STRETCH * self.seconds), 3)


STRETCH = 4
DIGITS = 5
"""Significant digits of a value that is kept: no value is more exact than that."""
QUICK = Effort(quick=True, seconds=0.2, repetitions=2)
FULL = Effort(quick=False, seconds=0.4, repetitions=3)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one peer in one case; the histograms are HdrHistogram's own text."""

    question: str
    peer: str
    case: dict[str, CaseValue]
    values: dict[str, float]
    histograms: dict[str, str]


@dataclasses.dataclass(slots=True)
class Session:
    """What questions work with. `only` names the peers to measure; empty: all."""

    lab: Lab
    effort: Effort
    only: frozenset[str] = frozenset()
    samples: list[Sample] = dataclasses.field(default_factory=list)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    """Peers that were not available or failed, and why. The results always say so."""

    def record(
        self,
        question: str,
        peer: str,
        case: dict[str, CaseValue],
        values: dict[str, float],
        histograms: dict[str, HdrHistogram] | None = None,
    ) -> None:
        """Keep a sample and show it."""
        encoded = {name: encode(histogram) for name, histogram in (histograms or {}).items()}
        kept = {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
        self.samples.append(Sample(question, peer, case, kept, encoded))
        shown = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        print(f"{question} {peer:<20} {' '.join(map(str, case.values()))}: {shown}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def running(self, peers: Sequence[Peer] | None = None) -> Iterator[list[Peer]]:
        """Start peers (all, if none are given), leave out those that are not available, stop them at the end."""
        started: list[Peer] = []
        try:
            for peer in all_peers() if peers is None else peers:
                if self.only and peer.name not in self.only:
                    continue
                reason = peer.missing()
                if reason is None:
                    started.append(peer)
                    reason = self._start(peer)
                if reason is not None:
                    self.absent[peer.name] = reason
                    print(f"without {peer.name}: {reason}", file=sys.stderr)
            yield [peer for peer in started if peer.name not in self.absent]
        finally:
            for peer in started:
                peer.stop(self.lab)

    def _start(self, peer: Peer) -> str | None:
        try:
            peer.start(self.lab)
        except LabError as exc:
            return str(exc)
        return None

    def interleave(
        self,
        peers: Sequence[Peer],
        cases: Sequence[CaseT],
        measure: Callable[[Peer, CaseT], None],
        *,
        repetitions: int | None = None,
    ) -> None:
        """Call `measure` for every peer and case, repetition by repetition, in a new order each: slow drifts of the

        machine affect all of them. A measurement that fails is reported and left out.
        """
        shuffle = random.Random(1)
        for _ in range(self.effort.repetitions if repetitions is None else repetitions):
            pairs = [(peer, case) for case in cases for peer in peers]
            shuffle.shuffle(pairs)
            for peer, case in pairs:
                try:
                    measure(peer, case)
                except LabError as exc:
                    self.absent[f"{peer.name}, {case}"] = str(exc)
                    print(f"failed: {peer.name} {case}: {exc}", file=sys.stderr)


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run of the load generator and what the peer used meanwhile."""

    report: LoadReport
    cpu: Cpu
    seconds: float

    def per_request_us(self) -> float:
        """CPU microseconds of the peer for each answer."""
        return self.cpu.total_s / max(self.report.answered, 1) * 1e6


def run_load(lab: Lab, peer: Peer, wire: Wire, spec: LoadSpec) -> Run:
    """Run the load against a peer, its connections warm before the clock starts. Raises LabError."""
    with peer.load(lab, wire, spec) as load:
        pids = peer.pids()
        before, start = cpu_used(pids), time.monotonic()
        report = load.run()
        return Run(report, cpu_used(pids) - before, time.monotonic() - start)
