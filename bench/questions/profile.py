"""Profile: why a request or a gigabyte costs what it costs. CPU in the program and in the kernel, and system calls by name.

CPU is taken in a run of its own, since counting system calls (strace -c) slows the peer down. Small calls come at a fixed
rate that every peer can carry, so that none gains by batching under pressure; gigabytes as fast as they go. All of a
peer's processes and threads count, the Trio thread too.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from bench.lab import LabError
from bench.load import LoadReport, LoadSpec, Phase
from bench.peers.base import WIRES, Peer, Wire
from bench.peers.catalogue import all_peers, distinct_peers
from bench.peers.ours import Bentpipe
from bench.results import Results
from bench.session import Session, run_load
from bench.usage import SyscallCount

QUESTION = "profile"
TITLE = "Profile: where requests and gigabytes go"
SHOWN = ("cpu", "user", "system", "calls")
RATE = 2000.0
"""Small calls a second: half of what the slowest peer can carry."""
COUNTED_RATE = 300.0
"""Under strace: a call for each request as without it, where a peer that falls behind would read several at once."""
CONNECTIONS = 16
STREAM_MESSAGES = 256
CALL = "call "
"""Begins the name of the value that counts one system call."""
MOST_CALLS = 5
LEAST_SHARE = 0.02

REPETITIONS = 2
LONG = 4
"""Times the usual length for small calls, which leave a peer idle: the clock tick must find it at work often enough."""

Work = Literal["request", "GB down"]
WORKS: tuple[Work, ...] = ("request", "GB down")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One table row: `user` and `system` are µs a request, or seconds a gigabyte; calls are per unit as well."""

    wire: Wire
    work: Work


CASES = [Case(wire, work) for wire in WIRES for work in WORKS]


def run(session: Session) -> None:
    """Measure the clocks, interleaved, then count the calls."""
    peers = distinct_peers() if session.effort.quick else [*all_peers(), Bentpipe("off")]
    with session.running([peer for peer in peers if peer.kind != "limit"]) as started:

        def measure(peer: Peer, case: Case) -> None:
            if case.wire in peer.wires:
                done = run_load(session.lab, peer, case.wire, _spec(session, case, RATE))
                units = _units(case, done.report)
                cpu = done.cpu
                values = {"cpu": cpu.total_s / units, "user": cpu.user_s / units, "system": cpu.system_s / units}
                session.record(QUESTION, peer.name, dataclasses.asdict(case), values)

        session.interleave(started, CASES, measure, repetitions=REPETITIONS)
        reason = SyscallCount.missing()
        if reason is not None:
            session.absent["system calls"] = reason
            return

        def count(peer: Peer, case: Case) -> None:
            if case.wire in peer.wires:
                _count(session, peer, case)

        session.interleave(started, CASES, count, repetitions=1)


def _spec(session: Session, case: Case, rate: float) -> LoadSpec:
    seconds = session.effort.seconds
    match case.work:
        case "request":
            return LoadSpec("rate", (Phase(rate, LONG * seconds),), connections=CONNECTIONS)
        case "GB down":
            return LoadSpec("closed", (Phase(0, seconds),), task="download", messages=STREAM_MESSAGES)


def _units(case: Case, report: LoadReport) -> float:
    """Requests, in millions so that their CPU is in µs; or gigabytes."""
    return max(report.answered, 1) / 1e6 if case.work == "request" else max(report.moved_bytes, 1) / 1e9


def _count(session: Session, peer: Peer, case: Case) -> None:
    with peer.load(session.lab, case.wire, _spec(session, case, COUNTED_RATE)) as load:
        count = SyscallCount(peer.pids())
        try:
            report = load.run()
        except LabError:
            count.stop()
            raise
        calls = count.stop()
    units = _units(case, report) * (1e6 if case.work == "request" else 1)
    values = {f"{CALL}{name}": number / units for name, number in calls.items()}
    session.record(QUESTION, peer.name, dataclasses.asdict(case), {"calls": sum(values.values()), **values})


def tables(results: Results) -> Iterator[str]:
    """README's tables: the reasons for the claims' results."""
    for wire in WIRES:
        for work, unit in (("request", "µs"), ("GB down", "s")):
            case = {"wire": wire, "work": work}
            rows = [
                f"| {peer} | {user:.3g} {unit} | {system:.3g} {unit} | {_calls(results, peer, case)} |"
                for peer in results.peers(QUESTION)
                if (user := results.median(QUESTION, peer, "user", case)) is not None
                and (system := results.median(QUESTION, peer, "system", case)) is not None
            ]
            if rows:
                yield from (f"**A {work}, {wire}**", "", "| | in the program | in the kernel | system calls |")
                yield from ("| --- | ---: | ---: | --- |", *rows, "")


def _calls(results: Results, peer: str, case: dict[str, str]) -> str:
    total = results.median(QUESTION, peer, "calls", case)
    if not total:
        return "not counted"
    found = results.values_by_name(QUESTION, peer, CALL, case)
    most = sorted(found.items(), key=lambda pair: -pair[1])[:MOST_CALLS]
    words = ", ".join(f"{name} {_number(count)}" for name, count in most if count >= LEAST_SHARE * total)
    return f"{_number(total)}: {words}"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.2g}"
