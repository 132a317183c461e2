"""Whether the engine's threads run as soon as the configuration wants, and what to do if the system refuses."""

import errno
import os
from collections.abc import Sequence

from bentpipe.native.engine import Engine, EngineOptions, Priority, ThreadPriority

NO_SLICES = "the kernel has no slices (Linux 6.12 has)"
NO_REALTIME = "SCHED_RR is refused: set LimitRTPRIO=1 and RestrictRealtime=no in the unit, and allow sched_setscheduler"
NO_CALL = "sched_setattr is refused: allow it in the unit's SystemCallFilter"


def try_priority(wanted: Priority) -> ThreadPriority:
    """Start one thread of the engine with a priority, and look what it gets. Raises OSError if there is no thread."""
    engine = Engine(EngineOptions(threads=1, priority=wanted))
    try:
        return engine.thread_priorities()[0]
    finally:
        engine.close()


def explain_priority(wanted: Priority, threads: Sequence[ThreadPriority]) -> str:
    """Say why threads lack the priority they should have, and what to do; empty if none lacks it."""
    lacking = next((thread for thread in threads if thread.error and thread.held is not wanted), None)
    if lacking is None:
        return ""
    if lacking.error == errno.EOPNOTSUPP:
        return NO_SLICES
    if lacking.error == errno.EPERM:
        return NO_REALTIME if wanted is Priority.REALTIME else NO_CALL
    return os.strerror(lacking.error)
