"""Cost of bytes: what moving a gigabyte costs a proxy, in time and CPU seconds, up and down.

Streams carry messages of 64 KiB, and each end checks every byte. CPU is the proxy's own, user and system; `profile` counts
the system calls. bentpipe is measured in its three modes: auto (the default), off (copying), always (splicing). With TLS the
kernel may encrypt the records (kTLS), and then the engine can splice. Otherwise OpenSSL does, on the engine's thread.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from bench.load import LoadSpec, Phase
from bench.peers.base import WIRES, Peer, Wire
from bench.peers.catalogue import all_peers
from bench.peers.ours import Bentpipe
from bench.session import Session, run_load

QUESTION = "cost_of_bytes"
TITLE = "Cost of bytes"
SHOWN = ("cpu_s_per_gb", "user_s_per_gb", "system_s_per_gb", "gb_per_s")
KTLS = Path("/proc/net/tls_stat")
STREAM_MESSAGES = 256
"""Of 64 KiB: a stream of 16 MiB, then the next one on the same connection."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One table row."""

    wire: Wire
    task: Literal["download", "upload"]
    connections: int

    def row(self) -> dict[str, str | int | float]:
        """How the results name it."""
        return {"wire": self.wire, "direction": self.task, "connections": self.connections}


TASKS: tuple[Literal["download", "upload"], ...] = ("download", "upload")
QUICK_CASES = [Case(wire, task, 1) for wire in WIRES for task in TASKS]
FULL_CASES = [*QUICK_CASES, *(Case(wire, "download", 8) for wire in WIRES)]


def run(session: Session) -> None:
    """Measure every peer, and bentpipe in each mode."""
    if not KTLS.exists():
        session.absent["bentpipe, kTLS"] = "this kernel has no TLS (no CONFIG_TLS): OpenSSL does every record"
    cases = QUICK_CASES if session.effort.quick else FULL_CASES
    peers = [peer for peer in all_peers() if peer.name != "direct again"]
    with session.running([*peers, Bentpipe("off"), Bentpipe("always")]) as peers:

        def measure(peer: Peer, case: Case) -> None:
            if case.wire in peer.wires:
                _measure(session, peer, case)

        session.interleave(peers, cases, measure)


def _spec(session: Session, case: Case) -> LoadSpec:
    phases = (Phase(0, session.effort.seconds),)
    return LoadSpec("closed", phases, connections=case.connections, task=case.task, messages=STREAM_MESSAGES)


def _measure(session: Session, peer: Peer, case: Case) -> None:
    done = run_load(session.lab, peer, case.wire, _spec(session, case))
    gigabytes = max(done.report.moved_bytes, 1) / 1e9
    values = {
        "gb_per_s": gigabytes / done.report.elapsed_s,
        "cpu_s_per_gb": done.cpu.total_s / gigabytes,
        "user_s_per_gb": done.cpu.user_s / gigabytes,
        "system_s_per_gb": done.cpu.system_s / gigabytes,
        "failed": float(done.report.failed),
    }
    session.record(QUESTION, peer.name, case.row(), values)
