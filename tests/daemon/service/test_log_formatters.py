import json
import logging

import pytest

from bentpipe.daemon.service.log_formatters import JsonFormatter, TextFormatter


def record(fields: dict[str, object]) -> logging.LogRecord:
    made = logging.LogRecord("bentpipe.edge", logging.INFO, "file", 1, "refused", (), None)
    made.created, made.msecs = 0.25, 250.0
    made.__dict__["fields"] = fields
    return made


def test_text() -> None:
    line = TextFormatter().format(record({"peer": "127.0.0.1:1", "error": "no such satellite"}))
    assert line == '1970-01-01T00:00:00.250Z INFO bentpipe.edge: refused peer=127.0.0.1:1 error="no such satellite"'


@pytest.mark.parametrize("hostile", ["a\nFAKE LINE", "x\x1b[31m", 'quote" key=value'])
def test_a_peers_words_cannot_forge_a_line(hostile: str) -> None:
    line = TextFormatter().format(record({"error": hostile}))
    assert line.isprintable()
    assert json.loads(line.partition("error=")[2]) == hostile


def test_json_is_one_line_with_the_fields() -> None:
    line = JsonFormatter().format(record({"port": 8372, "error": "a\nb"}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": 0.25,
        "level": "info",
        "logger": "bentpipe.edge",
        "message": "refused",
        "port": 8372,
        "error": "a\nb",
    }
