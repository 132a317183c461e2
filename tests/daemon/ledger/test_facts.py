"""The table of facts: it has each field of StateFacts, and what it writes it reads, sums and merges."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from beds.contracts.ledger import FULL
from bentpipe.daemon.ledger.contract import Stamp
from bentpipe.daemon.ledger.dynamodb_items import OpenInterval, interval_of, past_item
from bentpipe.daemon.ledger.facts import (
    FACTS,
    Fact,
    MergeRule,
    add_sums,
    has_facts,
    merge_seen,
    read_facts,
    write_facts,
)
from bentpipe.daemon.model import NO_FACTS, Resume, SatelliteKey, SatelliteState, StateFacts, Waits, WakePhase
from bentpipe.daemon.store.malformed import MalformedRow

OPEN = OpenInterval(SatelliteKey("acme", "a"), SatelliteState.STARTING, Stamp(1, 1, "b"), "came", "ci", 1)


def test_the_table_has_each_field_once_and_the_example_shows_each() -> None:
    assert [fact.name for fact in FACTS] == [field.name for field in dataclasses.fields(StateFacts)]
    assert [field.name for field in dataclasses.fields(StateFacts) if getattr(FULL, field.name) == field.default] == []


@pytest.mark.parametrize("facts", [NO_FACTS, FULL])
def test_what_is_written_is_read(facts: StateFacts) -> None:
    assert read_facts(json.loads(json.dumps(write_facts(facts)))) == facts
    assert interval_of(past_item("host", OPEN, 5, 4, 2, facts)).facts == facts


def test_a_missing_fact_has_its_default_and_an_unknown_name_is_passed_over() -> None:
    assert read_facts({}) == NO_FACTS
    assert read_facts({"resume": "cold", "of_a_newer_daemon": [1]}) == StateFacts(resume=Resume.COLD)
    item = past_item("host", OPEN, 5, 4, 2, FULL)
    for fact in FACTS:
        older = {name: value for name, value in item.items() if name != fact.name}
        expected = dataclasses.replace(FULL, **{fact.name: getattr(NO_FACTS, fact.name)})
        assert interval_of(older).facts == expected


def test_no_fact_takes_the_name_of_another_attribute() -> None:
    item = past_item("host", OPEN, 5, 4, 2, FULL)
    others = {"pk", "sk", "satellite", "satellite_state", "cause", "who", "from_us", "to_us", "elapsed_us", "number"}
    assert item.keys() == others | {fact.name for fact in FACTS}
    assert len(item) == len(others) + len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
@pytest.mark.parametrize("junk", [None, True, "junk", {"junk": 1}, ["junk"], [1, 2], 1.5, b"\xff"], ids=repr)
def test_a_malformed_fact_is_refused(fact: Fact, junk: object) -> None:
    with pytest.raises((MalformedRow, ValueError)):
        read_facts({fact.name: junk})


def test_each_rule_is_kept() -> None:
    other = StateFacts(((WakePhase.BOOT, 3.0),), Waits(1, 1.0, 1.0), Resume.RESUMED, 7)
    assert merge_seen(FULL, [NO_FACTS, other, FULL]) == dataclasses.replace(FULL, waits=Waits(), resume=Resume.RESUMED)
    assert add_sums(FULL, other) == dataclasses.replace(FULL, waits=Waits(3, 10.0, 5.0))
    for rule in MergeRule:
        assert has_facts(FULL, rule)
        assert not has_facts(NO_FACTS, rule)


PLACES = {
    "daemon/model.py",
    "daemon/fleet/fact_collector.py",
    "daemon/ledger/facts.py",
    "daemon/report/days.py",
    "daemon/report/summary.py",
    "daemon/report/tally.py",
}
SPELT_ELSEWHERE = {"phases", "waits", "resume", "peaks", "kills", "suspicion", "boot"}
"""SQLite's older files have columns of their own for the first three, and the report's tables show all of these."""


def test_no_other_file_knows_a_fact() -> None:
    """CONTRIBUTING.md promises it: no store names a fact."""
    root = Path(__file__).parents[3]
    for field in dataclasses.fields(StateFacts):
        word = re.compile(rf"\b{field.name}\b")
        found = {
            str(path.relative_to(root)) for path in (root / "daemon").rglob("*.py") if word.search(path.read_text())
        }
        assert found == PLACES or field.name in SPELT_ELSEWHERE, field.name
