"""The rules, their unit tests and their runbooks fit together and fit the catalogue."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from trainvitals import catalogue

from tests.conftest import tool

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
RUNBOOK_URL = "https://github.com/trainvitals/trainvitals/blob/main/docs/runbooks/{}.md"
HEADINGS = ["## Meaning", "## Impact", "## Diagnosis", "## What to do"]
# Not ours, but every Prometheus has them.
BUILT_IN = {"up", "ALERTS", "ALERTS_FOR_STATE"}
# What Prometheus and Alertmanager tell of themselves, where they are scraped.
OF_PROMETHEUS = {
    "alertmanager_notifications_failed_total",
    "prometheus_notifications_dropped_total",
    "prometheus_notifications_errors_total",
    "prometheus_rule_evaluation_failures_total",
    "prometheus_rule_group_iterations_missed_total",
    "prometheus_rule_group_last_duration_seconds",
}
# node_exporter's, which stand in for those of our host collectors.
OF_NODE_EXPORTER = {
    "node_cpu_seconds_total",
    "node_disk_ata_rotation_rate_rpm",
    "node_disk_info",
    "node_disk_io_time_seconds_total",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
}

# All thresholds, for the alert that they are not all there.
SETTINGS_MISSING = "TrainvitalsSettingsMissing"
EVERY_THRESHOLD = '{__name__=~"threshold:trainvitals_.+"}'
GRAFANA = "setting:trainvitals_grafana:info"
SLOWEST_SCRAPE_SECONDS = 15

Rule = dict[str, Any]


def run_tool(name: str, *arguments: str | Path) -> None:
    """Run promtool in the folder of the rules; what it finds is the failure's message."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name} {arguments[0]} {arguments[1]}:\n{done.stdout}{done.stderr}"


@cache
def rules() -> list[Rule]:
    """All rules of all files."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


SETTINGS: list[Rule] = yaml.safe_load((PROMETHEUS / "rules" / "settings.yml").read_text())["groups"][0]["rules"]
DECIDING: list[Rule] = [rule for rule in rules() if rule not in SETTINGS]
ALERTS: list[Rule] = [rule for rule in rules() if "alert" in rule]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))


def test_prometheus_accepts_its_configuration() -> None:
    run_tool("promtool", "check", "config", "prometheus.yml")


def test_prometheus_accepts_the_rules() -> None:
    run_tool("promtool", "check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@pytest.mark.parametrize("file", sorted((PROMETHEUS / "tests").glob("*.yml")), ids=lambda file: file.stem)
def test_rules_fire_when_they_should_and_only_then(file: Path) -> None:
    run_tool("promtool", "test", "rules", file)


def test_targets_have_the_shape_of_file_discovery() -> None:
    """promtool only says so of files that the configuration names."""
    named = re.findall(r"targets/\w+\.yml", (PROMETHEUS / "prometheus.yml").read_text())
    assert set(named) == {f"targets/{file.name}" for file in (PROMETHEUS / "targets").iterdir()}
    for name in named:
        [group] = yaml.safe_load((PROMETHEUS / name).read_text())
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+", target) for target in group["targets"]), name


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of an expression."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


def functions(expression: str) -> set[str]:
    """The names of the functions that an expression calls."""
    called = set[str]()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.Call):
            called.add(node.func.name)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return called


def seconds(duration: str) -> int:
    """A duration such as 1h30m."""
    return sum(
        int(n) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration)
    )


def has_label(alert: Rule, label: str) -> bool:
    """Whether the text of an alert uses a label."""
    return f"$labels.{label}" in alert["annotations"]["description"]


def labels_of(metric: str) -> set[str] | None:
    """The labels of a metric of the catalogue; None for what is not in it."""
    for name, extra in ((metric, set[str]()), (metric.removesuffix("_bucket"), {"le"})):
        if name in catalogue.BY_NAME:
            return {*catalogue.BY_NAME[name].all_labels, *extra}
    histogram = catalogue.BY_NAME.get(re.sub(r"_(sum|count)$", "", metric))
    return set(histogram.all_labels) if histogram and histogram.type == "histogram" else None


def assert_known(expression: str, where: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for selector in selectors(expression.replace(EVERY_THRESHOLD, "up")):
        name = selector.name
        assert name is not None, f"{where}: a selector without a name in {expression}"
        known = labels_of(name)
        assert known is not None or name in recorded | BUILT_IN | OF_PROMETHEUS | OF_NODE_EXPORTER, (
            f"{where}: {name} is not in the catalogue"
        )
        if known is not None:
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= known | {"job", "instance"}, f"{where}: {name} has no label {asked - known}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_rules_use_metrics_and_labels_that_exist(rule: Rule) -> None:
    assert_known(rule["expr"], rule.get("alert") or rule["record"])


@pytest.mark.parametrize(
    "rule",
    [rule for rule in rules() if "record" in rule],
    ids=lambda rule: str(rule["record"]),
)
def test_recorded_names_say_level_metric_operation(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z]+:trainvitals_[a-z0-9_]+:[a-z0-9]+", rule["record"])


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_joins_between_different_metrics_say_on_what(rule: Rule) -> None:
    """Without on(), a label that one side gains later silently empties the result. Thresholds are scalars."""
    thresholds = {setting["record"] for setting in SETTINGS}

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.BinaryExpr):
            left = {selector.name for selector in selectors(node.lhs.prettify())} - thresholds
            right = {selector.name for selector in selectors(node.rhs.prettify())} - thresholds
            if left and right and left.isdisjoint(right) and str(node.op) != "or":  # an `or` joins nothing
                explicit = node.modifier is not None and node.modifier.matching is not None
                assert explicit, f"no on() in {node.prettify()}"
        return True

    promql_parser.walk(promql_parser.parse(rule["expr"]), visit)


def literals(expression: str) -> Counter[float]:
    """The numbers in an expression, other than those that say which quantile is meant."""
    numbers: Counter[float] = Counter()
    quantiles: Counter[float] = Counter()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.NumberLiteral):
            numbers[node.val] += 1
        elif isinstance(node, promql_parser.Call) and "quantile" in node.func.name:
            quantiles[node.args[0].val] += 1
        elif isinstance(node, promql_parser.AggregateExpr) and isinstance(node.param, promql_parser.NumberLiteral):
            quantiles[node.param.val] += 1
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return numbers - quantiles


@pytest.mark.parametrize("rule", DECIDING, ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_numbers_to_go_by_stand_in_the_settings(rule: Rule) -> None:
    """0, 1 and 2 are arithmetic; any other number is a threshold or belongs to a window."""
    if rule.get("alert") == SETTINGS_MISSING:
        return
    assert set(literals(rule["expr"])) <= {0, 1, 2}
    named, read = (rule["expr"].count(text) for text in ("threshold:", "scalar(threshold:"))
    assert named == read, "a threshold has no labels to join"


def test_settings_are_numbers_that_rules_use() -> None:
    used = {selector.name for rule in DECIDING for selector in selectors(rule["expr"])}
    names = [rule["record"] for rule in SETTINGS]
    assert len(names) == len(set(names))
    for rule in SETTINGS:
        if rule["record"] == GRAFANA:
            assert rule["labels"]["url"].startswith("http")
            continue
        assert re.fullmatch(
            r"threshold:trainvitals_[a-z0-9_]+:(ratio|seconds|bytes|steps|iterations|nats|count|celsius)",
            rule["record"],
        )
        assert re.fullmatch(r"vector\(-?[0-9.]+(e-?[0-9]+)?\)", rule["expr"])
        assert rule["record"] in used, f"nothing goes by {rule['record']}"


def test_missing_thresholds_are_noticed_from_the_first_on() -> None:
    """The number stands with the alert: a settings.yml of an older version would have its own."""
    (alert,) = [alert for alert in ALERTS if alert["alert"] == SETTINGS_MISSING]
    thresholds = sum(rule["record"].startswith("threshold:") for rule in SETTINGS)
    assert alert["expr"].startswith(f"count({EVERY_THRESHOLD}) < {thresholds}\n"), f"there are {thresholds} thresholds"


@each_alert
def test_alerts_outlast_a_missed_scrape(alert: Rule) -> None:
    """At the slowest scrape interval that the rules allow."""
    for key in ("for", "keep_firing_for"):
        assert key not in alert or seconds(alert[key]) >= 2 * SLOWEST_SCRAPE_SECONDS
    for window in re.findall(r"\[(\w+)(?::\w+)?\]", alert["expr"]):
        assert seconds(window) >= 2 * SLOWEST_SCRAPE_SECONDS
    assert not {"absent", "absent_over_time"} & functions(alert["expr"]) or "for" in alert


@pytest.mark.parametrize("rule", DECIDING, ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_rules_use_what_every_prometheus_knows(rule: Rule) -> None:
    """From 2.42 on, 3.x included, without feature flags; topk flaps."""
    assert not functions(rule["expr"]) & {
        "holt_winters",
        "double_exponential_smoothing",
        "mad_over_time",
        "info",
        "sort_by_label",
    }
    assert not re.search(r"\b(topk|bottomk|limitk|limit_ratio)\b", rule["expr"])


@each_alert
def test_queries_of_the_text_use_metrics_that_exist(alert: Rule) -> None:
    text = alert["annotations"]["description"]
    templates = re.findall(r'query \(printf "((?:[^"\\]|\\.)*)"', text)
    assert len(templates) == text.count(" query ")
    for template in templates:
        assert_known(template.replace('\\"', '"').replace("%s", 'instance="x"').replace("%q", '"x"'), alert["alert"])


@each_alert
def test_alerts_say_what_they_have_to(alert: Rule) -> None:
    name, annotations = alert["alert"], alert["annotations"]
    assert re.fullmatch(r"(Training|Trainvitals)[A-Z]\w+|Watchdog", name)
    assert alert["labels"]["severity"] in {"critical", "warning", "info", "none"}
    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "{{" not in annotations["summary"], "a summary holds no values: it names the trouble"
    assert annotations["runbook_url"] == RUNBOOK_URL.format(name)
    assert len(str(annotations["description"])) > 80, "a description says with numbers what is wrong and what to do"


@each_alert
def test_alerts_link_to_the_dashboard_of_their_run_and_time(alert: Rule) -> None:
    name, link = alert["alert"], alert["annotations"]["dashboard_url"]
    assert link.startswith(
        '{{ with query "setting:trainvitals_grafana:info" }}{{ (first .).Labels.url }}{{ end }}/d/trainvitals-'
    )
    if name != "Watchdog":
        assert "&var-instance={{ urlquery $labels.instance }}" in link or not has_label(alert, "instance")
        assert "&from=" in link
        assert "&to=now" in link
    assert ("&var-run={{ urlquery $labels.run }}" in link) == ("$labels.run" in alert["annotations"]["description"])


@each_alert
def test_labels_of_alerts_never_change_while_they_fire(alert: Rule) -> None:
    assert not [value for value in alert["labels"].values() if "$value" in value or ".Value" in value]


@each_alert
def test_alerts_have_a_runbook(alert: Rule) -> None:
    page = (RUNBOOKS / f"{alert['alert']}.md").read_text()
    lines = page.splitlines()
    assert lines[0] == f"# {alert['alert']}"
    assert [line for line in lines if line.startswith("## ")] == HEADINGS
    settings = set(re.findall(r"`(threshold:trainvitals_\w+:\w+)`", page))
    assert settings <= {rule["record"] for rule in SETTINGS}, "the page names thresholds that there are not"
    queries = re.findall(r"```promql\n(.*?)```", page, flags=re.DOTALL)
    assert queries, "the diagnosis has no query"
    for query in queries:
        assert_known(query, f"{alert['alert']}.md")


def test_every_runbook_belongs_to_an_alert() -> None:
    names = {alert["alert"] for alert in ALERTS}
    assert {file.stem for file in RUNBOOKS.glob("*.md")} == names
    linked = {link for file in RUNBOOKS.glob("*.md") for link in re.findall(r"\]\((\w+)\.md\)", file.read_text())}
    assert linked <= names


@each_alert
def test_alerts_are_seen_to_fire_and_to_keep_silent(alert: Rule) -> None:
    fires, silent = set[str](), set[str]()
    for file in (PROMETHEUS / "tests").glob("*.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case.get("alert_rule_test", []):
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
    assert alert["alert"] in fires
    assert alert["alert"] in silent or alert["alert"] == "Watchdog"  # which is never silent
