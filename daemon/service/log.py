"""Log lines, for people or as JSON, from records that carry `extra={"fields": {...}}`. Never logs a token."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Literal


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = record.__dict__.get("fields", {})
    return fields if isinstance(fields, Mapping) else {}


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO bentpipe.edge: message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record on one line, its traceback (if any) behind it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        words = " ".join(f"{key}={_quoted(str(value))}" for key, value in _fields(record).items())
        line = f"{at}.{int(record.msecs):03d}Z {record.levelname} {record.name}: {record.getMessage()} {words}".rstrip()
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _quoted(text: str) -> str:
    """Quote what would break the line or the key=value form: peers choose some of these words."""
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(log_format: Literal["text", "json"], level: str) -> None:
    """Send the daemon's log to standard error, where systemd's journal picks it up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger("bentpipe")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
