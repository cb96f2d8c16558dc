"""The rules in other engines than the oldest Prometheus: a PrometheusRule, Prometheus 3, and vmalert."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.demo.programs import free_ports
from tests.conftest import newer_tool, tool, wait_until

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "prometheus" / "rules"
MANIFEST = ROOT / "deploy" / "kubernetes" / "prometheusrule.yaml"
# What the operator's custom resource knows of groups and rules.
GROUP_KEYS = {"name", "interval", "rules", "labels", "limit", "query_offset", "partial_response_strategy"}
RULE_KEYS = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
DURATION = r"(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?"


def checked(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_prometheusrule_is_built_from_the_rules(tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    shutil.copytree(RULES, copy / "prometheus" / "rules")
    shutil.copytree(MANIFEST.parent, copy / "deploy" / "kubernetes")
    checked(sys.executable, copy / "deploy" / "kubernetes" / "build.py")
    built = (copy / "deploy" / "kubernetes" / MANIFEST.name).read_text()
    assert MANIFEST.read_text() == built, "run `make kubernetes`"


def test_the_prometheusrule_has_the_shape_of_the_resource(tmp_path: Path) -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", manifest["metadata"]["name"])
    assert manifest["metadata"]["labels"]["prometheus"] == "k8s"
    groups = manifest["spec"]["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert set(group) <= GROUP_KEYS
        assert re.fullmatch(DURATION, group.get("interval", "5s"))
        for rule in group["rules"]:
            assert set(rule) <= RULE_KEYS
            assert isinstance(rule["expr"], str)
            assert ("record" in rule) != ("alert" in rule)
            assert all(re.fullmatch(DURATION, rule[key]) for key in ("for", "keep_firing_for") if key in rule)
            texts = [*rule.get("labels", {}).values(), *rule.get("annotations", {}).values()]
            assert all(isinstance(text, str) for text in texts)
    extracted = tmp_path / "rules.yml"
    extracted.write_text(yaml.safe_dump({"groups": groups}))
    checked(tool("promtool"), "check", "rules", extracted)
    assert len(MANIFEST.read_bytes()) < 1_000_000  # what a cluster's store takes


def test_prometheus_3_takes_configuration_and_rules(tmp_path: Path) -> None:
    prometheus = newer_tool("prometheus")
    version = re.search(r"version (\d+)", checked(prometheus, "--version"))
    assert version is not None
    assert int(version[1]) >= 3
    with running(
        prometheus,
        "--config.file=prometheus.yml",
        f"--storage.tsdb.path={tmp_path}",
        port="--web.listen-address=127.0.0.1:{}",
    ) as url:
        wait_until(lambda: loaded(url), "Prometheus 3 evaluates all rules")


def loaded(url: str) -> bool:
    """Whether all rules were evaluated; fails where one could not be."""
    groups = fetch(url + "/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    return bool(rules) and all(rule["health"] == "ok" for rule in rules)


def test_vmalert_takes_the_rules() -> None:
    checked(newer_tool("vmalert"), "-dryRun", *(f"-rule={file}" for file in sorted(RULES.glob("*.yml"))))


def test_vmalert_fires_with_the_right_text(tmp_path: Path) -> None:
    """A run whose loss has been NaN-counted, and one that is well, on a real VictoriaMetrics."""
    database = [f"-storageDataPath={tmp_path}", "-search.latencyOffset=0s", "-loggerLevel=ERROR"]
    with running(newer_tool("victoria-metrics"), *database, port="-httpListenAddr=127.0.0.1:{}") as url:
        now = time.time()
        for run, count in (("bad", 7), ("good", 0)):
            labels = f'job="trainvitals",instance="host:10288",run="{run}"'
            optimizer = f'{labels},rank="0",optimizer="0"'
            lines = [
                f'trainvitals_run_state{{{labels},state="running"}} 1',
                f"trainvitals_run_start_timestamp_seconds{{{labels}}} {now - 60:.0f}",
                f'trainvitals_gradient_anomalies_total{{{optimizer},kind="nonfinite"}} {count}',
                f'trainvitals_loss_anomalies_total{{{optimizer},kind="nonfinite"}} {count}',
            ]
            for age in range(0, 60, 5):
                stamped = "".join(f"{line} {int((now - age) * 1000)}\n" for line in lines)
                urllib.request.urlopen(url + "/api/v1/import/prometheus", stamped.encode()).close()
        wait_until(lambda: query(url, "trainvitals_run_state"), "the series can be read")
        rules = [f"-rule={RULES / name}.yml" for name in ("settings", "progress", "maths")]
        vmalert = [
            *rules, f"-datasource.url={url}", f"-remoteWrite.url={url}", "-notifier.blackhole",
            "-evaluationInterval=1s", "-rule.evalDelay=0s", "-remoteWrite.flushInterval=200ms", "-loggerLevel=ERROR",
        ]  # fmt: skip
        with running(newer_tool("vmalert"), *vmalert, port="-httpListenAddr=127.0.0.1:{}") as alerts:

            def nonfinite() -> list[dict[str, Any]]:
                found = fetch(alerts + "/api/v1/alerts")["data"]["alerts"]
                return [alert for alert in found if alert["name"] == "TrainingNonFinite" and alert["state"] == "firing"]

            [alert] = wait_until(nonfinite, "vmalert fires")
    assert alert["labels"]["run"] == "bad"
    assert (
        "Run bad on host:10288, rank 0, optimizer 0: in the last 10 minutes 7 steps had a NaN"
        in alert["annotations"]["description"]
    )
    assert alert["annotations"]["dashboard_url"].startswith(
        "http://127.0.0.1:3000/d/trainvitals-run?var-job=trainvitals"
    )


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def query(url: str, expression: str) -> list[Any]:
    result = fetch(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["data"]["result"]
    return list(result)


@contextlib.contextmanager
def running(*command: str, port: str) -> Iterator[str]:
    """A server that listens where `port` tells it to; yields its URL once it answers."""
    [number] = free_ports(1)
    with subprocess.Popen([*command, port.format(number)], cwd=RULES.parent, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{number}"
        try:
            wait_until(lambda: answers(url + "/-/ready"), f"{Path(command[0]).name} answers")
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
