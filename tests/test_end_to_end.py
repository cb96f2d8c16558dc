"""The whole way: an unmodified script, its run file, the exporter, Prometheus, Alertmanager, a notification."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from trainvitals import rundir

from examples.demo import stack
from examples.demo.programs import Programs, end_group
from examples.demo.receiver import Receiver
from tests.conftest import run_files, tool, wait_until
from tests.dashboard_queries import EMPTY_WHEN_HEALTHY, EMPTY_WITHOUT_GPU, run_all, unexplained

REPOSITORY = Path(__file__).parents[1]
TRAINER = REPOSITORY / "examples" / "voice_clone" / "train.py"
DASHBOARDS = sorted((REPOSITORY / "grafana" / "dashboards").glob("*.json"))
# Measured here: the rule waits for 30 s of large gradients, the notification for some seconds more.
PATIENCE = 240.0


@dataclass
class Running:
    addresses: stack.Addresses
    receiver: Receiver
    programs: Programs
    work: Path
    seen: list[dict[str, Any]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        url = f"{self.addresses.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result

    def alert(self, name: str, **labels: str) -> dict[str, Any] | None:
        """The firing notification of this name that has arrived, if it has."""
        while not self.receiver.alerts.empty():
            self.seen.append(self.receiver.alerts.get())
        wanted = {"alertname": name, **labels}.items()
        return next((a for a in self.seen if a["status"] == "firing" and wanted <= a["labels"].items()), None)

    def train(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command: list[str | Path] = [
            sys.executable, "-m", "trainvitals.cli", "run", "--name", name, "--",
            sys.executable, "-s", TRAINER, "--epochs", "1000", "--output", self.work / "training", *arguments,
        ]  # fmt: skip
        return self.programs.start(name, command, {**os.environ, rundir.ENVIRONMENT: str(self.work / "runs")})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tool("prometheus")
    tool("alertmanager", "prometheus-alertmanager")
    work = tmp_path_factory.mktemp("stack")
    (work / "runs").mkdir(mode=0o700)
    with Receiver() as receiver, Programs(work) as programs:
        webhook = f"http://127.0.0.1:{receiver.port}/"
        addresses = stack.start_native(programs, work, work / "runs", webhook)
        yield Running(addresses, receiver, programs, work, [])


@pytest.mark.timeout(600)
def test_healthy_run_fills_the_dashboards_and_raises_nothing(running: Running) -> None:
    training = running.train("healthy", "--stage", "s2")
    try:
        wait_until(lambda: running.query('trainvitals_iterations_total{run="healthy"} > 150'), "iterations", PATIENCE)
        slowest = 'run:trainvitals_checkpoint:ratio1h{run="healthy"}'  # of a group that is evaluated each half minute
        wait_until(lambda: running.query(slowest), "the rules", PATIENCE)
        variables = {"job": "trainvitals", "run": "healthy", "baseline": "healthy", "loss": "1000"}
        variables |= dict.fromkeys(("instance", "rank", "gpu"), ".*")
        for dashboard in DASHBOARDS:
            results = run_all(json.loads(dashboard.read_text()), running.addresses.prometheus, variables)
            assert unexplained(results, EMPTY_WITHOUT_GPU, EMPTY_WHEN_HEALTHY) == [], dashboard.name
        assert [r["metric"]["state"] for r in running.query('trainvitals_run_state{run="healthy"} == 1')] == ["running"]
        firing = running.query('ALERTS{alertstate="firing", alertname!="Watchdog", severity!="info"}')
        assert [alert["metric"]["alertname"] for alert in firing] == []
    finally:
        end_group(training)


@pytest.mark.timeout(600)
def test_a_crash_is_told_with_its_exception(running: Running) -> None:
    training = running.train("crashing", "--stage", "s1", "--fault", "crash", "--fault-after", "5")
    assert training.wait(PATIENCE) != 0
    alert = wait_until(lambda: running.alert("TrainingRunFailed", run="crashing"), "the notification", 60)
    (state,) = running.query('trainvitals_run_state{run="crashing"} == 1')
    (info,) = running.query('trainvitals_run_end_info{run="crashing"}')
    assert state["metric"]["state"] == "failed"
    assert info["metric"]["exception"] in alert["annotations"]["description"]
    # the last vital signs are still there
    (iterations,) = running.query('trainvitals_iterations_total{run="crashing"}')
    assert float(iterations["value"][1]) >= 4


def heartbeat(exporter: str, run: str) -> float:
    with urllib.request.urlopen(exporter + "/metrics", timeout=5) as response:
        for family in text_string_to_metric_families(response.read().decode()):
            for sample in family.samples:
                if sample.name == "trainvitals_heartbeat_timestamp_seconds" and sample.labels["run"] == run:
                    return sample.value
    return 0.0


@pytest.mark.timeout(600)
def test_the_page_follows_the_training(running: Running) -> None:
    training = running.train("fresh", "--stage", "s1")
    try:
        wait_until(lambda: running.query('trainvitals_iterations_total{run="fresh"} > 5'), "iterations", PATIENCE)
        files = [file for file in run_files(running.work / "runs") if file.identity.run == "fresh"]
        own = max(file.value("trainvitals_heartbeat_timestamp_seconds") or 0.0 for file in files)
        wait_until(lambda: heartbeat(running.addresses.exporter, "fresh") >= own, "the page to catch up", 10)
    finally:
        end_group(training)


@pytest.mark.timeout(300)
def test_a_dead_exporter_is_told(running: Running) -> None:
    for name, process in list(running.programs.started()):
        if name == "exporter":
            end_group(process)
    wait_until(lambda: running.alert("TrainvitalsExporterDown"), "the notification", 180)
