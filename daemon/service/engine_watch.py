"""Looks whether the engine's threads still end their turns: what the turn meter and systemd's watchdog are to Trio's.

A thread that is stuck serves nobody of those that live on it, and nothing but a new process helps. That is said, and the
watchdog is no longer told that all is well; whether the process ends is systemd's to decide (WatchdogSec=).
"""

import logging
from typing import Protocol

import trio

from bentpipe.native.engine import ThreadTurns

log = logging.getLogger("bentpipe")

STUCK_S = 10.0
"""A turn lasts 50 ms at the most, whatever peers send. Seconds may go by if the machine is paused or has no CPU to give;
then Trio's thread has none either."""
LOOK_S = 2.0


class Turning(Protocol):
    """What has threads: the engine."""

    def thread_turns(self) -> tuple[ThreadTurns, ...]: ...  # noqa: D102


def stuck_threads(engine: Turning) -> dict[int, float]:
    """The threads whose turn lasts for more than STUCK_S, and for how long in seconds."""
    return {number: turns.running_s for number, turns in enumerate(engine.thread_turns()) if turns.running_s > STUCK_S}


async def run_engine_watch(engine: Turning) -> None:
    """Say so when a thread is stuck, and when it goes on, for ever."""
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
