"""A short fault bench: the whole real stack in compressed time, a few faults and healthy runs beside each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faultbench import scenarios
from benchmarks.faultbench.judgement import Totals, table
from benchmarks.faultbench.play import Ward
from benchmarks.faultbench.scenarios import MINUTE, Scenario
from tests.conftest import tool

PLAYED = (
    "cnn-healthy-1",
    "cnn-healthy-evaluation",
    "cnn-healthy-amp-overflows",
    "gpu-healthy-shared-1",
    "gpu-healthy-shared-2",
    "cnn-crash",
    "cnn-nan",
    "cnn-explosion",
    "cnn-kl-negative",
    "gpu-xid",
    "ddp-rank-crash",
)


def shortened(name: str) -> Scenario:
    (scenario,) = [each for each in scenarios.ALL if each.name == name]
    return replace(scenario, onset=4 * MINUTE, patience=20 * MINUTE, length=16 * MINUTE)


@pytest.mark.timeout(300)
def test_faults_are_told_and_healthy_runs_are_not(tmp_path: Path) -> None:
    tool("prometheus")
    tool("alertmanager", "prometheus-alertmanager")
    with Ward(tmp_path, scenarios.FAST) as ward:
        verdicts = list(ward.play([shortened(name) for name in PLAYED], jobs=len(PLAYED) + 1))
        strangers = [(alert.name, alert.labels) for alert in ward.unclaimed()]
    assert [verdict.scenario.name for verdict in verdicts if not verdict.good] == [], "\n".join(table(verdicts))
    assert strangers == []
    totals = Totals.of(verdicts)
    assert (totals.faults, totals.named, totals.false_alarms) == (6, 6, 0)
