"""The configuration for other databases in deploy/: run where the programs can be had, read where they cannot."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import newer_tool, tool, wait_until
from tests.exporter.exporter_process import ExporterProcess, RunFileProcess
from tests.test_push import RULES, Pusher, alerts, fetch, prometheus, query, server, victoria_metrics

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir(mode=0o700)
    return tmp_path / "runs"


@pytest.fixture
def failing(run_dir: Path) -> Iterator[None]:
    """A run with a hook that fails, which an alert compares with a recorded threshold."""
    launcher, rank = RunFileProcess(run_dir, "voice", "launcher"), RunFileProcess(run_dir, "voice", "rank", rank=0)
    rank.set("trainvitals_hook_errors_total", 4, hook="backward")
    yield
    rank.end(), launcher.end()


@pytest.mark.parametrize("scraper", ["victoria-metrics", pytest.param("vmagent", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("failing")
def test_victoria_metrics_scrapes_and_vmalert_tells_alertmanager(scraper: str, tmp_path: Path, run_dir: Path) -> None:
    exporter = ExporterProcess("--collectors", "runs", "--run-dir", str(run_dir))
    shutil.copytree(DEPLOY / "victoriametrics", tmp_path / "configuration")
    target = [{"targets": [exporter.url.removeprefix("http://")]}]
    (tmp_path / "configuration" / "targets" / "trainvitals.yml").write_text(yaml.safe_dump(target))
    scrape = f"-promscrape.config={tmp_path / 'configuration' / 'promscrape.yml'}"
    with contextlib.ExitStack() as stack:
        stack.callback(exporter.stop)
        database = victoria_metrics(tmp_path)
        if scraper == "victoria-metrics":
            url = stack.enter_context(server(*database, scrape, ready="/health"))
        else:
            url = stack.enter_context(server(*database, ready="/health"))
            agent = [
                newer_tool("vmagent"), scrape, f"-remoteWrite.url={url}/api/v1/write", "-httpListenAddr=127.0.0.1:{}",
                f"-remoteWrite.tmpDataPath={tmp_path / 'agent'}",
            ]  # fmt: skip
            stack.enter_context(server(*agent, ready="/health"))
        manager = stack.enter_context(
            server(
                tool("alertmanager", "prometheus-alertmanager"), "--web.listen-address=127.0.0.1:{}",
                f"--config.file={ROOT / 'prometheus' / 'alertmanager' / 'en' / 'none.yml'}",
                f"--storage.path={tmp_path / 'alertmanager'}", "--cluster.listen-address=",
            )
        )  # fmt: skip
        stack.enter_context(
            server(
                newer_tool("vmalert"), f"-rule={RULES}/*.yml", f"-datasource.url={url}", f"-remoteWrite.url={url}",
                f"-remoteRead.url={url}", f"-notifier.url={manager}", "-evaluationInterval=1s",
                "-rule.evalDelay=0s", "-remoteWrite.flushInterval=200ms",
                "-httpListenAddr=127.0.0.1:{}", ready="/health",
            )
        )  # fmt: skip

        def told() -> Any:
            found = fetch(manager + "/api/v2/alerts?filter=alertname=TrainvitalsHooksFailing")
            return found and found[0]["labels"]

        labels = wait_until(told, "Alertmanager is told")
        assert (labels["job"], labels["run"], labels["hook"]) == ("trainvitals", "voice", "backward")
        assert [value for _, value in query(url, 'up{job="trainvitals"}')] == [1]


@pytest.mark.usefixtures("failing")
def test_rules_work_when_they_look_back(tmp_path: Path, run_dir: Path) -> None:
    """Mimir's ruler evaluates rules for a moment that is past; Prometheus 3 can be told to, and shares its code."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    command = prometheus(newer_tool("prometheus"), folder, rules=sorted(RULES.glob("*.yml")))
    configuration = yaml.safe_load((folder / "prometheus.yml").read_text())
    configuration["global"]["rule_query_offset"] = "10s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with server(*command) as url:
        pusher = Pusher(run_dir, "--remote-write", url + "/api/v1/write")
        try:
            wait_until(lambda: query(url, "trainvitals_hook_errors_total"), "samples arrive")
            wait_until(lambda: "TrainvitalsHooksFailing" in alerts(url), "the rule fires")
            # Thresholds were recorded for moments that are past, too.
            [(_, behind)] = query(url, "time() - timestamp(threshold:trainvitals_hook_errors:count)")
            assert behind >= 9
        finally:
            pusher.end()


@pytest.mark.parametrize("file", ["mimir/prometheus.yml", "pushgateway/prometheus.yml"])
def test_prometheus_takes_the_configuration(file: str) -> None:
    for promtool in (tool("promtool"), newer_tool("promtool")):
        agent = ["--agent"] if "mimir" in file else []
        subprocess.run([promtool, "check", "config", *agent, DEPLOY / file], check=True, capture_output=True)


@pytest.mark.parametrize("folder", ["pushgateway", "remote-write"])
def test_rules_about_silence_are_correct(folder: str) -> None:
    rules = DEPLOY / folder / "push-rules.yml"
    subprocess.run([tool("promtool"), "check", "rules", rules], check=True, capture_output=True)
    subprocess.run([newer_tool("vmalert"), "-dryRun", f"-rule={rules}"], check=True, capture_output=True)
    subprocess.run(
        [tool("promtool"), "test", "rules", rules.with_name("push-rules-test.yml")], check=True, capture_output=True
    )


def test_mimir_is_given_room_for_the_rules() -> None:
    limits = yaml.safe_load((DEPLOY / "mimir" / "limits.yml").read_text())["overrides"]
    groups = [group for file in RULES.glob("*.yml") for group in yaml.safe_load(file.read_text())["groups"]]
    for tenant in limits.values():
        assert tenant["ruler_max_rules_per_rule_group"] >= max(len(group["rules"]) for group in groups)
    assert limits.keys() == {
        write["headers"]["X-Scope-OrgID"]
        for write in yaml.safe_load((DEPLOY / "mimir" / "prometheus.yml").read_text())["remote_write"]
    }
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)  # a namespace of Mimir has one group of a name


def test_the_collector_keeps_names_and_dollars() -> None:
    collector = yaml.safe_load((DEPLOY / "opentelemetry" / "collector.yml").read_text())
    for kind in ("receivers", "processors", "exporters"):
        used = {part for pipeline in collector["service"]["pipelines"].values() for part in pipeline[kind]}
        assert used == set(collector[kind])
    assert collector["exporters"]["prometheusremotewrite"]["add_metric_suffixes"] is False
    text = (DEPLOY / "opentelemetry" / "collector.yml").read_text()
    settings = "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "$" not in settings.replace("$$", "")
    scrape = yaml.safe_load(settings_of(text))["receivers"]["prometheus"]["config"]
    (job,) = scrape["scrape_configs"]
    assert job["job_name"] == "trainvitals"
    assert job["relabel_configs"][0]["replacement"] == "${1}"


def settings_of(text: str) -> str:
    """The collector's file as it reads it: with one dollar for two."""
    return text.replace("$$", "$")
