"""Noise from the control plane: the tail of calls on warm connections while new ones storm in.

The storm comes from a second load generator at a fixed rate, the same for every peer, so that what it costs the machine
falls on all alike; `direct` shows that part. Against bentpipe there are two storms more: refusals, and wakes of sleeping
satellites. The Compute API does not exist yet, so its calls cannot storm.
"""

import contextlib
import dataclasses

from bench.load import Load, LoadSpec, Phase
from bench.peers.base import Peer, Wire
from bench.peers.catalogue import all_peers
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "control_plane_noise"
TITLE = "Noise from the control plane"
SHOWN = ("p50_us", "p99_us", "p99.9_us", "storm_answered", "failed")
CALM = LoadSpec("rate", (Phase(1000, 1.0),), connections=8)
SLEEPERS = 40
"""Satellites for the storm of wakes; each wakes once."""
POOL = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Storm:
    """What storms, and how hard."""

    name: str
    rate: float
    wire: Wire = "plain"
    token: str | None = None
    satellites: str = "bench"
    ours_only: bool = False


STORMS = [
    Storm("calm", 0),
    Storm("greetings", 400),
    Storm("handshakes", 100, "tls"),
    Storm("refusals", 400, token="wrong", ours_only=True),
    Storm("wakes", SLEEPERS, satellites="sleeper%d", ours_only=True),
]


def run(session: Session) -> None:
    """Every storm on every peer that takes it."""
    peers = [peer for peer in all_peers() if set(peer.wires) == {"plain", "tls"} and peer.name != "direct again"]
    ours = Bentpipe()
    ours.satellites += [(f"sleeper{number}", ()) for number in range(SLEEPERS)]
    ours.sleep_after = "1s"
    peers = [ours if peer.name == ours.name else peer for peer in peers]
    with session.running(peers) as started:

        def measure(peer: Peer, storm: Storm) -> None:
            if peer.kind == "bentpipe" or not storm.ours_only:
                _measure(session, peer, storm)

        session.interleave(started, STORMS, measure)


def _measure(session: Session, peer: Peer, storm: Storm) -> None:
    seconds = session.effort.seconds * 2
    calm = dataclasses.replace(CALM, phases=(Phase(CALM.phases[0].rate, seconds),))
    with contextlib.ExitStack() as stack:
        tempest: Load | None = None
        if storm.rate:
            spec = LoadSpec(
                "connect",
                (Phase(storm.rate, seconds),),
                connections=POOL,
                wait_settings=True,
                satellites=storm.satellites,
                satellite_count=SLEEPERS,
                source_addresses=16,
            )
            ca = str(session.lab.ca) if storm.wire == "tls" else None
            tempest = stack.enter_context(Load(peer.ports[storm.wire], ca, storm.token or peer.token, spec))
        load = stack.enter_context(peer.load(session.lab, "plain", calm))
        if tempest is not None:
            tempest.begin()
        phase = load.run().phases[0]
        answered = 0 if tempest is None else tempest.report().answered
    values = {
        "p50_us": phase.quantile_us(0.5),
        "p99_us": phase.quantile_us(0.99),
        "p99.9_us": phase.quantile_us(0.999),
        "storm_answered": float(answered),
        "failed": float(phase.failed),
    }
    session.record(QUESTION, peer.name, {"storm": storm.name}, values, {"latency_ns": phase.latency})
