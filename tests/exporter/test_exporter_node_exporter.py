"""On a host with node_exporter our own host collectors may be off: Prometheus records the same of it."""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from examples.demo.programs import Programs, free_ports
from tests.conftest import tool, wait_until
from tests.exporter.conftest import StartExporter

RULES = Path(__file__).parents[2] / "prometheus" / "rules" / "host.yml"
RECORDED = "instance:trainvitals_host_{}"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as programs:
        yield programs


def scraped_every_second(tmp_path: Path, **targets: str) -> list[str | Path]:
    """The command line of a Prometheus that has the host's rules, both at the pace of a test."""
    rules = yaml.safe_load(RULES.read_text())
    rules["groups"][0]["interval"] = "1s"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    jobs = [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]
    configuration = {"global": {"scrape_interval": "1s"}, "rule_files": ["rules.yml"], "scrape_configs": jobs}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    return [tool("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]


def ask(port: int, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and values of the answer; empty while Prometheus is not there yet."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return [(each["metric"], float(each["value"][1])) for each in json.load(response)["data"]["result"]]
    except OSError:
        return []


def test_prometheus_records_the_host_from_node_exporter(
    start_exporter: StartExporter, programs: Programs, tmp_path: Path, run_dir: Path
) -> None:
    tool("prometheus")  # the first to be missed where nothing can be installed
    node_port, port = free_ports(2)
    exporter = start_exporter("--no-collectors", "host,nvidia", "--run-dir", str(run_dir))
    assert "trainvitals_host_" not in exporter.scrape().text
    node = [tool("node_exporter", "prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{node_port}"]
    programs.start("node_exporter", node)
    ours = exporter.url.removeprefix("http://")
    prometheus = scraped_every_second(tmp_path, trainvitals=ours, node=f"127.0.0.1:{node_port}")
    programs.start("prometheus", [*prometheus, f"--web.listen-address=127.0.0.1:{port}"])
    recorded = {}
    for name in (
        "memory_total_bytes:last",
        "memory_available_bytes:last",
        "cores:count",
        "core_busy:max",
        "core_busy:avg",
    ):
        series = RECORDED.format(name)
        ((labels, recorded[name]),) = wait_until(partial(ask, port, series), f"{series} is recorded")
        assert (labels["job"], labels["instance"]) == ("trainvitals", ours)
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert recorded["memory_total_bytes:last"] == int(memory["MemTotal"].split()[0]) * 1024
    assert 0 < recorded["memory_available_bytes:last"] < recorded["memory_total_bytes:last"]
    assert recorded["cores:count"] == os.cpu_count()
    for name in ("core_busy:max", "core_busy:avg"):
        assert -0.1 < recorded[name] < 1.1  # a rate is extrapolated
