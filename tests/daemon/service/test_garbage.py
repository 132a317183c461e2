"""Full collections are made when few are here, or when it has not been done for long; never by chance."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from bentpipe.daemon.service.garbage import AT_LAST_S, FEW_TASKS, LOOK_S, YOUNG_ROUNDS, YOUNG_WORK_S, run_garbage

SCRIPT = """
import gc
from bentpipe.daemon.service.garbage import set_up_garbage
set_up_garbage()
full = []
gc.callbacks.append(lambda phase, info: full.append(info["generation"] == 2))
kept = [[] for _ in range(300_000)]
assert full and not any(full)
assert gc.get_freeze_count() > 0
"""


CHURN = """
import collections, gc, sys, time
from bentpipe.daemon.service.garbage import YOUNG_OBJECTS, YOUNG_ROUNDS, YoungCollector, set_up_garbage
clock = 0.0
time.thread_time = lambda: clock
set_up_garbage()
looked_at = []
def note(phase, info):
    if phase == "start":
        looked_at.append(sum(len(gc.get_objects(generation)) for generation in range(info["generation"] + 1)))
gc.callbacks.append(note)
# As many come as leave. Of two million objects never more than 500,000 live; each takes a microsecond of work.
living = collections.deque([] for _ in range(500_000))
gc.collect()
looked_at.clear()
young = YoungCollector()
for made in range(2_000_000):
    living.append([])
    living.popleft()
    clock += 1e-6
    if made % 1_000 == 0 and sys.argv[1] == "bounded":
        young.before_io_wait(0)
gc.collect(1)
print(max(looked_at))
"""


class Cycle:
    def __init__(self) -> None:
        self.me = self


def old_cycle() -> weakref.ref[Cycle]:
    cycle = Cycle()
    gc.collect(1)  # so that only a full collection finds it
    return weakref.ref(cycle)


@pytest.fixture
def _no_chance() -> Iterator[None]:
    gc.freeze()  # what other tests have left, which each full collection would look at
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def test_no_full_collection_by_chance() -> None:
    subprocess.run([sys.executable, "-P", "-c", SCRIPT], check=True, timeout=60)


def most_looked_at_in_a_churn(how: str) -> int:
    """How many objects one collection of the young looks at, at most."""
    command = [sys.executable, "-P", "-c", CHURN, how]
    return int(subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout)


def test_while_as_many_leave_as_come_the_young_stay_few() -> None:
    """At a microsecond an object, 20,000 are made between two collections, and five such rounds are looked at together."""
    assert most_looked_at_in_a_churn("bounded") <= 1.1 * (YOUNG_ROUNDS + 1) * YOUNG_WORK_S * 1e6
    assert most_looked_at_in_a_churn("by chance") >= 400_000


@pytest.mark.usefixtures("_no_chance")
@pytest.mark.parametrize("crowd", [0, FEW_TASKS + 10])
async def test_when_it_is_done(autojump_clock: trio.testing.MockClock, crowd: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(crowd):
            nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(run_garbage)
        garbage = old_cycle()
        await trio.sleep(LOOK_S * 1.5)
        assert (garbage() is None) is (crowd == 0)
        await trio.sleep(AT_LAST_S)
        assert garbage() is None
        nursery.cancel_scope.cancel()
