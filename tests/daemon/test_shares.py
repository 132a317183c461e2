"""No principal is refused for what another does, whatever comes in whatever order."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.shares import Loan, Reserve

NAMES = ("a", "b", "c", "d", "e")
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=200)


@given(limit=st.integers(1, 60), principals=st.integers(1, 5), steps=STEPS)
def test_a_reserve_lets_everybody_have_its_share_and_never_more_than_all(
    limit: int, principals: int, steps: list[tuple[str, bool]]
) -> None:
    reserve = Reserve(limit)
    reserve.know(principals)
    held: collections.Counter[str] = collections.Counter()
    for name, comes in steps:
        if name not in NAMES[:principals]:
            continue
        if not comes:
            if held[name]:
                held[name] -= 1
                reserve.give_back(name)
            continue
        words = reserve.refusal(name)
        assert words is None or held[name] >= reserve.share
        if words is None:
            held[name] += 1
            reserve.take(name)
        assert reserve.total == held.total() <= max(limit, principals)
    for name in NAMES:
        for _ in range(held[name]):
            reserve.give_back(name)
    assert reserve.total == 0
    assert not any(map(reserve.held, NAMES))


@given(before=st.integers(1, 60), after=st.integers(1, 60), cap=st.none() | st.integers(1, 60))
def test_nobody_loses_a_place_if_there_are_fewer_and_the_new_limit_counts(
    before: int, after: int, cap: int | None
) -> None:
    reserve = Reserve(before)
    taken = 0
    while reserve.refusal("a") is None:
        reserve.take("a")
        taken += 1
    reserve.resize(after, cap)
    assert reserve.held("a") == taken
    most = min(after, cap or after)
    assert (reserve.refusal("a") is None) is (taken < most)
    loan: Loan[int] = Loan(before)
    loan.change("a", 1, before)
    loan.resize(after)
    assert loan.total == before
    assert (loan.excess(0, "b") is not None) is (before > after)


@given(limit=st.integers(1, 100))
def test_one_principal_alone_has_all(limit: int) -> None:
    reserve = Reserve(limit)
    for _ in range(limit):
        assert reserve.refusal("a") is None
        reserve.take("a")
    assert reserve.refusal("a") is not None


@given(limit=st.integers(20, 1000), principals=st.integers(2, 8))
def test_one_of_several_leaves_something_even_beyond_the_shares(limit: int, principals: int) -> None:
    reserve = Reserve(limit)
    reserve.know(principals)
    while reserve.refusal("a") is None:
        reserve.take("a")
    for _ in range(reserve.share):
        assert reserve.refusal("b") is None
        reserve.take("b")
    assert limit / 2 < reserve.held("a") <= limit * 7 / 8 + reserve.share
    assert reserve.refusal("b") is None, "there is still some of the common rest"


@given(limit=st.integers(1, 30), cap=st.integers(1, 10), count=st.integers(0, 40))
def test_a_principals_own_limit_is_its_own(limit: int, cap: int, count: int) -> None:
    reserve = Reserve(limit, cap)
    for _ in range(count):
        if reserve.refusal("a") is None:
            reserve.take("a")
    assert reserve.held("a") == min(limit, cap, count)


def test_a_token_that_is_added_while_all_is_taken_has_its_share() -> None:
    reserve = Reserve(16)
    while reserve.refusal("a") is None:
        reserve.take("a")
    assert reserve.held("a") == 16
    reserve.know(2)
    assert reserve.refusal("b") is None
    reserve.take("b")
    assert reserve.refusal("b") is not None, "no more than its share until others have left"


@given(
    limit=st.integers(1, 40),
    cap=st.none() | st.integers(1, 20),
    steps=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 6), st.booleans()), max_size=200),
)
def test_a_loan_is_for_a_principal_with_less_than_the_fair_share(
    limit: int, cap: int | None, steps: list[tuple[str, int, bool]]
) -> None:
    loan: Loan[int] = Loan(limit, cap)
    items: dict[int, tuple[str, int]] = {}
    guaranteed = limit // len(NAMES)

    def held(name: str) -> int:
        return sum(amount for owner, amount in items.values() if owner == name)

    for number, (name, amount, comes) in enumerate(steps):
        if not comes:
            mine = [item for item, (owner, _) in items.items() if owner == name]
            if mine:
                loan.change(name, mine[0], 0)
                del items[mine[0]]
            continue
        words = loan.refusal(name, amount)
        if words is not None:
            assert held(name) + amount > min(guaranteed, limit if cap is None else cap)
            continue
        while (item := loan.excess(amount, name)) is not None:
            owner, size = items.pop(item)
            assert owner != name
            there = len({each for each, _ in items.values()} | {name, owner})
            assert held(owner) + size > limit // there, "nobody loses what is its fair share"
            loan.change(owner, item, 0)
        loan.change(name, number, amount)
        if amount:
            items[number] = (name, amount)
        assert loan.total == sum(size for _, size in items.values())
        assert loan.total <= limit + sum(1 for each in NAMES if held(each)), "one more for each at most"
        assert cap is None or held(name) <= cap
    for item, (name, _) in items.items():
        loan.change(name, item, 0)
    assert loan.total == 0


def test_the_newest_of_the_greediest_goes() -> None:
    loan: Loan[str] = Loan(4)
    for number in range(3):
        loan.change("a", f"a{number}", 1)
    loan.change("b", "b0", 1)
    assert loan.refusal("a", 1) is not None
    assert loan.refusal("b", 1) is None
    assert loan.excess(1, "b") == "a2"
