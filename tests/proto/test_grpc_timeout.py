"""How long a client waits, by its own header."""

import math

import pytest

from bentpipe.proto.grpc_timeout import tell_within_s, timeout_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"10u", 1e-5),
        (b"99999999n", 0.099999999),
        (b"0S", 0.0),
        *(
            (wrong, math.inf)
            for wrong in (b"", b"S", b"1", b"1s", b"123456789S", b"-1S", b"1.5S", b"1S ", "١S".encode())
        ),
    ],
)
def test_the_timeout(value: bytes, seconds: float) -> None:
    assert timeout_s(((b"grpc-timeout", value),)) == pytest.approx(seconds)


def test_none_or_two_mean_that_there_is_no_timeout() -> None:
    assert timeout_s(()) == math.inf
    assert timeout_s(((b"grpc-timeout", b"1S"), (b"grpc-timeout", b"2S"))) == math.inf


@pytest.mark.parametrize(
    ("value", "within_s"), [(b"1M", 58.0), (b"10S", 9.0), (b"2S", 1.5), (b"500m", 0.25), (b"0S", 0.0)]
)
def test_the_answer_comes_before_the_client_gives_up(value: bytes, within_s: float) -> None:
    assert tell_within_s(((b"grpc-timeout", value),)) == pytest.approx(within_s)


def test_a_client_without_a_timeout_waits() -> None:
    assert tell_within_s(()) == math.inf
