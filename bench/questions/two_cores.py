"""Two cores: `new_connections`, with two workers for each peer and the whole machine for all.

The load generator and the upstream keep their core, and share it with the peer. So `connections_per_s` is what this machine
does in all, clients included, and `per_core_second` what a peer's own CPU time is good for. A peer whose new connections are
one thread's work has the same rate as on one core.
"""

import dataclasses

from bench.lab import TWO_CORES, Lab
from bench.peers.base import Peer
from bench.peers.catalogue import distinct_peers
from bench.questions.new_connections import SHOWN, Case, measure_connections
from bench.session import Session

__all__ = ["QUESTION", "SHOWN", "TITLE", "run"]

QUESTION = "two_cores"
TITLE = "New connections on two cores"


def run(session: Session) -> None:
    """Measure every native peer."""
    with Lab(TWO_CORES) as lab:
        both = dataclasses.replace(session, lab=lab)
        with both.running([peer for peer in distinct_peers() if peer.kind != "python"]) as peers:

            def measure(peer: Peer, case: Case) -> None:
                if case.wire in peer.wires:
                    measure_connections(both, peer, case, QUESTION)

            both.interleave(peers, [Case("tls", resume=False), Case("plain", resume=False)], measure)
