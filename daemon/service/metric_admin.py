"""The metrics of the page for operators: a part of the table in `metric_table.py`."""

from bentpipe.daemon.admin.counters import Turned
from bentpipe.daemon.service.metric import MetricKind, by_label, gauge

ADMIN = (
    by_label(
        MetricKind.COUNTER,
        "admin_answers",
        "status",
        "Answers of the page for operators, by HTTP status.",
        "admin.answers.{}",
        lambda look: {str(status.value): count for status, count in look.daemon.page.counters.answers.items()},
    ),
    by_label(
        MetricKind.COUNTER,
        "admin_refusals",
        "reason",
        "Requests to the page that were refused, by reason. host and origin: another site's page may have asked.",
        "admin.refusals.{}",
        lambda look: {reason.value: look.daemon.page.counters.turned[reason] for reason in Turned},
    ),
    gauge(
        "admin_listeners",
        "Open pages that are told of changes as they happen.",
        "admin.listeners",
        lambda look: look.daemon.page.counters.listeners,
    ),
)
