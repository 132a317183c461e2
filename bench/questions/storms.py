"""Storms: the tail of calls on spliced connections while other clients connect, 400 a second.

The load generator that measures, and the upstream, run at real-time priority, so that their own delay is not measured. The
one that makes the storm has a lower priority than they, and a higher one than everything else. So each peer gets the same
storm at the same moments. All of a peer is on one core, as everywhere: what the storm costs it, its calls wait for. The
question is what else they wait for. bentpipe is measured with the priority of its threads that is the default (slice), in
real time, and as two processes. `storm_answered` must be the same for all peers; else a peer was overloaded. On a machine
that others use, their programs delay every peer except the one in real time.
"""

import contextlib
import dataclasses

from bench.lab import REALTIME, Lab, realtime_missing
from bench.load import Load, LoadSpec, Phase
from bench.peers.base import Peer, Wire
from bench.peers.catalogue import all_peers
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "storms"
TITLE = "Storms of new connections beside spliced calls"
SHOWN = ("p50_us", "p99_us", "p99.9_us", "storm_answered", "failed")
CALLS_PER_S = 2000.0
SECONDS, QUICK_SECONDS = 2.0, 0.5
STORM_PER_S = 400.0
STORM_PRIORITY = 1
CONNECTIONS = 8
POOL = 2000
PEERS = ("direct", "bentpipe", "bentpipe two processes", "haproxy tcp", "envoy", "nginx")


@dataclasses.dataclass(frozen=True, slots=True)
class Storm:
    """What connects meanwhile, and how; no wire: nothing does."""

    name: str
    wire: Wire | None


STORMS = [Storm("none", None), Storm("plain", "plain"), Storm("handshakes", "tls")]


def peers() -> list[Peer]:
    """Those that are compared."""
    return [*(peer for peer in all_peers() if peer.name in PEERS), Bentpipe(variant="realtime")]


def run(session: Session) -> None:
    """Make every storm on every peer. Without SCHED_RR the results say so, and there are none."""
    reason = realtime_missing()
    if reason is not None:
        session.absent[QUESTION] = reason
        return
    with Lab(REALTIME) as lab:
        storm_session = dataclasses.replace(session, lab=lab)
        with storm_session.running(peers()) as started:
            storms = [storm for storm in STORMS if not (session.effort.quick and storm.name == "plain")]
            storm_session.interleave(started, storms, lambda peer, storm: _measure(storm_session, peer, storm))


def _measure(session: Session, peer: Peer, storm: Storm) -> None:
    seconds = QUICK_SECONDS if session.effort.quick else SECONDS
    calls = LoadSpec("rate", (Phase(CALLS_PER_S, seconds),), connections=CONNECTIONS, seed=len(session.samples))
    with contextlib.ExitStack() as stack:
        others: Load | None = None
        if storm.wire is not None:
            spec = LoadSpec("connect", (Phase(STORM_PER_S, seconds),), connections=POOL, source_addresses=16)
            placement = dataclasses.replace(session.lab.placement, load_priority=STORM_PRIORITY)
            ca = str(session.lab.ca) if storm.wire == "tls" else None
            others = stack.enter_context(Load(peer.ports[storm.wire], ca, peer.token, spec, placement))
        load = stack.enter_context(peer.load(session.lab, "plain", calls))
        if others is not None:
            others.begin()
        phase = load.run().phases[0]
        answered = 0 if others is None else others.report().answered
    values = {**phase.quantiles_us(), "storm_answered": float(answered), "failed": float(phase.failed)}
    session.record(QUESTION, peer.name, {"storm": storm.name}, values, {"latency_ns": phase.latency})
