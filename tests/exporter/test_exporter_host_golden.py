"""Whole scrapes of hosts that are known from their /proc and /sys, compared with those that were looked through once.

`python -m tests.exporter.test_exporter_host_golden` writes them anew, to be looked through again.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from trainvitals import catalogue

from tests.conftest import tool
from tests.exporter import frozen_host
from tests.exporter.test_exporter_gpu_golden import GOLDEN
from tests.exporter.test_exporter_gpu_golden import MASKED as MASKED_EVERYWHERE

MACHINES = ("workstation", "server", "cloud")
COLLECTORS = "cpu,memory,pressure,disks,filesystems,network"
# Besides what differs from time to time, the space on this machine's own disk: statvfs() cannot be frozen.
MASKED = (
    *MASKED_EVERYWHERE,
    (re.compile(r"^(trainvitals_host_filesystem_(?:size|avail)_bytes\S*(?: \S+\})?) .*", re.MULTILINE), r"\1 #"),
)


def masked_scrape(machine: str, folder: Path) -> str:
    """A scrape of the host, without what differs from time to time."""
    root = frozen_host.unpack(machine, folder)
    where = ("--procfs", str(root / "proc"), "--rootfs", str(root))
    command = [sys.executable, "-m", "trainvitals_exporter", "--collectors", COLLECTORS, "--once", *where]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for pattern, mask in MASKED:
        text = pattern.sub(mask, text)
    return text


def golden(machine: str) -> str:
    return (GOLDEN / f"{machine}.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("machine", MACHINES)
def test_scrape_is_the_golden_one(tmp_path: Path, machine: str) -> None:
    assert masked_scrape(machine, tmp_path) == golden(machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_promtool_finds_nothing_wrong(machine: str) -> None:
    command = [tool("promtool"), "check", "metrics"]
    text = golden(machine).replace(" #\n", " 0\n")
    result = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert result.stdout + result.stderr == ""


def test_each_of_the_catalogue_s_metrics_of_a_host_is_there() -> None:
    text = golden("workstation").replace(" #\n", " 0\n")
    families = text_string_to_metric_families(text)
    served = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert {m.name for m in catalogue.METRICS if m.scope is catalogue.HOST} <= served


if __name__ == "__main__":
    for name in MACHINES:
        with tempfile.TemporaryDirectory() as scratch:
            (GOLDEN / f"{name}.prom").write_text(masked_scrape(name, Path(scratch)), encoding="utf-8")
