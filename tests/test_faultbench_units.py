"""What the fault bench is made of: rules in compressed time, and the judgement of what came."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from benchmarks.faultbench import scenarios
from benchmarks.faultbench.compression import Compression, compress_folder, duration, seconds
from benchmarks.faultbench.judgement import Totals, judge, table
from benchmarks.faultbench.observations import Alert
from benchmarks.faultbench.play import GPUS
from benchmarks.faultbench.scenarios import Scenario
from tests.conftest import tool

REPOSITORY = Path(__file__).parents[1]


def test_durations_are_read_and_written() -> None:
    assert [seconds(text) for text in ("5s", "1h30m", "250ms", "2d")] == [5, 5400, 0.25, 172800]
    assert [duration(length) for length in (5, 0.25, 0.0001)] == ["5000ms", "250ms", "1ms"]
    with pytest.raises(ValueError, match="not a duration"):
        seconds("5")


@pytest.mark.parametrize(
    ("written", "compressed"),
    [
        ("rate(a[10m])", "rate(a[60000ms])"),
        ("max_over_time((a > 5)[1h:1m] offset 5m)", "max_over_time((a > 5)[360000ms:6000ms] offset 30000ms)"),
        ("a:b:increase10m offset 10m > 600", "a:b:increase10m offset 60000ms > 600"),
        ('a{path=~"x[5m]|\\"[5m]"}[5m]', 'a{path=~"x[5m]|\\"[5m]"}[30000ms]'),
        ("time() - a > bool 600 and b > 600", "time() - a > bool 60 and b > 600"),
        ("300 < (time() - a)", "30 < (time() - a)"),
        ("predict_linear(a[30m], 4 * 3600) < 0", "predict_linear(a[180000ms], 0.4 * 3600) < 0"),
        (
            "topk(3, a) > 1e3 # not [5m]\nor max_over_time(b[5m:])",
            "topk(3, a) > 1e3 # not [5m]\nor max_over_time(b[30000ms:])",
        ),
    ],
)
def test_expressions_are_compressed(written: str, compressed: str) -> None:
    assert Compression(10, 0.5).expression(written) == compressed


def test_queries_of_annotations_are_compressed_and_words_are_not() -> None:
    written = (
        'In 10m {{ with query (printf "(rate(a{b=\\"[5m]\\", run=%q}[10m] offset 30m)) > 60" .run) }}'
        '{{ . | first | value | printf "%.0f [10m]" }}{{ end }} [10m]; {{ query "b[1h]" }}'
    )
    compressed = (
        'In 10m {{ with query (printf "(rate(a{b=\\"[5m]\\", run=%q}[60000ms] offset 180000ms)) > 60" .run) }}'
        '{{ . | first | value | printf "%.0f [10m]" }}{{ end }} [10m]; {{ query "b[360000ms]" }}'
    )
    assert Compression(10, 0.5).template(written) == compressed


def test_ranges_keep_two_scrapes_and_say_so() -> None:
    compression = Compression(20, 0.5)
    assert compression.expression("rate(a[10s:5s])", "b") == "rate(a[1000ms:500ms])"
    assert [note.split(",")[0] for note in compression.notes] == ["b: 10s is 1000ms", "b: 5s is 500ms"]


def test_times_of_rules_and_groups_are_compressed() -> None:
    rule = {"alert": "A", "expr": "a > 1", "for": "5m", "keep_firing_for": "10m", "labels": {"window": "10m"}}
    thresholds = [{"record": f"threshold:x:{unit}", "expr": "vector(300)"} for unit in ("seconds", "steps")]
    changed = Compression(10, 0.5).rules({"groups": [{"name": "g", "interval": "30s", "rules": [rule, *thresholds]}]})
    (group,) = changed["groups"]
    assert group["interval"] == "3000ms"
    assert group["rules"][0] == {**rule, "for": "30000ms", "keep_firing_for": "60000ms"}
    assert [rule["expr"] for rule in group["rules"][1:]] == ["vector(30)", "vector(300)"]


@pytest.mark.parametrize("factor", [1, 20, 60])
def test_the_shipped_rules_are_good_rules_when_compressed(factor: float, tmp_path: Path) -> None:
    compress_folder(REPOSITORY / "prometheus", tmp_path, factor)
    files = sorted((tmp_path / "rules").glob("*.yml"))
    subprocess.run([tool("promtool"), "check", "rules", *files], check=True, capture_output=True)
    for file in files:
        shipped = yaml.safe_load((REPOSITORY / "prometheus" / "rules" / file.name).read_text())
        changed = yaml.safe_load(file.read_text())
        if factor == 1:
            assert expressions(changed) == expressions(shipped)


def expressions(rules: dict[str, list[dict[str, list[dict[str, str]]]]]) -> list[str]:
    return [promql_parser.parse(rule["expr"]).prettify() for group in rules["groups"] for rule in group["rules"]]


def scenario(expect: str | None = None, **more: Any) -> Scenario:
    return Scenario("s", "cnn", "f", expect, **{"factor": 20.0, "says": "(?i)num_workers is 0", **more})


def alert(name: str, seen: float, text: str = "Cause: num_workers\n is 0", notified: float | None = None) -> Alert:
    severity = "info" if "Advice" in name else "warning"
    return Alert(name, {"alertname": name, "severity": severity, "run": "s"}, seen, [text], notified)


def test_a_fault_is_caught_with_its_cause_and_times_are_of_real_scale() -> None:
    verdict = judge(scenario("A"), [alert("A", 103, notified=104), alert("AdviceB", 90)], onset=100, watched=30)
    assert (verdict.fired, verdict.cause, verdict.wrong, verdict.good) == (True, True, (), True)
    assert (verdict.seconds, verdict.notified, verdict.watched) == (60, 80, 600)


@pytest.mark.parametrize(
    ("alerts", "wrong"),
    [
        ([], ()),
        ([alert("A", 103, text="Cause: unknown")], ()),
        ([alert("A", 103), alert("B", 90)], ("B",)),
        ([alert("A", 99)], ("A",)),
    ],
    ids=["missed", "misnamed", "another alert", "before the fault"],
)
def test_a_fault_is_not_caught_well(alerts: list[Alert], wrong: tuple[str, ...]) -> None:
    verdict = judge(scenario("A"), alerts, onset=100, watched=30)
    assert verdict.wrong == wrong
    assert not verdict.good


def test_what_is_true_as_well_may_be_said() -> None:
    alerts = [alert("A", 103), alert("B", 104)]
    assert judge(scenario("A", allowed={"B": "a consequence"}), alerts, onset=100, watched=30).good


def test_an_immediate_fault_has_to_be_told_at_once() -> None:
    at_once = scenario("A", factor=1, immediate=True)
    told = [judge(at_once, [alert("A", 103, notified=100 + after)], onset=100, watched=9) for after in (15, 16)]
    assert [(verdict.good, verdict.late) for verdict in told] == [(True, False), (False, True)]
    assert judge(at_once, [alert("A", 103)], onset=100, watched=9).late


def test_a_healthy_run_raises_nothing_above_info() -> None:
    assert judge(scenario(), [alert("AdviceB", 90)], onset=None, watched=180).good
    assert judge(scenario(), [alert("A", 90)], onset=None, watched=180).wrong == ("A",)
    assert not judge(scenario(), [], onset=None, watched=180, trouble="ended with exit code 1").good


def test_totals_and_table() -> None:
    verdicts = [
        judge(scenario("A"), [alert("A", 103)], onset=100, watched=30),
        judge(scenario("A"), [alert("A", 103, text="no"), alert("B", 103)], onset=100, watched=30),
        judge(scenario("A"), [], onset=100, watched=30),
        judge(scenario(), [alert("B", 103)], onset=None, watched=360),
    ]
    totals = Totals.of(verdicts)
    assert (totals.faults, totals.caught, totals.named, totals.wrong) == (3, 2, 1, 2)
    assert (totals.false_alarms, totals.healthy_hours) == (1, 2)
    assert totals.lines() == [
        "- recall: 2 of 3 faults caught, 1 with the right cause (33%)",
        "- precision: 1 of 4 alerts above info were right (25%)",
        "- false alarms: 1 in 2.0 healthy run-hours (0.50 an hour)",
    ]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(verdicts)[2:]]
    assert [row[3:6] for row in rows] == [
        ["yes", "right", "60 s"],
        ["yes", "**wrong**", "60 s"],
        ["**no**", "", ""],
        ["", "", ""],
    ]
    assert [row[-1] for row in rows] == ["", "B", "", "B"]


def test_scenarios_can_be_told_apart() -> None:
    assert len({each.name for each in scenarios.ALL}) == len(scenarios.ALL)
    alone = [each.gpu for each in scenarios.ALL if each.gpu is not None and each.fault != "bystander"]
    assert len(set(alone)) == len(alone)
    assert max(alone) + 1 < GPUS
