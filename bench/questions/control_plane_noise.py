"""Noise from the control plane: the tail of calls on warm connections during a storm of new connections.

A second load generator makes the storm, at a rate that is the same for every peer. So the storm's cost to the machine is the
same for all, and `direct` shows that part. On some machines one core cannot do a thousand handshakes a second:
`storm_answered` says how many there were. bentpipe gets three more storms: refusals, wakes of sleeping satellites, and a
control plane that is stopped for 200 ms in every second. All of bentpipe is on one core here, so a storm takes time from
the engine's thread too. For the peers, it takes time from their one thread.
"""

import contextlib
import dataclasses

from bench.load import Load, LoadSpec, Phase
from bench.peers.base import Peer, Wire
from bench.peers.catalogue import distinct_peers
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "control_plane_noise"
TITLE = "Noise from the control plane"
SHOWN = ("p50_us", "p99_us", "p99.9_us", "storm_answered", "failed")
CALM = LoadSpec("rate", (Phase(4000, 1.5),), connections=8)
"""Enough calls that some lie beyond p99.9."""
QUICK_SECONDS = 0.4
SLEEPERS = 40
"""Satellites for the storm of wakes; each wakes once."""
POOL = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Storm:
    """The kind of storm, and its rate."""

    name: str
    rate: float
    wire: Wire = "plain"
    token: str | None = None
    satellites: str = "bench"
    ours_only: bool = False


QUICK_SKIPS = ("greetings", "refusals")
STALL = Storm("200 ms blocks", 0, ours_only=True)
STORMS = [
    Storm("none", 0),
    Storm("greetings", 400),
    Storm("1000 handshakes", 1000, "tls"),
    Storm("refusals", 400, token="wrong", ours_only=True),
    Storm("wakes", SLEEPERS, satellites="sleeper%d", ours_only=True),
    STALL,
]


def run(session: Session) -> None:
    """Make every storm on every peer to which it applies."""
    ours, stalled = Bentpipe(), Bentpipe.stalled()
    ours.satellites += [(f"sleeper{number}", ()) for number in range(SLEEPERS)]
    ours.sleep_after = "1s"
    peers = [ours if peer.name == ours.name else peer for peer in distinct_peers()]
    with session.running([*peers, stalled]) as started:

        def measure(peer: Peer, storm: Storm) -> None:
            if peer is stalled:
                storms = [STALL]
            elif peer is ours:
                storms = [other for other in STORMS if other is not STALL]
            else:
                storms = [other for other in STORMS if not other.ours_only]
            if storm in storms and not (session.effort.quick and storm.name in QUICK_SKIPS):
                _measure(session, peer, storm)

        session.interleave(started, STORMS, measure)


def _measure(session: Session, peer: Peer, storm: Storm) -> None:
    seconds = QUICK_SECONDS if session.effort.quick else CALM.phases[0].seconds
    calm = dataclasses.replace(CALM, phases=(Phase(CALM.phases[0].rate, seconds),))
    with contextlib.ExitStack() as stack:
        tempest: Load | None = None
        if storm.rate:
            spec = LoadSpec(
                "connect",
                (Phase(storm.rate, seconds),),
                connections=POOL,
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
        **phase.quantiles_us(),
        "storm_answered": float(answered),
        "failed": float(phase.failed),
    }
    session.record(QUESTION, peer.name, {"storm": storm.name}, values, {"latency_ns": phase.latency})
