"""What the data plane keeps of a splice comes back as it was, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.planes.bounds import TAG_BYTES
from bentpipe.daemon.planes.splice_tag import SpliceTag, TagUnreadable

NAME = st.text(min_size=1, max_size=40)


@given(NAME, NAME, NAME, NAME, NAME, st.frozensets(NAME, max_size=4), st.integers(1, 65_535))
def test_it_comes_back(org: str, name: str, who: str, payer: str, host: str, by: frozenset[str], port: int) -> None:
    tag = SpliceTag(SatelliteKey(org, name), who, payer, host, by, Address("192.0.2.1", port))
    data = tag.encode()
    assert len(data) <= TAG_BYTES
    found = SpliceTag.decode(data)
    assert found == tag or any(0xD800 <= ord(letter) < 0xE000 for letter in repr(tag) + org + name + who + payer + host)


def test_credentials_that_do_not_fit_are_left_out() -> None:
    by = frozenset(f"token:{number:0300}" for number in range(20))
    tag = SpliceTag(SatelliteKey("acme", "one"), "anna", "anna", "unix", by, Address("192.0.2.1", 1))
    found = SpliceTag.decode(tag.encode())
    assert found.key == tag.key
    assert 0 < len(found.credentials) < 20
    assert found.credentials < by


GOOD = json.loads(
    SpliceTag(SatelliteKey("acme", "one"), "anna", "anna", "unix", frozenset(), Address("192.0.2.1", 1)).encode()
)


RECORD = ("id", "since")
"""An earlier version has not written these."""


def test_an_earlier_version_told_nothing_of_the_record() -> None:
    found = SpliceTag.decode(json.dumps({name: value for name, value in GOOD.items() if name not in RECORD}).encode())
    assert (found.connection_id, found.accepted_at) == ("", 0.0)


def test_a_later_version_may_add_fields() -> None:
    assert SpliceTag.decode(json.dumps({**GOOD, "new": 1}).encode()).principal == "anna"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"1" * 5_000,
        *(json.dumps({**GOOD, name: None}).encode() for name in GOOD if name not in RECORD),
    ],
    ids=lambda data: str(data[:20]),
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(TagUnreadable):
        SpliceTag.decode(data)
