"""The bytes of a principal's clients, and which client is refused if they are too many."""

import pytest

from bentpipe.daemon.connections.held_bytes import FAIR_BYTES
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Place, Quotas
from bentpipe.daemon.errors import LimitReached

LIMITS = QuotaLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10, said_bytes=100_000)


def admitted(quotas: Quotas, principal: str = "a") -> Place:
    place = quotas.open("192.0.2.1")
    place.promote(principal, None)
    return place


def test_a_client_that_sends_much_is_refused_and_one_that_sends_little_is_not() -> None:
    quotas = Quotas(LIMITS, lambda: 0.0)
    first, small, big = (admitted(quotas) for _ in range(3))
    first.keep(100_000)
    small.keep(FAIR_BYTES)
    with pytest.raises(LimitReached, match="held_bytes"):
        big.keep(FAIR_BYTES + 1)
    assert quotas.used_bytes == 100_000 + 2 * FAIR_BYTES + 1, "counted until it is forgotten"


def test_a_client_that_keeps_less_than_before_is_never_refused() -> None:
    quotas = Quotas(LIMITS, lambda: 0.0)
    place = admitted(quotas)
    with pytest.raises(LimitReached):
        place.keep(1 << 20)
    place.keep(1 << 19)
    place.keep(0)
    assert quotas.used_bytes == 0
