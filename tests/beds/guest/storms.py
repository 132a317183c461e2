"""The storms: builds that misuse their machine, what their client must be told, and what must still be so afterwards."""

import dataclasses
import re
import time

from beds.guest.satellite import BUILD_DEADLINE_S, PRUNE_BELOW_PERCENT, Answers, GuestSatellite
from beds.peers.buildkit_host import Built

CLEAN_DEADLINE_S = 180.0
"""For the responder to notice that the cache is full, and for BuildKit to remove what is in it."""
POLL_S = 0.5
NO_MEMORY = "cannot allocate memory"
NO_SPACE = "[Nn]o space left on device"
"""What the clients read, as patterns."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storm:
    """A build, again and again."""

    name: str
    arguments: tuple[str, ...]
    """Of storm.c."""
    reason: str | None
    """What its client must read, as a pattern, in one of the builds that fail. None: it must succeed, within its limits."""
    parent: str | None = None
    tmpfs: str | None = None
    insecure: bool = False
    says: str = ""
    """What else its client must read, as a pattern."""
    deadline_s: float = BUILD_DEADLINE_S
    clean_deadline_s: float = CLEAN_DEADLINE_S


@dataclasses.dataclass(frozen=True, slots=True)
class Survived:
    """What came of a storm."""

    builds: int
    answers: Answers
    cleaned_s: float
    """The longest time from a build's end until the cache had room again."""

    def words(self, idle: Answers) -> str:
        """For the reader of a test's output."""
        median_ms, now_ms = self.answers.percentile_s(50) * 1e3, self.answers.percentile_s(99) * 1e3
        idle_ms = idle.percentile_s(99) * 1e3
        return (
            f"{self.builds} builds; {len(self.answers.latencies_s)} answers, p50 {median_ms:.0f} ms, p99 {now_ms:.0f} ms "
            f"(idle {idle_ms:.0f} ms: ratio {now_ms / idle_ms:.1f}); room after {self.cleaned_s:.0f} s; "
            f"waited for the host's cores for {self.answers.starved:.0%} of the time (idle {idle.starved:.0%})"
        )


def check_reason(storm: Storm, built: Built) -> None:
    """Raises AssertionError unless the client was told what it should be."""
    if storm.reason is None:
        assert built.code == 0, built.progress[-3000:]
    else:
        assert built.code != 0, built.progress[-3000:]
        assert re.search(storm.reason, built.progress), built.progress[-3000:]
    assert re.search(storm.says, built.progress), built.progress[-3000:]


def await_room(satellite: GuestSatellite, deadline_s: float) -> float:
    """Return the seconds until the cache had the room again below which the responder prunes. Raises AssertionError."""
    begun = time.monotonic()
    while True:
        disk = satellite.status().disk
        passed = time.monotonic() - begun
        free = min(disk.available_bytes / disk.total_bytes, disk.available_inodes / disk.total_inodes)
        # An older look may be from before the build filled the cache.
        if disk.look.age_ms < passed * 1e3 and free * 100 >= PRUNE_BELOW_PERCENT:
            return passed
        assert passed < deadline_s, f"only {free:.1%} of the cache is free:\n{satellite.journal()}"
        time.sleep(POLL_S)


def survive(satellite: GuestSatellite, storm: Storm, length_s: float) -> Survived:
    """Run the storm at least once, and again while `length_s` lasts. Raises AssertionError if the satellite suffers.

    The responder answers every question, no program is restarted, the client of each build is told why it failed, and the
    next build runs.
    """
    before = satellite.life()
    end = time.monotonic() + length_s
    builds, cleaned_s = 0, 0.0
    with satellite.asked() as answers:
        while builds == 0 or time.monotonic() < end:
            built = satellite.build(
                *storm.arguments,
                parent=storm.parent,
                tmpfs=storm.tmpfs,
                insecure=storm.insecure,
                deadline_s=storm.deadline_s,
            )
            check_reason(storm, built)
            builds += 1
            cleaned_s = max(cleaned_s, await_room(satellite, storm.clean_deadline_s))
    assert answers[0].failed == ()
    assert satellite.life() == before, satellite.journal()
    following = satellite.small_build()
    assert following.code == 0, following.progress[-3000:]
    return Survived(builds, answers[0], cleaned_s)
