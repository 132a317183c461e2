"""Results as they are written can be read back, judged and drawn."""

import importlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.claims import all_claims
from bench.compare import table
from bench.load import encode, histogram_of
from bench.questions.profile import tables
from bench.results import Results
from bench.run import QUESTIONS, as_text
from bench.stats import Summary
from bench.svg import Bars, draw_bars, draw_curves


def write_results(folder: Path, added: dict[str, int]) -> tuple[Results, dict[str, str | int]]:
    case: dict[str, str | int] = {"wire": "plain", "bytes": 128, "connections": 64, "load": "50 %"}
    samples = [
        {
            "question": "added_latency",
            "peer": peer,
            "case": case,
            "values": {"p50_us": 50.0 + us + repetition, "p99_us": 100.0 + 2 * us},
            "histograms": {"latency_ns": encode(histogram_of([(50_000, 10)]))},
        }
        for peer, us in added.items()
        for repetition in (0, 1, 2)
    ]
    path = folder / "r.json"
    path.write_text(json.dumps({"environment": {}, "absent": {}, "seconds": {}, "samples": samples}))
    return Results(path), case


def test_claims_compare_what_each_adds_to_direct(tmp_path: Path) -> None:
    results, _ = write_results(tmp_path, {"direct": 0, "bentpipe": 40, "haproxy tcp": 50, "envoy": 200, "nginx": 60})
    claims = {claim.text: claim for claim in all_claims(results)}
    to_tcp = claims["added latency, p50, plain: to HAProxy mode tcp"]
    assert (to_tcp.figure, to_tcp.holds) == (40 / 50, True)
    to_best = claims["added latency, p50, plain: to the best L7 peer"]
    assert (to_best.figure, to_best.holds) == (40 / 60, False)


def test_a_case_where_direct_is_as_slow_as_a_peer_judges_nobody(tmp_path: Path) -> None:
    results, _ = write_results(tmp_path, {"direct": 50, "bentpipe": 90, "haproxy tcp": 40, "envoy": 130})
    claims = {claim.text: claim for claim in all_claims(results)}
    assert "added latency, p50, plain: to HAProxy mode tcp" not in claims
    assert claims["added latency, p50, plain: to the best L7 peer"].figure == 40 / 80


def test_the_tail_beside_api_calls_is_compared_with_both_others(tmp_path: Path) -> None:
    samples = [
        {
            "question": "api_calls",
            "peer": "bentpipe",
            "case": {"api calls": where},
            "values": {"p99.9_us": us},
            "histograms": {},
        }
        for where, us in (("nowhere", 2000.0), ("here", 3000.0), ("elsewhere", 2900.0))
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"environment": {}, "absent": {}, "seconds": {}, "samples": samples}))
    claims = [(claim.number, claim.figure, claim.holds) for claim in all_claims(Results(path))]
    assert claims == [(7, 3000 / 2000, False), (7, 3000 / 2900, True)]


def test_repetitions_are_summed_up_and_histograms_added(tmp_path: Path) -> None:
    results, case = write_results(tmp_path, {"direct": 0})
    assert results.summary("added_latency", "direct", "p50_us", case) == Summary(51.0, 50.0, 52.0, 3)
    histogram = results.histogram("added_latency", "direct", "latency_ns", {"wire": "plain"})
    assert histogram is not None
    assert histogram.get_total_count() == 30
    assert results.summary("added_latency", "direct", "p50_us", {"wire": "tls"}) is None


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_a_module_that_can_be_asked(name: str) -> None:
    """`bench.run` and `bench.report` import it by this name."""
    question = importlib.import_module(f"bench.questions.{name}")
    assert name == question.QUESTION
    assert question.run
    assert question.TITLE


def test_results_are_written_small_and_read_back(tmp_path: Path) -> None:
    samples = [
        {"question": "wakes", "peer": "bentpipe", "case": {"clients": n}, "values": {}, "histograms": {}}
        for n in (1, 2)
    ]
    path = tmp_path / "r.json"
    path.write_text(as_text({"environment": {"cores": 2}, "absent": {}, "seconds": {}, "samples": samples}))
    assert len(path.read_text().splitlines()) == 2 + 3 + 1 + len(samples) + 1
    assert [sample.case for sample in Results(path).samples] == [{"clients": 1}, {"clients": 2}]


def test_a_profile_says_where_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    case = {"wire": "plain", "work": "request"}
    samples = [
        {"question": "profile", "peer": peer, "case": case, "values": values, "histograms": {}}
        for peer, values in (
            ("bentpipe", {"cpu": 20.0, "user": 5.0, "system": 15.0}),
            ("bentpipe", {"calls": 5.03, "call read": 3.0, "call write": 2.0, "call futex": 0.03}),
            ("python obvious", {"cpu": 160.0, "user": 120.0, "system": 40.0}),
        )
    ]
    path.write_text(as_text({"environment": {}, "absent": {}, "seconds": {}, "samples": samples}))
    results = Results(path)
    lines = list(tables(results))
    assert "| bentpipe | 5 µs | 15 µs | 5: read 3, write 2 |" in lines
    assert "| python obvious | 120 µs | 40 µs | not counted |" in lines
    claims = {claim.text: claim for claim in all_claims(results)}
    whole = claims["CPU per request, plain: the obvious Python proxy's to ours"]
    assert (whole.number, whole.figure, whole.holds) == (5, 8.0, True)


def test_pictures_are_well_formed() -> None:
    rows = [Bars("bentpipe", (Summary(1, 0.5, 2, 3), None)), Bars("a & b", (Summary(3, 3, 3, 1), Summary(2, 1, 4, 3)))]
    bars = ET.fromstring(draw_bars("bars < & >", "µs", ["plain", "tls"], rows))
    assert len(bars.findall(".//{*}path")) == 3
    curves = ET.fromstring(draw_curves("curves", [("direct", [(0.0, 50.0), (0.999, 900.0)])]))
    assert len(curves.findall(".//{*}polyline")) == 1


def test_comparison_says_what_can_be_told_from_noise() -> None:
    base = {"same": [1.0, 1.1, 1.2] * 5, "slower": [1.0, 1.1, 1.2] * 5, "gone": [1.0]}
    here = {"same": [1.0, 1.1, 1.2] * 5, "slower": [2.0, 2.1, 2.2] * 5}
    lines = table(base, here)
    assert len(lines) == 3
    assert lines[1].split()[0] == "same"
    assert lines[1].endswith("no difference seen")
    assert lines[2].split()[0] == "slower"
    assert lines[2].endswith("  slower")


def test_the_tail_in_a_storm_is_compared_with_the_best_of_the_others(tmp_path: Path) -> None:
    seen = {"bentpipe": 900.0, "bentpipe realtime": 300.0, "haproxy tcp": 1000.0, "envoy": 800.0, "nginx": 1500.0}
    samples = [
        {"question": "storms", "peer": peer, "case": {"storm": storm}, "values": {"p99_us": us}, "histograms": {}}
        for peer, us in seen.items()
        for storm in ("none", "handshakes")
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"environment": {}, "absent": {}, "seconds": {}, "samples": samples}))
    claims = [(claim.number, claim.figure, claim.holds) for claim in all_claims(Results(path))]
    assert claims == [(8, 900 / 800, False), (8, 300 / 800, True)]


def test_crowds_have_their_limits_in_both_forms(tmp_path: Path) -> None:
    samples = [
        {"question": "wakes", "peer": peer, "case": case, "values": {value: ms}, "histograms": {}}
        for peer, ms in (("bentpipe", 2000.0), ("bentpipe two processes", 100.0))
        for case, value in (
            ({"clients": 5000, "satellites": 1}, "listen_to_last_ms"),
            ({"clients": 300, "satellites": 300}, "delay_p50_ms"),
        )
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"environment": {}, "absent": {}, "seconds": {}, "samples": samples}))
    claims = [(claim.number, claim.figure, claim.holds) for claim in all_claims(Results(path)) if claim.number == 10]
    assert claims == [(10, 2000, False), (10, 2000, False), (10, 100, True), (10, 100, True)]
