"""Process trees that no test can make with real processes, in a /proc of the test's own.

Only the rank is a real process: it holds its run file's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import ExporterProcess, Scrape
from tests.exporter.frozen_proc import FrozenProc

WORKER, OTHER, STRANGER, LATER = 900_001, 900_002, 900_003, 900_004


@pytest.fixture
def proc(tmp_path: Path) -> FrozenProc:
    return FrozenProc(tmp_path / "proc")


@pytest.fixture
def rank(start_run_file: StartRunFile) -> int:
    """The process of a run's only rank."""
    return start_run_file("train", "rank", rank=0).pid


def started(start_exporter: StartExporter, run_dir: Path, proc: FrozenProc) -> ExporterProcess:
    return start_exporter("--run-dir", str(run_dir), "--collectors", "runs,processes", "--procfs", str(proc.path))


def of(scrape: Scrape, metric: str, **labels: str) -> Mapping[str, float]:
    """The values of a metric by role."""
    return {
        about["role"]: value
        for about, value in scrape.series(f"trainvitals_{metric}", **labels)
        if about["run"] == "train"
    }


def test_a_tree(start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int) -> None:
    proc.process(rank, ticks=300, threads=40, pages=1000).io(rank, 5000, 100).open_files(rank, 5, 1024)
    proc.process(WORKER, rank, state="D", name="pt_data_worker", arguments="renamed", pages=10).io(WORKER, 70, 7)
    proc.open_files(WORKER, 8, 10)
    proc.process(WORKER + 10, rank, ticks=50).io(WORKER + 10, 30, 3).open_files(WORKER + 10, 9, "unlimited")
    proc.process(OTHER + 10, rank, state="Z", name="x) R 1 (y\n", arguments="").io(OTHER + 10, 1, 1)
    proc.process(STRANGER, 1, ticks=10**6)
    scrape = started(start_exporter, run_dir, proc).scrape()
    assert of(scrape, "process_cpu_seconds_total") == {"main": 3, "dataloader_worker": 0.5, "other": 0}
    assert of(scrape, "process_resident_bytes") == {"main": 4096000, "dataloader_worker": 40960, "other": 0}
    assert of(scrape, "process_threads") == {"main": 40, "dataloader_worker": 2, "other": 1}
    assert of(scrape, "process_read_bytes_total") == {"main": 5000, "dataloader_worker": 100, "other": 1}
    assert of(scrape, "process_written_bytes_total") == {"main": 100, "dataloader_worker": 10, "other": 1}
    assert of(scrape, "process_open_fds") == {"main": 5, "dataloader_worker": 8}, "that of the one nearest to its limit"
    assert of(scrape, "process_max_fds") == {"main": 1024, "dataloader_worker": 10}
    assert of(scrape, "processes", state="blocked") == {"main": 0, "dataloader_worker": 1, "other": 0}
    assert of(scrape, "processes", state="zombie") == {"main": 0, "dataloader_worker": 0, "other": 1}


def test_io_of_a_worker_that_ended_is_not_counted_again_with_its_parent(
    start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int
) -> None:
    proc.process(rank).io(rank, 100, 0).process(WORKER, rank).io(WORKER, 5000, 0)
    exporter = started(start_exporter, run_dir, proc)
    assert of(exporter.scrape(), "process_read_bytes_total") == {"main": 100, "dataloader_worker": 5000}
    # It read 500 more, was waited for, and so is part of its parent, which read 20 itself.
    proc.end(WORKER).io(rank, 100 + 5500 + 20, 0)
    read = "process_read_bytes_total"
    scrape = exporter.scrape_until(lambda s: of(s, read)["main"] > 100, "the parent is read again")
    assert of(scrape, read) == {"main": 620, "dataloader_worker": 5000}


def test_a_pid_that_another_process_has_taken(
    start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int
) -> None:
    proc.process(rank, ticks=1000).process(WORKER, rank, ticks=500)
    exporter = started(start_exporter, run_dir, proc)
    used = "process_cpu_seconds_total"
    assert of(exporter.scrape(), used) == {"main": 10, "dataloader_worker": 5}
    proc.process(WORKER, rank, ticks=200, started=999)
    scrape = exporter.scrape_until(lambda s: of(s, used)["dataloader_worker"] != 5, "the new worker is seen")
    assert of(scrape, used)["dataloader_worker"] == 7
    proc.process(rank, ticks=7000, started=999)
    scrape = exporter.scrape_until(
        lambda s: of(s, "processes", state="sleeping") == {"main": 0, "dataloader_worker": 0}, "it is not the rank"
    )
    assert of(scrape, used) == {"main": 10, "dataloader_worker": 7}
    assert scrape.value("trainvitals_collector_success", collector="processes") == 1


def test_processes_that_are_only_half_there(
    start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int
) -> None:
    proc.process(rank, ticks=100).process(WORKER, rank)
    (proc.path / "900100").mkdir()  # ended since the folder was listed
    proc.write(900101, "stat", b"").write(900102, "stat", b"\xff\xfe (").write(900103, "stat", "1 (x) S 1")
    proc.write(900104, "stat", "a (b) " + "x " * 60).process(900105, 900105).process(900106, 0)  # its own parent; none
    proc.write(WORKER, "io", "read_bytes: many\n").write(WORKER, "limits", "Max open files")
    proc.write(rank, "io", "").write(rank, "limits", b"\xff")
    (proc.path / "self").symlink_to("nowhere")
    exporter = started(start_exporter, run_dir, proc)
    scrape = exporter.scrape()
    assert of(scrape, "process_cpu_seconds_total") == {"main": 1, "dataloader_worker": 0}
    for name in ("process_open_fds", "process_max_fds", "process_read_bytes_total"):
        assert not any(of(scrape, name).values()), name
    assert scrape.value("trainvitals_collector_success", collector="processes") == 1


def test_thousands_of_processes(start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int) -> None:
    proc.process(rank)
    for number in range(3000):
        proc.process(1_000_000 + number, rank, name="pt_data_worker")  # wide
        proc.process(2_000_000 + number, 2_000_000 + number - 1 if number else rank, arguments="sh")  # deep
    exporter = started(start_exporter, run_dir, proc)
    expected = {"main": 1, "dataloader_worker": 3000, "other": 3000}
    exporter.scrape_until(lambda s: of(s, "processes", state="sleeping") == expected, "all are counted")


def test_a_process_that_is_ending_takes_nothing_and_one_that_may_not_be_read_is_left_out(
    start_exporter: StartExporter, run_dir: Path, proc: FrozenProc, rank: int
) -> None:
    proc.process(rank).write(rank, "smaps_rollup", "00400000-7ffc [rollup]\nRss: 90 kB\nPss: 40 kB\n")
    proc.process(WORKER, rank, state="R").write(WORKER, "statm", "0 0 0 0 0 0 0\n")
    proc.process(OTHER, rank, arguments="ffmpeg\0").write(OTHER, "statm", "9000 700 300 1 0 500 0\n")
    options = ("--run-dir", str(run_dir), "--collectors", "runs,processes,pss", "--procfs", str(proc.path))
    scrape = start_exporter(*options).scrape()
    assert of(scrape, "processes", state="running") == {"main": 0, "dataloader_worker": 1, "other": 0}
    assert of(scrape, "process_proportional_bytes") == {"main": 40960, "dataloader_worker": 0}
