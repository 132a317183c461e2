"""Checks that the threads in C still end their turns, as the turn meter and systemd's watchdog do for Trio's thread.

They are the engine's, and in a data plane also the opener's and the joiner's. If a thread is stuck, none of its connections
is served, and only a new process helps. Then the log says so, and systemd's watchdog is no longer notified. systemd decides
whether the process ends (WatchdogSec=).
"""

import logging
from collections.abc import Callable, Mapping

import trio

from bentpipe.native.turns import ThreadUse

log = logging.getLogger("bentpipe")

STUCK_S = 10.0
"""Whatever peers send, a turn lasts 50 ms at most. It may last seconds if the machine is paused or has no CPU time to give.
Then Trio's thread gets none either."""
LOOK_S = 2.0


def stuck_threads(threads: Mapping[str, ThreadUse]) -> dict[str, float]:
    """The threads with a turn that has lasted more than STUCK_S, and how long, in seconds."""
    return {name: use.turns.running_s for name, use in threads.items() if use.turns.running_s > STUCK_S}


async def run_engine_watch(read: Callable[[], Mapping[str, ThreadUse]]) -> None:
    """Log when a thread is stuck, and when it goes on, for ever. `read` reads all threads, by name."""
    known: set[str] = set()
    while True:
        found = stuck_threads(read())
        for name in sorted(found.keys() - known):
            fields = {"thread": name, "seconds": round(found[name], 1)}
            log.critical("a thread is stuck: its connections are not served", extra={"fields": fields})
        for name in sorted(known - found.keys()):
            log.warning("a thread that was stuck goes on", extra={"fields": {"thread": name}})
        known = set(found)
        await trio.sleep(LOOK_S)
