"""What a log line may carry, and which lines are limited: for every module that logs.

A record has `extra={"fields": {...}}`. Strangers can cause some lines: those that name a `peer` and no `principal`, and
those made by `log_limited`. `daemon/service/log_handler.py` limits their number by kind, and
`daemon/service/log_formatters.py` shortens their fields. The lines of libraries (boto3, trio, warnings) are limited too. A
record must never carry a token.
"""

import logging
from collections.abc import Mapping

LIMITED = "limited_kind"
"""Attribute of a record: the kind, for the limit of its number."""


def log_limited(
    log: logging.Logger, kind: str, message: str, fields: Mapping[str, object], level: int = logging.INFO
) -> None:
    """Log an event that anybody can cause.

    Only some lines of one `kind` (a literal) are written in a while, then a count.
    """
    log.log(level, message, extra={"fields": fields, LIMITED: kind})


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """The fields of a record; empty if it has none."""
    fields = record.__dict__.get("fields", {})
    return fields if isinstance(fields, Mapping) else {}


def kind_of(record: logging.LogRecord) -> str | None:
    """The kind of a record, for the limit of its number; None if it is not limited."""
    kind = record.__dict__.get(LIMITED)
    if isinstance(kind, str):
        return kind
    fields = fields_of(record)
    strange = "peer" in fields and "principal" not in fields
    foreign = record.name != "bentpipe" and not record.name.startswith("bentpipe.")
    return f"{record.name}: {record.msg}" if strange or foreign else None
