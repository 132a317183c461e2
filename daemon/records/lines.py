"""Writes each record to the log as one line. Strangers' lines are limited in number by their kind: see `daemon/logs.py`."""

import logging

from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.records.record import Record

log = logging.getLogger("bentpipe.edge")

LINE = "connection ended"


def kind_of(record: Record) -> str:
    """The kind of a stranger's record, for limits of number."""
    return f"{LINE}: {record.end.code} {record.status}".rstrip()


def write_line(record: Record) -> None:
    """A sink of the book."""
    if not log.isEnabledFor(record.end.level):
        return
    fields = record.fields()
    del fields["at"]  # the line has a time of its own, and `ended_s`
    if record.principal:
        log.log(record.end.level, LINE, extra={"fields": fields})
    else:
        log_limited(log, kind_of(record), LINE, fields, record.end.level)
