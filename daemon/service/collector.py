"""What the daemon counts, as Prometheus metrics. Keeps no books: every scrape reads the counters where they are kept.

No label has values that strangers could send: they are states, limits and codes of ours, or the cloud's error codes.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bentpipe.daemon.edge.accounts import Accounts, Kind
from bentpipe.daemon.edge.handoff import CUT_WORDS, HandOff
from bentpipe.daemon.edge.outcomes import Counters, Outcome
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.messages import Lesson
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import Resume, SatelliteState
from bentpipe.daemon.providers.router import Providers
from bentpipe.daemon.service.log_handler import log_statistics
from bentpipe.daemon.service.turns import TurnMeter
from bentpipe.daemon.tasks import Owner, contained, task_failures
from bentpipe.native.engine import EndReason, Engine


class Counting(Protocol):
    """The parts of the daemon that count."""

    @property
    def counters(self) -> Counters: ...  # noqa: D102
    @property
    def accounts(self) -> Accounts: ...  # noqa: D102
    @property
    def handoff(self) -> HandOff: ...  # noqa: D102
    @property
    def engine(self) -> Engine: ...  # noqa: D102
    @property
    def fleet(self) -> Fleet: ...  # noqa: D102
    @property
    def provider(self) -> Providers: ...  # noqa: D102
    @property
    def arrivals(self) -> Mapping[SatelliteState, int]: ...  # noqa: D102
    @property
    def recorder(self) -> Recorder | None: ...  # noqa: D102
    @property
    def turns(self) -> TurnMeter: ...  # noqa: D102


class DaemonCollector(Collector):
    """Reads a daemon. Only the Trio thread may call it."""

    def __init__(self, daemon: Counting) -> None:
        self._daemon = daemon

    def collect(self) -> Iterator[Metric]:
        """Read everything now."""
        for part in (self._edge, self._engine, self._fleet, self._ledger, self._turns, self._log, self._tasks):
            found: list[Metric] = []
            with contained(Owner("metrics collector", part.__name__)):
                found = list(part())
            yield from found

    def _edge(self) -> Iterator[Metric]:
        counters, accounts = self._daemon.counters, self._daemon.accounts
        yield _counter("bentpipe_connections_accepted", "Connections accepted.", counters.accepted)
        yield _counter("bentpipe_accept_errors", "Calls of accept that failed.", counters.accept_errors)
        yield _gauge("bentpipe_connections", "Connections open now, spliced or not.", accounts.total)
        yield _by(
            "bentpipe_connections_ended",
            "Connections that left the control plane, by what became of them.",
            "outcome",
            {outcome.value: counters.ended[outcome] for outcome in Outcome},
        )
        yield _by("bentpipe_refusals", "Refusals, by gRPC status.", "status", counters.refusals)
        yield _by(
            "bentpipe_malformed", "GOAWAYs for broken frames, by limit or error code.", "rule", counters.malformed
        )
        yield _by("bentpipe_answers", "Calls that the daemon answered itself.", "answer", counters.answers)
        yield _gauge(
            "bentpipe_held_bytes",
            "Memory that connections before their hand-off hold: what their clients said, and what they cost beside.",
            accounts.held_bytes,
        )
        yield _now(
            "bentpipe_account_connections",
            "Connections open now, by whose they are.",
            "account",
            {Kind.STRANGER.value: accounts.strangers, Kind.PRINCIPAL.value: accounts.admitted},
        )
        yield _now(
            "bentpipe_account_bytes",
            "The same memory as bentpipe_held_bytes, by whose it is.",
            "account",
            {Kind.STRANGER.value: accounts.stranger_bytes, Kind.PRINCIPAL.value: accounts.admitted_bytes},
        )
        reached = accounts.reached + self._daemon.fleet.crowd.reached
        yield _by(
            "bentpipe_limits_reached",
            "Clients refused or put out, by limit of [limits] or descriptors.",
            "limit",
            reached,
        )

    def _engine(self) -> Iterator[Metric]:
        engine = self._daemon.engine.statistics()
        yield _gauge("bentpipe_splices", "Connections in the engine now.", self._daemon.handoff.live)
        yield _by(
            "bentpipe_splices_ended",
            "Spliced connections that ended, by reason.",
            "reason",
            {
                **{reason.name.lower(): self._daemon.handoff.ended[reason] for reason in EndReason},
                CUT_WORDS: self._daemon.handoff.cut_by_operator,
            },
        )
        yield _by(
            "bentpipe_engine_bytes",
            "Bytes delivered, by how they went.",
            "path",
            {"splice": engine.spliced_bytes, "copy": engine.copied_bytes},
        )
        yield _gauge("bentpipe_engine_pipes", "Pipes open.", engine.pipes_open)
        yield _counter("bentpipe_engine_pipe_fallbacks", "Times that no pipe was to be had.", engine.pipe_fallbacks)
        yield _by(
            "bentpipe_engine_cpu_seconds",
            "CPU time of the engine's threads.",
            "thread",
            {str(number): used_s for number, used_s in enumerate(self._daemon.engine.thread_cpu_s())},
        )

        turns = {str(number): each for number, each in enumerate(self._daemon.engine.thread_turns())}
        label = "thread"
        yield _by(
            "bentpipe_engine_turns",
            "Turns of the engine's threads.",
            label,
            {number: each.turns for number, each in turns.items()},
        )
        yield _by(
            "bentpipe_engine_turns_long",
            "Turns of over 50 ms.",
            label,
            {number: each.long_turns for number, each in turns.items()},
        )
        for name, words, values in (
            ("longest", "The longest turn since the start.", {n: each.longest_s for n, each in turns.items()}),
            ("running", "How long the turn at hand has lasted.", {n: each.running_s for n, each in turns.items()}),
        ):
            gauge = GaugeMetricFamily(f"bentpipe_engine_turn_{name}_seconds", words, labels=[label])
            for number, seconds in values.items():
                gauge.add_metric([number], seconds)
            yield gauge

    def _fleet(self) -> Iterator[Metric]:
        fleet = self._daemon.fleet.statistics()
        satellites = GaugeMetricFamily("bentpipe_satellites", "Satellites, by state.", labels=["state"])
        for state in SatelliteState:
            satellites.add_metric([state.value], fleet.states.get(state.value, 0))
        yield satellites
        yield _gauge("bentpipe_waiters", "Clients held for satellites that are not operational yet.", fleet.waiting)
        yield _gauge("bentpipe_leases", "Leases on satellites.", fleet.leases)
        yield _gauge("bentpipe_budget_queue", "Satellites that wait for a place in the awake budget.", fleet.queued)
        resumes = {resume.value: fleet.resumes.get(resume.value, 0) for resume in Resume}
        yield _by("bentpipe_resumes", "Wakes, by whether memory was kept.", "resume", resumes)
        lessons = {lesson.name.lower(): fleet.lessons.get(lesson.name.lower(), 0) for lesson in Lesson}
        yield _by("bentpipe_lessons", "What machines taught about their sleep.", "lesson", lessons)
        arrivals = {state.value: self._daemon.arrivals.get(state, 0) for state in SatelliteState}
        yield _by("bentpipe_satellite_transitions", "Changes of state, by the state they led to.", "state", arrivals)
        yield _counter("bentpipe_wakes", "Wakes begun.", fleet.wakes)
        calls = CounterMetricFamily(
            "bentpipe_provider_calls", "Calls of the cloud's API, by its error code.", labels=["api", "code"]
        )
        for (api, code), count in self._daemon.provider.call_counts.items():
            calls.add_metric([api, code], count)
        yield calls

    def _ledger(self) -> Iterator[Metric]:
        if self._daemon.recorder is None:
            return
        ledger = self._daemon.recorder.statistics()
        yield _counter("bentpipe_ledger_recorded", "Changes written to the ledger.", ledger.recorded)
        yield _counter("bentpipe_ledger_lost", "Changes that the ledger has as UNKNOWN.", ledger.lost)
        yield _counter("bentpipe_ledger_failures", "Attempts to write that failed.", ledger.failures)
        yield _gauge("bentpipe_ledger_queue", "Changes that wait to be written.", ledger.queued)

    def _tasks(self) -> Iterator[Metric]:
        yield _by("bentpipe_task_failures", "Failures of the daemon's own tasks, by task.", "task", task_failures())

    def _turns(self) -> Iterator[Metric]:
        turns = self._daemon.turns.statistics()
        yield _counter("bentpipe_turns", "Turns of the Trio thread.", turns.turns)
        yield _counter("bentpipe_turns_busy_seconds", "Time in turns, not waiting.", turns.busy_s)
        yield _counter("bentpipe_turns_long", "Turns of over 50 ms.", turns.long_turns)
        yield _gauge("bentpipe_turns_longest_seconds", "The longest turn since the start.", turns.longest_s)
        yield _gauge("bentpipe_turns_longest_cpu_seconds", "The most CPU time of one turn.", turns.longest_cpu_s)

    @staticmethod
    def _log() -> Iterator[Metric]:
        lines = log_statistics()
        yield _counter("bentpipe_log_lines", "Lines written to the log.", lines.written)
        yield _counter(
            "bentpipe_log_dropped", "Lines that nobody read in time, or that could not be written.", lines.dropped
        )
        yield _counter(
            "bentpipe_log_withheld", "Lines of one kind that were too many, told as a count.", lines.withheld
        )
        yield _gauge("bentpipe_log_queue", "Lines that wait to be written.", lines.queued)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=value)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _now(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _by(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
