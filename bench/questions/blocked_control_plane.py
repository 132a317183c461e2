"""Whether Python is on the data path: calls on spliced connections while Trio's thread is stopped, or overloaded.

`blocked`: Trio's thread alone is stopped from outside for 200 ms, again and again (ptrace(2) stops one thread, not its
process). `handshakes`: TLS clients come at 1,000 a second, more than it can greet. If bytes needed Python, p99.9 under
`blocked` would be 200 ms; it must be that of `calm`. `handshakes` takes the core that the engine's thread shares with
Trio here, and the machine's other core with its clients. `handshakes elsewhere` is the control: the same storm, on the same
core, at another daemon. If `handshakes` cost more than that, Python would be the cause.
"""

import contextlib
import ctypes
import dataclasses
import os
import threading
from collections.abc import Iterator
from typing import Literal

from bench.lab import LabError
from bench.load import LoadSpec, Phase
from bench.peers.base import Peer
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "blocked_control_plane"
TITLE = "Spliced connections while the control plane is blocked"
SHOWN = ("p50_us", "p99_us", "p99.9_us", "stops", "storm_answered", "failed")
BLOCK_S = 0.2
PAUSE_S = 0.05
"""Between two blocks: long enough for Trio to run, so that it is stopped in the middle of things."""
CALLS = LoadSpec("rate", (Phase(1000, 1.0),), connections=8)
HANDSHAKES_PER_S = 1000.0
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
WAIT_ALL = 0x40000000  # __WALL, waitpid(2): threads too


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """What happens to the control plane."""

    name: str
    blocked: bool = False
    handshakes: Literal["", "here", "elsewhere"] = ""


CASES = [
    Case("calm"),
    Case("blocked", blocked=True),
    Case("handshakes", handshakes="here"),
    Case("handshakes elsewhere", handshakes="elsewhere"),
]


@contextlib.contextmanager
def blocked(thread_id: int, stops: list[int]) -> Iterator[None]:
    """Stop one thread of another process for BLOCK_S at a time until the end; each adds to `stops`. Raises LabError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    over = threading.Event()
    failed: list[str] = []

    def run() -> None:
        while not over.wait(PAUSE_S):
            if libc.ptrace(PTRACE_ATTACH, thread_id, None, None) < 0:
                failed.append(f"ptrace: {os.strerror(ctypes.get_errno())}")
                return
            os.waitpid(thread_id, WAIT_ALL)
            over.wait(BLOCK_S)
            libc.ptrace(PTRACE_DETACH, thread_id, None, None)
            stops.append(thread_id)

    worker = threading.Thread(target=run)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
    if failed:
        raise LabError(failed[0])


def run(session: Session) -> None:
    """Every case, interleaved."""
    other = Bentpipe()
    other.name = f"{other.name} beside"
    with session.running([Bentpipe(), other]) as peers:
        if len(peers) == 2:
            session.interleave(peers[:1], CASES, lambda peer, case: _measure(session, peer, other, case))


def _measure(session: Session, peer: Peer, other: Peer, case: Case) -> None:
    seconds = session.effort.seconds * 5
    stops: list[int] = []
    calls = dataclasses.replace(CALLS, phases=(Phase(CALLS.phases[0].rate, seconds),))
    storm_spec = LoadSpec(
        "connect", (Phase(HANDSHAKES_PER_S, seconds),), connections=2000, wait_settings=True, source_addresses=16
    )
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(peer.load(session.lab, "plain", calls))
        target = other if case.handshakes == "elsewhere" else peer
        storm = stack.enter_context(target.load(session.lab, "tls", storm_spec)) if case.handshakes else None
        if case.blocked:
            stack.enter_context(blocked(peer.pids()[0], stops))
        if storm is not None:
            storm.begin()
        phase = load.run().phases[0]
        answered = 0 if storm is None else storm.report().answered
    values = {
        "p50_us": phase.quantile_us(0.5),
        "p99_us": phase.quantile_us(0.99),
        "p99.9_us": phase.quantile_us(0.999),
        "stops": float(len(stops)),
        "storm_answered": float(answered),
        "failed": float(phase.failed),
    }
    session.record(QUESTION, peer.name, {"control plane": case.name}, values, {"latency_ns": phase.latency})
