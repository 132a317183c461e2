"""Idle connections: memory for each one that is open and silent, and what many of them cost a busy one.

Each peer is started anew, and is given connections that each had one answer. `process_kib` is the growth of its anonymous
resident memory; `kernel_kib` that of the whole machine's kernel memory, less what the same connections cost directly
(the client's and the upstream's sockets). The machine's limit of open files sets the largest number.
"""

import resource

from bench.lab import LabError
from bench.load import LoadSpec, Phase
from bench.peers.base import WIRES, Peer, Wire
from bench.peers.catalogue import all_peers
from bench.session import Session, run_load
from bench.usage import kernel_bytes, open_files, resident_bytes

QUESTION = "idle_connections"
TITLE = "Idle connections"
SHOWN = ("process_kib", "kernel_kib", "files", "busy_p50_us", "busy_p99_us")
SPARE_FILES = 1_900
"""HAProxy keeps pipes and listeners beside its connections."""
SKIPPED = ("direct again", "haproxy tcp splice")
"""A silent connection has no pipe, so the setting of `splice` makes no difference. Python is not asked for many."""
FEW, MANY = 1_000, 10_000
BUSY = LoadSpec("rate", (Phase(1000, 0.7),), connections=4)


def run(session: Session) -> None:
    """Measure each peer on its own, one after the other."""
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES) // 2 // 1000 * 1000
    counts = [FEW] if session.effort.quick else [FEW, min(MANY, most)]
    if counts[-1] < MANY and not session.effort.quick:
        session.absent["10,000 idle connections"] = f"the limit of open files allows {counts[-1]}"
    for count in counts:
        for wire in WIRES:
            _measure_all(session, wire, count)


def _measure_all(session: Session, wire: Wire, count: int) -> None:
    direct_kib = 0.0
    for candidate in all_peers():
        python = candidate.kind == "python" and (count > FEW or session.effort.quick)
        if wire not in candidate.wires or candidate.name in SKIPPED or python:
            continue
        with session.running([candidate]) as started:
            for peer in started:
                try:
                    direct_kib = _measure(session, peer, wire, count, direct_kib)
                except LabError as exc:
                    session.absent[f"{peer.name}, {count} idle {wire} connections"] = str(exc)


def _measure(session: Session, peer: Peer, wire: Wire, count: int, direct_kib: float) -> float:
    """Take a sample. Returns what a direct connection costs the kernel."""
    alone = run_load(session.lab, peer, wire, BUSY).report.phases[0]
    pids = peer.pids()
    kernel, process, files = kernel_bytes(), resident_bytes(pids), open_files(pids)
    with peer.load(session.lab, wire, LoadSpec("idle", connections=count, source_addresses=8)):
        kernel_kib = (kernel_bytes() - kernel) / count / 1024
        if peer.kind == "limit":
            direct_kib = kernel_kib
        values = {
            "process_kib": (resident_bytes(pids) - process) / count / 1024,
            "kernel_kib": kernel_kib - direct_kib,
            "kernel_with_both_ends_kib": kernel_kib,
            "files": (open_files(pids) - files) / count,
        }
        busy = run_load(session.lab, peer, wire, BUSY).report.phases[0]
    values |= {
        **{f"busy_{name}": us for name, us in busy.quantiles_us().items()},
        **{f"alone_{name}": us for name, us in alone.quantiles_us().items()},
    }
    session.record(QUESTION, peer.name, {"wire": wire, "connections": count}, values)
    return direct_kib
