"""Sizes and durations as people write them."""

import pytest

from bentpipe.config.units import parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("written", "size"), [("512KiB", 512 << 10), ("256MiB", 256 << 20), ("1GiB", 1 << 30), (1000, 1000), (0, 0)]
)
def test_sizes(written: object, size: int) -> None:
    assert parse_size_bytes(written) == size


@pytest.mark.parametrize("written", ["", "1", "1 MiB", "1MB", "-1KiB", "1.5GiB", 1.5, True, None])
def test_what_is_not_a_size(written: object) -> None:
    with pytest.raises(ValueError, match="is not a valid size"):
        parse_size_bytes(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [("200us", 200e-6), ("1ms500us", 1.5e-3), ("250ms", 0.25), ("1h30m", 5400.0), (0, 0.0)]
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration_s(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "us", "1 us", "1u", "-1us", True, None])
def test_what_is_not_a_duration(written: object) -> None:
    with pytest.raises(ValueError, match="is not a valid duration"):
        parse_duration_s(written)
