"""Writes the daemon's counters to the log as one line: on SIGUSR1, and at the end. The metrics' table says what is in it.

A counter with labels is left out of the line where it is 0, so that the line stays short. Prometheus gets the zeros.
"""

import logging
from collections.abc import Sequence

from bentpipe.daemon.service.metric import THREAD, Metric, Samples, Snapshot
from bentpipe.daemon.service.metric_table import METRICS
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.tasks import Owner, contained

log = logging.getLogger("bentpipe")

DIGITS = 6
"""Digits after the point: microseconds, of seconds."""

ENGINE_FIELD, PLANE_FIELD = "engine_", "plane_"
"""How the fields of threads begin: of the engine's, and of the other threads of a data plane."""

Tree = dict[str, "Tree | float"]


async def ask_and_log_statistics(daemon: Daemon) -> None:
    """Write every counter to the log. Data planes of their own are asked first what they have counted by now."""
    if daemon.planes is not None:
        await daemon.planes.read_counters()
    log_daemon_statistics(daemon)


def log_daemon_statistics(daemon: Daemon) -> None:
    """Write every counter to the log."""
    log.info("statistics", extra={"fields": statistics_fields(daemon)})


def statistics_fields(daemon: Daemon) -> dict[str, object]:
    """Make the line's fields. A counter that cannot be read is left out, and noted as a failure."""
    look, tree = Snapshot(daemon), Tree()
    for metric in METRICS:
        with contained(Owner("statistics", metric.name)):
            _enter(tree, metric, metric.read(look))
    threads = {metric.line.partition(".")[0] for metric in METRICS if metric.line and metric.labels == (THREAD,)}
    fields: dict[str, object] = {}
    for field, value in tree.items():
        if field not in threads or not isinstance(value, dict):
            fields[field] = value
            continue
        # The engine's threads are a list. A data plane's others have names, and a field of their own.
        fields[field] = [each for thread, each in value.items() if thread.isdigit()]
        if others := {thread: each for thread, each in value.items() if not thread.isdigit()}:
            fields[field.replace(ENGINE_FIELD, PLANE_FIELD, 1)] = others
    return fields


def _enter(tree: Tree, metric: Metric, samples: Samples) -> None:
    if metric.labels and metric.line is not None:
        _branch(tree, metric.line.partition(".{}")[0].split("."))  # also while nothing was counted
    for values, number in samples.items():
        path = metric.place(values)
        if path is None or (not number and metric.is_sparse(values)):
            continue
        *above, field = path
        _branch(tree, above)[field] = round(number, DIGITS)


def _branch(tree: Tree, path: Sequence[str]) -> Tree:
    for field in path:
        branch = tree.setdefault(field, Tree())
        assert isinstance(branch, dict), f"{field} is a number of its own"
        tree = branch
    return tree
