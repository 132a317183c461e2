"""Checks that the engine's threads still end their turns, as the turn meter and systemd's watchdog do for Trio's thread.

If a thread is stuck, none of its connections is served, and only a new process helps. Then the log says so, and systemd's
watchdog is no longer notified. systemd decides whether the process ends (WatchdogSec=).
"""

import logging
from typing import Protocol

import trio

from bentpipe.native.engine import ThreadTurns

log = logging.getLogger("bentpipe")

STUCK_S = 10.0
"""Whatever peers send, a turn lasts 50 ms at most. It may last seconds if the machine is paused or has no CPU time to give.
Then Trio's thread gets none either."""
LOOK_S = 2.0


class Turning(Protocol):
    """The engine: it has threads with turns."""

    def thread_turns(self) -> tuple[ThreadTurns, ...]: ...  # noqa: D102


def stuck_threads(engine: Turning) -> dict[int, float]:
    """The threads with a turn that has lasted more than STUCK_S, and how long, in seconds."""
    return {number: turns.running_s for number, turns in enumerate(engine.thread_turns()) if turns.running_s > STUCK_S}


async def run_engine_watch(engine: Turning) -> None:
    """Log when a thread is stuck, and when it goes on, for ever."""
    known: set[int] = set()
    while True:
        found = stuck_threads(engine)
        for number in found.keys() - known:
            fields = {"thread": number, "seconds": round(found[number], 1)}
            log.critical("an engine thread is stuck: its connections are not served", extra={"fields": fields})
        for number in known - found.keys():
            log.warning("an engine thread goes on", extra={"fields": {"thread": number}})
        known = set(found)
        await trio.sleep(LOOK_S)
