"""Runs as the exporter shows them: their states, their names, their values, and how long they stay."""

from __future__ import annotations

import math
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import ExporterProcess, Scrape

# (what the launcher's process is and says, what each rank's is and says, the run's state)
# A process is "alive" or "dead"; its word is a state or "" for none.
STATES = {
    "launcher-alone": (("alive", ""), [], "starting"),
    "launcher-alone-said-starting": (("alive", "starting"), [], "starting"),
    "training": (("alive", "starting"), [("alive", "running")], "running"),
    "two-ranks-one-finished": (("alive", "starting"), [("alive", "running"), ("dead", "finished")], "running"),
    "ranks-done-launcher-still-there": (("alive", "starting"), [("dead", "finished")], "running"),
    "finished": (("dead", "finished"), [("dead", "finished")], "finished"),
    "launcher-knows-best": (("dead", "failed"), [("dead", "finished")], "failed"),
    "verdict-before-the-launcher-exits": (("alive", "out_of_memory"), [("dead", "running")], "out_of_memory"),
    "rank-outlives-launcher": (("dead", "finished"), [("alive", "running")], "running"),
    "launcher-sigkilled-before-any-rank": (("dead", "starting"), [], "killed"),
    "launcher-sigkilled-rank-goes-on": (("dead", "starting"), [("alive", "running")], "running"),
    "launcher-sigkilled-rank-finished": (("dead", "starting"), [("dead", "finished")], "finished"),
    "attached-finished": (None, [("dead", "finished"), ("dead", "finished")], "finished"),
    "attached-sigkilled": (None, [("dead", "finished"), ("dead", "running")], "killed"),
    "attached-failed": (None, [("dead", "running"), ("dead", "failed")], "failed"),
    "attached-oom": (None, [("dead", "failed"), ("dead", "out_of_memory")], "out_of_memory"),
}


def test_state_follows_from_who_lives_and_what_they_said(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    for name, (launcher, ranks, _) in STATES.items():
        processes = [("launcher", -1, *launcher)] if launcher else []
        processes += [("rank", rank, *about) for rank, about in enumerate(ranks)]
        for kind, rank, life, said in processes:
            holder = start_run_file(name, kind, rank=rank)
            if said:
                holder.set_state(said)
            if life == "dead":
                holder.end()
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    assert {name: scrape.state(name) for name in STATES} == {name: state for name, (_, _, state) in STATES.items()}


def test_a_run_from_start_to_end(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    launcher = start_run_file("id", "launcher", "voice")
    launcher.set("trainvitals_run_start_timestamp_seconds", 1234.5).set("trainvitals_run_state", 1, state="starting")
    exporter.scrape_until(lambda scrape: scrape.state("voice") == "starting", "the run starts")
    rank = start_run_file("id", "rank", "voice", rank=0).set_state("running").set("trainvitals_iterations_total", 3)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("voice") == "running", "the run trains")
    assert scrape.value("trainvitals_iterations_total", run="voice", rank="0") == 3
    assert scrape.value("trainvitals_run_start_timestamp_seconds", run="voice") == 1234.5
    rank.set("trainvitals_iterations_total", 4)
    exporter.scrape_until(lambda scrape: scrape.value("trainvitals_iterations_total") == 4, "a new value is served")
    assert scrape.series("trainvitals_run_exit_code") == []
    assert scrape.series("trainvitals_run_end_info") == []
    rank.end()
    launcher.set("trainvitals_run_state", 0, state="starting").set_state("killed")
    launcher.set("trainvitals_run_exit_code", 137).set("trainvitals_run_end_info", 1, signal="SIGKILL", exception="")
    launcher.end()
    scrape = exporter.scrape_until(lambda scrape: scrape.state("voice") == "killed", "the run's end is served")
    assert scrape.value("trainvitals_run_exit_code", run="voice") == 137
    assert scrape.series("trainvitals_run_end_info") == [({"run": "voice", "signal": "SIGKILL", "exception": ""}, 1)]
    assert scrape.value("trainvitals_iterations_total") == 4, "the last values outlive the process"


def test_end_is_explained_by_whoever_knows(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    info = "trainvitals_run_end_info"
    start_run_file("a", "launcher").set_state("failed").set(info, 1, signal="", exception="").end()
    start_run_file("a", "process").set(info, 1, signal="", exception="SpawnError").end()
    start_run_file("a", "rank", rank=0).set_state("finished").set(info, 1, signal="", exception="").end()
    start_run_file("a", "rank", rank=1).set_state("failed").set(info, 1, signal="", exception="ValueError").end()
    start_run_file("b", "launcher").set_state("failed").set(info, 1, signal="", exception="").end()
    start_run_file("b", "process").set(info, 1, signal="", exception="SpawnError").end()
    start_run_file("c", "launcher").set_state("finished").set(info, 1, signal="", exception="").end()
    start_run_file("c", "rank").set_state("failed").set(info, 1, signal="", exception="HandledError").end()
    start_run_file("only-a-process", "process").set(info, 1, signal="", exception="SpawnError").end()
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    ends = {labels["run"]: labels["exception"] for labels, _ in scrape.series(info)}
    assert ends == {"a": "ValueError", "b": "SpawnError", "c": ""}
    assert scrape.state("only-a-process") is None


def test_labels_are_those_of_the_launcher_or_else_of_the_ranks(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    info = "trainvitals_run_label_info"
    start_run_file("a", "launcher").set(info, 1, label="team", value="voice").set(info, 1, label="try", value="7")
    start_run_file("a", "rank", rank=0).set(info, 1, label="team", value="voice")
    for rank in (0, 1):
        start_run_file("b", "rank", rank=rank).set(info, 1, label="team", value="text").set(info, 1, odd="x")
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    labels = sorted((of["run"], of["label"], of["value"]) for of, _ in scrape.series(info))
    assert labels == [("a", "team", "voice"), ("a", "try", "7"), ("b", "team", "text")]


def test_living_run_takes_the_name_of_an_ended_one(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    start_run_file("old", "rank", "train").set("trainvitals_iterations_total", 10).end()
    exporter.scrape_until(lambda scrape: scrape.state("train") == "killed", "the ended run is served")
    start_run_file("new", "rank", "train").set("trainvitals_iterations_total", 1)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("train") == "running", "the new run is served")
    assert scrape.value("trainvitals_iterations_total", run="train") == 1
    assert scrape.state("train-2") is None


def test_two_living_runs_of_one_name(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    first = start_run_file("first", "rank", "train").set("trainvitals_iterations_total", 1)
    start_run_file("second", "rank", "train").set("trainvitals_iterations_total", 2)
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    scrape = exporter.scrape()
    assert scrape.value("trainvitals_iterations_total", run="train") == 1
    assert scrape.value("trainvitals_iterations_total", run="train-2") == 2
    first.end()
    scrape = exporter.scrape_until(lambda scrape: scrape.state("train") == "killed", "the first run ends")
    assert scrape.value("trainvitals_iterations_total", run="train-2") == 2, "a run keeps its name"
    start_run_file("third", "rank", "train").set("trainvitals_iterations_total", 3)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("train") == "running", "the third run starts")
    assert scrape.value("trainvitals_iterations_total", run="train") == 3
    assert scrape.value("trainvitals_iterations_total", run="train-2") == 2


def test_runs_of_one_name_that_were_there_at_the_same_time(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    start, now = "trainvitals_run_start_timestamp_seconds", time.time()
    start_run_file("long", "launcher", "job").set(start, now - 100).set_state("failed").end()
    start_run_file("late", "launcher", "job").set(start, now - 50).set_state("finished").end()
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    assert (scrape.state("job"), scrape.state("job-2")) == ("failed", "finished")


def test_a_failure_is_counted_where_the_run_is_started_again(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    ended = "trainvitals_runs_ended_total"
    for number in range(3):
        running = start_run_file(f"try{number}", "launcher", "job").set_state("starting")
        scrape = exporter.scrape_until(lambda scrape: scrape.state("job") == "starting", "the next try is served")
        assert [labels["run"] for labels, _ in scrape.series("trainvitals_run_start_timestamp_seconds")] == ["job"]
        assert scrape.value(ended, run="job", state="failed") == number
        running.set("trainvitals_run_state", 0, state="starting").set_state("failed").end()
        scrape = exporter.scrape_until(lambda scrape: scrape.state("job") == "failed", "its end is served")
    assert scrape.value(ended, run="job", state="failed") == 3
    assert scrape.value(ended, run="job", state="finished") == 0


def test_two_processes_of_one_rank(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    start_run_file("id", "rank", "train", rank=0).set("trainvitals_iterations_total", 1)
    newer = start_run_file("id", "rank", "train", rank=-1).set("trainvitals_iterations_total", 2)
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    assert exporter.scrape().value("trainvitals_iterations_total", run="train", rank="0") == 2
    assert any("rank 0 of run train" in line for line in exporter.log)
    newer.end()
    exporter.scrape_until(lambda s: s.value("trainvitals_iterations_total") == 1, "the living process is served")


def test_ended_runs_vanish(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs", "--keep-ended", "2")
    rank = start_run_file("id", "rank", "train").set("trainvitals_heartbeat_timestamp_seconds", 1.0)
    exporter.scrape_until(lambda scrape: scrape.state("train") == "running", "the run is served")
    rank.end()
    exporter.scrape_until(lambda scrape: scrape.state("train") == "killed", "its end is served")
    exporter.scrape_until(lambda scrape: scrape.state("train") is None, "the run vanishes")


def test_runs_that_ended_before_the_exporter_started(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    start_run_file("id", "rank", "train").end()
    assert start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape().state("train") == "killed"
    short = start_exporter("--run-dir", str(run_dir), "--collectors", "runs", "--keep-ended", "0")
    assert short.scrape().state("train") is None


def test_histogram(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    bucket = "trainvitals_iteration_seconds_bucket"
    rank = start_run_file("id", "rank", "train").set(bucket, 2, le="0.1").set(bucket, 3, le="10").set(bucket, 0, le="1")
    rank.set("trainvitals_iteration_seconds_sum", 7.5).set(bucket, 1, le="+Inf").set(bucket, 1, le="wide")
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    found = {labels["le"]: value for labels, value in scrape.series(bucket)}
    assert found == {"0.1": 2, "1.0": 2, "10.0": 5, "+Inf": 6}
    assert scrape.value("trainvitals_iteration_seconds_count") == 6
    assert scrape.value("trainvitals_iteration_seconds_sum") == 7.5


def test_only_what_the_catalogue_has_is_passed_on(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path
) -> None:
    rank = start_run_file("id", "rank", 'odd "name"\\\n').set("trainvitals_made_up", 1).set("up", 1)
    rank.set("trainvitals_loss", 1).set("trainvitals_loss", 1, optimizer="0", extra="x")
    rank.set("trainvitals_loss", math.nan, optimizer="0").set("trainvitals_iterations_total", math.nan)
    rank.set("trainvitals_host_load1", 1).set("trainvitals_scalar", 2, tag="\ud800 é\n")
    scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "runs").scrape()
    assert {sample.name for sample in scrape.samples if "run" in sample.labels} == {
        "trainvitals_run_start_timestamp_seconds", "trainvitals_run_state", "trainvitals_runs_ended_total",
        "trainvitals_loss", "trainvitals_scalar",
    }  # fmt: skip
    [(labels, value)] = scrape.series("trainvitals_loss")
    assert labels == {"run": 'odd "name"\\\n', "rank": "0", "optimizer": "0"}
    assert math.isnan(value), "a loss that is NaN is shown as such"
    assert scrape.value("trainvitals_scalar", tag="? é\n") == 2


@pytest.mark.parametrize("vanished", ["file", "folder"])
def test_what_vanishes_is_gone(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, vanished: str
) -> None:
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    rank = start_run_file("id", "rank", "train")
    exporter.scrape_until(lambda scrape: scrape.state("train") == "running", "the run is served")
    rank.path.unlink()
    if vanished == "folder":
        run_dir.rmdir()
    scrape = exporter.scrape_until(lambda scrape: scrape.state("train") is None, "the run is gone")
    assert scrape.value("trainvitals_collector_success", collector="runs") == 1


def test_thousands_of_dead_files(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    bare = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    bare.scrape()
    original = start_run_file("run-0000", "rank").set("trainvitals_iterations_total", 1)
    for number in range(200):
        original.set("trainvitals_scalar", 1, tag=f"loss/{number}")
    content = original.end().path.read_bytes()[: 64 * 1024]
    for number in range(1, 5000):
        dead = run_dir / f"run-{number:04}.rank.{number}.vitals"
        dead.write_bytes(content.replace(b'"run-0000"', b'"run-%04d"' % number))
    os.utime(original.path, (0, 0))
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs", "--keep-ended", "0")
    assert exporter.scrape().series("trainvitals_run_state") == []
    live = start_run_file("live", "rank").set("trainvitals_iterations_total", 7)
    scrape = exporter.scrape_until(lambda scrape: scrape.state("live") == "running", "a new run is found among them")
    assert scrape.value("trainvitals_iterations_total", run="live") == 7
    reads = read_calls(exporter)
    live.set("trainvitals_iterations_total", 8)
    exporter.scrape_until(lambda s: s.value("trainvitals_iterations_total") == 8, "its values are followed")
    assert read_calls(exporter) - reads < 500, "the others are not read again"
    assert resident(exporter) < 1.5 * resident(bare), "and not kept"


def read_calls(exporter: ExporterProcess) -> int:
    """How often the exporter has read from a file or a connection."""
    return psutil.Process(exporter.process.pid).io_counters().read_count


def resident(exporter: ExporterProcess) -> int:
    """Bytes of memory."""
    return psutil.Process(exporter.process.pid).memory_info().rss


# A system clock (the one that can be set) that is ahead by as many seconds as a file says.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static long ahead(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_AHEAD"), "r");
    if (file && fscanf(file, "%ld", &seconds) != 1) seconds = 0;
    if (file) fclose(file);
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int (*next)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += ahead();
    return result;
}
"""


def test_a_clock_that_is_set(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, tmp_path: Path
) -> None:
    source, library, ahead = tmp_path / "clock.c", tmp_path / "clock.so", tmp_path / "ahead"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    ahead.write_text("0")
    start_run_file("ended", "rank").set("trainvitals_iterations_total", 5).end()
    live = start_run_file("live", "rank", rank=0).set("trainvitals_iterations_total", 1)
    exporter = start_exporter(
        "--run-dir", str(run_dir), "--collectors", "runs,processes,owners",
        env={"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)},
    )  # fmt: skip
    used, value = 0.0, 1
    for seconds in (3600, -3600, 0):
        ahead.write_text(str(seconds))
        clock_is_set = partial(runs_last_success_is_near, time.time() + seconds)
        exporter.scrape_until(clock_is_set, "the exporter sees the clock that was set")
        value += 1
        live.set("trainvitals_iterations_total", value)
        start_run_file(f"new-{value}", "rank").set("trainvitals_iterations_total", value)
        served = partial(both_have_done, value, ("live", f"new-{value}"))
        scrape = exporter.scrape_until(served, "runs are followed and found")
        assert scrape.state("ended") == "killed", "what is kept is kept for its time, whatever the clock says"
        keys = [(sample.name, frozenset(sample.labels.items())) for sample in scrape.samples]
        assert len(keys) == len(set(keys))
        main = {"run": "live", "rank": "0", "role": "main"}
        now_used = scrape.value("trainvitals_process_cpu_seconds_total", **main)
        assert now_used is not None
        assert now_used >= used
        used = now_used
        assert not [of for of, good in scrape.series("trainvitals_collector_success") if not good]
    assert exporter.log[-1].endswith("/metrics\n"), "nothing is complained of"


def runs_last_success_is_near(moment: float, scrape: Scrape) -> bool:
    """Whether the run files were read at about that Unix time."""
    last = scrape.value("trainvitals_collector_last_success_timestamp_seconds", collector="runs")
    return last is not None and abs(last - moment) < 600


def both_have_done(iterations: int, runs: tuple[str, ...], scrape: Scrape) -> bool:
    """Whether these runs are served, with that number of iterations."""
    return all(scrape.value("trainvitals_iterations_total", run=run) == iterations for run in runs)
