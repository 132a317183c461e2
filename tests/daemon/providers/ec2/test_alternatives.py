"""Alternatives and what is remembered of their capacity: the order in which they are tried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.config.ec2_machine import AlternativeSection, MachineTypeEc2Section
from bentpipe.daemon.providers.ec2.alternatives import (
    LACKING_S,
    WORKED_S,
    Alternative,
    CapacityMemory,
    alternatives_of,
)

A, B, C = (Alternative("builder", f"{name}.large") for name in "abc")
ALL = (A, B, C)


def section(*alternatives: dict[str, object], **more: object) -> MachineTypeEc2Section:
    return MachineTypeEc2Section.model_validate({"launch_template": "builder", "alternative": alternatives, **more})


def test_without_alternatives_the_section_is_the_only_one() -> None:
    (only,) = alternatives_of(section(instance_type="m7i.large"))
    assert (only.name, only.instance_type, only.words) == ("", "m7i.large", "m7i.large")


def test_what_an_alternative_does_not_say_is_the_sections() -> None:
    found = alternatives_of(
        section(
            {},
            {"spot": True},
            {"instance_type": "c7g.xlarge", "zone": "eu-central-1b"},
            {"subnet": "subnet-0123abcd"},
            instance_type="m7i.large",
        )
    )
    assert [each.name for each in found] == [
        "m7i.large",
        "m7i.large Spot",
        "c7g.xlarge in eu-central-1b",
        "m7i.large in subnet-0123abcd",
    ]
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize(
    "alternative",
    [
        {"zone": "eu-central-1a", "subnet": "subnet-0123abcd"},
        {"subnet": "eu-central-1a"},
        {"instance_type": "large"},
        {"market": "spot"},
    ],
)
def test_malformed_alternatives(alternative: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"subnet|instance_type|market"):
        AlternativeSection.model_validate(alternative)


def test_too_many_alternatives_and_the_same_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        section({"spot": True}, {"spot": True})
    with pytest.raises(ValueError, match="20"):
        section(*(dict[str, object](instance_type=f"m{number}.large") for number in range(21)))


def test_what_lacked_capacity_comes_last_until_that_is_old() -> None:
    memory = CapacityMemory()
    memory.lacked(B, 0.0)
    memory.lacked(A, 1.0)
    assert memory.ordered(ALL, 2.0) == [C, B, A], "the longest ago first"
    assert memory.ordered(ALL, LACKING_S) == [B, C, A]
    assert memory.ordered(ALL, LACKING_S + 1) == [A, B, C]


def test_what_worked_comes_first_until_that_is_old() -> None:
    memory = CapacityMemory()
    memory.lacked(A, 0.0)
    memory.worked(B, 1.0)
    memory.worked(C, 2.0)
    assert memory.ordered(ALL, 3.0) == [C, B, A]
    assert memory.ordered(ALL, LACKING_S) == [C, A, B]
    assert memory.ordered(ALL, 2.0 + WORKED_S) == [A, B, C]
    memory.lacked(C, 3.0)
    assert memory.ordered(ALL, 4.0) == [B, A, C], "the newest finding counts"


def test_machine_types_share_what_is_known_of_a_pool() -> None:
    memory = CapacityMemory()
    memory.lacked(A, 0.0)
    assert memory.is_lacking(Alternative("other", A.instance_type), 1.0)
    assert not memory.is_lacking(Alternative("other", A.instance_type, spot=True), 1.0)
    assert not memory.is_lacking(Alternative("other", A.instance_type, zone="eu-central-1b"), 1.0)
    memory.lacked(Alternative("one", None), 0.0)
    assert not memory.is_lacking(Alternative("two", None), 1.0), "the templates may name other types"


@given(
    st.lists(st.tuples(st.sampled_from(ALL), st.booleans(), st.floats(0, 2000)), max_size=12),
    st.floats(0, 3000),
)
def test_every_alternative_is_tried_once_whatever_is_remembered(
    findings: list[tuple[Alternative, bool, float]], now: float
) -> None:
    memory = CapacityMemory()
    for alternative, has_worked, at in findings:
        (memory.worked if has_worked else memory.lacked)(alternative, at)
    ordered = memory.ordered(ALL, now)
    assert sorted(ordered, key=ALL.index) == list(ALL)
    assert memory.any_left(ALL, now) == (not memory.is_lacking(ordered[0], now))
    lacking = [memory.is_lacking(each, now) for each in ordered]
    assert lacking == sorted(lacking)
