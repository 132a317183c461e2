"""Overload: twice the knee, then back. What breaks, and does the peer recover?

Each peer is given its own knee: half of it, twice it, a tenth while the backlog drains, half again. Latency counts from
the intended time, so the backlog of the overload is in its figures; `after_over_before` is whether it left anything
behind. bentpipe is overloaded for five seconds like all, and for a minute.
"""

from bench.load import LoadSpec, Phase
from bench.peers.base import Peer
from bench.peers.catalogue import distinct_peers
from bench.session import Session, run_load

QUESTION = "overload"
TITLE = "Overload: twice the knee, and back"
SHOWN = ("knee_per_s", "over_answered_share", "before_p99_us", "after_p99_us", "after_over_before", "failed")
CONNECTIONS = 64
DRAIN = 1.25
"""How many times as long as the overload its backlog may take: at twice the knee it is as much work as the overload."""
AROUND_S = 2.0
"""Before and after."""
MINUTE_S, SHORT_S, QUICK_S = 60.0, 5.0, 0.4
FOR_A_MINUTE = ("bentpipe",)


def run(session: Session) -> None:
    """Measure every peer on its own."""
    with session.running(distinct_peers()) as peers:

        def measure(peer: Peer, seconds: float) -> None:
            if peer.kind != "limit" and (seconds < MINUTE_S or peer.name in FOR_A_MINUTE):
                _measure(session, peer, seconds)

        lengths = [QUICK_S] if session.effort.quick else [SHORT_S, MINUTE_S]
        session.interleave(peers, lengths, measure, repetitions=1)


def _measure(session: Session, peer: Peer, seconds: float) -> None:
    closed = LoadSpec("closed", (Phase(0, session.effort.seconds),), connections=CONNECTIONS)
    found = run_load(session.lab, peer, "plain", closed).report
    knee = max(found.answered / found.elapsed_s, 100.0)
    around_s = min(AROUND_S, seconds)
    shares = ((0.5, around_s), (2, seconds), (0.1, DRAIN * seconds), (0.5, around_s))
    phases = tuple(Phase(round(knee * share, 1), length) for share, length in shares)
    spec = LoadSpec("rate", phases, connections=CONNECTIONS, drain_s=DRAIN * seconds)
    before, over, _, after = run_load(session.lab, peer, "plain", spec).report.phases
    values = {
        "knee_per_s": knee,
        "over_answered_share": over.answered / max(over.sent, 1),
        "before_p99_us": before.quantile_us(0.99),
        "over_p50_us": over.quantile_us(0.5),
        "after_p99_us": after.quantile_us(0.99),
        "after_over_before": after.quantile_us(0.5) / max(before.quantile_us(0.5), 1e-3),
        "failed": float(sum(phase.failed for phase in (before, over, after))),
    }
    histograms = {"before_ns": before.latency, "over_ns": over.latency, "after_ns": after.latency}
    session.record(QUESTION, peer.name, {"seconds": seconds}, values, histograms)
