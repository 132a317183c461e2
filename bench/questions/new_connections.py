"""New connections: TLS handshake, first request and its answer, close; how many a second, and how long one takes.

First closed loop, for the rate; then open loop at half of that rate, for the latency from the intended time of
connecting. The client waits for the server's SETTINGS before its request, as grpc-go does, which is
bentpipe's most expensive greeting: two round trips. `per_core_second` is the rate that the peer's core could carry if the
load generator's core were not the limit. For bentpipe the results also have the CPU time of its two threads, and `micro`
has the parts in Python alone, by pyperf.
"""

import dataclasses

from bench.compare import run_micro
from bench.lab import BUILD
from bench.load import LoadSpec, Phase
from bench.peers.base import Peer, Wire
from bench.peers.catalogue import distinct_peers
from bench.peers.ours import Bentpipe
from bench.session import Session, run_load

QUESTION = "new_connections"
TITLE = "New connections"
SHOWN = (
    "connections_per_s",
    "per_core_second",
    "half_rate_p50_ms",
    "half_rate_p99_ms",
    "resumed_share",
    "trio_us_per_connection",
    "plane_us_per_connection",
    "engine_us_per_connection",
)
MICRO = "micro"
WORKERS = 16
POOL = 2000
"""Connections that the open loop may have under way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One table row."""

    wire: Wire
    resume: bool


CASES = [Case("tls", resume=False), Case("plain", resume=False), Case("tls", resume=True)]


def run(session: Session) -> None:
    """Measure every peer, and what it is worth to let the kernel wait for a client's first bytes."""
    with session.running([*distinct_peers(), Bentpipe(variant="accepting at once")]) as peers:

        def measure(peer: Peer, case: Case) -> None:
            if case.wire in peer.wires:
                measure_connections(session, peer, case, QUESTION)

        session.interleave(peers, CASES[:2] if session.effort.quick else CASES, measure)
    for part, seconds in run_micro(BUILD).items():
        for value in seconds:
            session.record(MICRO, "bentpipe", {"part": part}, {"us": value * 1e6})


def measure_connections(session: Session, peer: Peer, case: Case, question: str) -> None:
    """Take a sample, and record it for a question."""
    spec = LoadSpec(
        "connect",
        (Phase(0, session.effort.seconds),),
        connections=WORKERS,
        resume=case.resume,
        source_addresses=16,
    )
    threads = peer.thread_cpu_s() if isinstance(peer, Bentpipe) else {}
    done = run_load(session.lab, peer, case.wire, spec)
    answered = max(done.report.answered, 1)
    rate = answered / done.report.elapsed_s
    cpu_s = done.cpu.total_s / answered
    values = {
        "connections_per_s": rate,
        "cpu_us_per_connection": cpu_s * 1e6,
        "user_us_per_connection": done.cpu.user_s / answered * 1e6,
        "resumed_share": done.report.resumed / answered,
        "failed": float(done.report.failed),
    }
    if cpu_s:
        values["per_core_second"] = 1 / cpu_s
    if isinstance(peer, Bentpipe):
        now = peer.thread_cpu_s()
        values |= {f"{name}_us_per_connection": (now[name] - threads[name]) / answered * 1e6 for name in now}
    phases = (Phase(round(rate / 2, 1), session.effort.seconds_at(rate / 2)),)
    half = dataclasses.replace(spec, connections=POOL, phases=phases)
    phase = run_load(session.lab, peer, case.wire, half).report.phases[0]
    values |= {f"half_rate_{name.removesuffix('us')}ms": us / 1e3 for name, us in phase.quantiles_us().items()}
    values["half_rate_failed"] = float(phase.failed)
    row = {"wire": case.wire, "resumption": "offered" if case.resume else "no"}
    session.record(question, peer.name, {**row}, values, {"half_rate_ns": phase.latency})
