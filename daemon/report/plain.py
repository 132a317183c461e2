"""The report in plain forms: as JSON for programs, and moments as text. Pure, and quick to import."""

import dataclasses
import datetime

from bentpipe.daemon.report.summary import Report


def utc_text(at_us: int) -> str:
    """A moment in ISO 8601, UTC, to the second."""
    return datetime.datetime.fromtimestamp(at_us // 1_000_000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_json(report: Report) -> dict[str, object]:
    """The report in the names of its dataclasses, for json.dumps."""
    whole = dataclasses.asdict(report)
    for key in ("since_us", "until_us"):
        whole[key.removesuffix("_us")] = utc_text(whole.pop(key))
    return whole
