"""When CPython's cycle collector may run: it stops the Trio thread, and a full collection looks at every object there is.

With thousands of clients held that is half a second, again and again while they come. So only the young are collected as
usual, and a full collection is made when few are here, or when it has not been made for long.
"""

import gc
import logging
import time

import trio

log = logging.getLogger("bentpipe")

YOUNG_OBJECTS = 5_000
"""Made and not freed before the youngest are looked at: about 1 ms."""
YOUNG_ROUNDS = 5
"""Before the next older are, too: some 25,000 objects, about 10 ms."""
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


async def run_garbage() -> None:
    """Make full collections for ever."""
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
