"""What has happened on a satellite between two readings: it was booted anew, or steps of builds were killed. Pure."""

import dataclasses

from bentpipe.daemon.readings.reading import KilledStep, KillsReading, Reading


@dataclasses.dataclass(frozen=True, slots=True)
class Kills:
    """What was killed since the reading before."""

    oom: int = 0
    """Processes that the kernel's OOM killer has ended."""
    pressure: int = 0
    """Steps that the responder has ended."""
    steps: tuple[KilledStep, ...] = ()
    """Those of which more is known."""

    def __bool__(self) -> bool:
        return bool(self.oom or self.pressure)


NO_KILLS = Kills()


def was_booted(before: Reading | None, after: Reading) -> bool:
    """Whether another kernel answers than before."""
    return before is not None and before.boot_id != after.boot_id


def killed_between(before: Reading | None, after: Reading) -> Kills:
    """Compare two readings. What was killed before the first one, or before a boot that was not seen, is not counted.

    Counters that went back without a boot count from 0: a satellite that lies must not stop later kills from being told.
    """
    if before is None or after.kills is None:
        return NO_KILLS
    was = before.kills
    if was_booted(before, after) or was is None:
        was = KillsReading(0, 0, 0, ()) if was_booted(before, after) else None
    if was is None:
        return NO_KILLS
    restarted = was_booted(before, after) or before.responder_started_s != after.responder_started_s
    seen = 0 if restarted else max((each.number for each in was.recent), default=0)
    return Kills(
        _grown(max(was.machine_oom, was.builds_oom), max(after.kills.machine_oom, after.kills.builds_oom)),
        _grown(0 if restarted else was.pressure, after.kills.pressure),
        tuple(each for each in after.kills.recent if each.number > seen),
    )


def _grown(before: int, after: int) -> int:
    return after - before if after >= before else after
