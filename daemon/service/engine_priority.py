"""Starts the engine of a configuration, and says whether its threads run as soon as they should, and what to do if not."""

import errno
import logging
import os
from collections.abc import Sequence

from bentpipe.config.model import Config
from bentpipe.daemon.connections.descriptors import Descriptors
from bentpipe.native.engine import Engine, EngineOptions, Ktls, Priority, ThreadPriority

log = logging.getLogger("bentpipe")

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


def start_engine(config: Config, descriptors: Descriptors, ktls: Ktls) -> Engine:
    """Start the threads. Raises OSError. If they lack their priority, the log says so."""
    wanted = Priority[config.engine.priority.upper()]
    engine = Engine(
        EngineOptions(
            threads=config.engine.threads,
            splice=config.engine.splice if descriptors.pipes else "off",
            pipes=descriptors.pipes,
            ktls=ktls,
            idle_timeout_s=config.engine.idle_timeout_s,
            half_closed_timeout_s=config.engine.half_closed_timeout_s,
            priority=wanted,
            busy_poll_s=config.engine.busy_poll_s,
            unsent_bytes=config.engine.notsent_lowat,
        )
    )
    if lacking := explain_priority(wanted, engine.thread_priorities()):
        log.warning("the engine's threads run later than configured", extra={"fields": {"reason": lacking}})
    return engine
