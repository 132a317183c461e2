"""A day's sums of one satellite as JSON, which the ledger keeps when it has deleted the day's intervals. Pure.

What was written stays readable: a name that is missing has its default, and a name that is not known is passed over.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from bentpipe.daemon.ledger.contract import DaySums
from bentpipe.daemon.ledger.facts import read_facts, write_facts
from bentpipe.daemon.model import BootPhase, Resume, SatelliteKey, StateFacts
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.report.tally import Tally
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows, number_of, text_of, whole_of


def write_day(tally: Tally) -> str:
    """The sums as JSON."""
    facts = StateFacts(waits=tally.waits, peaks=tally.peaks, kills=tally.kills, suspicion=tally.suspicion)
    return json.dumps(
        {
            "awake_s": round(tally.awake_s, 6),
            "asleep_s": round(tally.asleep_s, 6),
            "unknown_s": round(tally.unknown_s, 6),
            "begun": tally.begun.to_plain(),
            "failed": tally.failed,
            "wake": {name: durations.to_plain() for name, durations in tally.wake.items()},
            "boot": {phase.value: durations.to_plain() for phase, durations in tally.boot.items()},
            "woken_by": dict(tally.woken_by),
            "resumes": {resume.value: count for resume, count in tally.resumes.items()},
            "start_attempts": {str(attempts): count for attempts, count in tally.start_attempts.items()},
            "facts": write_facts(facts),
        },
        separators=(",", ":"),
    )


def read_day(text: str) -> Tally:
    """Reverse of `write_day`. Raises MalformedRow, ValueError."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise MalformedRow("sums are not a JSON object")
    facts = read_facts(_object_of(found, "facts"))
    return Tally(
        awake_s=number_of(found.get("awake_s", 0), "awake_s"),
        asleep_s=number_of(found.get("asleep_s", 0), "asleep_s"),
        unknown_s=number_of(found.get("unknown_s", 0), "unknown_s"),
        begun=Durations.of_plain(found.get("begun", [0])),
        failed=whole_of(found.get("failed", 0), "failed"),
        wake={name: Durations.of_plain(each) for name, each in _object_of(found, "wake").items()},
        boot={BootPhase(name): Durations.of_plain(each) for name, each in _object_of(found, "boot").items()},
        waits=facts.waits,
        woken_by=Counter(_counts_of(found, "woken_by")),
        resumes=Counter({Resume(name): count for name, count in _counts_of(found, "resumes").items()}),
        start_attempts=Counter({int(name): count for name, count in _counts_of(found, "start_attempts").items()}),
        peaks=facts.peaks,
        kills=facts.kills,
        suspicion=facts.suspicion,
    )


def add_up(days: Iterable[DaySums]) -> dict[SatelliteKey, Tally]:
    """The sums of each satellite over all these days. A row that cannot be read is left out, and logged."""
    tallies: dict[SatelliteKey, Tally] = {}

    def add(row: DaySums) -> None:
        tallies.setdefault(row.key, Tally()).add(read_day(row.sums))

    MalformedRows("day").read(days, lambda row: (str(row.key), row.day_us), add)
    return tallies


def _object_of(found: Mapping[str, object], name: str) -> dict[str, object]:
    inner = found.get(name, {})
    if not isinstance(inner, dict):
        raise MalformedRow(f"{name} is not a JSON object")
    return {text_of(key, name): value for key, value in inner.items()}


def _counts_of(found: Mapping[str, object], name: str) -> dict[str, int]:
    return {key: whole_of(count, name) for key, count in _object_of(found, name).items()}
