"""Runs as the exporter shows them: their states, their names, their values, and how long they stay."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter, StartRunFile

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
    original = start_run_file("id", "rank", "train").set("trainvitals_iterations_total", 1).end().path
    content = original.read_bytes()[:4096]
    for number in range(3000):
        (run_dir / f"id{number}.rank.{number}.vitals").write_bytes(content)
    exporter = start_exporter("--run-dir", str(run_dir), "--collectors", "runs")
    exporter.scrape_until(lambda scrape: scrape.state("train") == "killed", "the ended run is served")
    start_run_file("live", "rank", "live")
    exporter.scrape_until(lambda scrape: scrape.state("live") == "running", "a new run is found among them")
