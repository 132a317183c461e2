"""What threads in C tell of their turns."""

import time
from collections.abc import Callable, Mapping

from bentpipe.native.turns import ThreadUse

DEADLINE_S = 60.0


def wait_counted(read: Callable[[], Mapping[str, ThreadUse]]) -> None:
    """Wait until a thread has counted a turn, and all wait again. Raises AssertionError if that does not come."""
    until = time.monotonic() + DEADLINE_S
    while True:
        uses = read().values()
        if any(each.turns.turns for each in uses) and not any(each.turns.running_s for each in uses):
            break
        assert time.monotonic() < until, uses
        time.sleep(0.01)
    assert max(each.turns.longest_s for each in uses) > 0
    assert sum(each.cpu_s for each in uses) > 0
