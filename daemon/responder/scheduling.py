"""Real-time scheduling of the responder's threads (sched(7)): they run before all that has no such priority.

All threads need it, and not only the one that answers: a thread that holds Python's lock and is not run stops the others.
"""

from __future__ import annotations

import errno
import os

DEFAULT_PRIORITY = 20
"""Above what programs usually ask for (1 to 10), below the kernel's own threads (those of interrupts have 50)."""
MAX_PRIORITY = 99
"""Of SCHED_RR on Linux."""
NOT_PERMITTED = (
    "not permitted: the unit needs LimitRTPRIO= and no RestrictRealtime=, and the kernel no RT_GROUP_SCHED, "
    "or sched_rt_group=0 in its command line"
)
"""What EPERM of sched_setscheduler(2) can mean."""


class RealTime:
    """SCHED_RR for each thread that asks. Nothing that it starts inherits it (SCHED_RESET_ON_FORK)."""

    def __init__(self) -> None:
        self._priority = 0

    def begin(self, priority: int) -> str:
        """Give the calling thread this priority, and each later one that asks. 0: none. Returns why it is refused, or ""."""
        self._priority = priority
        try:
            self.ask()
        except OSError as exc:
            self._priority = 0
            return NOT_PERMITTED if exc.errno == errno.EPERM else str(exc)
        return ""

    def ask(self) -> None:
        """Give the calling thread the priority. Raises OSError."""
        if self._priority:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(self._priority))


real_time = RealTime()
