"""Every counter of the daemon, in one table: its name, its labels, what it says, and where it is read.

`metrics.py` serves the table to Prometheus, `statistics.py` writes it to the log, and `metric_docs.py` makes
`docs/metrics.md` of it. So a new row here is a new metric everywhere. No counter is kept here; each is read where it is
counted. A label must never have a value that a stranger could send: its values are the daemon's own states, limits and
codes, or the cloud's error codes.
"""

import dataclasses
import enum
import functools
import importlib.metadata
from collections.abc import Callable, Mapping

from bentpipe.daemon.edge.handoff import CUT_WORDS
from bentpipe.daemon.edge.outcomes import Outcome
from bentpipe.daemon.edge.quotas import Kind as PlaceKind
from bentpipe.daemon.fleet.fleet import FleetStatistics
from bentpipe.daemon.fleet.machine.messages import Lesson
from bentpipe.daemon.ledger.recorder import RecorderStatistics
from bentpipe.daemon.model import Resume, SatelliteState
from bentpipe.daemon.service.log_handler import LogStatistics, log_statistics
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.turns import TurnStatistics
from bentpipe.daemon.tasks import task_failures
from bentpipe.native.engine import EndReason, EngineStatistics, ThreadTurns

PREFIX = "bentpipe_"
THREAD = "thread"
"""The label of the counters of the engine's threads: its values are numbers from 0."""

Labels = tuple[str, ...]
Samples = Mapping[Labels, float]
"""The metric's values by the values of its labels; a metric without labels has one value, by ()."""


class Kind(enum.Enum):
    """How a metric behaves over time."""

    COUNTER = "counter"
    """It only grows, from 0 at the daemon's start."""
    GAUGE = "gauge"
    """It goes up and down: it is the present value."""


class Snapshot:
    """The daemon at one moment: each part's statistics are read once, when the first metric needs them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    @functools.cached_property
    def engine(self) -> EngineStatistics:
        """The engine's threads together."""
        return self.daemon.engine.statistics()

    @functools.cached_property
    def thread_turns(self) -> tuple[ThreadTurns, ...]:
        """Each thread's turns."""
        return self.daemon.engine.thread_turns()

    @functools.cached_property
    def fleet(self) -> FleetStatistics:
        """All satellites together."""
        return self.daemon.fleet.statistics()

    @functools.cached_property
    def ledger(self) -> RecorderStatistics | None:
        """What was written to the ledger; None if none is kept."""
        return self.daemon.recorder.statistics() if self.daemon.recorder is not None else None

    @functools.cached_property
    def turns(self) -> TurnStatistics:
        """The Trio thread's turns."""
        return self.daemon.turns.statistics()

    @functools.cached_property
    def log(self) -> LogStatistics:
        """The log's lines."""
        return log_statistics()


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    """Without PREFIX, and without the `_total` that counters end with."""
    kind: Kind
    words: str
    """What it means, as a sentence."""
    read: Callable[[Snapshot], Samples]
    line: str | None
    """Its place in the log's statistics line: a field, or a path of fields with dots. `{}` stands for the labels' values,
    joined by a space. None: the metric is not in the line."""
    labels: Labels = ()
    line_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The places of those values of the label that stand elsewhere."""

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind is Kind.COUNTER else "")

    def place(self, values: Labels) -> tuple[str, ...] | None:
        """Find the place of a sample in the statistics line, by its labels' values: a path of fields."""
        joined = " ".join(values)
        line = self.line_of.get(joined, self.line)
        return None if line is None else tuple(field.format(joined) for field in line.split("."))

    def is_sparse(self, values: Labels) -> bool:
        """Whether the statistics line leaves the sample out while it is 0."""
        return bool(self.labels) and self.labels != (THREAD,) and " ".join(values) not in self.line_of


def _counter(name: str, words: str, line: str, read: Callable[[Snapshot], float]) -> Metric:
    return Metric(name, Kind.COUNTER, words, lambda look: {(): read(look)}, line)


def _gauge(name: str, words: str, line: str, read: Callable[[Snapshot], float]) -> Metric:
    return Metric(name, Kind.GAUGE, words, lambda look: {(): read(look)}, line)


def _ledger(kind: Kind, name: str, words: str, line: str, read: Callable[[RecorderStatistics], int]) -> Metric:
    def samples(look: Snapshot) -> Samples:
        return {} if look.ledger is None else {(): read(look.ledger)}

    return Metric(f"ledger_{name}", kind, words, samples, f"ledger.{line}")


def _by(
    kind: Kind,
    name: str,
    label: str,
    words: str,
    line: str | None,
    read: Callable[[Snapshot], Mapping[str, float]],
    line_of: Mapping[str, str] | None = None,
) -> Metric:
    def samples(look: Snapshot) -> Samples:
        return {(value,): number for value, number in read(look).items()}

    return Metric(name, kind, words, samples, line, (label,), line_of or {})


def _by_thread(kind: Kind, name: str, words: str, line: str, read: Callable[[ThreadTurns], float]) -> Metric:
    def values(look: Snapshot) -> Mapping[str, float]:
        return {str(number): read(turns) for number, turns in enumerate(look.thread_turns)}

    return _by(kind, name, THREAD, words, f"engine_turns.{{}}.{line}", values)


def _zeros(names: list[str], found: Mapping[str, float]) -> Mapping[str, float]:
    """Every name's value, 0 if it has none yet: a rate over a series that begins at 1 misses the first."""
    return {name: found.get(name, 0) for name in names}


def _engine_cpu(look: Snapshot) -> Mapping[str, float]:
    return {str(number): used_s for number, used_s in enumerate(look.daemon.engine.thread_cpu_s())}


def _splices_ended(look: Snapshot) -> Mapping[str, float]:
    handoff = look.daemon.handoff
    ended = {reason.name.lower(): handoff.ended[reason] for reason in EndReason}
    return {**ended, CUT_WORDS: handoff.cut_by_operator}


CONNECTIONS = (
    _counter("connections_accepted", "Connections accepted.", "accepted", lambda look: look.daemon.counters.accepted),
    _counter(
        "accept_errors",
        "Calls of accept(2) that failed.",
        "accept_errors",
        lambda look: look.daemon.counters.accept_errors,
    ),
    _gauge(
        "connections",
        "Connections open now, spliced or not.",
        "connections",
        lambda look: look.daemon.quotas.total,
    ),
    _by(
        Kind.COUNTER,
        "connections_ended",
        "outcome",
        "Connections that left the control plane, by outcome: spliced, refused, probe, deadline, malformed, …",
        "outcomes.{}",
        lambda look: {outcome.value: look.daemon.counters.ended[outcome] for outcome in Outcome},
    ),
    _by(
        Kind.COUNTER,
        "refusals",
        "status",
        "Refusals, by gRPC status.",
        "refusals.{}",
        lambda look: look.daemon.counters.refusals,
    ),
    _by(
        Kind.COUNTER,
        "malformed",
        "rule",
        "Malformed input, by limit of `proto/limits.py` or by RFC 9113 error code.",
        "malformed.{}",
        lambda look: look.daemon.counters.malformed,
    ),
    _by(
        Kind.COUNTER,
        "answers",
        "answer",
        "Calls that the daemon itself has answered, by method and result.",
        "answers.{}",
        lambda look: look.daemon.counters.answers,
    ),
    _gauge(
        "held_bytes",
        "Memory of all connections before their hand-off: what their clients sent, and what the connections cost besides.",
        "held_bytes",
        lambda look: look.daemon.quotas.held_bytes,
    ),
    _by(
        Kind.GAUGE,
        "account_connections",
        "account",
        "Connections open now, by the quota that they are charged to: strangers' or principals'.",
        "account_connections.{}",
        lambda look: {
            PlaceKind.STRANGER.value: look.daemon.quotas.strangers,
            PlaceKind.PRINCIPAL.value: look.daemon.quotas.admitted,
        },
        {PlaceKind.STRANGER.value: "strangers"},
    ),
    _by(
        Kind.GAUGE,
        "account_bytes",
        "account",
        "The memory of bentpipe_held_bytes, by the quota that it is charged to.",
        "account_bytes.{}",
        lambda look: {
            PlaceKind.STRANGER.value: look.daemon.quotas.stranger_bytes,
            PlaceKind.PRINCIPAL.value: look.daemon.quotas.admitted_bytes,
        },
    ),
    _by(
        Kind.COUNTER,
        "limits_reached",
        "limit",
        "Clients refused or closed, by limit of `[limits]`, or `descriptors`.",
        "limits_reached.{}",
        lambda look: look.daemon.quotas.reached + look.daemon.fleet.crowd.reached,
    ),
)

ENGINE = (
    _gauge("splices", "Connections in the engine now.", "spliced", lambda look: look.daemon.handoff.live),
    _by(
        Kind.COUNTER,
        "splices_ended",
        "reason",
        "Connections that ended in the engine, by reason.",
        "splice_ends.{}",
        _splices_ended,
        {CUT_WORDS: "cut_by_operator"},
    ),
    _gauge(
        "engine_live",
        "Connections in the engine now, including those whose end the control plane has not taken yet.",
        "engine.live",
        lambda look: look.engine.live,
    ),
    _by(
        Kind.COUNTER,
        "engine_bytes",
        "path",
        "Bytes delivered, by splice or by copy.",
        None,
        lambda look: {"splice": look.engine.spliced_bytes, "copy": look.engine.copied_bytes},
        {"splice": "engine.spliced_bytes", "copy": "engine.copied_bytes"},
    ),
    _gauge("engine_pipes", "Pipes open now.", "engine.pipes_open", lambda look: look.engine.pipes_open),
    _counter(
        "engine_pipe_fallbacks",
        "How often no pipe was available.",
        "engine.pipe_fallbacks",
        lambda look: look.engine.pipe_fallbacks,
    ),
    _by(
        Kind.COUNTER,
        "engine_cpu_seconds",
        THREAD,
        "CPU time of the engine's threads.",
        "engine_cpu_s.{}",
        _engine_cpu,
    ),
    _by_thread(Kind.COUNTER, "engine_turns", "Turns of the engine's threads.", "turns", lambda turns: turns.turns),
    _by_thread(
        Kind.COUNTER,
        "engine_turns_long",
        "Turns of the engine's threads over 50 ms.",
        "long_turns",
        lambda turns: turns.long_turns,
    ),
    _by_thread(
        Kind.GAUGE,
        "engine_turn_longest_seconds",
        "The longest turn of an engine thread since the start.",
        "longest_s",
        lambda turns: turns.longest_s,
    ),
    _by_thread(
        Kind.GAUGE,
        "engine_turn_running_seconds",
        "How long the present turn has lasted.",
        "running_s",
        lambda turns: turns.running_s,
    ),
)

FLEET = (
    _by(
        Kind.GAUGE,
        "satellites",
        "state",
        "Satellites, by state.",
        "fleet.states.{}",
        lambda look: _zeros([state.value for state in SatelliteState], look.fleet.states),
    ),
    _gauge(
        "waiters",
        "Clients held for satellites that are not operational yet.",
        "fleet.waiting",
        lambda look: look.fleet.waiting,
    ),
    _gauge("leases", "Leases on satellites.", "fleet.leases", lambda look: look.fleet.leases),
    _gauge(
        "budget_queue",
        "Satellites that wait for a place in the awake budget.",
        "fleet.queued",
        lambda look: look.fleet.queued,
    ),
    _by(
        Kind.COUNTER,
        "resumes",
        "resume",
        "Wakes, by whether the machine's memory was kept.",
        "fleet.resumes.{}",
        lambda look: _zeros([resume.value for resume in Resume], look.fleet.resumes),
    ),
    _by(
        Kind.COUNTER,
        "lessons",
        "lesson",
        "Findings about how machines sleep.",
        "fleet.lessons.{}",
        lambda look: _zeros([lesson.name.lower() for lesson in Lesson], look.fleet.lessons),
    ),
    _by(
        Kind.COUNTER,
        "satellite_transitions",
        "state",
        "Changes of state, by the state they led to.",
        "transitions.{}",
        lambda look: {state.value: look.daemon.books.arrivals.get(state, 0) for state in SatelliteState},
    ),
    _counter("wakes", "Wakes begun.", "fleet.wakes", lambda look: look.fleet.wakes),
    Metric(
        "provider_calls",
        Kind.COUNTER,
        'Calls of the cloud\'s API, by its error code or "ok".',
        lambda look: {call: count for call, count in look.daemon.provider.call_counts.items()},
        "provider_calls.{}",
        ("api", "code"),
    ),
)

OURSELVES = (
    _ledger(Kind.COUNTER, "recorded", "Changes written to the ledger.", "recorded", lambda ledger: ledger.recorded),
    _ledger(
        Kind.COUNTER, "lost", "Changes lost: the ledger has that time as UNKNOWN.", "lost", lambda ledger: ledger.lost
    ),
    _ledger(Kind.COUNTER, "failures", "Attempts to write that failed.", "failures", lambda ledger: ledger.failures),
    _ledger(Kind.GAUGE, "queue", "Changes that wait to be written.", "queued", lambda ledger: ledger.queued),
    _counter("turns", "Turns of the Trio thread.", "turns.turns", lambda look: look.turns.turns),
    _counter(
        "turns_busy_seconds", "Time spent in turns of the Trio thread.", "turns.busy_s", lambda look: look.turns.busy_s
    ),
    _counter(
        "turns_long", "Turns of the Trio thread over 50 ms.", "turns.long_turns", lambda look: look.turns.long_turns
    ),
    _gauge(
        "turns_longest_seconds",
        "The longest turn of the Trio thread since the start.",
        "turns.longest_s",
        lambda look: look.turns.longest_s,
    ),
    _gauge(
        "turns_longest_cpu_seconds",
        "The most CPU time of one turn of the Trio thread.",
        "turns.longest_cpu_s",
        lambda look: look.turns.longest_cpu_s,
    ),
    _counter("log_lines", "Lines written to the log.", "log.written", lambda look: look.log.written),
    _counter(
        "log_dropped",
        "Lines dropped because nobody read the log in time, or because they could not be written.",
        "log.dropped",
        lambda look: look.log.dropped,
    ),
    _counter(
        "log_withheld",
        "Lines withheld because there were too many of one kind; the log has their number.",
        "log.withheld",
        lambda look: look.log.withheld,
    ),
    _gauge("log_queue", "Lines that wait to be written.", "log.queued", lambda look: look.log.queued),
    _by(
        Kind.COUNTER,
        "task_failures",
        "task",
        "Failures of the daemon's own tasks, by owner.",
        "task_failures.{}",
        lambda look: task_failures(),
    ),
    _by(
        Kind.GAUGE,
        "info",
        "version",
        "Always 1.",
        None,
        lambda look: {importlib.metadata.version("bentpipe"): 1},
    ),
)

METRICS: tuple[Metric, ...] = (*CONNECTIONS, *ENGINE, *FLEET, *OURSELVES)
