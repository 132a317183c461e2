"""The bytes of a principal's clients, and who is refused when they are too many."""

import pytest

from bentpipe.daemon.edge.accounts import AccountLimits, Accounts, Place
from bentpipe.daemon.edge.held_bytes import FAIR_BYTES
from bentpipe.daemon.errors import LimitReached

LIMITS = AccountLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10, said_bytes=100_000)


def admitted(accounts: Accounts, principal: str = "a") -> Place:
    place = accounts.open("192.0.2.1")
    place.promote(principal, None)
    return place


def test_whoever_brings_much_is_refused_and_whoever_brings_little_is_not() -> None:
    accounts = Accounts(LIMITS, lambda: 0.0)
    first, small, big = (admitted(accounts) for _ in range(3))
    first.keep(100_000)
    small.keep(FAIR_BYTES)
    with pytest.raises(LimitReached, match="held_bytes"):
        big.keep(FAIR_BYTES + 1)
    assert accounts.used_bytes == 100_000 + 2 * FAIR_BYTES + 1, "counted until it is forgotten"


def test_whoever_gives_back_is_never_refused() -> None:
    accounts = Accounts(LIMITS, lambda: 0.0)
    place = admitted(accounts)
    with pytest.raises(LimitReached):
        place.keep(1 << 20)
    place.keep(1 << 19)
    place.keep(0)
    assert accounts.used_bytes == 0
