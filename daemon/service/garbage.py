"""When CPython's cycle collector may run: it stops the Trio thread, and a full collection looks at every object there is.

With thousands of clients held that is half a second, again and again while they come. So only the young are collected as
usual, and a full collection is made when few are here, or when it has not been made for long.

CPython counts allocations less deallocations (gc.set_threshold). While as many clients leave as come that difference stands
still, the young become ever more, and one collection looks at all of them (seen: 40 to 77 ms).
So the youngest are also collected whenever the Trio thread has worked for YOUNG_WORK_S, which bounds how many there can be.
"""

import gc
import logging
import time

import trio
import trio.abc

log = logging.getLogger("bentpipe")

YOUNG_OBJECTS = 5_000
"""Made and not freed before the youngest are looked at: about 1 ms."""
YOUNG_ROUNDS = 5
"""Before the next older are, too: some 25,000 objects, about 10 ms."""
YOUNG_WORK_S = 0.02
"""CPU time of the Trio thread in which some thousand objects are made at most, and looked at in under 1 ms."""
NEVER = 1 << 30
LOOK_S = 60.0
FEW_TASKS = 500
"""A full collection is then some tens of ms at most; a held client is two tasks."""
AT_LAST_S = 1800.0
"""A crowd that stays for half an hour does not keep cycles alive for longer."""


def set_up_garbage() -> None:
    """Call when all is imported and before anything is served: what lives now lives for ever, and is not looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, NEVER)


class YoungCollector(trio.abc.Instrument):
    """Collects the youngest objects between two turns, and every YOUNG_ROUNDS times the next older with them.

    Install it with `trio.lowlevel.add_instrument`.
    """

    def __init__(self) -> None:
        self._collected_cpu_s = time.thread_time()
        self._rounds = 0

    def before_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn has ended."""
        if time.thread_time() - self._collected_cpu_s >= YOUNG_WORK_S:
            self._rounds += 1
            gc.collect(0 if self._rounds % YOUNG_ROUNDS else 1)
            self._collected_cpu_s = time.thread_time()


async def run_garbage() -> None:
    """Make full collections for ever, and have the youngest objects collected by the Trio thread's work."""
    young = YoungCollector()
    trio.lowlevel.add_instrument(young)
    try:
        await _make_full_collections()
    finally:
        trio.lowlevel.remove_instrument(young)


async def _make_full_collections() -> None:
    collected = trio.current_time()
    while True:
        await trio.sleep(LOOK_S)
        if trio.lowlevel.current_statistics().tasks_living > FEW_TASKS and trio.current_time() < collected + AT_LAST_S:
            continue
        began = time.perf_counter()
        found = gc.collect()
        collected = trio.current_time()
        took_ms = round((time.perf_counter() - began) * 1000, 1)
        log.debug("garbage collected", extra={"fields": {"found": found, "took_ms": took_ms}})
