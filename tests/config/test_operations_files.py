"""The dashboard and the alert rules: they name what is exported, and promtool and its unit tests take the rules."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bentpipe.daemon.service.metric import Metric, MetricKind
from bentpipe.daemon.service.metric_table import METRICS

CONFIG = Path(__file__).parents[2] / "config"
RULES = CONFIG / "alert-rules.yml"
DASHBOARD = CONFIG / "grafana-dashboard.json"
TESTS = Path(__file__).parent / "alert-tests.yml"
SELECTOR = re.compile(r"(bentpipe_[a-z_]+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"by \(([^)]*)\)\s*\((.*)", re.DOTALL)
TARGET = {"instance", "job", "le"}
"""Labels that Prometheus itself gives."""

EXPORTED: dict[str, Metric] = {}
for metric in METRICS:
    names = (
        [metric.full_name + end for end in ("_bucket", "_sum", "_count")]
        if metric.kind is MetricKind.HISTOGRAM
        else [metric.full_name]
    )
    EXPORTED.update(dict.fromkeys(names, metric))


def alerts() -> list[dict[str, str]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, object]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    assert isinstance(found, list)
    return found


def expressions() -> list[str]:
    in_panels = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    return [*(alert["expr"] for alert in alerts()), *in_panels]


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_exported(expression: str) -> None:
    found = SELECTOR.findall(expression)
    assert found or expression.startswith("up{")
    labels = set(TARGET)
    for name, matchers in found:
        assert name in EXPORTED, f"{name} is not exported"
        own = {*TARGET, *EXPORTED[name].labels}
        labels |= own
        assert {each.partition("=")[0].strip(" !") for each in matchers.split(",") if each} <= own
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {each.strip() for each in grouped.split(",")} <= labels


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_with_labels_that_it_has(alert: dict[str, str]) -> None:
    summary = alert["annotations"]["summary"]  # type: ignore[index]
    metrics = [EXPORTED[name] for name, _ in SELECTOR.findall(alert["expr"])]
    used = set(re.findall(r"\$labels\.([a-z_]+)", str(summary)))
    assert "instance" in used
    assert used <= TARGET | {label for metric in metrics for label in metric.labels}


def test_each_value_that_is_matched_is_one_that_there_is() -> None:
    """A misspelt value matches nothing, and the alert never fires."""
    from bentpipe.daemon.connections.outcomes import Outcome
    from bentpipe.daemon.model import SatelliteState
    from bentpipe.native.engine import EndReason
    from bentpipe.proto.grpc_status import GrpcStatus

    values = {
        "outcome": {each.value for each in Outcome},
        "state": {each.value for each in SatelliteState},
        "reason": {each.name.lower() for each in EndReason},
        "status": {each.name for each in GrpcStatus},
    }
    matched = [pair for expression in expressions() for pair in re.findall(r'([a-z]+)=~?"([^"$]+)"', expression)]
    assert {label for label, _ in matched} <= {*values, "job"}
    for label, pattern in matched:
        assert label == "job" or set(pattern.split("|")) <= values[label]


def test_panels_do_not_overlap_and_have_titles_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]  # type: ignore[index]
    assert len(set(places)) == len(places)
    assert len({str(panel["title"]) for panel in panels()}) == len(places)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="peer promtool: not installed")
def test_promtool_takes_the_rules_and_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(TESTS, tmp_path)
    for arguments in (["check", "rules", RULES.name], ["test", "rules", TESTS.name]):
        done = subprocess.run(["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = TESTS.read_text()
    never = {"BentpipeLogLost"}  # its series is in a case in which it must not fire
    assert {alert["alert"] for alert in alerts() if alert["alert"] not in tested} == never
