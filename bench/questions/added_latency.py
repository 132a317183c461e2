"""Added latency: what a proxy adds to a small call on a warm connection, at rates that every native peer can carry.

Open loop: latency counts from the moment when a call was meant to be sent. The knee is the lowest closed-loop throughput
of the native peers, and the rates are shares of it. So all peers get the same rates, and no native peer is saturated. The
Python proxies get the same rates and may be saturated. The tables show the difference to `direct` at the same rate. The
knee of `direct` shows what load generator and upstream can do together on their one core.
"""

import dataclasses
import statistics

from bench.load import LoadSpec, Phase
from bench.peers.base import WIRES, Peer, Wire
from bench.peers.catalogue import all_peers
from bench.session import Session, run_load

QUESTION = "added_latency"
TITLE = "Added latency of a unary call on a warm connection"
KNEE = "knee"
SHOWN = ("p50_us", "p99_us", "p99.9_us", "cpu_us_per_request", "user_us_per_request")
KNEE_CONNECTIONS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One table row."""

    wire: Wire
    echo_bytes: int
    connections: int
    percent: int


FULL_CASES = [
    Case(wire, echo_bytes, connections, percent)
    for wire in WIRES
    for echo_bytes, connections, percents in (
        (128, 1, (10, 50)),
        (128, 64, (10, 30, 50, 70)),
        (4096, 1, (10, 50)),
        (4096, 64, (10, 30, 50, 70)),
    )
    for percent in percents
]
QUICK_CASES = [Case(wire, 128, *rest) for wire in WIRES for rest in ((1, 10), (64, 50))]
LARGE_SKIPS = ("direct again", "socket-proxyd", "python obvious")
"""Left out at 4 KiB: the noise is known from the other sizes, and the time is short."""
KNEES = 3


def run(session: Session) -> None:
    """Find the knees, then measure."""
    cases = QUICK_CASES if session.effort.quick else FULL_CASES
    with session.running([peer for peer in all_peers() if peer.name != "haproxy tcp splice"]) as peers:
        knees = {key: _knee(session, peers, *key) for key in sorted({(case.wire, case.echo_bytes) for case in cases})}

        def measure(peer: Peer, case: Case) -> None:
            if case.wire in peer.wires and not (case.echo_bytes > 128 and peer.name in LARGE_SKIPS):
                _measure(session, peer, case, knees[case.wire, case.echo_bytes] * case.percent / 100)

        session.interleave(peers, cases, measure)


def _knee(session: Session, peers: list[Peer], wire: Wire, echo_bytes: int) -> float:
    """The lowest of the native peers' medians: one stall must not set the rate for all."""
    spec = LoadSpec("closed", (Phase(0, session.effort.seconds),), connections=KNEE_CONNECTIONS, echo_bytes=echo_bytes)
    rates: dict[str, list[float]] = {}

    def measure(peer: Peer, case: Case) -> None:
        report = run_load(session.lab, peer, case.wire, spec).report
        rate = report.answered / report.elapsed_s
        if peer.kind not in ("limit", "python"):
            rates.setdefault(peer.name, []).append(rate)
        values = {"requests_per_s": rate, "failed": float(report.failed)}
        session.record(KNEE, peer.name, {"wire": wire, "bytes": echo_bytes}, values)

    able = [peer for peer in peers if wire in peer.wires and peer.name != "direct again"]
    session.interleave(able, [Case(wire, echo_bytes, KNEE_CONNECTIONS, 100)], measure, repetitions=KNEES)
    return min(map(statistics.median, rates.values()), default=1000.0)


def _measure(session: Session, peer: Peer, case: Case, rate: float) -> None:
    phase = Phase(round(rate, 1), session.effort.seconds_at(rate))
    spec = LoadSpec(
        "rate", (phase,), connections=case.connections, echo_bytes=case.echo_bytes, seed=len(session.samples)
    )
    done = run_load(session.lab, peer, case.wire, spec)
    result = done.report.phases[0]
    values = {
        **result.quantiles_us(),
        "cpu_us_per_request": done.per_request_us(),
        "user_us_per_request": done.cpu.user_s / max(done.report.answered, 1) * 1e6,
        "rate": phase.rate,
        "failed": float(result.failed),
    }
    row = {"wire": case.wire, "bytes": case.echo_bytes, "connections": case.connections, "load": f"{case.percent} %"}
    session.record(QUESTION, peer.name, {**row}, values, {"latency_ns": result.latency})
