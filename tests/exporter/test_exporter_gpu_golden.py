"""Whole scrapes of known machines, compared with those that were looked through once, and linted.

`python -m tests.exporter.test_exporter_gpu_golden` writes them anew, to be looked through again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from trainvitals import catalogue

from tests.conftest import tool
from tests.exporter.gpu_machine import PROFILES

GOLDEN = Path(__file__).with_name("golden")
MACHINES = ("rtx_3090", "h100_mig", "gb10", "no_gpu")
# What differs from time to time, and from release to release.
MASKED = (
    (re.compile(r"^(trainvitals_collector_(?:duration|last_success_timestamp)_seconds\S*) .*", re.MULTILINE), r"\1 #"),
    (re.compile(r'python_version="[^"]*",version="[^"]*"'), 'python_version="#",version="#"'),
)
# Of the units, only these stand in names; promtool accepts percent, mhz and mib.
UNITS = ("_bytes", "_celsius", "_hertz", "_info", "_joules", "_ratio", "_seconds", "_watts")
OTHER_UNITS = re.compile(r"_(percent|mhz|khz|mib|kib|gib|mb|kb|gb|milliwatts|mw|ms|us|ns|minutes|kilobytes)(_|$)")
# States, and yes or no. Besides, numbers of things have no unit: their names end in a plural.
WITHOUT_UNIT = re.compile(r"_(active|state|generation|width)$")
# Names that Prometheus, scrape configurations and service discovery give to targets.
TARGET_LABELS = {
    "job",
    "instance",
    "host",
    "hostname",
    "node",
    "cluster",
    "env",
    "region",
    "service",
    "namespace",
    "pod",
}
RESERVED_PREFIXES = ("process_", "scrape_", "go_", "python_", "up")


def masked_scrape(driver: Path, profile: str) -> str:
    """A scrape of the machine's GPUs, without what differs from time to time."""
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver),
        "FAKE_NVML_PROFILE": str(PROFILES / profile),
        "TRAINVITALS_EXPORTER_GPU_RELEASE_FILE": str(driver / "no-such-file"),
    }
    command = [sys.executable, "-m", "trainvitals_exporter", "--collectors", "nvidia", "--once"]
    text = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    for pattern, mask in MASKED:
        text = pattern.sub(mask, text)
    return text


@pytest.mark.parametrize("profile", MACHINES)
def test_scrape_is_the_golden_one(fake_nvml: Path, profile: str) -> None:
    assert masked_scrape(fake_nvml, profile) == (GOLDEN / f"{profile}.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("profile", MACHINES)
def test_promtool_finds_nothing_wrong(profile: str) -> None:
    text = (GOLDEN / f"{profile}.prom").read_text(encoding="utf-8").replace(" #\n", " 0\n")
    result = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("profile", MACHINES)
def test_lint(profile: str) -> None:
    text = (GOLDEN / f"{profile}.prom").read_text(encoding="utf-8").replace(" #\n", " 0\n")
    families = list(text_string_to_metric_families(text))
    assert families
    for family in families:
        metric = catalogue.BY_NAME[family.name + ("_total" if family.type == "counter" else "")]
        assert family.documentation == metric.help != ""
        assert family.type == metric.type
        assert family.samples, f"{family.name} has no samples"
        for sample in family.samples:
            assert sample.labels.keys() == set(metric.all_labels), sample
            assert sample.value == sample.value, sample


def test_names_have_units_and_labels_are_our_own() -> None:
    assert not catalogue.PREFIX.startswith(RESERVED_PREFIXES)
    for metric in catalogue.METRICS:
        stem = metric.name.removesuffix("_total").removesuffix("_max")
        if metric.scope is catalogue.GPU:
            assert stem.endswith((*UNITS, "s")) or WITHOUT_UNIT.search(stem), metric.name
        assert not OTHER_UNITS.search(metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert not TARGET_LABELS & set(metric.all_labels), metric.name
        assert metric.help.endswith((".", ")")), metric.name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, PROFILES.parent / "build.py", scratch], check=True)
        for machine in MACHINES:
            (GOLDEN / f"{machine}.prom").write_text(masked_scrape(Path(scratch), machine), encoding="utf-8")
