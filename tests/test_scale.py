"""The scale bench plays hosts that are different and go on; what docs/scaling.md lets one drop, no alert asks for."""

from __future__ import annotations

import gzip
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from trainvitals import catalogue

from examples.demo.programs import Programs, free_ports
from tests.test_rules import rules, selectors

ROOT = Path(__file__).parents[1]
RECORDED = """\
# TYPE trainvitals_iterations_total counter
trainvitals_iterations_total{{rank="1",run="gan"}} {0}
# TYPE trainvitals_world_size gauge
trainvitals_world_size{{rank="1",run="gan"}} 8
# TYPE trainvitals_world_info gauge
trainvitals_world_info{{rank="1",run="gan",world="12345678"}} 1
# TYPE trainvitals_gpu_temperature_celsius gauge
trainvitals_gpu_temperature_celsius{{gpu="1",uuid="GPU-00000000-0000-0000-0000-000000000001"}} 61.5
# TYPE trainvitals_host_cpu_seconds_total counter
trainvitals_host_cpu_seconds_total{{cpu="0",mode="idle"}} {0}
trainvitals_host_cpu_seconds_total{{cpu="1",mode="idle"}} {0}
"""
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a player with a recording of two scrapes, between which ten iterations were done."""
    folder = tmp_path_factory.mktemp("recording")
    (folder / "scrape-0.prom").write_text(RECORDED.format(90))
    (folder / "scrape-1.prom").write_text(RECORDED.format(100))
    (port,) = free_ports(1)
    with Programs(folder) as programs:
        programs.start("player", [sys.executable, "-m", "benchmarks.scale.player", folder, str(port)])
        programs.wait_for("player", f"http://127.0.0.1:{port}/metrics/0")
        yield f"http://127.0.0.1:{port}/metrics/"


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.headers["Content-Encoding"] == "gzip"

        text = gzip.decompress(response.read()).decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def labels(samples: Samples, name: str) -> list[dict[str, str]]:
    return [dict(pairs) for found, pairs in samples if found == name]


def test_each_played_host_is_one_of_its_own(player: str) -> None:
    """Hosts 2 and 3 share a training of 16 ranks; the others are strangers to each other."""
    hosts = [scrape(player + str(number)) for number in range(4)]
    (iterations,) = zip(*(labels(host, "trainvitals_iterations_total") for host in hosts), strict=True)
    assert [(found["run"], found["rank"]) for found in iterations] == [
        ("gan-000", "1"), ("gan-001", "1"), ("gan-002", "1"), ("gan-002", "9"),
    ]  # fmt: skip
    assert len({labels(host, "trainvitals_gpu_temperature_celsius")[0]["uuid"] for host in hosts}) == 4
    assert len({labels(host, "trainvitals_world_info")[0]["world"] for host in hosts}) == 3
    sizes = [value for host in hosts for (name, _), value in host.items() if name == "trainvitals_world_size"]
    assert sizes == [8, 8, 16, 16]
    assert len(labels(hosts[0], "trainvitals_host_cpu_seconds_total")) == 128


def test_played_counters_go_on(player: str) -> None:
    def iterations() -> float:
        return next(v for (name, _), v in scrape(player + "0").items() if name == "trainvitals_iterations_total")

    first = iterations()
    assert first >= 100
    for _ in range(1000):
        if (later := iterations()) > first:
            break
    assert later > first


def dropped() -> list[tuple[list[str], re.Pattern[str]]]:
    """What the page lets one drop: labels whose values are joined by semicolons, and what these have to match."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"```yaml\n(metric_relabel_configs:.*?)```", page, re.DOTALL)
    configs = yaml.safe_load(block)["metric_relabel_configs"]
    assert all(config["action"] == "drop" for config in configs)
    return [(config["source_labels"], re.compile(config["regex"])) for config in configs]


def asked() -> Iterator[tuple[str, dict[str, str]]]:
    """Name and label matchers of every selector in rules and in the texts of alerts."""
    for rule in rules():
        texts = re.findall(r'query \(printf "((?:[^"\\]|\\.)*)"', rule.get("annotations", {}).get("description", ""))
        queries = [text.replace('\\"', '"').replace("%s", 'instance="x"').replace("%q", '"x"') for text in texts]
        for expression in (rule["expr"], *queries):
            for selector in selectors(expression):
                if selector.name:
                    yield selector.name, {each.name: each.value for each in selector.matchers.matchers}


def test_no_alert_asks_for_what_may_be_dropped() -> None:
    for name, matchers in asked():
        for source, pattern in dropped():
            # Of a label that a selector does not ask for, it could have any value.
            values = [[name] if label == "__name__" else matchers.get(label, "user").split("|") for label in source]
            joined = [";".join((values[0][0], *rest)) for rest in zip(*values[1:], strict=True)] or values[0]
            assert not any(pattern.fullmatch(text) for text in joined), f"{name} is needed"


def test_what_may_be_dropped_exists() -> None:
    """A name that is mistyped, or that there is no more, would be dropped in vain."""
    names = {metric.name for metric in catalogue.METRICS}
    names |= {
        f"{m.name}_{part}" for m in catalogue.METRICS if m.type == "histogram" for part in ("bucket", "sum", "count")
    }
    first, *others = dropped()
    listed = re.fullmatch(r"trainvitals_\((.*)\)", first[1].pattern)
    assert listed
    assert {f"trainvitals_{name}" for name in listed[1].split("|")} <= names
    for _, pattern in others:
        assert any(pattern.fullmatch(name) or pattern.fullmatch(f"{name};user") for name in names)
