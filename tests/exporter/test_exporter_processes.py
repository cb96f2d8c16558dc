"""A run's process tree, seen from outside."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import ExporterProcess, Scrape

WRITTEN = 2**22  # bytes, by each worker
SHARED = 2**24  # bytes, by the forked worker with the rank
LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP = 24
# A process that even its own user may not look into: to the kernel, it is somebody else's.
CLOSED_RANK = """
import ctypes, sys
from pathlib import Path
from trainvitals.runfile import Identity, RunFileWriter
writer = RunFileWriter(Path(sys.argv[1]), Identity("closed", "closed", "rank"), rank=0)
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
print("ready", flush=True)
sys.stdin.read()
"""


def give_up_capabilities() -> None:
    """For good, also where this is root."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


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
    written = scrape.value("trainvitals_process_written_bytes_total", **worker)
    assert written is not None
    assert written >= 2 * WRITTEN
    assert scrape.value("trainvitals_process_threads", **worker) == 2
    assert scrape.value("trainvitals_process_max_fds", **worker) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    open_fds = scrape.value("trainvitals_process_open_fds", **worker)
    assert open_fds is not None
    assert 3 <= open_fds < 50
    assert tree.stdin is not None
    tree.stdin.write("\n")
    tree.stdin.flush()
    expected["0", "dataloader_worker"] = 0
    scrape = exporter.scrape_until(lambda scrape: counts(scrape) == expected, "the workers end")
    left = scrape.value("trainvitals_process_cpu_seconds_total", **worker)
    assert left is not None
    assert left >= used, "CPU time used by ended workers is not forgotten"
    assert scrape.value("trainvitals_process_written_bytes_total", **worker) == written
    main = scrape.value("trainvitals_process_written_bytes_total", run="tree", rank="0", role="main")
    assert main is not None
    assert main < WRITTEN, "what ended workers wrote is not counted again with the process that waited for them"
    tree.stdin.close()
    tree.wait()
    scrape = exporter.scrape_until(lambda scrape: not scrape.series("trainvitals_processes"), "the tree is gone")
    assert scrape.state("tree") == "killed"


def test_shared_memory_is_divided_among_those_that_share_it(
    start_exporter: StartExporter, run_dir: Path, tree: subprocess.Popen[str]
) -> None:
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs,processes,pss").scrape()
    for role in ("main", "dataloader_worker", "other"):
        labels = {"run": "tree", "rank": "0", "role": role}
        proportional = scrape.value("trainvitals_process_proportional_bytes", **labels)
        resident = scrape.value("trainvitals_process_resident_bytes", **labels)
        assert proportional is not None
        assert resident is not None
        assert 0 < proportional < resident
        assert role == "other" or resident - proportional > SHARED / 3
    assert tree.stdin is not None
    tree.stdin.close()


def test_what_is_not_permitted_is_absent(run_dir: Path) -> None:
    command = [sys.executable, "-c", CLOSED_RANK, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
        exporter = ExporterProcess(
            "--run-dir", str(run_dir), "--collectors", "runs,processes,pss,shm,owners",
            preexec_fn=give_up_capabilities,
        )  # fmt: skip
        try:
            scrape = exporter.scrape()
            rank.kill()
            exporter.scrape_until(
                lambda scrape: scrape.value("trainvitals_collector_success", collector="pss") == 1,
                "a run that has ended keeps nothing from being read",
            )
        finally:
            exporter.stop()
            rank.kill()
    labels = {"run": "closed", "rank": "0", "role": "main"}
    assert scrape.value("trainvitals_process_resident_bytes", **labels)
    assert scrape.value("trainvitals_process_threads", **labels) == 1
    assert len(scrape.series("trainvitals_run_owner_info", run="closed")) == 1
    absent = ("process_read_bytes_total", "process_written_bytes_total", "process_proportional_bytes", "shm_size_bytes")
    assert [name for name in absent if scrape.series(f"trainvitals_{name}")] == []
    assert scrape.value("trainvitals_collector_success", collector="processes") == 1
    assert scrape.value("trainvitals_collector_success", collector="pss") == 0
    assert any("pss has nothing to report" in line for line in exporter.log)
