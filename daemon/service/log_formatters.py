"""Log lines, for people or as JSON, from records that carry `extra={"fields": {...}}`. Never logs a token.

Each record is one line of bounded length. Text from a peer, a library or a cloud is shortened and cannot forge a second
line.
"""

import json
import logging
import time

from bentpipe.daemon.logs import fields_of, kind_of

MESSAGE_CHARS = 2_000
FIELD_CHARS = 2_000
LIMITED_FIELD_CHARS = 300
"""Characters of each field of a line that anybody can cause."""
TRACEBACK_CHARS = 8_000
"""Characters of a traceback's end: the innermost frames, and the error."""
CUT = "\N{HORIZONTAL ELLIPSIS}"


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[:chars] + CUT


def _text(value: object, chars: int) -> str:
    return _cut(str(value), chars)


def _field_chars(record: logging.LogRecord) -> int:
    return FIELD_CHARS if kind_of(record) is None else LIMITED_FIELD_CHARS


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = formatter.formatException(record.exc_info) if record.exc_info else ""
    return text if len(text) <= TRACEBACK_CHARS else CUT + text[-TRACEBACK_CHARS:]


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO bentpipe.edge: message key=value`, or without what stands before the message."""

    def __init__(self, *, stamped: bool = True) -> None:
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """Render one record on one line, with its traceback (if any) at the end."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        chars = _field_chars(record)
        words = " ".join(f"{key}={_quoted(_text(value, chars))}" for key, value in fields_of(record).items())
        message = _cut(record.getMessage(), MESSAGE_CHARS).replace("\n", " ")
        stamp = f"{at}.{int(record.msecs):03d}Z {record.levelname} {record.name}: " if self._stamped else ""
        line = f"{stamp}{message} {words}".rstrip()
        return line + ("\n" + _traceback(self, record) if record.exc_info else "")


def _quoted(text: str) -> str:
    """Quote text that would break the line or the key=value form: peers choose some of it."""
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time (seconds since the epoch), level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        chars = _field_chars(record)
        line: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage(), MESSAGE_CHARS),
        }
        for key, value in fields_of(record).items():
            line.setdefault(key, _cut(value, chars) if isinstance(value, str) else value)
        if record.exc_info:
            line["traceback"] = _traceback(self, record)
        return json.dumps(line, default=lambda value: _text(value, chars))
