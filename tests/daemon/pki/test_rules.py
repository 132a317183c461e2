"""Which machine gets a certificate: the rules alone, and under any sequence of events."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.rules import Denial, Denied, enrol, expect, prolong, renew, token_hash_of
from bentpipe.daemon.registry.identities import MAX_TOKENS, ExpectedMachine, StoredIdentity

KEY = SatelliteKey("acme", "one")
OLD, NEW = "1" * 64, "2" * 64
K1, K2, K3 = "a" * 64, "b" * 64, "c" * 64


def launched(launch: str = OLD, generation: int = 1, token: str = "t", until_us: int = 100) -> ExpectedMachine:
    return ExpectedMachine(launch, generation, (token_hash_of(token),), until_us)


def expected(machine: ExpectedMachine | None = None, row: StoredIdentity | None = None) -> StoredIdentity:
    found = expect(KEY, row, machine or launched())
    assert found is not None
    return found


def enrolled(row: StoredIdentity, launch: str = OLD, token: str = "t", key: str = K1) -> StoredIdentity:
    found = enrol(row, launch, token, key, 1)
    assert found is not None
    return found


def denial_of(call: object) -> Denial:
    with pytest.raises(Denied) as caught:
        call()  # type: ignore[operator]
    return caught.value.denial


def test_a_token_enrols_one_key_once() -> None:
    row = enrolled(expected())
    assert row.enrolled is not None
    assert row.enrolled.key_hash == K1
    assert enrol(row, OLD, "t", K1, 1_000) is None, "the answer was lost: even after the token's time"
    assert denial_of(lambda: enrol(row, OLD, "t", K2, 1)) is Denial.SECOND


@pytest.mark.parametrize(("launch", "token"), [(OLD, "other"), (NEW, "t"), ("", ""), (OLD, "")])
def test_another_token_or_launch_enrols_nothing(launch: str, token: str) -> None:
    row = expected()
    assert denial_of(lambda: enrol(row, launch, token, K1, 1)) is Denial.UNKNOWN
    assert denial_of(lambda: enrol(None, launch, token, K1, 1)) is Denial.UNKNOWN
    assert enrol(row, OLD, "t", K1, 1) is not None, "the right one is not used up by wrong ones"


def test_a_token_ends_and_a_start_prolongs_it() -> None:
    row = expected()
    assert denial_of(lambda: enrol(row, OLD, "t", K1, 100)) is Denial.EXPIRED
    later = prolong(row, 200)
    assert later is not None
    assert enrol(later, OLD, "t", K1, 150) is not None
    assert prolong(enrolled(row), 200) is None
    assert prolong(None, 200) is None
    assert prolong(later, 150) is None


def test_the_machine_before_stays_until_the_new_one_enrols() -> None:
    old = enrolled(expected())
    both = expected(launched(NEW, 2, "u"), old)
    assert both.enrolled == old.enrolled
    assert renew(both, OLD, K1, K2, 1) is not None
    new = enrolled(both, NEW, "u", K3)
    assert denial_of(lambda: renew(new, OLD, K1, K2, 1)) is Denial.SUPERSEDED
    assert denial_of(lambda: enrol(new, OLD, "t", K1, 1)) is Denial.UNKNOWN
    assert expect(KEY, new, launched()) is None, "an older launch that is repeated changes nothing"


def test_hosts_with_different_authorities_launch_one_machine() -> None:
    row = expected()
    for number in range(MAX_TOKENS + 2):
        row = expected(launched(token=f"t{number}"), row)
    assert row.expected is not None
    assert len(row.expected.token_hashes) == MAX_TOKENS
    assert expect(KEY, row, launched(token=f"t{MAX_TOKENS + 1}")) is None, "a repetition changes nothing"
    done = enrolled(row, token=f"t{MAX_TOKENS}")
    assert denial_of(lambda: enrol(done, OLD, f"t{MAX_TOKENS + 1}", K2, 1)) is Denial.SECOND
    assert expect(KEY, done, launched(token="again")) is None, "no token is added once it has enrolled"


def test_a_renewal_may_be_repeated_and_not_branched() -> None:
    row = renew(enrolled(expected()), OLD, K1, K2, 5)
    assert row is not None
    assert row.enrolled is not None
    assert (row.enrolled.key_hash, row.enrolled.previous_hash) == (K2, K1)
    assert renew(row, OLD, K1, K2, 6) is None
    assert renew(row, OLD, K2, K2, 6) is None
    assert denial_of(lambda: renew(row, OLD, K1, K3, 6)) is Denial.STALE_KEY
    assert denial_of(lambda: renew(row, OLD, K3, K1, 6)) is Denial.UNKNOWN
    assert denial_of(lambda: enrol(row, OLD, "t", K1, 6)) is Denial.STALE_KEY
    assert denial_of(lambda: renew(None, OLD, K1, K2, 6)) is Denial.UNKNOWN


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["expect", "enrol", "renew", "prolong"]),
        st.integers(1, 3),
        st.sampled_from([K1, K2, K3]),
        st.sampled_from([K1, K2, K3]),
    ),
    max_size=30,
)


def step(row: StoredIdentity | None, kind: str, number: int, keys: tuple[str, str], now: int) -> StoredIdentity | None:
    launch, token = str(number) * 64, f"t{number}"
    match kind:
        case "expect":
            return expect(KEY, row, launched(launch, number, token, now + 5))
        case "enrol":
            return enrol(row, launch, token, keys[0], now)
        case "renew":
            return renew(row, launch, *keys, now)
        case _:
            return prolong(row, now + 5)


@given(EVENTS)
def test_whatever_happens_one_machine_at_a_time_is_the_satellites(events: list[tuple[str, int, str, str]]) -> None:
    """The machine only changes to a later one, by its own token. Its key changes only by the key before."""
    row: StoredIdentity | None = None
    for now, (kind, number, one, two) in enumerate(events):
        launch, before = str(number) * 64, row
        try:
            changed = step(before, kind, number, (one, two), now)
        except Denied:
            continue
        if changed is None:
            continue
        row = changed
        assert row.version == (before.version + 1 if before else 1)
        was, now_is = before.enrolled if before else None, row.enrolled
        if was == now_is:
            continue
        assert now_is is not None
        assert now_is.launch == launch
        assert row.expected is not None
        if kind == "enrol":
            assert (now_is.generation, now_is.key_hash, now_is.previous_hash) == (number, one, None)
            assert was is None or was.generation < number
        else:
            assert kind == "renew"
            assert was is not None
            assert now_is == dataclasses.replace(was, key_hash=two, previous_hash=one, at_us=now)
            assert was.key_hash == one
