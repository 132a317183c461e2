"""Wakes: the daemon's own delay between a satellite's "port listens" and its client's first answer; herds and crowds.

The satellite is the upstream, told to wait before it listens and to note when it did. Everything after that note is
bentpipe's: noticing, dialling, replaying, the hand-off, for a herd all of its clients. A herd must start its satellite
exactly once (`starts`).
"""

import dataclasses

from bench.load import LoadSpec, Phase
from bench.peers.ours import Bentpipe
from bench.session import Session

QUESTION = "wakes"
TITLE = "Wakes"
SHOWN = ("listen_to_first_ms", "listen_to_last_ms", "starts", "failed")
BOOT_S = 0.5
DEADLINE_S = 40.0


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """So many clients, spread over so many satellites, at once."""

    clients: int
    satellites: int


QUICK_CASES = [Case(1, 1), Case(200, 1), Case(30, 30)]
FULL_CASES = [Case(1, 1), Case(10, 1), Case(100, 1), Case(1000, 1), Case(5000, 1), Case(300, 300)]


def run(session: Session) -> None:
    """A fresh daemon for each sample: every satellite is asleep at its start."""
    for repetition in range(session.effort.repetitions):
        for case in QUICK_CASES if session.effort.quick else FULL_CASES:
            _measure(session, case, repetition)


def _measure(session: Session, case: Case, repetition: int) -> None:
    folder = session.lab.directory / f"marks-{case.clients}-{case.satellites}-{repetition}"
    folder.mkdir()
    peer = Bentpipe()
    peer.satellites = [
        (f"sat{number}", ("--boot", str(BOOT_S), "--mark", str(folder / str(number))))
        for number in range(case.satellites)
    ]
    spec = LoadSpec(
        "connect",
        (Phase(0, 1.0),),
        connections=case.clients,
        count=case.clients,
        satellites="sat%d",
        satellite_count=case.satellites,
        wait_settings=True,
        drain_s=DEADLINE_S,
    )
    with session.running([peer]) as started:
        for running in started:
            with running.load(session.lab, "plain", spec) as load:
                report = load.run()
            marks = [[int(line) for line in path.read_text().split()] for path in folder.iterdir()]
            listening = [mark[0] for mark in marks if mark]
            if not listening:
                session.absent[f"wake of {case.satellites}"] = "no satellite came to listen"
                return
            values = {
                "listen_to_first_ms": (report.first_answer_ns - min(listening)) / 1e6,
                "listen_to_last_ms": (report.last_answer_ns - max(listening)) / 1e6,
                "begin_to_last_ms": (report.last_answer_ns - report.begin_ns) / 1e6,
                "starts": sum(map(len, marks)) / case.satellites,
                "failed": float(report.failed),
            }
            session.record(QUESTION, peer.name, dataclasses.asdict(case), values)
