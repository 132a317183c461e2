"""Starts the engine of a configuration, and says whether its threads run as soon as they should, and what to do if not.

In a data plane all other threads give way to the engine's: new connections can wait for spliced ones, and not the reverse.
"""

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.connections.descriptors import Descriptors
from bentpipe.native.engine import Engine, EngineOptions, Ktls, Priority, ThreadPriority, give_way

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


def give_way_to_engine(config: Config) -> None:
    """Let the calling thread, and those that it starts from now on, run after the engine's, which has been started.

    Not if the engine has no priority, nor if the thread would also have to wait for every other program of the host.
    """
    if config.engine.priority == "normal" or not has_own_group():
        return
    try:
        give_way()
    except OSError as exc:
        log.warning("the engine's threads run later than they could", extra={"fields": {"reason": str(exc)}})


def has_own_group(
    environ: Mapping[str, str] = os.environ, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> bool:
    """Whether this process has a share of the cores as a group, so that nice values count within it alone (sched(7)).

    It does for the cgroup of a systemd unit, and for a session (autogroup) outside the cgroups that divide the cores.
    """
    if environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        return True
    try:
        autogroup = (proc / "sys/kernel/sched_autogroup_enabled").read_text().strip()
        memberships = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return False
    if autogroup != "1" or os.getsid(0) != os.getpid():
        return False
    return not any(_divides_cores(membership, cgroups) for membership in memberships)


def _divides_cores(membership: str, cgroups: Path) -> bool:
    """Whether a line of /proc/PID/cgroup (cgroups(7)) is about a cgroup that has a share of the cores."""
    _, controllers, path = membership.split(":", 2)
    if not controllers:
        return (cgroups / path.lstrip("/") / "cpu.weight").exists()  # version 2; the root has no such file
    return "cpu" in controllers.split(",") and path != "/"
