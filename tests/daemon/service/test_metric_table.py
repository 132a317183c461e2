"""The one table of metrics: its page in the documentation is up to date, and its places in the log do not collide."""

import collections
import re
from pathlib import Path

from bentpipe.daemon.service.metric import THREAD
from bentpipe.daemon.service.metric_docs import to_markdown
from bentpipe.daemon.service.metric_table import METRICS

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == to_markdown(), "run make docs"


def test_each_metric_has_a_name_and_a_sentence_of_its_own() -> None:
    names = collections.Counter(metric.full_name for metric in METRICS)
    assert [name for name, count in names.items() if count > 1] == []
    assert all(re.fullmatch(r"bentpipe_[a-z_]+", name) for name in names)
    assert [metric.name for metric in METRICS if not re.fullmatch(r"[A-Z].*[.…]", metric.words)] == []


def test_no_two_metrics_stand_in_one_place_of_the_statistics_line() -> None:
    places = [place for metric in METRICS for place in (metric.line, *metric.line_of.values()) if place is not None]
    assert len(set(places)) == len(places)
    assert [each for each in places for other in places if other.startswith(f"{each}.")] == [], "a number and a branch"


def test_a_place_may_have_dots_in_its_labels() -> None:
    calls = next(metric for metric in METRICS if metric.name == "provider_calls")
    assert calls.place(("RunInstances", "InvalidParameter.{}")) == (
        "provider_calls",
        "RunInstances InvalidParameter.{}",
    )


def test_zeros_are_left_out_of_what_is_counted_by_label() -> None:
    sparse = {metric.name for metric in METRICS if metric.is_sparse(("x",) * len(metric.labels))}
    assert {"connections_ended", "refusals", "satellites"} <= sparse
    assert sparse.isdisjoint({"connections", "wakes", *(each.name for each in METRICS if each.labels == (THREAD,))})
