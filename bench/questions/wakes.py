"""Wakes: the daemon's own delay between a satellite's "port listens" and its client's first answer; herds and crowds.

The satellite is the upstream, told to wait before it listens and to note when it did. Everything after that note is
bentpipe's: noticing, dialling, replaying, the hand-off, for a herd all of its clients. Every client counts: `delay` is
from its satellite's note to its own answer. A herd must start its satellite exactly once (`starts`).
"""

import dataclasses
from pathlib import Path
from typing import Literal

from hdrh.histogram import HdrHistogram

from bench.load import HIGHEST_NS, KEPT_DIGITS, KEPT_LOWEST_NS, LoadSpec, Phase
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "wakes"
TITLE = "Wakes"
SHOWN = ("delay_p50_ms", "delay_p99_ms", "delay_max_ms", "listen_to_first_ms", "listen_to_last_ms", "starts", "failed")
Form = Literal["inside", "process"]
BOOT_S = 0.5
DEADLINE_S = 40.0


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """Numbers of clients and of satellites, and the clients' rate a second (0: all at once)."""

    clients: int
    satellites: int
    per_second: float = 0


QUICK_CASES = [Case(1, 1), Case(200, 1), Case(30, 30), Case(20, 20, 10)]
FULL_CASES = [
    *(Case(clients, 1) for clients in (1, 10, 100, 1000, 5000)),
    Case(300, 300),
    Case(200, 200, 20),
]


FORMS: tuple[Form, ...] = ("inside", "process")
CROWD = 200
"""From so many clients on, the form with two processes is measured too."""


def run(session: Session) -> None:
    """A fresh daemon for each sample: every satellite is asleep at its start."""
    for repetition in range(session.effort.repetitions):
        for case in QUICK_CASES if session.effort.quick else FULL_CASES:
            for form in FORMS if case.clients >= CROWD else FORMS[:1]:
                _measure(session, case, repetition, form)


def _measure(session: Session, case: Case, repetition: int, form: Form) -> None:
    folder = session.lab.directory / f"marks-{form}-{case.clients}-{case.satellites}-{case.per_second}-{repetition}"
    folder.mkdir()
    peer = Bentpipe(data_plane=form)
    peer.satellites = [
        (f"sat{number}", ("--boot", str(BOOT_S), "--mark", str(folder / str(number))))
        for number in range(case.satellites)
    ]
    spec = LoadSpec(
        "connect",
        (Phase(case.per_second, 1.0 if not case.per_second else 3 * case.clients / case.per_second),),
        connections=case.clients,
        count=case.clients,
        satellites="sat%d",
        satellite_count=case.satellites,
        drain_s=DEADLINE_S,
        seed=repetition + 1,
    )
    with session.running([peer]) as started:
        for running in started:
            with running.load(session.lab, "plain", spec) as load:
                report = load.run()
            marks = {int(path.name): _listened_ns(path) for path in folder.iterdir()}
            listening = [moments[0] for moments in marks.values() if moments]
            if not listening:
                session.absent[f"wake of {case.satellites}"] = "no satellite came to listen"
                return
            delays = HdrHistogram(KEPT_LOWEST_NS, HIGHEST_NS, KEPT_DIGITS)
            for number, answer_ns in enumerate(report.answers_ns):
                moments = marks.get(number % case.satellites)
                if answer_ns and moments:
                    delays.record_value(answer_ns - moments[0])
            values = {
                "delay_p50_ms": delays.get_value_at_percentile(50) / 1e6,
                "delay_p99_ms": delays.get_value_at_percentile(99) / 1e6,
                "delay_max_ms": delays.get_max_value() / 1e6,
                "listen_to_first_ms": (report.first_answer_ns - min(listening)) / 1e6,
                "listen_to_last_ms": (report.last_answer_ns - max(listening)) / 1e6,
                "begin_to_last_ms": (report.last_answer_ns - report.begin_ns) / 1e6,
                "starts": sum(map(len, marks.values())) / case.satellites,
                "failed": float(report.failed),
            }
            session.record(QUESTION, peer.name, dataclasses.asdict(case), values, {"delay_ns": delays})


def _listened_ns(path: Path) -> list[int]:
    """The moments that a satellite noted."""
    return [int(line) for line in path.read_text().split()]
