"""What the exporter serves is the catalogue: everything in it, nothing else, in a form that Prometheus accepts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from trainvitals import catalogue
from trainvitals_exporter import rendering
from trainvitals_exporter.families import Families

from tests.conftest import tool
from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import Scrape

NVML_PROFILES = Path(__file__).parents[1] / "fake_nvml" / "profiles"
BY_SCOPE = {scope: {m.name for m in catalogue.METRICS if m.scope is scope} for scope in catalogue.SCOPES}


@pytest.fixture
def scrape(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, fake_nvml: Path) -> Scrape:
    """Everything at once: a training rank that tells all it can, an ended run, a bad file, GPUs, the host."""
    rank = start_run_file("training", "rank", rank=0)
    for metric in catalogue.METRICS:
        if metric.scope is not catalogue.RANK:
            continue
        if metric.type != "histogram":
            rank.set(metric.name, 1, **dict.fromkeys(metric.labels, "x"))
            continue
        for bound in catalogue.SECONDS_BUCKETS:
            rank.set(f"{metric.name}_bucket", 1, le=str(bound))
        rank.set(f"{metric.name}_sum", 1)
    ended = start_run_file("ended", "launcher").set_state("failed").set("trainvitals_run_exit_code", 1)
    ended.set("trainvitals_run_label_info", 1, label="team", value="voice")
    ended.set("trainvitals_run_end_info", 1, signal="", exception="ValueError").end()
    (run_dir / "bad.rank.1.vitals").write_bytes(b"bad")
    machine = {"LD_LIBRARY_PATH": str(fake_nvml), "FAKE_NVML_PROFILE": str(NVML_PROFILES / "everything")}
    exporter = start_exporter("--run-dir", str(run_dir), env=machine)
    return exporter.scrape()


def test_all_of_the_catalogue_and_nothing_else(scrape: Scrape) -> None:
    served = {name + "_total" if family.type == "counter" else name for name, family in scrape.families.items()}
    assert served <= set(catalogue.BY_NAME)
    # What a host has differs; test_exporter_host_golden and _cpu_quota see to that these are all served somewhere.
    of_quotas = {name for name in catalogue.BY_NAME if name.startswith("trainvitals_cgroup_cpu_")}
    assert set(catalogue.BY_NAME) - served <= BY_SCOPE[catalogue.HOST] | of_quotas


def test_types_help_and_labels_are_the_catalogue_s(scrape: Scrape) -> None:
    for name, family in scrape.families.items():
        metric = catalogue.BY_NAME[name + "_total" if family.type == "counter" else name]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.all_labels), sample


def test_no_series_twice(scrape: Scrape) -> None:
    keys = [(sample.name, frozenset(sample.labels.items())) for sample in scrape.samples]
    assert len(keys) == len(set(keys))


def test_promtool_finds_nothing_wrong(scrape: Scrape) -> None:
    check = [tool("promtool"), "check", "metrics"]
    result = subprocess.run(check, input=scrape.text, text=True, capture_output=True, check=False)
    found = {line.split()[0] for line in (result.stdout + result.stderr).splitlines()}
    assert found == set(), result.stderr


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(['"', "\\n", "\n", "\\", "é"])


def library_family(name: str) -> Any:
    """The library's own family of one of our metrics."""
    metric = catalogue.BY_NAME[catalogue.PREFIX + name]
    kind = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}[metric.type]
    return kind(metric.name, metric.help, labels=metric.all_labels)


@settings(deadline=None)
@given(values=st.lists(st.tuples(texts, st.floats()), max_size=5, unique_by=lambda pair: pair[0]))
def test_rendering_equals_the_library_s(values: list[tuple[str, float]]) -> None:
    out = Families()
    library = [library_family(name) for name in ("host_load1", "scalar", "hook_errors_total", "iteration_seconds")]
    load, scalars, errors, durations = library
    out.add("trainvitals_host_load1", 1.5)
    load.add_metric((), 1.5)
    for text, value in values:
        out.add("trainvitals_scalar", value, "run", "0", text)
        scalars.add_metric(("run", "0", text), value)
        out.add("trainvitals_hook_errors_total", value, text, "0", "x")
        errors.add_metric((text, "0", "x"), value)
        out.add_histogram("trainvitals_iteration_seconds", {0.1: value, 1e9: 2}, value, text, "0")
        durations.add_metric((text, "0"), [("0.1", 0 + value), ("1e+09", value + 2), ("+Inf", value + 2)], value)

    class Source:
        def collect(self) -> list[Metric]:
            return [family for family in library if family.samples]

    registry = CollectorRegistry()
    registry.register(Source())
    assert rendering.render(out, rendering.TEXT).encode() == generate_latest(registry)
    openmetrics = rendering.render(out, rendering.OPENMETRICS) + rendering.OPENMETRICS_END
    assert openmetrics.encode() == generate_openmetrics(registry)  # type: ignore[no-untyped-call]  # the library's gap


def test_only_the_catalogue_can_be_served() -> None:
    with pytest.raises(KeyError):
        Families().add("trainvitals_made_up", 1)
    with pytest.raises(ValueError, match="optimizer"):
        Families().add("trainvitals_loss", 1, "run", "0")
