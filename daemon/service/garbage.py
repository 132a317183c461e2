"""When CPython's cycle collector may run: it stops the Trio thread, and a full collection looks at every object there is.

With thousands of held clients a full collection takes half a second, again and again while clients come. So only the young
objects are collected as usual. A full collection is made while few clients are connected, or if the last one was long ago.

CPython counts allocations less deallocations (gc.set_threshold). If as many clients leave as come, that difference does not
grow. Then young objects accumulate, and one collection looks at all of them (seen: 40 to 77 ms). So the youngest are also
collected whenever the Trio thread has worked for YOUNG_WORK_S. That bounds how many there can be.
"""

import gc
import logging
import time

import trio
import trio.abc

log = logging.getLogger("bentpipe")

YOUNG_OBJECTS = 5_000
"""Objects made and not freed before the youngest are collected: about 1 ms of work."""
YOUNG_ROUNDS = 5
"""Collections of the youngest before the next older objects are collected too: some 25,000 objects, about 10 ms."""
YOUNG_WORK_S = 0.02
"""CPU time of the Trio thread. In this time it makes a few thousand objects at most, and collecting them takes under 1
ms."""
NEVER = 1 << 30
LOOK_S = 60.0
FEW_TASKS = 500
"""With so few tasks a full collection takes some tens of ms at most. A held client has two tasks."""
AT_LAST_S = 1800.0
"""The longest time without a full collection, even while a crowd stays."""


def set_up_garbage() -> None:
    """Call this after all imports and before the first connection:

    objects that live now live for ever, and are not collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, NEVER)


class YoungCollector(trio.abc.Instrument):
    """Collects the youngest objects between two turns, and every YOUNG_ROUNDS times the next older ones with them.

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
    """Make full collections for ever, and let the Trio thread's work decide when the youngest objects are collected."""
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
