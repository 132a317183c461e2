"""Merging what several hosts saw: lawful whatever they saw, and nobody's waits are lost."""

import itertools

import hypothesis.strategies as st
from hypothesis import given

from beds.contracts.ledger import A
from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.ledger.merge import PRECEDENCE, merge
from bentpipe.daemon.model import NO_FACTS, Resume, SatelliteState, StateFacts, Waits, WakePhase

S = SatelliteState


def interval(
    state: SatelliteState,
    from_us: int,
    to_us: int,
    *,
    cause: str = "",
    who: str = "",
    is_open: bool = False,
    facts: StateFacts = NO_FACTS,
) -> Interval:
    return Interval(A, state, from_us, to_us, to_us - from_us, cause, who, is_open, facts)


@st.composite
def chains(draw: st.DrawFn) -> list[Interval]:
    bounds = sorted(draw(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True)))
    bounds = [0, *(at for at in bounds if at), 50]
    states = draw(st.lists(st.sampled_from(SatelliteState), min_size=len(bounds), max_size=len(bounds)))
    clients = draw(st.lists(st.integers(0, 3), min_size=len(bounds), max_size=len(bounds)))
    return [
        interval(state, begin, end, facts=StateFacts(waits=Waits(count, float(count), float(count))), is_open=end == 50)
        for (begin, end), state, count in zip(itertools.pairwise(bounds), states, clients, strict=False)
    ]


@given(st.lists(chains(), min_size=1, max_size=4))
def test_one_lawful_chain_of_the_most_awake(seen: list[list[Interval]]) -> None:
    merged = merge(seen)
    assert (merged[0].from_us, merged[-1].to_us) == (0, 50)
    for before, after in itertools.pairwise(merged):
        assert before.to_us == after.from_us
        assert before.state is not after.state
    assert [each.is_open for each in merged] == [False] * (len(merged) - 1) + [True]
    assert sum(each.elapsed_us for each in merged) == 50
    assert sum(i.facts.waits.clients for i in merged) == sum(i.facts.waits.clients for chain in seen for i in chain)
    for at in range(50):
        (now,) = (each.state for each in merged if each.from_us <= at < each.to_us)
        states = {each.state for chain in seen for each in chain if each.from_us <= at < each.to_us}
        assert now is min(states, key=PRECEDENCE.index)


def test_who_woke_it_is_remembered_even_if_another_host_saw_it_first() -> None:
    phases = ((WakePhase.START, 1.0),)
    theirs = [
        interval(S.SLEEP, 0, 10),
        interval(S.STARTING, 10, 21, cause="started by others"),
        interval(S.OPERATIONAL, 21, 30, facts=StateFacts(resume=Resume.RESUMED)),
    ]
    ours = [
        interval(S.SLEEP, 0, 11),
        interval(S.STARTING, 11, 20, cause="a client came", who="ci", facts=StateFacts(phases, Waits(2, 9.0, 5.0))),
        interval(S.OPERATIONAL, 20, 30),
    ]
    merged = merge([theirs, ours])
    assert [(each.state, each.from_us, each.to_us) for each in merged] == [
        (S.SLEEP, 0, 10),
        (S.STARTING, 10, 20),
        (S.OPERATIONAL, 20, 30),
    ]
    assert (merged[1].who, merged[1].cause, merged[1].facts.phases, merged[1].facts.waits.clients) == (
        *("ci", "a client came", phases),
        2,
    )
    assert merged[2].facts.resume is Resume.RESUMED


def test_a_host_that_came_later_and_one_that_was_never_there() -> None:
    early = [interval(S.SLEEP, 0, 10)]
    late = [interval(S.OPERATIONAL, 20, 30)]
    assert [(each.state, each.from_us) for each in merge([early, late])] == [
        (S.SLEEP, 0),
        (S.UNKNOWN, 10),
        (S.OPERATIONAL, 20),
    ]
    assert merge([]) == []
