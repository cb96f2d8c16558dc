"""deploy/prometheus: someone's own Prometheus and Alertmanager, with ours added to what they have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.programs import Programs, free_ports
from tests.conftest import newer_tool, tool, wait_until
from tests.exporter.exporter_process import ExporterProcess

REPOSITORY = Path(__file__).parents[1]
SNIPPETS = REPOSITORY / "deploy" / "prometheus"
RULES = REPOSITORY / "prometheus" / "rules"
WAYS = ("static", "file_sd", "http_sd")
# What others have: labels of their own on all that leaves, a Watchdog, a rule on every target.
THEIRS: dict[str, Any] = {
    "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "external_labels": {"cluster": "lab"}},
    "rule_files": ["rules/*.yml"],
    "scrape_configs": [{"job_name": "theirs", "static_configs": [{"targets": ["127.0.0.1:9"]}]}],
}
THEIR_RULES = """
groups:
  - name: general
    rules:
      - {alert: Watchdog, expr: vector(1), labels: {severity: none}}
      - {alert: TargetDown, expr: up == 0, labels: {severity: warning}}
      - {record: job:up:count, expr: count by (job) (up)}
"""
THEIR_ALERTMANAGER = """
route:
  receiver: everybody
  group_by: [alertname]
  routes:
    - {matchers: ['team="databases"'], receiver: databases}
inhibit_rules:
  - {source_matchers: [severity="critical"], target_matchers: [severity="warning"], equal: [alertname, instance]}
receivers:
  - {name: everybody}
  - {name: databases}
  - {name: training}
  - {name: nobody}
"""


@pytest.fixture(scope="module")
def exporter() -> Iterator[str]:
    """The address of an exporter."""
    started = ExporterProcess("--collectors", "memory")
    yield started.url.removeprefix("http://")
    started.stop()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as programs:
        yield programs


def add_to(folder: Path, scrape_config_files: bool, **edits: tuple[str, str]) -> Path:
    """Their Prometheus with our rules and the job of each of these files, its address edited as it asks to be.

    Several files have a job of the same name each, so each goes under a folder's name as well, as a PodMonitor's does.
    """
    (folder / "rules").mkdir()
    (folder / "rules" / "general.yml").write_text(THEIR_RULES)
    for file in RULES.glob("*.yml"):
        shutil.copy(file, folder / "rules" / f"trainvitals-{file.name}")
    (folder / "scrape").mkdir()
    configuration = yaml.safe_load(yaml.safe_dump(THEIRS))
    for way, edit in edits.items():
        text = (SNIPPETS / f"{way}.yml").read_text()
        assert text.count(edit[0]) == text.count("job_name: trainvitals ") == 1
        text = text.replace(*edit).replace("job_name: trainvitals ", f"job_name: {way}/trainvitals ")
        text = text.replace(" 5s", " 1s").replace("refresh_interval: 1m", "refresh_interval: 1s")
        if scrape_config_files:
            (folder / "scrape" / f"{way}.yml").write_text(text)
        else:
            configuration["scrape_configs"] += yaml.safe_load(text)["scrape_configs"]
    if scrape_config_files:
        configuration["scrape_config_files"] = ["scrape/*.yml"]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    return file


def start(programs: Programs, program: str, configuration: Path) -> str:
    (port,) = free_ports(1)
    programs.start("prometheus", [
        program, f"--config.file={configuration}", f"--storage.tsdb.path={configuration.parent}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ])  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    programs.wait_for("prometheus", f"{url}/-/ready")
    return url


def ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_each_way_reaches_the_exporter(newest: bool, exporter: str, programs: Programs, tmp_path: Path) -> None:
    targets = [sys.executable, "-m", "trainvitals.cli", "targets", exporter]
    (port,) = free_ports(1)
    (tmp_path / "targets").mkdir()
    subprocess.run([*targets, "--write", tmp_path / "targets" / "made.json"], check=True)
    programs.start("targets", [*targets, "--listen", f"127.0.0.1:{port}"])
    programs.wait_for("targets", f"http://127.0.0.1:{port}/targets")
    configuration = add_to(
        tmp_path,
        scrape_config_files=newest,  # not known to the oldest
        static=("127.0.0.1:10288", exporter),
        file_sd=("/etc/prometheus/trainvitals/targets", f"{tmp_path}/targets"),
        http_sd=("127.0.0.1:10289", f"127.0.0.1:{port}"),
    )
    promtool = newer_tool("promtool") if newest else tool("promtool")
    subprocess.run([promtool, "check", "config", configuration], check=True, capture_output=True)
    prometheus = start(programs, newer_tool("prometheus") if newest else tool("prometheus"), configuration)

    for way in WAYS:
        up = f'up{{job="{way}/trainvitals",instance="{exporter}"}} == 1'
        wait_until(lambda up=up: ask(prometheus, up), f"the exporter is scraped by {way}")  # type: ignore[misc]
    # Their rules see our target as any other, ours leave theirs alone, and none fails.
    wait_until(lambda: len(ask(prometheus, 'job:up:count{job=~".+/trainvitals"}')) == 3, "their rules are evaluated")
    wait_until(lambda: len(ask(prometheus, "instance:trainvitals_host_name:info")) == 3, "so are ours")
    wait_until(lambda: ask(prometheus, 'ALERTS{alertname="TargetDown"}'), "their alert fires")
    assert {alert["metric"]["job"] for alert in ask(prometheus, 'ALERTS{alertname="TargetDown"}')} == {"theirs"}
    assert ask(prometheus, 'ALERTS{alertname="TrainvitalsExporterDown"}') == []
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=30) as response:
        rules = [rule for group in json.load(response)["data"]["groups"] for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule["health"] == "err"] == []
    assert len(rules) > 200


def test_a_list_that_fails_keeps_the_targets(exporter: str, programs: Programs, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text(exporter)
    command = [sys.executable, "-m", "trainvitals.cli", "targets", "--file", str(hosts), "--label", "rack=a"]
    programs.start("targets", [*command, "--listen", f"127.0.0.1:{port}"])
    programs.wait_for("targets", f"http://127.0.0.1:{port}/targets")
    configuration = add_to(tmp_path, True, http_sd=("127.0.0.1:10289", f"127.0.0.1:{port}"))
    prometheus = start(programs, newer_tool("prometheus"), configuration)

    def listed() -> list[str]:
        with urllib.request.urlopen(f"{prometheus}/api/v1/targets?state=active", timeout=30) as response:
            active = json.load(response)["data"]["activeTargets"]
        return sorted(each["labels"]["instance"] for each in active if each["labels"]["job"] != "theirs")

    def failures() -> float:
        with urllib.request.urlopen(f"{prometheus}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("prometheus_sd_http_failures_total"))

    wait_until(lambda: ask(prometheus, 'up{rack="a"} == 1'), "the exporter is scraped")
    assert failures() == 0
    hosts.write_text("# the cluster's database is gone\n")
    wait_until(lambda: failures() >= 3, "Prometheus is told three times that there is no list")
    assert listed() == [exporter]
    hosts.write_text(f"{exporter} 127.0.0.1:9")
    wait_until(lambda: listed() == sorted([exporter, "127.0.0.1:9"]), "the new list is taken over")


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_our_route_beside_theirs(newest: bool, tmp_path: Path) -> None:
    amtool = newer_tool("amtool") if newest else tool("amtool")
    configuration = yaml.safe_load(THEIR_ALERTMANAGER)
    configuration["route"]["routes"] += yaml.safe_load((SNIPPETS / "alertmanager-route.yml").read_text())
    ours = yaml.safe_load((REPOSITORY / "prometheus" / "alertmanager" / "en" / "none.yml").read_text())
    configuration["inhibit_rules"] += ours["inhibit_rules"]
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(configuration))
    subprocess.run([amtool, "check-config", file], check=True, capture_output=True)

    def told(*labels: str) -> str:
        command = [amtool, "config", "routes", "test", f"--config.file={file}", *labels]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.strip()

    names = {rule["alert"]: rule["labels"]["severity"]
             for path in RULES.glob("*.yml")
             for group in yaml.safe_load(path.read_text())["groups"]
             for rule in group["rules"] if "alert" in rule}  # fmt: skip
    assert names.pop("Watchdog") == "none"
    for name, severity in names.items():
        expected = "nobody" if severity == "info" else "training"
        assert told(f"alertname={name}", f"severity={severity}") == expected, name
    assert told("alertname=Watchdog", "severity=none") == "everybody"
    assert told("alertname=PostgresDown", "severity=critical", "team=databases") == "databases"
