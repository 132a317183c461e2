"""Full collections are made when few are here, or when it has not been done for long; never by chance."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from bentpipe.daemon.service.garbage import AT_LAST_S, FEW_TASKS, LOOK_S, run_garbage

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


class Cycle:
    def __init__(self) -> None:
        self.me = self


def old_cycle() -> weakref.ref[Cycle]:
    cycle = Cycle()
    gc.collect(1)  # so that only a full collection finds it
    return weakref.ref(cycle)


@pytest.fixture
def _no_chance() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_no_full_collection_by_chance() -> None:
    subprocess.run([sys.executable, "-P", "-c", SCRIPT], check=True, timeout=60)


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
