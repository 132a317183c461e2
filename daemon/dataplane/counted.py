"""The data plane's counters by name, as COUNTERS carries them: numbers since the start, and a few that are of now."""

from collections.abc import Iterator, Mapping

from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.dataplane.plane import DataPlane
from bentpipe.daemon.planes.bounds import CERTIFICATES_TOLD, COUNTERS_A_RECORD, NAME_BYTES
from bentpipe.daemon.planes.records import (
    CERTIFICATE_COUNTERS,
    LINK_ID,
    THREAD_COUNTERS,
    UNADMITTED_COUNTERS,
    CountersRecord,
)
from bentpipe.native.engine import Engine


def counters_record(
    plane: DataPlane,
    counters: ConnectionCounters,
    reached: Mapping[str, int],
    engine: Engine,
    listening: Mapping[str, int],
    certificate_ends: Mapping[str, float],
    *,
    draining: bool,
    untold: int = 0,
) -> CountersRecord:
    """Read all counters. Times are microseconds.

    `reached`: limits. `listening`: PORT_ and LISTENER_COUNTERS. `certificate_ends`: until when the certificates of files
    hold, in seconds since the epoch. `untold`: ends of connections that were never offered, of which no UNOFFERED was sent.
    """
    moved = engine.statistics()
    found: dict[str, int] = {
        "accepted": counters.accepted,
        "accept_errors": counters.accept_errors,
        "clients": len(plane.line.clients),
        "waiting": plane.line.waiting,
        "halves": len(plane.halves),
        "spliced": plane.joined.spliced,
        "under_way": len(plane.joined) - plane.joined.spliced,
        "ends_waiting": plane.joined.ends_waiting,
        "ends_lost": plane.joined.ends_lost,
        "draining": int(draining),
        "admitted": plane.admissions.admitted,
        "admitting": len(plane.admissions),
        "gates": plane.tables.gates,
        "tokens": plane.tables.tokens,
        "unoffered_untold": untold,
        "engine.live": moved.live,
        "engine.pipes_open": moved.pipes_open,
        "engine.pipe_fallbacks": moved.pipe_fallbacks,
        "engine.spliced_bytes": moved.spliced_bytes,
        "engine.copied_bytes": moved.copied_bytes,
    }
    found |= listening
    found |= {f"ended.{outcome.value}": count for outcome, count in counters.ended.items()}
    found |= {f"{UNADMITTED_COUNTERS}{why.value}": count for why, count in plane.admissions.unadmitted.items()}
    found |= {f"malformed.{limit}": count for limit, count in counters.malformed.items()}
    found |= {f"limit.{limit}": count for limit, count in reached.items()}
    for name, use in plane.threads().items():
        thread, turns = f"{THREAD_COUNTERS}{name}", use.turns
        found[f"{thread}.cpu_us"] = round(use.cpu_s * 1e6)
        found[f"{thread}.turns"] = turns.turns
        found[f"{thread}.long_turns"] = turns.long_turns
        found[f"{thread}.longest_us"] = round(turns.longest_s * 1e6)
        found[f"{thread}.running_us"] = round(turns.running_s * 1e6)
    for number, priority in enumerate(engine.thread_priorities()):
        found[f"{THREAD_COUNTERS}{number}.priority"] = priority.held.value
    found |= _certificates(certificate_ends)
    return CountersRecord(LINK_ID, tuple(found.items())[:COUNTERS_A_RECORD])


def _certificates(ends: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """Those that end first. Of a name that is too long the end is told: it has the file's own name."""
    room = NAME_BYTES - 1 - len(CERTIFICATE_COUNTERS)  # the length of a counter's name is a byte
    for name, end in sorted(ends.items(), key=lambda each: each[1])[:CERTIFICATES_TOLD]:
        told = name.encode(errors="replace")[-room:].decode(errors="ignore")
        yield CERTIFICATE_COUNTERS + told, max(0, round(end))
