"""One row for each fact of a state: how it is written, how it is read, and what it is if several hosts saw the state.

SQLite, DynamoDB and `merge` use this table and name no fact themselves. So a new fact touches few files: its field is in
`model.StateFacts`, `fleet.fact_collector` collects it, its row is here, and `report/` adds it up. Pure.

What was written stays readable. A fact that is missing has its field's default: an older daemon wrote the row. A name that
is not in the table is passed over: a newer daemon wrote it.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence

from bentpipe.daemon.model import NO_FACTS, BootPhase, Peaks, Resume, StateFacts, Suspicion, Waits, WakePhase
from bentpipe.daemon.store.malformed import MalformedRow, number_of, text_of, whole_of

Plain = str | int | float | Sequence["Plain"] | Mapping[str, "Plain"]
"""A value that JSON can hold."""


class MergeRule(enum.Enum):
    """What a fact is if several hosts saw the same state and each recorded its own value."""

    OF_WAKER = "the value of the host that woke the satellite"
    SUM = "all values added up"
    ANY = "the first value that is not the default: all hosts asked the same machine"


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One row. `name` is the field in StateFacts, the name in SQLite's JSON, and the attribute in DynamoDB's items.

    `read` takes whatever a store holds, and raises MalformedRow or ValueError if `write` did not write it.
    """

    name: str
    write: Callable[[StateFacts], Plain]
    read: Callable[[object], object]
    rule: MergeRule

    @property
    def is_text(self) -> bool:
        """Whether `write` gives text, which a store may hold as it is."""
        return isinstance(self.write(NO_FACTS), str)


def _write_phases(facts: StateFacts) -> Plain:
    return {phase.value: round(seconds, 6) for phase, seconds in facts.phases}


def _read_phases(found: object) -> tuple[tuple[WakePhase, float], ...]:
    if not isinstance(found, dict):
        raise MalformedRow("phases is not a JSON object")
    return tuple((WakePhase(phase), number_of(seconds, "phases")) for phase, seconds in found.items())


def _write_waits(facts: StateFacts) -> Plain:
    return [facts.waits.clients, facts.waits.total_s, facts.waits.longest_s]


def _read_waits(found: object) -> Waits:
    if not isinstance(found, list) or len(found) != len(dataclasses.fields(Waits)):
        raise MalformedRow(f"waits is not a list of three numbers: {found!r}")
    clients, total_s, longest_s = found
    return Waits(whole_of(clients, "waits"), number_of(total_s, "waits"), number_of(longest_s, "waits"))


def _write_peaks(facts: StateFacts) -> Plain:
    return [round(percent, 2) for percent in dataclasses.astuple(facts.peaks)]


def _read_peaks(found: object) -> Peaks:
    if not isinstance(found, list) or len(found) != len(dataclasses.fields(Peaks)):
        raise MalformedRow(f"peaks is not a list of three numbers: {found!r}")
    return Peaks(*(number_of(percent, "peaks") for percent in found))


def _write_suspicion(facts: StateFacts) -> Plain:
    return [facts.suspicion.score, *facts.suspicion.reasons]


def _read_suspicion(found: object) -> Suspicion:
    if not isinstance(found, list) or not found:
        raise MalformedRow(f"suspicion is not a list of a score and its reasons: {found!r}")
    score, *reasons = found
    return Suspicion(whole_of(score, "suspicion"), tuple(text_of(reason, "suspicion") for reason in reasons))


def _write_boot(facts: StateFacts) -> Plain:
    return {phase.value: round(seconds, 3) for phase, seconds in facts.boot}


def _read_boot(found: object) -> tuple[tuple[BootPhase, float], ...]:
    if not isinstance(found, dict):
        raise MalformedRow("boot is not a JSON object")
    return tuple((BootPhase(phase), number_of(seconds, "boot")) for phase, seconds in found.items())


FACTS = (
    Fact("phases", _write_phases, _read_phases, MergeRule.OF_WAKER),
    Fact("waits", _write_waits, _read_waits, MergeRule.SUM),
    Fact(
        "resume",
        lambda facts: facts.resume.value,
        lambda found: Resume(text_of(found, "resume")),
        MergeRule.ANY,
    ),
    Fact(
        "start_attempts",
        lambda facts: facts.start_attempts,
        lambda found: whole_of(found, "start_attempts"),
        MergeRule.OF_WAKER,
    ),
    Fact("peaks", _write_peaks, _read_peaks, MergeRule.ANY),
    Fact("kills", lambda facts: facts.kills, lambda found: whole_of(found, "kills"), MergeRule.ANY),
    Fact("suspicion", _write_suspicion, _read_suspicion, MergeRule.ANY),
    Fact("boot", _write_boot, _read_boot, MergeRule.ANY),
)


def write_facts(facts: StateFacts) -> dict[str, Plain]:
    """All facts by name."""
    return {fact.name: fact.write(facts) for fact in FACTS}


def read_facts(found: Mapping[str, object]) -> StateFacts:
    """Reverse of `write_facts`. Raises MalformedRow, ValueError."""
    return _made({fact.name: fact.read(found[fact.name]) for fact in FACTS if fact.name in found})


def has_facts(facts: StateFacts, rule: MergeRule) -> bool:
    """Whether any fact of this rule differs from its default."""
    return any(_differs(facts, fact) for fact in FACTS if fact.rule is rule)


def merge_seen(waker: StateFacts, seen: Iterable[StateFacts]) -> StateFacts:
    """One value for what several hosts saw at the same time; sums are left out, see `add_sums`."""
    told = list(seen)
    merged: dict[str, object] = {}
    for fact in FACTS:
        if fact.rule is MergeRule.OF_WAKER:
            merged[fact.name] = getattr(waker, fact.name)
        elif fact.rule is MergeRule.ANY:
            known = (getattr(each, fact.name) for each in told if _differs(each, fact))
            merged[fact.name] = next(known, getattr(NO_FACTS, fact.name))
    return _made(merged)


def add_sums(facts: StateFacts, more: StateFacts) -> StateFacts:
    """`facts`, with the sums of `more` added to its own."""
    sums = [fact.name for fact in FACTS if fact.rule is MergeRule.SUM]
    return dataclasses.replace(facts, **{name: getattr(facts, name) + getattr(more, name) for name in sums})


def _differs(facts: StateFacts, fact: Fact) -> bool:
    return bool(getattr(facts, fact.name) != getattr(NO_FACTS, fact.name))


def _made(values: Mapping[str, object]) -> StateFacts:
    # Names and types are those of FACTS; `tests/daemon/ledger/test_facts.py` holds the table to StateFacts.
    return dataclasses.replace(NO_FACTS, **values)  # type: ignore[arg-type]
