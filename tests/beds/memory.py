"""What a process holds: its memory, and what is left of many connections."""

import os
from collections.abc import Callable
from pathlib import Path

WARM_UP = 200
"""Connections after which allocators and caches have what they keep."""
LEFT_BYTES = 4 << 10
"""Of one connection: less than its smallest buffer."""


def resident_bytes(process: int | str = "self") -> int:
    """The resident memory of a process, by its id (proc(5), statm)."""
    return int(Path("/proc", str(process), "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def check_nothing_left(some: Callable[[int], None], count: int) -> None:
    """Raises AssertionError if descriptors or memory of this process are left of `count` connections, which `some` makes."""
    some(WARM_UP)
    before = len(os.listdir("/proc/self/fd")), resident_bytes()
    some(count)
    after = len(os.listdir("/proc/self/fd")), resident_bytes()
    assert after[0] == before[0]
    assert after[1] - before[1] < count * LEFT_BYTES, f"over {LEFT_BYTES} bytes of each are left"
