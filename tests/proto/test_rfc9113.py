"""Frames before the splice, by the sections of RFC 9113: in the opening and held, whole, in pieces and byte by byte."""

import pytest

from beds.peers.rfc9113 import CASES, HELD, OPENING, WITHOUT_SETTINGS, Case
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import PREFACE
from bentpipe.proto.greeting import Greeting

SIZES = [pytest.param(1, marks=pytest.mark.untraced), 5, 1 << 20]


def outcome(start: bytes, sent: bytes, size: int) -> ErrorCode | None:
    """The error's code; None if the greeting took it and kept every byte for the satellite."""
    greeting = Greeting()
    greeting.receive_data(start, 0.0)
    try:
        for at in range(0, len(sent), size):
            greeting.receive_data(sent[at : at + size], 0.0)
    except GreetingError as exc:
        return exc.error_code
    assert greeting.transcript_bytes == start + sent
    assert greeting.data_to_send() == b""
    return None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", WITHOUT_SETTINGS, ids=str)
def test_behind_the_preface(case: Case, size: int) -> None:
    assert outcome(PREFACE, case.sent, size) == case.opening


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_the_opening(case: Case, size: int) -> None:
    assert outcome(OPENING, case.sent, size) == case.opening


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_held(case: Case, size: int) -> None:
    assert outcome(HELD, case.sent, size) == case.held
