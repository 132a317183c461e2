"""Sizes as people write them."""

import pytest

from bentpipe.config.units import parse_size_bytes


@pytest.mark.parametrize(
    ("written", "size"), [("512KiB", 512 << 10), ("256MiB", 256 << 20), ("1GiB", 1 << 30), (1000, 1000), (0, 0)]
)
def test_sizes(written: object, size: int) -> None:
    assert parse_size_bytes(written) == size


@pytest.mark.parametrize("written", ["", "1", "1 MiB", "1MB", "-1KiB", "1.5GiB", 1.5, True, None])
def test_what_is_not_a_size(written: object) -> None:
    with pytest.raises(ValueError, match="is not a valid size"):
        parse_size_bytes(written)
