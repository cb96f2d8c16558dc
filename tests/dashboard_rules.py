"""What the rules record and raise, worked out after the fact over data that is already in a Prometheus.

promtool can backfill recording rules, but not those that build on others, and no alerts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import promql_parser as promql
import yaml

from tests.dashboard_queries import get

RULES = Path(__file__).resolve().parent.parent / "prometheus" / "rules"
STEP_SECONDS = 15
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Rule = dict[str, Any]
Labels = dict[str, str]


class Series(NamedTuple):
    """One series of a range query: its labels without the name, and Unix time and value of each sample."""

    labels: Labels
    samples: list[tuple[float, str]]


@cache
def rules() -> list[Rule]:
    """Return all rules, in the order of the files."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def selected(expr: str) -> set[str | None]:
    """Return the names of all series that an expression reads."""
    found: set[str | None] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql.MatrixSelector):
            found.add(node.vector_selector.name)
        elif isinstance(node, promql.VectorSelector):
            found.add(node.name)
        return True

    promql.walk(promql.parse(expr), visit)
    return found


def in_stages() -> list[list[Rule]]:
    """Return the recording rules in stages: each rule reads only what earlier stages recorded."""
    waiting = [rule for rule in rules() if "record" in rule]
    stages: list[list[Rule]] = []
    while waiting:
        # Of its own name a rule reads what the rules before it recorded.
        stage = [
            rule
            for number, rule in enumerate(waiting)
            if not selected(rule["expr"])
            & {
                other["record"]
                for place, other in enumerate(waiting)
                if place < number or other["record"] != rule["record"]
            }
        ]
        assert stage, "rules that read each other"
        stages.append(stage)
        waiting = [rule for rule in waiting if rule not in stage]
    return stages


def record(url: str, stage: list[Rule], start: int, end: int, out: TextIO) -> None:
    """Write what the rules of a stage record from `start` to `end` (Unix times) as OpenMetrics text."""
    for rule in stage:
        for series in evaluate(url, rule["expr"], start, end):
            _write(out, rule["record"], {**series.labels, **rule.get("labels", {})}, series.samples)


def raise_alerts(url: str, start: int, end: int, out: TextIO, jobs: set[str]) -> None:
    """Write the series ALERTS of all alerting rules, for the alerts whose label job is one of `jobs`."""
    for rule in rules():
        if "alert" not in rule:
            continue
        for series in evaluate(url, rule["expr"], start, end):
            if series.labels.get("job") not in jobs:
                continue
            for state, times in _states(rule, [time for time, _ in series.samples]).items():
                labels = {**series.labels, **rule["labels"], "alertname": rule["alert"], "alertstate": state}
                _write(out, "ALERTS", labels, [(time, "1") for time in times])


def evaluate(url: str, expr: str, start: int, end: int) -> Iterator[Series]:
    """Yield the series of an expression over time."""
    parameters = {"query": expr, "start": str(start), "end": str(end), "step": str(STEP_SECONDS)}
    for series in get(url, "query_range", parameters)["result"]:
        labels = {name: value for name, value in series["metric"].items() if name != "__name__"}
        yield Series(labels, series["values"])


def _states(rule: Rule, times: list[float]) -> dict[str, list[float]]:
    """Return when an alert was pending and when it fired, from the times at which its expression held."""
    wait, keep = (_seconds(rule.get(key, "0s")) for key in ("for", "keep_firing_for"))
    states: dict[str, list[float]] = {"pending": [], "firing": []}
    since = last = float("-inf")
    for time in times:
        if time - last > 1.5 * STEP_SECONDS:
            kept = min(keep, time - last) if states["firing"] and states["firing"][-1] == last else 0
            states["firing"] += [last + passed for passed in range(STEP_SECONDS, int(kept), STEP_SECONDS)]
            since = since if kept == time - last else time
        states["firing" if time - since >= wait else "pending"].append(time)
        last = time
    return {state: found for state, found in states.items() if found}


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * UNITS[duration[-1]]


def _write(out: TextIO, name: str, labels: Labels, samples: list[tuple[float, str]]) -> None:
    text = ",".join(f'{label}="{value}"' for label, value in labels.items())
    out.writelines(f"{name}{{{text}}} {value} {time}\n" for time, value in samples)
