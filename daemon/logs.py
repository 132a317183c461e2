"""What a log line may carry, and who may cause it: for every module that logs.

A record has `extra={"fields": {...}}`. Lines that strangers can cause are limited in number by kind, and what they carry
is cut short, by `daemon/service/log.py`. Such a line is one that names a `peer` and no `principal`, or one made by
`log_limited`; everything that is not ours (boto3, trio, warnings) is limited too.
"""

import logging
from collections.abc import Mapping

LIMITED = "limited_kind"
"""Attribute of a record: the kind by which it is limited."""


def log_limited(
    log: logging.Logger, kind: str, message: str, fields: Mapping[str, object], level: int = logging.INFO
) -> None:
    """Log what anybody can cause: of one `kind`, a literal of the code, only so many lines in a while, then a count."""
    log.log(level, message, extra={"fields": fields, LIMITED: kind})


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """The fields of a record; none if it has none."""
    fields = record.__dict__.get("fields", {})
    return fields if isinstance(fields, Mapping) else {}


def kind_of(record: logging.LogRecord) -> str | None:
    """The kind by which a record is limited; None if it is not."""
    kind = record.__dict__.get(LIMITED)
    if isinstance(kind, str):
        return kind
    fields = fields_of(record)
    strange = "peer" in fields and "principal" not in fields
    foreign = record.name != "bentpipe" and not record.name.startswith("bentpipe.")
    return f"{record.name}: {record.msg}" if strange or foreign else None
