"""A run's process tree, seen from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import Scrape


@pytest.fixture
def tree(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A run with workers and helpers."""
    script = Path(__file__).with_name("process_tree.py")
    process = subprocess.Popen(
        [sys.executable, script, "launcher", run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait()


def counts(scrape: Scrape) -> dict[tuple[str, str], float]:
    """Number of living processes by rank and role."""
    found: dict[tuple[str, str], float] = {}
    for labels, value in scrape.series("trainvitals_processes", run="tree"):
        if labels["state"] != "zombie":
            key = labels["rank"], labels["role"]
            found[key] = found.get(key, 0) + value
    return found


def test_process_tree(start_exporter: StartExporter, run_dir: Path, tree: subprocess.Popen[str]) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs,processes")
    # Of the rank's children the helper is "other", and so is the resource tracker that multiprocessing adds for spawn;
    # the launcher and its own helper belong to no rank.
    expected = {("0", "main"): 1, ("0", "dataloader_worker"): 2, ("0", "other"): 2, ("", "other"): 2}
    scrape = exporter.scrape_until(lambda scrape: counts(scrape) == expected, "each process is in its place")
    for rank, role in expected:
        resident = scrape.value("trainvitals_process_resident_bytes", run="tree", rank=rank, role=role)
        assert resident is not None
        assert resident > 2**20
    worker = {"run": "tree", "rank": "0", "role": "dataloader_worker"}
    states = {labels["state"] for labels, _ in scrape.series("trainvitals_processes", **worker)}
    assert states == {"running", "sleeping", "blocked", "zombie", "other"}
    used = scrape.value("trainvitals_process_cpu_seconds_total", **worker)
    assert used is not None
    assert used > 0.5, "two workers worked 0.3 seconds each"
    assert tree.stdin is not None
    tree.stdin.write("\n")
    tree.stdin.flush()
    expected["0", "dataloader_worker"] = 0
    scrape = exporter.scrape_until(lambda scrape: counts(scrape) == expected, "the workers end")
    left = scrape.value("trainvitals_process_cpu_seconds_total", **worker)
    assert left is not None
    assert left >= used, "CPU time used by ended workers is not forgotten"
    tree.stdin.close()
    tree.wait()
    scrape = exporter.scrape_until(lambda scrape: not scrape.series("trainvitals_processes"), "the tree is gone")
    assert scrape.state("tree") == "killed"
