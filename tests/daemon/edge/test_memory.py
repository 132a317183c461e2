"""The bytes of all clients, and who is refused when they are too many."""

import pytest

from bentpipe.daemon.edge.memory import FAIR_BYTES, Memory
from bentpipe.daemon.errors import LimitReached


def test_whoever_brings_much_is_refused_and_whoever_brings_little_is_not() -> None:
    memory = Memory(100_000)
    memory.change(0, 100_000)
    memory.change(0, FAIR_BYTES)
    with pytest.raises(LimitReached, match="held_bytes"):
        memory.change(0, FAIR_BYTES + 1)
    assert memory.used_bytes == 100_000 + 2 * FAIR_BYTES + 1, "counted until it is forgotten"


def test_whoever_gives_back_is_never_refused() -> None:
    memory = Memory(10)
    with pytest.raises(LimitReached):
        memory.change(0, 1 << 20)
    memory.change(1 << 20, 1 << 19)
    memory.change(1 << 19, 0)
    assert memory.used_bytes == 0
