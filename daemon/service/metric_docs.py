"""Makes `docs/metrics.md` of the table of metrics: `make docs` writes it, and a test says if it is not up to date."""

import sys

from bentpipe.daemon.service.metric import Metric
from bentpipe.daemon.service.metric_table import METRICS

HEAD = """# Metrics

`[metrics] address` serves these to Prometheus (`GET /metrics`); it is off by default. `SIGUSR1` writes the same counters to
the log as one line, `statistics`, and so does the end of the daemon; the last column names the field there. No label has
values that strangers could send. The process's own metrics (`process_…`) stand beside these.

With two processes the metrics of threads are also those of the data plane's `opener-0` and on and `joiner-0`. In the line
the engine's threads are a list, and these have fields of their own, `plane_turns` and `plane_cpu_s`.

A scraper that asks for OpenMetrics gets an example with the buckets of histograms: the id of a connection, for
`bentpipe why`.

This page is made from `daemon/service/metric_table.py` by `make docs`.

| metric | kind | is | in the log |
| --- | --- | --- | --- |
"""


def to_markdown() -> str:
    """The page."""
    return HEAD + "".join(map(_row, METRICS))


def _row(metric: Metric) -> str:
    labels = ",".join(metric.labels)
    name = f"{metric.full_name}{{{labels}}}" if labels else metric.full_name
    places = [] if metric.line is None else [metric.line.replace("{}", f"<{labels.replace(',', ' ')}>")]
    fields = ", ".join(f"`{place}`" for place in (*places, *metric.line_of.values()))
    return f"| `{name}` | {metric.kind.value} | {metric.words} | {fields} |\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
