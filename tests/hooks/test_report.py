"""What ``trainvitals run`` says at the end: right, on one screen, and without a trace in how the command looks."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainvitals import endings, report, report_advice, rundir, runfile
from trainvitals.endings import End
from trainvitals.report_advice import THRESHOLDS, advice
from trainvitals.report_facts import Facts, Ranks, gather
from trainvitals.report_text import render
from trainvitals.runfile import Identity, RunFileWriter

from tests.conftest import Launcher

PYTHON = sys.executable
REPOSITORY = Path(__file__).parents[2]

# Writes run files as ranks do, without importing torch. A rank is [number, {series: value}, how it ends].
RANKS = """
import json, os, signal, sys
from trainvitals import endings, session
def rank(number, values, end):
    writer = session.Run.from_environment().create_file("rank", "train.py")
    writer.set_rank(number)
    endings.record_state(writer, "running")
    for series, value in values.items():
        name, *labels = series.split()
        writer.set("trainvitals_" + name, value, **dict(label.split("=") for label in labels))
    if end == "killed": os.kill(os.getpid(), signal.SIGKILL)
    endings.record(writer, endings.End(*end))
    writer.close()
    os._exit(0)
def ranks(*about):
    for each in about:
        pid = os.fork()
        if pid == 0: rank(*each)
        os.waitpid(pid, 0)
GOOD = ("finished",)
"""

# A healthy minute and a half.
USUAL = {
    "iterations_total": 900.0,
    "iterations_per_second": 9.5,
    "epoch": 3.0,
    "phase_seconds_total phase=data_wait": 9.0,
    "phase_seconds_total phase=forward": 30.0,
    "phase_seconds_total phase=backward": 45.0,
    "phase_seconds_total phase=optimizer": 6.0,
    "optimizer_info class=AdamW optimizer=0 parameters=1200": 1.0,
    "optimizer_steps_total optimizer=0": 900.0,
    "loss optimizer=0": 0.25,
}


@pytest.fixture
def reporting(launcher: Launcher) -> Launcher:
    del launcher.environment["TRAINVITALS_QUIET"]
    return launcher


def command(launcher: Launcher, *ranks: tuple[int, Mapping[str, float], Any], then: str = "") -> list[str]:
    """A command that has these ranks, and then does something else."""
    text = RANKS + f"ranks(*json.loads({json.dumps(json.dumps(ranks))}))\n" + then
    return [PYTHON, str(launcher.script(text))]


def usual(number: int = 0, end: Any = ("finished",), **more: Any) -> tuple[int, dict[str, float], Any]:
    return number, {**USUAL, **more}, end


def document(launcher: Launcher) -> dict[str, Any]:
    (path,) = launcher.run_dir.glob("*.report.json")
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return found


def test_a_real_training_of_three_iterations(reporting: Launcher) -> None:
    result = reporting.python("""
import torch
from torch.utils.data import DataLoader, TensorDataset
model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(TensorDataset(torch.randn(3, 4), torch.randn(3, 1))):
    optimizer.zero_grad(); ((model(x) - y) ** 2).mean().backward(); optimizer.step()
print("trained", end="")
""")
    assert result.stdout == "trained"
    loss = result.rank.value("trainvitals_loss", optimizer="0")
    assert loss is not None
    assert "trainvitals: run train finished after " in result.stderr
    assert re.search(r"^  progress   3 iterations, 1 epoch, \S+ it/s", result.stderr, re.MULTILINE)
    assert f"  last loss  {loss:.4g} (SGD, 3 steps)\n" in result.stderr
    assert re.search(r"^  memory     host: \d+\.\d MiB at most in the largest process$", result.stderr, re.MULTILINE)
    assert "  anomalies  none\n" in result.stderr
    assert "advice" not in result.stderr  # nothing can be said of three iterations
    told = document(reporting)
    assert (told["schema"], told["version"], told["run"]) == ("trainvitals.report", 1, "train")
    assert told["run_id"] == result.launcher.identity.run_id
    assert (told["ending"]["state"], told["ending"]["exit_code"]) == ("finished", 0)
    assert told["optimizers"] == [{"optimizer": "0", "name": "SGD", "parameters": 5, "steps": 3, "loss": loss}]
    assert sum(phase["share"] for phase in told["phases"]) == pytest.approx(1)
    assert told["training_seconds"] + told["outside_training_seconds"] == pytest.approx(told["seconds"])


def test_everything_at_once_is_one_screen(reporting: Launcher) -> None:
    gpu = {f"cuda_memory_{name}_bytes device=0": size * 2.0**30
           for name, size in (("reserved", 23), ("peak", 22.5), ("total", 24), ("allocated", 20))}  # fmt: skip
    everything = {
        **USUAL, **gpu, "run_gpu_info uuid=GPU-1": 1.0, "world_size": 2.0, "amp_enabled dtype=float16": 0.0,
        "dataloader_workers": 0.0, "dataloader_pin_memory": 0.0, "dataloader_batch_size": 8.0,
        "phase_seconds_total phase=data_wait": 40.0, "phase_seconds_total phase=transfer": 20.0,
        "phase_seconds_total phase=checkpoint": 30.0, "phase_seconds_total phase=other": 5.0,
        "checkpoint_seconds_total": 30.0, "checkpoint_saves_total": 9.0, "checkpoint_last_interval_iterations": 100.0,
        "loss_anomalies_total kind=spike optimizer=0": 2.0, "loss_anomalies_total kind=nonfinite optimizer=1": 1.0,
        "gradient_anomalies_total kind=explosion optimizer=0": 12.0, "gradient_anomalies_total kind=vanishing optimizer=1": 1.0,
        "gradient_anomalies_total kind=nonfinite optimizer=0": 3.0, "amp_skipped_steps_total optimizer=0": 14.0,
        "cuda_ooms_total device=0": 1.0, "cuda_oom_requested_bytes device=0": 2.0**30, "hook_errors_total hook=amp": 1.0,
        "series_dropped_total reason=too_many_scalars": 7.0,
        **{f"optimizer_info class=AdamW optimizer={i} parameters=9": 1.0 for i in range(1, 6)},
        **{f"loss optimizer={i}": 1.5 for i in range(1, 6)},
    }  # fmt: skip
    ranks = [(number, everything, ("out_of_memory", "", "torch.OutOfMemoryError")) for number in range(2)]
    result = reporting.run(*command(reporting, *ranks, then="sys.exit(1)"), options=["--name", "night"])
    assert result.code == 1
    lines = result.stderr.splitlines()
    assert len(lines) <= 24, result.stderr
    assert max(len(line) for line in lines if str(reporting.run_dir) not in line) <= 100
    text = " ".join(result.stderr.split())
    assert "run night ran out of memory after" in text
    assert "(torch.OutOfMemoryError), exit code 1" in text
    assert "900 iterations, 3 epochs, 5.11 it/s (9.5 at the end), 2 ranks" in text
    assert re.search(r"backward +25\.6%  +45\.0 s  ######\n", result.stderr)
    assert "GPU 0 of rank 0, the fullest of 2: tensors 22.5 GiB of 24.0 GiB at most; held 23.0 GiB" in text
    for said in (
        "loss spike at 2 steps (optimizer 0)", "non-finite loss at 1 step (optimizer 1)", "exploded gradient at 12 steps",
        "vanished gradient at 1 step", "non-finite gradient at 3 steps", "AMP skipped 14 steps",
        "2 failed GPU allocations (of 1.0 GiB)", "14 series not recorded", "2 errors of our own hooks (amp)", "and 4 more",
    ):  # fmt: skip
        assert said in text
    alerts = [each["alert"] for each in document(reporting)["advice"]]
    assert alerts == ["TrainingAdviceAmp", "TrainingAdviceWorkers", "TrainingCheckpointsTooFrequent"]
    for each in document(reporting)["advice"]:
        assert each["text"] in text


def test_a_command_that_trains_nothing_is_told_nothing(reporting: Launcher) -> None:
    result = reporting.run("sh", "-c", "echo hello; exit 3")
    assert (result.code, result.stdout, result.stderr) == (3, "hello\n", "")
    assert not list(reporting.run_dir.glob("*.json"))


@pytest.mark.parametrize("how", ["--quiet", "TRAINVITALS_QUIET"])
def test_quiet(reporting: Launcher, how: str) -> None:
    if how != "--quiet":
        reporting.environment[how] = "1"
    options = [how] if how == "--quiet" else []
    result = reporting.run(*command(reporting, usual()), options=options)
    assert (result.code, result.stderr) == (0, "")
    assert document(reporting)["progress"]["iterations"] == 900


def test_the_files_are_for_their_owner_and_follow_no_link(reporting: Launcher) -> None:
    victim = reporting.directory / "victim"
    victim.write_text("precious")
    mine = reporting.directory / "mine.json"
    mine.symlink_to(victim)
    lay = f"import pathlib; path = pathlib.Path({str(reporting.run_dir)!r}, os.environ['TRAINVITALS_RUN_ID'] + '.report.json')\n"
    result = reporting.run(*command(reporting, usual(), then=f"{lay}path.symlink_to({str(victim)!r})"))
    (path,) = reporting.run_dir.glob("*.report.json")
    assert str(path) in result.stderr
    for options, written in (([], path), (["--report", str(mine)], mine)):
        if options:
            result = reporting.run(*command(reporting, usual()), options=options)
        assert result.code == 0
        assert stat.S_ISREG(written.lstat().st_mode)
        assert stat.S_IMODE(written.lstat().st_mode) == 0o600
        assert json.loads(written.read_text())["run"] == "train"
    assert victim.read_text() == "precious"
    assert [p.name for p in reporting.directory.glob(".*")] == []  # nothing is left of making them


def test_a_report_that_was_asked_for_is_written_of_any_command(reporting: Launcher) -> None:
    result = reporting.run("false", options=["--report", "report.json"])
    assert (result.code, result.stderr) == (1, "")
    told = json.loads((reporting.directory / "report.json").read_text())
    assert (told["ending"]["state"], told["ending"]["exit_code"], told["progress"]["ranks"]) == ("failed", 1, 0)


@pytest.mark.parametrize(
    ("file", "message"),
    [("nowhere/report.json", "there is no folder"), ("/dev/null", "no regular file"), (".", "no regular file")],
)
def test_a_file_that_cannot_be_written_is_told_before_the_run(reporting: Launcher, file: str, message: str) -> None:
    result = reporting.run("echo", "ran", options=["--report", file])
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_has_gone_meanwhile_is_one_line(reporting: Launcher) -> None:
    there = reporting.directory / "there"
    there.mkdir()
    result = reporting.run(
        *command(reporting, usual(), then=f"os.rmdir({str(there)!r}); sys.exit(4)"),
        options=["--report", str(there / "report.json")],
    )
    assert result.code == 4
    assert f"trainvitals: cannot write {there}/report.json: No such file or directory\n" in result.stderr
    assert "900 iterations" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("gone", ["files", "folder"])
def test_run_files_that_have_gone_meanwhile(reporting: Launcher, gone: str) -> None:
    then = f"import shutil; shutil.rmtree({str(reporting.run_dir)!r})\n"
    if gone == "files":
        then += f"os.mkdir({str(reporting.run_dir)!r}, 0o700)\n"
    result = reporting.run(*command(reporting, usual(), then=then + "sys.exit(5)"))
    assert (result.code, result.stderr) == (5, "")


def test_a_failure_of_ours_is_one_line(reporting: Launcher) -> None:
    result = reporting.run(*command(reporting, usual(iterations_total=float("inf")), then="sys.exit(6)"))
    assert result.code == 6
    assert result.stderr.startswith("\ntrainvitals: no report of this run: ")
    assert result.stderr.count("\n") == 2


def test_numbers_that_json_has_no_word_for(reporting: Launcher) -> None:
    result = reporting.run(*command(reporting, (0, {**USUAL, "loss optimizer=0": float("nan")}, ["finished"])))
    assert "last loss  nan (AdamW" in result.stderr
    assert document(reporting)["optimizers"][0]["loss"] == "NaN"


def test_ranks_that_were_killed_are_named(reporting: Launcher) -> None:
    ranks = [usual(0), usual(1, "killed"), usual(2), usual(3, "killed")]
    result = reporting.run(*command(reporting, *ranks, then="sys.exit(1)"))
    assert "ended without a word, as when killed: ranks 1, 3" in " ".join(result.stderr.split())
    assert document(reporting)["ending"]["silent_ranks"] == [1, 3]


def test_a_command_that_is_killed(reporting: Launcher) -> None:
    result = reporting.run(*command(reporting, usual(), then="os.kill(os.getpid(), signal.SIGKILL)"))
    assert result.code == -signal.SIGKILL
    assert "run train was ended by SIGKILL after" in result.stderr
    assert document(reporting)["ending"]["exit_code"] == 137


def test_impatient_ctrl_c(reporting: Launcher) -> None:
    """The command takes the first one to tidy up. Those that come while we report change nothing."""
    wait = "import time\nprint('begins', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(9)\n"
    process = reporting.popen(*command(reporting, usual(), then=wait))
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr.partition("trainvitals: ")[2]
    assert "run train was ended by SIGINT after" in stderr
    assert document(reporting)["ending"]["signal"] == "SIGINT"


@pytest.mark.parametrize("how", ["closed", "broken pipe", "never read"])
def test_a_stderr_that_takes_nothing(reporting: Launcher, how: str) -> None:
    arguments = [PYTHON, "-m", "trainvitals.cli", "run", "--", *command(reporting, usual(), then="sys.exit(7)")]
    read, write = os.pipe()
    if how == "closed":
        ended = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments], env=reporting.environment, check=False)
    else:
        if how == "broken pipe":
            os.close(read)
        else:  # as full as it can be: a writer would wait for ever
            os.set_blocking(write, False)
            while True:
                try:
                    os.write(write, b"x" * 4096)
                except BlockingIOError:
                    break
            os.set_blocking(write, True)
        ended = subprocess.run(arguments, env=reporting.environment, stderr=write, check=False, timeout=120)
    assert ended.returncode == 7
    told = document(reporting)
    assert told["ending"]["exit_code"] == 7
    for file in rundir.read_all([reporting.run_dir]):  # the report was not written into one of them
        assert isinstance(file, runfile.RunFile), file


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_on_a_terminal(reporting: Launcher, no_color: str, coloured: bool) -> None:
    """It begins on a line of its own, behind a progress bar."""
    leader, follower = pty.openpty()
    bar = "sys.stderr.write('90%|#########  |'); sys.stderr.flush(); sys.exit(1)"
    arguments = [PYTHON, "-m", "trainvitals.cli", "run", "--", *command(reporting, usual(), then=bar)]
    environment = {**reporting.environment, "NO_COLOR": no_color, "TERM": "xterm"}
    with subprocess.Popen(arguments, env=environment, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # all of it was read, and nobody has the terminal open
                break
            if not chunk:
                break
            shown += chunk
    text = shown.decode().replace("\r\n", "\n")
    assert ("\033[" in text) == coloured
    plain = re.sub(r"\033\[\d+m", "", text)
    assert plain.startswith("90%|#########  |\ntrainvitals: run train failed after ")
    assert process.returncode == 1


def test_names_that_would_command_a_terminal(reporting: Launcher) -> None:
    odd = usual(end=("failed", "", "Evil\033[2JError"))
    result = reporting.run(*command(reporting, odd, then="sys.exit(1)"))
    assert "(Evil?[2JError)" in result.stderr
    assert "\033" not in result.stderr


def test_one_of_us_for_each_rank_of_torchrun(reporting: Launcher) -> None:
    """torchrun --no-python trainvitals run -- python train.py: one report a machine, and a file of each."""
    file = reporting.directory / "report.json"
    for local_rank in ("0", "1"):
        reporting.environment["LOCAL_RANK"] = local_rank
        result = reporting.run(*command(reporting, usual(int(local_rank))), options=["--report", str(file)])
        assert ("900 iterations" in result.stderr) == (local_rank == "0")
    assert document(reporting)["progress"]["ranks"] == 1  # of rank 1; that of rank 0 was asked for elsewhere
    assert file.exists()


def test_ranks_on_other_machines_are_not_counted_as_seen(reporting: Launcher) -> None:
    result = reporting.run(*command(reporting, *(usual(number, world_size=16.0) for number in range(2))))
    assert "2 of 16 ranks seen here" in result.stderr


def test_machines_with_one_disk_do_not_replace_each_others_report(reporting: Launcher) -> None:
    file = reporting.directory / "report.json"
    for first, iterations in ((0, 900), (2, 700)):
        ranks = [usual(number, iterations_total=iterations) for number in (first, first + 1)]
        reporting.run(*command(reporting, *ranks), options=["--report", str(file)])
    written = {path.name: json.loads(path.read_text()) for path in file.parent.glob("report*")}
    assert {name: told["progress"]["iterations"] for name, told in written.items()} == {
        "report.json": 900,
        "report.rank2.json": 700,
    }


def test_reports_are_removed_a_day_later(reporting: Launcher) -> None:
    reporting.run(*command(reporting, usual()))
    (old,) = reporting.run_dir.glob("*.report.json")
    os.utime(old, (0, 0))
    reporting.run("true")
    assert not old.exists()


# ---- what is said of the numbers, without a process


def ranks_of(folder: Path, *values: Mapping[str, float], end: End | None = None) -> Ranks:
    """What is read of ranks that wrote these values, and ended well."""
    for number, given in enumerate(values):
        writer = RunFileWriter(folder, Identity("id", "run", "rank"))
        writer.set_rank(number)
        for series, value in {**USUAL, **given}.items():
            name, *labels = series.split()
            writer.set(f"trainvitals_{name}", value, **dict(label.split("=") for label in labels))
        endings.record(writer, end or End("finished"))
        writer.close()
    return Ranks(file for file in rundir.read_all([folder]) if isinstance(file, runfile.RunFile))


def facts_of(ranks: Ranks, state: str = "finished") -> Facts:
    return gather(
        ranks, run_id="id", run="run", labels=(), end=End(state), exit_code=0, started=1e9, seconds=100.0, host_bytes=2**30
    )  # fmt: skip


def test_shares_are_of_all_ranks_and_times_are_their_mean(tmp_path: Path) -> None:
    slow = {"phase_seconds_total phase=data_wait": 29.0, "iterations_total": 800.0}
    facts = facts_of(ranks_of(tmp_path, {}, slow))
    phases = {phase.phase: (phase.seconds, phase.share) for phase in facts.phases}
    assert phases["data_wait"] == (19.0, 38 / 200)
    assert phases["forward"] == (30.0, 60 / 200)
    assert (facts.training_seconds, facts.outside_training_seconds) == (100.0, 0.0)
    assert (facts.progress.iterations, facts.progress.iterations_per_second) == (900, 10.0)


def test_a_rank_that_was_started_again_is_one_rank(tmp_path: Path) -> None:
    for number in (1.0, 2.0):
        ranks = ranks_of(tmp_path, {"loss optimizer=0": number})
    facts = facts_of(ranks)
    assert (facts.progress.ranks, facts.progress.iterations) == (1, 1800)
    assert facts.training_seconds == 180.0


def test_anomalies_are_those_of_the_rank_that_saw_most(tmp_path: Path) -> None:
    name = "gradient_anomalies_total kind=explosion optimizer=0"
    facts = facts_of(ranks_of(tmp_path, {name: 5.0}, {name: 7.0}, {}))
    assert [(each.kind, each.steps) for each in facts.anomalies] == [("explosion", 7)]


def test_many_ranks_stay_one_screen(tmp_path: Path) -> None:
    gpu = {"cuda_memory_reserved_bytes device=0": 9.0, "cuda_memory_peak_bytes device=0": 8.0}
    ranks = ranks_of(tmp_path, *({**gpu, "world_size": 64.0} for _ in range(64)))
    text = render(facts_of(ranks), [], ["here"], width=80, colour=False)
    assert "64 ranks" in text
    assert len(text.splitlines()) <= 24


SETTLED_GPU = {
    "run_gpu_info uuid=GPU-1": 1.0, "cuda_memory_total_bytes device=0": 100.0, "cuda_memory_peak_bytes device=0": 70.0,
    "cuda_memory_reserved_bytes device=0": 75.0, "amp_enabled dtype=bfloat16": 0.0, "gradient_checkpointing_enabled": 0.0,
    "dataloader_workers": 0.0, "dataloader_pin_memory": 0.0, "dataloader_batch_size": 8.0,
}  # fmt: skip
FULL = {"cuda_memory_reserved_bytes device=0": 95.0}
WAITS = {"phase_seconds_total phase=data_wait": 90.0}
SAVES = {"checkpoint_seconds_total": 20.0, "checkpoint_saves_total": 5.0, "checkpoint_last_interval_iterations": 100.0}
UNUSED = {"ddp_find_unused_parameters": 1.0, "ddp_unused_parameter_bytes": 0.0, "iterations_total": 1001.0}


@pytest.mark.parametrize(
    ("values", "alerts"),
    [
        ({}, []),
        ({"phase_seconds_total phase=data_wait": 10.0}, ["Workers"]),
        ({**WAITS, "dataloader_workers": 2.0}, ["TrainingDataStarved"]),
        ({"phase_seconds_total phase=data_wait": 30.0, "dataloader_workers": 2.0}, []),
        ({"phase_seconds_total phase=transfer": 5.0}, ["PinMemory"]),
        ({"phase_seconds_total phase=transfer": 5.0, "dataloader_pin_memory": 1.0}, []),
        (FULL, ["Amp"]),
        ({**FULL, "amp_enabled dtype=bfloat16": 1.0}, ["GradientCheckpointing"]),
        ({**FULL, "amp_enabled dtype=bfloat16": 1.0, "gradient_checkpointing_enabled": 1.0}, []),
        ({**FULL, "dataloader_batch_size": 1.0}, ["Amp", "GradientCheckpointing"]),
        ({"cuda_memory_reserved_bytes device=0": 40.0, "cuda_memory_peak_bytes device=0": 30.0}, ["BatchSize"]),
        ({"cuda_memory_reserved_bytes device=0": 40.0, "cuda_memory_peak_bytes device=0": 30.0, **WAITS}, ["Workers"]),
        (SAVES, ["TrainingCheckpointsTooFrequent"]),
        ({**SAVES, "checkpoint_saves_total": 2.0}, []),
        ({**SAVES, "checkpoint_last_interval_iterations": 500.0}, []),
        (UNUSED, ["FindUnusedParameters"]),
        ({**UNUSED, "ddp_unused_parameter_bytes": 4.0}, []),
        # the most valuable first, three at most
        ({**WAITS, "phase_seconds_total phase=transfer": 40.0, **FULL, **UNUSED}, ["Amp", "Workers", "PinMemory"]),
    ],
)
def test_advice(tmp_path: Path, values: Mapping[str, float], alerts: list[str]) -> None:
    ranks = ranks_of(tmp_path, {**SETTLED_GPU, **values})
    found = [each.alert.removeprefix("TrainingAdvice") for each in advice(facts_of(ranks), ranks)]
    assert found == alerts


def test_no_advice_on_a_run_that_has_hardly_begun_but_on_memory_that_did_not_suffice(tmp_path: Path) -> None:
    short = {f"phase_seconds_total phase={phase}": 1.0 for phase in ("data_wait", "forward", "backward", "optimizer")}
    ranks = ranks_of(tmp_path, {**SETTLED_GPU, **short, "cuda_ooms_total device=0": 1.0})
    assert [each.alert for each in advice(facts_of(ranks), ranks)] == ["TrainingAdviceAmp"]


def test_the_advice_goes_by_the_numbers_of_the_alerts() -> None:
    settings = yaml.safe_load((REPOSITORY / "prometheus" / "rules" / "settings.yml").read_text())
    rules = {rule["record"]: rule["expr"] for group in settings["groups"] for rule in group["rules"]}
    for name, value in THRESHOLDS.items():
        assert rules[f"threshold:trainvitals_{name}"] == f"vector({value})"


def test_advice_is_that_of_alerts_with_runbooks() -> None:
    source = Path(report_advice.__file__).read_text()
    named = set(re.findall(r'"(Training[A-Za-z]+)"', source))
    assert len(named) == 8
    for alert in named:
        assert (REPOSITORY / "docs" / "runbooks" / f"{alert}.md").exists()


def test_the_page_tells_every_field() -> None:
    page = (REPOSITORY / "docs" / "report.md").read_text(encoding="utf-8")
    fields = set(Facts.__dataclass_fields__) | {"schema", "version", "written_by", "advice"}
    assert {field for field in fields if f"`{field}`" not in page} == set()
    assert report.QUIET in page
