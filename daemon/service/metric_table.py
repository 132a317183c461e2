"""Every counter of the daemon, in one table: its name, its labels, what it says, and where it is read.

`metrics_server.py` serves the table to Prometheus, `statistics.py` writes it to the log, and `metric_docs.py` makes
`docs/metrics.md` of it. So a new row here is a new metric everywhere. `metric.py` says what a row is.
"""

import importlib.metadata
from collections.abc import Mapping

from bentpipe.daemon.accounts.exchange import Result
from bentpipe.daemon.connections.ends import CUT_WORDS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.connections.quotas import QuotaKind
from bentpipe.daemon.fleet.machine.messages import SleepProblem
from bentpipe.daemon.model import Resume, SatelliteState
from bentpipe.daemon.readings.condition import Condition
from bentpipe.daemon.readings.reading import ReadResult
from bentpipe.daemon.service.metric import (
    Metric,
    MetricKind,
    Snapshot,
    by_label,
    by_thread,
    counter,
    gauge,
    of_ledger,
)
from bentpipe.daemon.service.metric_admin import ADMIN
from bentpipe.daemon.service.metric_records import RECORDS
from bentpipe.daemon.service.metric_reserve import RESERVE
from bentpipe.daemon.tasks import task_failures
from bentpipe.native.engine import EndReason

VERSION = importlib.metadata.version("bentpipe")
"""Read once: after an upgrade of the installation, a daemon that still runs is the old version."""


def _zeros(names: list[str], found: Mapping[str, float]) -> Mapping[str, float]:
    """Every name's value, 0 if it has none yet: a rate over a series that begins at 1 misses the first."""
    return {name: found.get(name, 0) for name in names}


def _splices_ended(look: Snapshot) -> Mapping[str, float]:
    handoff = look.daemon.handoff
    ended = {reason.name.lower(): handoff.ended[reason] for reason in EndReason}
    return {**ended, CUT_WORDS: handoff.cut_by_operator}


def _certificate_requests(look: Snapshot) -> Mapping[str, float]:
    ca = look.daemon.satellite_ca
    results = {} if ca is None else ca.enrolments.results
    return {f"{kind} {result}": count for (kind, result), count in results.items()}


CONNECTIONS = (
    counter("connections_accepted", "Connections accepted.", "accepted", lambda look: look.daemon.counters.accepted),
    counter(
        "accept_errors",
        "Calls of accept(2) that failed.",
        "accept_errors",
        lambda look: look.daemon.counters.accept_errors,
    ),
    gauge(
        "connections",
        "Connections open now, spliced or not.",
        "connections",
        lambda look: look.daemon.quotas.total,
    ),
    by_label(
        MetricKind.COUNTER,
        "connections_ended",
        "outcome",
        "Connections that left the control plane, by outcome: spliced, refused, probe, deadline, malformed, …",
        "outcomes.{}",
        lambda look: {outcome.value: look.daemon.counters.ended[outcome] for outcome in Outcome},
    ),
    counter(
        "admitted_by_planes",
        'Clients that data planes brought to their satellites themselves (`admission = "snapshot"`).',
        "admitted_by_planes",
        lambda look: 0 if look.daemon.edge.gatekeeper is None else look.daemon.edge.gatekeeper.admitted,
    ),
    by_label(
        MetricKind.COUNTER,
        "unadmitted",
        "reason",
        "Clients that data planes offered to the control plane instead, by reason.",
        "unadmitted.{}",
        lambda look: look.daemon.counters.unadmitted,
    ),
    gauge(
        "gates",
        "Satellites to which data planes may bring clients themselves.",
        "gates",
        lambda look: 0 if look.daemon.edge.gatekeeper is None else len(look.daemon.edge.gatekeeper.open_gates),
    ),
    by_label(
        MetricKind.COUNTER,
        "refusals",
        "status",
        "Refusals, by gRPC status.",
        "refusals.{}",
        lambda look: look.daemon.counters.refusals,
    ),
    by_label(
        MetricKind.COUNTER,
        "malformed",
        "rule",
        "Malformed input, by limit of `proto/limits.py` or by RFC 9113 error code.",
        "malformed.{}",
        lambda look: look.daemon.counters.malformed,
    ),
    by_label(
        MetricKind.COUNTER,
        "answers",
        "answer",
        "Calls that the daemon itself has answered, by method and result.",
        "answers.{}",
        lambda look: look.daemon.counters.answers,
    ),
    gauge(
        "held_bytes",
        "Memory of all connections before their hand-off: what their clients sent, and what the connections cost besides.",
        "held_bytes",
        lambda look: look.daemon.quotas.held_bytes,
    ),
    by_label(
        MetricKind.GAUGE,
        "account_connections",
        "account",
        "Connections open now, by the quota that they are charged to: strangers' or principals'.",
        "account_connections.{}",
        lambda look: {
            QuotaKind.STRANGER.value: look.daemon.quotas.strangers,
            QuotaKind.PRINCIPAL.value: look.daemon.quotas.admitted,
        },
        {QuotaKind.STRANGER.value: "strangers"},
    ),
    by_label(
        MetricKind.GAUGE,
        "account_bytes",
        "account",
        "The memory of bentpipe_held_bytes, by the quota that it is charged to.",
        "account_bytes.{}",
        lambda look: {
            QuotaKind.STRANGER.value: look.daemon.quotas.stranger_bytes,
            QuotaKind.PRINCIPAL.value: look.daemon.quotas.admitted_bytes,
        },
    ),
    gauge(
        "configuration_is_last_good",
        "Whether the daemon runs with the configuration of its last start, because the file has mistakes: 1 or 0.",
        "configuration_is_last_good",
        lambda look: bool(look.daemon.current.problem),
    ),
    by_label(
        MetricKind.COUNTER,
        "configuration_reloads",
        "result",
        "Reloads of the configuration: ok, or failed, after which nothing had changed.",
        "reloads.{}",
        lambda look: {"ok": look.daemon.current.reloads, "failed": look.daemon.current.failed},
    ),
    gauge(
        "configuration_reload_failed",
        "Whether the last reload has failed, so that the daemon does not run with the file as it is: 1 or 0.",
        "configuration_reload_failed",
        lambda look: bool(look.daemon.current.last_failure),
    ),
    gauge(
        "satellites_awaiting_change",
        "Satellites whose changed configuration waits until they sleep, or that are being given up.",
        "satellites_awaiting_change",
        lambda look: len(look.daemon.changes.pending),
    ),
    by_label(
        MetricKind.GAUGE,
        "certificate_end_seconds",
        "file",
        "Until when a configured certificate holds, in seconds since the epoch.",
        None,
        lambda look: look.daemon.certificate_ends,
    ),
    by_label(
        MetricKind.COUNTER,
        "limits_reached",
        "limit",
        "Clients refused or evicted, by limit of `[limits]`, or `descriptors`.",
        "limits_reached.{}",
        lambda look: look.daemon.quotas.reached + look.daemon.fleet.crowd.reached,
    ),
)

ENGINE = (
    gauge("splices", "Connections in the engine now.", "spliced", lambda look: look.daemon.handoff.live),
    by_label(
        MetricKind.COUNTER,
        "splices_ended",
        "reason",
        "Connections that ended in the engine, by reason.",
        "splice_ends.{}",
        _splices_ended,
        {CUT_WORDS: "cut_by_operator"},
    ),
    gauge(
        "engine_live",
        "Connections in the engine now, including those whose end the control plane has not taken yet.",
        "engine.live",
        lambda look: look.engine.live,
    ),
    by_label(
        MetricKind.COUNTER,
        "engine_bytes",
        "path",
        "Bytes delivered, by splice or by copy.",
        None,
        lambda look: {"splice": look.engine.spliced_bytes, "copy": look.engine.copied_bytes},
        {"splice": "engine.spliced_bytes", "copy": "engine.copied_bytes"},
    ),
    gauge("engine_pipes", "Pipes open now.", "engine.pipes_open", lambda look: look.engine.pipes_open),
    counter(
        "engine_pipe_fallbacks",
        "How often no pipe was available.",
        "engine.pipe_fallbacks",
        lambda look: look.engine.pipe_fallbacks,
    ),
    by_thread(
        MetricKind.COUNTER,
        "engine_cpu_seconds",
        "CPU time of the engine's threads.",
        "engine_cpu_s.{}",
        lambda use: use.cpu_s,
    ),
    by_thread(
        MetricKind.COUNTER,
        "engine_turns",
        "Turns of the engine's threads.",
        "engine_turns.{}.turns",
        lambda use: use.turns.turns,
    ),
    by_thread(
        MetricKind.COUNTER,
        "engine_turns_long",
        "Turns of the engine's threads over 50 ms.",
        "engine_turns.{}.long_turns",
        lambda use: use.turns.long_turns,
    ),
    by_thread(
        MetricKind.GAUGE,
        "engine_turn_longest_seconds",
        "The longest turn of an engine thread since the start.",
        "engine_turns.{}.longest_s",
        lambda use: use.turns.longest_s,
    ),
    by_thread(
        MetricKind.GAUGE,
        "engine_turn_running_seconds",
        "How long the present turn has lasted. A thread is stuck after 10 s.",
        "engine_turns.{}.running_s",
        lambda use: use.turns.running_s,
    ),
)

FLEET = (
    by_label(
        MetricKind.GAUGE,
        "satellites",
        "state",
        "Satellites, by state.",
        "fleet.states.{}",
        lambda look: _zeros([state.value for state in SatelliteState], look.fleet.states),
    ),
    gauge(
        "waiters",
        "Clients held for satellites that are not operational yet.",
        "fleet.waiting",
        lambda look: look.fleet.waiting,
    ),
    gauge("leases", "Leases on satellites.", "fleet.leases", lambda look: look.fleet.leases),
    gauge(
        "reservations",
        "Leases for builds that have reserved a satellite and not connected yet.",
        "reservations",
        lambda look: look.daemon.api_news.reservations.count,
    ),
    gauge(
        "budget_queue",
        "Satellites that wait for a place in the awake budget.",
        "fleet.queued",
        lambda look: look.fleet.queued,
    ),
    by_label(
        MetricKind.COUNTER,
        "certificate_requests",
        "result",
        "Machines' requests for certificates, by kind and result. After second and stale_key a secret is in other hands.",
        "certificate_requests.{}",
        _certificate_requests,
    ),
    by_label(
        MetricKind.COUNTER,
        "resumes",
        "resume",
        "Wakes, by whether the machine's memory was kept.",
        "fleet.resumes.{}",
        lambda look: _zeros([resume.value for resume in Resume], look.fleet.resumes),
    ),
    by_label(
        MetricKind.COUNTER,
        "sleep_problems",
        "problem",
        "What went wrong when machines were put to sleep, by problem.",
        "fleet.sleep_problems.{}",
        lambda look: _zeros([problem.name.lower() for problem in SleepProblem], look.fleet.sleep_problems),
    ),
    by_label(
        MetricKind.COUNTER,
        "satellite_transitions",
        "state",
        "Changes of state, by the state they led to.",
        "transitions.{}",
        lambda look: {state.value: look.daemon.records.arrivals.get(state, 0) for state in SatelliteState},
    ),
    counter("wakes", "Wakes begun.", "fleet.wakes", lambda look: look.fleet.wakes),
    Metric(
        "provider_calls",
        MetricKind.COUNTER,
        'Calls of the cloud\'s API, by its error code or "ok".',
        lambda look: {call: count for call, count in look.daemon.provider.call_counts.items()},
        "provider_calls.{}",
        ("api", "code"),
    ),
)

READINGS = (
    by_label(
        MetricKind.COUNTER,
        "readings",
        "result",
        "Readings of satellites' responders, by what came of them.",
        "readings.{}",
        lambda look: {result.value: look.reading.results[result] for result in ReadResult},
    ),
    by_label(
        MetricKind.GAUGE,
        "satellite_conditions",
        "condition",
        "Operational satellites that have a responder, by condition. `deaf`: BuildKit does not answer though the responder "
        "does. `silent`: not even the responder answers.",
        "conditions.{}",
        lambda look: _zeros([condition.value for condition in Condition], look.read.conditions),
    ),
    gauge("builds", "Builds that run now, as responders tell.", "builds", lambda look: look.read.builds),
    by_label(
        MetricKind.GAUGE,
        "pressure_highest_percent",
        "resource",
        "The highest share of the last 10 s in which tasks of a satellite waited for the resource (PSI, some).",
        "pressure.{}",
        lambda look: {
            "cpu": look.read.peaks.cpu_percent,
            "memory": look.read.peaks.memory_percent,
            "io": look.read.peaks.io_percent,
        },
    ),
    gauge(
        "cache_disk_highest_ratio",
        "The fullest cache of a satellite: the used share of its file system's bytes or inodes.",
        "cache_disk_highest",
        lambda look: look.read.disk_used,
    ),
    by_label(
        MetricKind.COUNTER,
        "build_kills",
        "cause",
        "Processes (oom) and steps (pressure) of builds that were ended because memory ran out.",
        "build_kills.{}",
        lambda look: {"oom": look.reading.oom_kills, "pressure": look.reading.pressure_kills},
    ),
    counter(
        "satellite_boots",
        "Satellites that were booted anew while they were operational.",
        "satellite_boots",
        lambda look: look.reading.boots,
    ),
    gauge(
        "abuse_suspected",
        "Satellites whose score of abuse has reached the one of their configuration.",
        "abuse.suspected",
        lambda look: look.read.suspected,
    ),
    by_label(
        MetricKind.COUNTER,
        "abuse_actions",
        "action",
        "What was done about suspected abuse.",
        "abuse.{}",
        lambda look: {action: look.reading.actions[action] for action in ("notify", "sleep", "cut")},
    ),
)

ACCOUNTS = (
    counter(
        "logins",
        "Sessions given out for tokens.",
        "accounts.logins",
        lambda look: look.daemon.account_parts.authority.logins,
    ),
    by_label(
        MetricKind.COUNTER,
        "exchanges",
        "result",
        "Tokens of CI jobs that were shown to be exchanged, by what came of it.",
        "accounts.exchanges.{}",
        lambda look: {result.value: look.daemon.account_parts.exchange.results[result] for result in Result},
    ),
    by_label(
        MetricKind.GAUGE,
        "oidc_keys_age_seconds",
        "issuer",
        "Time since the keys of an `[[oidc_issuer]]` were fetched; they are not used after a day.",
        "accounts.oidc_keys_age_s.{}",
        lambda look: {issuer.section.name: issuer.age_s for issuer in look.daemon.account_parts.issuers.keys},
    ),
)

OURSELVES = (
    of_ledger(
        MetricKind.COUNTER, "recorded", "Changes written to the ledger.", "recorded", lambda ledger: ledger.recorded
    ),
    of_ledger(
        MetricKind.COUNTER,
        "lost",
        "Changes lost: the ledger has that time as UNKNOWN.",
        "lost",
        lambda ledger: ledger.lost,
    ),
    of_ledger(
        MetricKind.COUNTER, "failures", "Attempts to write that failed.", "failures", lambda ledger: ledger.failures
    ),
    of_ledger(MetricKind.GAUGE, "queue", "Changes that wait to be written.", "queued", lambda ledger: ledger.queued),
    counter("turns", "Turns of the Trio thread.", "turns.turns", lambda look: look.turns.turns),
    counter(
        "turns_busy_seconds", "Time spent in turns of the Trio thread.", "turns.busy_s", lambda look: look.turns.busy_s
    ),
    counter(
        "turns_long", "Turns of the Trio thread over 50 ms.", "turns.long_turns", lambda look: look.turns.long_turns
    ),
    gauge(
        "turns_longest_seconds",
        "The longest turn of the Trio thread since the start.",
        "turns.longest_s",
        lambda look: look.turns.longest_s,
    ),
    gauge(
        "turns_longest_cpu_seconds",
        "The most CPU time of one turn of the Trio thread.",
        "turns.longest_cpu_s",
        lambda look: look.turns.longest_cpu_s,
    ),
    counter("log_lines", "Lines written to the log.", "log.written", lambda look: look.log.written),
    counter(
        "log_dropped",
        "Lines dropped because nobody read the log in time, or because they could not be written.",
        "log.dropped",
        lambda look: look.log.dropped,
    ),
    counter(
        "log_withheld",
        "Lines withheld because there were too many of one kind; the log has their number.",
        "log.withheld",
        lambda look: look.log.withheld,
    ),
    gauge("log_queue", "Lines that wait to be written.", "log.queued", lambda look: look.log.queued),
    by_label(
        MetricKind.COUNTER,
        "task_failures",
        "task",
        "Failures of the daemon's own tasks, by owner.",
        "task_failures.{}",
        lambda look: task_failures(),
    ),
    by_label(
        MetricKind.GAUGE,
        "info",
        "version",
        "Always 1.",
        None,
        lambda look: {VERSION: 1},
    ),
)

METRICS: tuple[Metric, ...] = (
    *(*CONNECTIONS, *RECORDS, *ENGINE, *FLEET, *RESERVE, *READINGS, *ACCOUNTS, *ADMIN, *OURSELVES),
)
