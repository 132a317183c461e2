"""Placement: what a proxy adds to a small call by where it runs, and what polling is worth.

`pinned` is the placement of all other questions: the peer has a core of its own, so each call wakes that core up, and then
the first one again. `unpinned` leaves all of it to the scheduler, as on most hosts. `alone` is pinned, with one peer on the
machine at a time: HAProxy with busy-polling takes the whole of its core whether there are calls or not. `cpu_share` is how
much of a core the peer took. The rate is the same for all.
"""

import contextlib
import dataclasses

from bench.lab import UNPINNED, Lab, LabError
from bench.load import LoadSpec, Phase
from bench.peers.base import Direct, Peer
from bench.peers.others import Envoy, HaproxyTcp
from bench.peers.ours import Bentpipe
from bench.session import Session, run_load

QUESTION = "placement"
TITLE = "Added latency by placement"
SHOWN = ("p50_us", "p99_us", "cpu_us_per_request", "cpu_share", "failed")
CALLS_PER_S = 2000.0
SECONDS, QUICK_SECONDS = 1.5, 0.4


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """Where things run, and how many connections share the calls."""

    placement: str
    connections: int


def run(session: Session) -> None:
    """First the peers that can run beside each other, then each one alone."""
    connections = (16,) if session.effort.quick else (1, 16)
    with contextlib.ExitStack() as stack:
        by_placement: dict[str, tuple[Session, dict[str, Peer]]] = {}
        for name, lab in (("pinned", session.lab), ("unpinned", stack.enter_context(Lab(UNPINNED)))):
            inner = dataclasses.replace(session, lab=lab)
            started = stack.enter_context(inner.running([Direct(), Bentpipe(), HaproxyTcp(splice=False), Envoy()]))
            by_placement[name] = inner, {peer.name: peer for peer in started}

        def measure(named: Peer, case: Case) -> None:
            inner, peers = by_placement[case.placement]
            if named.name in peers:
                _measure(inner, peers[named.name], case)

        cases = [Case(name, count) for name in by_placement for count in connections]
        session.interleave(list(by_placement["pinned"][1].values()), cases, measure)
    for _ in range(session.effort.repetitions):
        for peer in _alone():
            with session.running([peer]) as started:
                for each in started:
                    for count in connections:
                        _measure_alone(session, each, Case("alone", count))


def _alone() -> list[Peer]:
    return [
        Direct(),
        Bentpipe(),
        Bentpipe(variant="polling"),
        HaproxyTcp(splice=False),
        HaproxyTcp(splice=False, polling=True),
    ]


def _measure_alone(session: Session, peer: Peer, case: Case) -> None:
    try:
        _measure(session, peer, case)
    except LabError as exc:
        session.absent[f"{peer.name}, {case}"] = str(exc)


def _measure(session: Session, peer: Peer, case: Case) -> None:
    seconds = QUICK_SECONDS if session.effort.quick else SECONDS
    spec = LoadSpec("rate", (Phase(CALLS_PER_S, seconds),), connections=case.connections, seed=len(session.samples))
    done = run_load(session.lab, peer, "plain", spec)
    phase = done.report.phases[0]
    values = {
        **phase.quantiles_us(),
        "cpu_us_per_request": done.per_request_us(),
        "cpu_share": done.cpu.total_s / done.seconds,
        "failed": float(phase.failed),
    }
    session.record(QUESTION, peer.name, dataclasses.asdict(case), values, {"latency_ns": phase.latency})
