"""The quotas by any sequence of connections: no client is refused for what others do, and nothing is counted twice."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bentpipe.daemon.connections.held_bytes import FAIR_BYTES, PLACE_BYTES, TLS_BYTES
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import (
    CONNECTION_FDS,
    FLOOD_GRACE_S,
    FLOOD_PART,
    FLOOD_S,
    GRACE_MOST_S,
    GRACE_S,
    STRANGER_BYTES,
    Place,
    QuotaKind,
    Quotas,
)
from bentpipe.daemon.errors import LimitReached
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.shares import RESERVED_PART

HOSTS = ["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8:1::1"]
PRINCIPALS = ["ci", "dev", "laptop"]
SATELLITES = [SatelliteKey("acme", "a"), SatelliteKey("acme", "b")]
LIMITS = QuotaLimits(
    strangers=6,
    strangers_bytes=600_000,
    per_prefix=4,
    admitted=24,
    per_satellite=24,
    said_bytes=200_000,
)
SHARE = LIMITS.admitted // RESERVED_PART // len(PRINCIPALS)


class Cancelled:
    """Stands for the scope that a connection runs in."""

    def cancel(self) -> None:
        """Nothing runs in it."""


class Connections(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.quotas = Quotas(LIMITS, lambda: self.now, lambda: len(PRINCIPALS))
        self.places: list[Place] = []
        self.scope = Cancelled()
        self.flooded: dict[str, float] = {}
        """When somebody of a prefix was evicted last; of IPv6, of a /48."""

    def live(self, kind: QuotaKind) -> list[Place]:
        return [place for place in self.places if place.kind is kind]

    @rule(seconds=st.sampled_from([0.0, 0.1, GRACE_S, GRACE_MOST_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(host=st.sampled_from(HOSTS))
    def come(self, host: str) -> None:
        """Accept, after the pause that the listener makes."""
        self.now += self.quotas.pause_s()
        assert self.quotas.pause_s() == pytest.approx(0.0, abs=1e-6)
        before = set(self.live(QuotaKind.STRANGER))
        waited = {each for each in before if each.waiting is not None}
        place = self.quotas.open(host)
        place.scope = self.scope
        self.places.append(place)
        assert place.kind is QuotaKind.STRANGER, "every newcomer is let in"
        left = set(self.live(QuotaKind.STRANGER))
        for gone in before - left:
            if gone not in waited and gone.path != place.path:
                assert not any(each in waited for each in left), "those without a request go first"
            floods = self.flooded.get(gone.path[0], -FLOOD_S) + FLOOD_S >= self.now
            grace_s = FLOOD_GRACE_S if floods else GRACE_S
            assert gone.since + grace_s <= self.now + 1e-6, "and no stranger evicted that has just come"
        self.flooded |= {gone.path[0]: self.now for gone in before - left}

    @precondition(lambda self: self.live(QuotaKind.STRANGER))
    @rule(data=st.data())
    def stay_without_a_request(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.live(QuotaKind.STRANGER))).wait_for_request()

    @precondition(lambda self: self.live(QuotaKind.STRANGER))
    @rule(data=st.data())
    def make_a_request(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.live(QuotaKind.STRANGER))).has_request()

    @invariant()
    def waiting_ones_are_strangers(self) -> None:
        waiting = [place for place in self.places if place.waiting is not None]
        assert self.quotas.waiting == len(waiting)
        assert all(place.kind is QuotaKind.STRANGER for place in waiting)

    @precondition(lambda self: self.live(QuotaKind.STRANGER))
    @rule(data=st.data(), principal=st.sampled_from(PRINCIPALS), satellite=st.none() | st.sampled_from(SATELLITES))
    def promote(self, data: st.DataObject, principal: str, satellite: SatelliteKey | None) -> None:
        place = data.draw(st.sampled_from(self.live(QuotaKind.STRANGER)))
        held = sum(each.principal == principal for each in self.live(QuotaKind.PRINCIPAL))
        try:
            place.promote(principal, satellite)
        except LimitReached:
            # Also when what it said is too much: it is on the principal's quota then, until it was told.
            if place.kind is QuotaKind.PRINCIPAL:
                assert place.said_bytes > FAIR_BYTES
                place.release()
            else:
                assert held >= max(SHARE, 1)
        else:
            assert place.kind is QuotaKind.PRINCIPAL
            place.scope = self.scope  # it is held

    @rule()
    def run_out(self) -> None:
        """Of descriptors: only strangers whose grace is over are evicted."""
        before = self.live(QuotaKind.STRANGER)
        made = self.quotas.make_room()
        gone = [place for place in before if place.kind is QuotaKind.NONE]
        assert all(place.since + FLOOD_GRACE_S <= self.now + 1e-6 for place in gone)
        assert len(gone) == CONNECTION_FDS if made else len(gone) < CONNECTION_FDS

    @precondition(lambda self: self.live(QuotaKind.PRINCIPAL))
    @rule(data=st.data(), said=st.integers(0, 90_000))
    def say(self, data: st.DataObject, said: int) -> None:
        place = data.draw(st.sampled_from(self.live(QuotaKind.PRINCIPAL)))
        mine = sum(
            each.said_bytes
            for each in self.live(QuotaKind.PRINCIPAL)
            if each.principal == place.principal and each is not place
        )
        try:
            place.keep(said)
        except LimitReached:
            assert said > FAIR_BYTES
            assert mine + said > LIMITS.said_bytes // len(PRINCIPALS), "it had less than its fair share"
            place.release()

    @precondition(lambda self: self.live(QuotaKind.STRANGER))
    @rule(data=st.data(), said=st.integers(0, 150_000))
    def say_as_a_stranger(self, data: st.DataObject, said: int) -> None:
        data.draw(st.sampled_from(self.live(QuotaKind.STRANGER))).keep(said)

    @precondition(lambda self: self.places)
    @rule(data=st.data(), host=st.sampled_from(HOSTS))
    def readdress(self, data: st.DataObject, host: str) -> None:
        data.draw(st.sampled_from(self.places)).readdress(host)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def shake_hands(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.places))
        if place.cost_bytes == PLACE_BYTES:
            place.cost(TLS_BYTES)

    @precondition(lambda self: self.live(QuotaKind.PRINCIPAL))
    @rule(data=st.data())
    def hand_off(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.live(QuotaKind.PRINCIPAL)))
        place.hand_off()
        assert place.held_bytes == 0
        assert place.kind is QuotaKind.PRINCIPAL, "its place is taken until the splice ends"

    @precondition(lambda self: self.places)
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        place = data.draw(st.sampled_from(self.places))
        for _ in range(times):
            place.release()

    @invariant()
    def every_place_and_byte_is_on_one_account(self) -> None:
        strangers, admitted = self.live(QuotaKind.STRANGER), self.live(QuotaKind.PRINCIPAL)
        quotas = self.quotas
        assert (quotas.strangers, quotas.admitted) == (len(strangers), len(admitted))
        assert quotas.total == len(strangers) + len(admitted)
        assert quotas.stranger_bytes == sum(place.held_bytes for place in strangers)
        assert quotas.admitted_bytes == sum(place.held_bytes for place in admitted)
        assert quotas.used_bytes == sum(place.said_bytes for place in strangers + admitted)

    @invariant()
    def all_of_it_is_bounded(self) -> None:
        quotas = self.quotas
        assert quotas.strangers <= LIMITS.strangers
        assert quotas.stranger_bytes <= max(LIMITS.strangers_bytes, STRANGER_BYTES)
        assert quotas.admitted <= LIMITS.admitted
        most = LIMITS.said_bytes + FAIR_BYTES * len(self.live(QuotaKind.PRINCIPAL))
        assert sum(place.said_bytes for place in self.live(QuotaKind.PRINCIPAL)) <= most

    def teardown(self) -> None:
        for place in self.places:
            place.release()
            place.release()
        quotas = self.quotas
        assert (quotas.total, quotas.held_bytes, quotas.used_bytes) == (0, 0, 0)
        assert not quotas._satellites


TestConnections = Connections.TestCase


def make(clock: list[float], **limits: int) -> Quotas:
    return Quotas(
        QuotaLimits(**({"strangers": 3, "strangers_bytes": 1 << 30, "per_prefix": 3, "admitted": 9} | limits)),
        lambda: clock[0],
    )


def test_the_oldest_of_the_most_crowded_prefix_makes_room() -> None:
    now = [0.0]
    quotas = make(now)
    other, first, second = (quotas.open(host) for host in ("192.0.2.9", "192.0.2.1", "192.0.2.1"))
    assert quotas.pause_s() == GRACE_S
    now[0] = GRACE_S
    assert quotas.pause_s() == 0
    quotas.open("192.0.2.1")
    assert (other.kind, first.kind, second.kind) == (QuotaKind.STRANGER, QuotaKind.NONE, QuotaKind.STRANGER)
    assert first.eviction_words is not None
    assert "max_strangers" in first.eviction_words
    assert quotas.reached == {"max_strangers": 1}


def test_an_address_at_its_limit_makes_room_itself() -> None:
    now = [0.0]
    quotas = make(now, strangers=9, per_prefix=2)
    places = [quotas.open("2001:db8::1") for _ in range(3)]
    assert quotas.strangers == 3, "who has just come may have a token"
    now[0] = GRACE_S
    quotas.open("2001:db8::ffff")
    assert places[0].kind is QuotaKind.NONE
    assert quotas.reached == {"max_connections_per_address": 1}


def test_the_grace_grows_when_tokens_take_long_to_be_shown() -> None:
    now = [0.0]
    quotas = make(now)
    for _ in range(100):
        place = quotas.open("192.0.2.1")
        now[0] += 1.2
        place.promote("ci", None)
        place.release()
    assert quotas.grace_s == pytest.approx(3.6, abs=0.1)


def test_the_stranger_with_most_bytes_is_evicted_and_not_the_newcomer() -> None:
    now = [0.0]
    quotas = make(now, strangers_bytes=STRANGER_BYTES)
    places = [quotas.open(f"192.0.2.{number}") for number in range(2)]
    places[0].keep(90_000)
    places[1].keep(50_000)
    assert [place.kind for place in places] == [QuotaKind.NONE, QuotaKind.STRANGER]
    assert quotas.reached == {"stranger_bytes": 1}


def test_a_prefix_that_floods_makes_nobody_wait() -> None:
    """Its strangers show nothing and come faster than the grace would let them in: newcomers stood behind it for seconds."""
    now = [0.0]
    limits = QuotaLimits(strangers=160, strangers_bytes=80 << 20, per_prefix=160, admitted=10)
    quotas = Quotas(limits, lambda: now[0])

    def come(host: str) -> tuple[Place, float]:
        pause_s = quotas.pause_s()
        now[0] += pause_s
        return quotas.open(host), pause_s

    quiet, _ = come("192.0.2.1")
    flood = [come("198.51.100.9")[0] for _ in range(limits.strangers - 1)]
    first, pause_s = come("192.0.2.2")
    assert pause_s == GRACE_S, "nobody knows yet that they will show nothing"
    for _ in range(2_000):
        now[0] += FLOOD_GRACE_S / limits.strangers
        place, pause_s = come("198.51.100.9")
        flood.append(place)
        assert pause_s == pytest.approx(0, abs=0.01)
    assert quiet.kind is QuotaKind.STRANGER
    assert first.kind is QuotaKind.STRANGER
    for place in flood:
        place.release()
    for _ in range(limits.strangers - quotas.strangers):
        come("203.0.113.1")
    assert quotas.pause_s() == GRACE_S, "and others who come together have all their time"


def test_many_prefixes_that_come_together_do_not_flood() -> None:
    now = [0.0]
    limits = QuotaLimits(strangers=160, strangers_bytes=80 << 20, per_prefix=160, admitted=10)
    quotas = Quotas(limits, lambda: now[0])
    for number in range(3 * limits.strangers):
        now[0] += quotas.pause_s()
        quotas.open(f"192.0.{number % (2 * FLOOD_PART)}.1")
    assert quotas.pause_s() == pytest.approx(GRACE_S)


def test_a_sessions_end_releases_its_place() -> None:
    quotas = make([0.0])
    with quotas.open("192.0.2.1") as place:
        place.promote("ci", None)
    assert (place.kind, quotas.total) == (QuotaKind.NONE, 0)


def test_a_place_that_was_handed_off_is_the_splices_to_release() -> None:
    quotas = make([0.0])
    with quotas.open("192.0.2.1") as place:
        place.promote("ci", None)
        place.hand_off()
    assert (place.kind, quotas.total) == (QuotaKind.PRINCIPAL, 1)
    place.release()
    place.release()
    assert (place.kind, quotas.total) == (QuotaKind.NONE, 0)


def test_a_session_that_fails_releases_its_place() -> None:
    quotas = make([0.0])

    def fail() -> None:
        with quotas.open("192.0.2.1"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert quotas.total == 0
