"""The example trainer from outside: what a healthy training leaves behind, and the sign of every fault.

Most of a short training is one core importing torch, so the trainings that the collected tests need run two at a time.
"""

from __future__ import annotations

import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests.conftest import wait_until

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "voice_clone" / "train.py"
# A copy: pytest changes the environment around every test, and a process started from another thread just then would
# be given freed memory.
ENVIRONMENT = dict(os.environ)
SMALL = "--device cpu --threads 1 --log-every 1 --batch-size 2 --workers 0"

# The trainings by name; the first word is the stage. They may overrule SMALL, which comes before them.
TRAININGS = {
    "s2": "--steps 20 --workers 2",
    "s1": "--steps 20 --workers 2",
    "s2 again": "--steps 20",
    "s1 again": "--steps 20",
    "s2 two ranks": "--steps 3 --world-size 2",
    "s2 grad-explosion": "--fault grad-explosion --steps 75 --fault-after 12",
    "s1 grad-explosion": "--fault grad-explosion --steps 75 --fault-after 12",
    "s2 vanishing": "--fault vanishing --steps 64 --fault-after 12",
    "s1 vanishing": "--fault vanishing --steps 64 --fault-after 12",
    "s2 nan": "--fault nan --steps 20 --fault-after 10",
    "s1 nan": "--fault nan --steps 20 --fault-after 10",
    "s2 loss-spike": "--fault loss-spike --steps 54 --fault-after 10",
    "s1 loss-spike": "--fault loss-spike --steps 54 --fault-after 10",
    "s2 kl-negative": "--fault kl-negative --steps 30 --fault-after 10",
    "s2 crash": "--fault crash --steps 20 --fault-after 5",
    "s1 crash": "--fault crash --steps 20 --fault-after 5",
    "s2 host-leak": "--fault host-leak --steps 50 --fault-after 5 --leak-limit-mb 32",
    "s1 host-leak": "--fault host-leak --steps 50 --fault-after 5 --leak-limit-mb 32",
    "s2 slow-loader": "--fault slow-loader --steps 16 --fault-after 8 --workers 2 --batch-size 4",
    "s1 slow-loader": "--fault slow-loader --steps 16 --fault-after 8 --workers 2 --batch-size 4",
    "s2 single-core": "--fault single-core --steps 16 --fault-after 8 --workers 2 --batch-size 8",
    "s1 single-core": "--fault single-core --steps 16 --fault-after 8 --workers 2 --batch-size 8",
}
LOSS = {"s2": "loss/g/total", "s1": "total_loss_step"}
GRADIENT_NORM = {"s2": "grad_norm_g", "s1": "grad_norm"}

# A DataLoader does not wait for its queues' threads. One that is cut off as a rank ends may have unlinked its semaphore
# and not yet told Python's resource tracker, which then warns of a leak that is none: there is nothing left to unlink.
NO_LEAK = re.compile(
    r"\S+resource_tracker\.py:\d+: UserWarning: resource_tracker: There appear to be 1 leaked semaphore .*\n.*\n"
    r"\S+resource_tracker\.py:\d+: UserWarning: resource_tracker: '/mp-\w+': \[Errno 2\] .*\n.*\n"
)


@dataclass
class Training:
    stage: str
    output: Path
    process: subprocess.Popen[str]
    stdout: str = ""
    stderr: str = ""
    peak_rss: int = 0  # of its largest process
    loaders: int = 0  # most loader processes seen at once
    loader_read: int = 0  # bytes, the most that one of them read
    cpu: list[tuple[float, float]] = field(default_factory=list)  # its rank's seconds of CPU time, at a wall time

    @property
    def iterations(self) -> int:
        return self.stdout.count(" iteration ")

    @property
    def last_line(self) -> str:
        return self.stdout.splitlines()[-1]

    def events(self, tag: str) -> list[tuple[float, int, float]]:
        """Wall time, iteration, value."""
        folder = str(self.output / self.stage / "tensorboard")
        written = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
        return [(event.wall_time, event.step, event.value) for event in written.Scalars(tag)]

    def split(self, tag: str, after: int) -> tuple[list[float], list[float]]:
        """Values up to the iteration after which the fault starts, and from there on."""
        events = self.events(tag)
        return [v for _, i, v in events if i <= after], [v for _, i, v in events if i > after]

    def times(self) -> list[float]:
        """When each iteration was over."""
        return [when for when, _, _ in self.events(LOSS[self.stage])]

    def cpu_seconds(self, after: int) -> tuple[float, float]:
        """What an iteration takes of the rank's core, before the fault and with it: so the machine's load is left out.

        The first ones after the fault's start do not count: the loader may have been ahead by that many.
        """
        seen_at, spent = zip(*self.cpu, strict=True)
        iterations = np.diff(np.interp(self.times(), seen_at, spent)).tolist()
        return statistics.fmean(iterations[: after - 1]), statistics.fmean(iterations[after + 3 :])


def start(name: str, output: Path, arguments: str) -> Training:
    stage = name.split()[0]
    command = [sys.executable, "-s", str(TRAIN), "--stage", stage, "--output", str(output)]
    command += [*SMALL.split(), *arguments.split()]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=os.sep, env=ENVIRONMENT)
    return Training(stage, output, process)


def run(name: str, output: Path) -> Training:
    """Start it, look at its processes while it runs, and wait for its end."""
    training = start(name, output, TRAININGS[name])
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(training.process.communicate)
        while not ended.done():
            look_at(training)
            time.sleep(0.2)
    training.stdout, training.stderr = ended.result()
    return training


def look_at(training: Training) -> None:
    try:
        rank = rank_of(training)
        loaders = [child for child in rank.children() if "resource_tracker" not in " ".join(child.cmdline())]
        spent = rank.cpu_times()
        training.cpu.append((time.time(), spent.user + spent.system))
        training.peak_rss = max(training.peak_rss, rank.memory_info().rss)
        training.loaders = max(training.loaders, len(loaders))
        training.loader_read = max([training.loader_read, *(child.io_counters().read_chars for child in loaders)])
    except psutil.Error:
        pass  # it has ended in between


def rank_of(training: Training) -> psutil.Process:
    """The process that trains. In s2 that is what the main process started last; before it, a resource tracker."""
    main = psutil.Process(training.process.pid)
    return main if training.stage == "s1" else max([main, *main.children()], key=lambda process: process.pid)


@pytest.fixture(scope="module")
def trainings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Training]]]:
    """All that the collected tests need, under way. The two healthy ones come first and share one folder, so that
    each finds the other making the corpus; the rest borrow it."""
    folder = tmp_path_factory.mktemp("trainings")
    collected = [getattr(item, "callspec", None) for item in request.session.items]
    needed = {spec.params["training"] for spec in collected if spec and spec.params.get("training") in TRAININGS}
    with ThreadPoolExecutor(2) as pool:
        under_way = {name: pool.submit(run, name, folder / "shared") for name in ("s2", "s1")}
        for training in under_way.values():
            training.result()
        for name in [name for name in TRAININGS if name in needed - {"s1", "s2"}]:
            output = folder / name.replace(" ", "-")
            output.mkdir()
            (output / "data").symlink_to(folder / "shared" / "data")
            under_way[name] = pool.submit(run, name, output)
        yield under_way


@pytest.fixture
def training(request: pytest.FixtureRequest, trainings: dict[str, Future[Training]]) -> Training:
    return trainings[request.param].result()


@pytest.fixture
def healthy(training: Training, trainings: dict[str, Future[Training]]) -> Training:
    """The healthy training of the same stage."""
    return trainings[training.stage].result()


def of(*names: str, slow: str | None = None) -> pytest.MarkDecorator:
    """The trainings that a test looks at. A fault's second stage is for the slow tests: the bug is the same, and the
    seam it enters by is tested in either stage by another fault."""
    cases = [pytest.param(name) for name in names]
    if slow:
        cases.append(pytest.param(slow, marks=pytest.mark.slow))
    return pytest.mark.parametrize("training", cases, indirect=True)


# ---- healthy trainings


@of("s2", "s1")
def test_a_healthy_training_ends_well_and_leaves_a_checkpoint(training: Training) -> None:
    assert training.process.returncode == 0, training.stderr
    assert NO_LEAK.sub("", training.stderr) == ""
    assert training.last_line.startswith("finished after 20 iterations: ")
    assert [path.name for path in (training.output / training.stage / "checkpoints").iterdir()] == ["epoch-0001.pt"]
    assert training.loaders == 2


@of("s2")
def test_s2_logs_what_gpt_sovits_logs(training: Training) -> None:
    losses = ["loss/g/total", "loss/d/total", "loss/g/fm", "loss/g/mel", "loss/g/kl"]
    for tag in [*losses, "learning_rate", "grad_norm_d", "grad_norm_g"]:
        values = [value for _, _, value in training.events(tag)]
        assert len(values) == 20
        assert all(0 < value < 1000 for value in values), tag
    assert len(training.events("eval/mel")) == 1


@of("s1")
def test_s1_steps_its_optimizer_every_fourth_batch(training: Training) -> None:
    rates = [value for _, _, value in training.events("lr_step")]
    assert [iteration for _, iteration, _ in training.events("total_loss_step")] == list(range(1, 21))
    assert len(rates) == 17  # none before the first step
    assert len(set(rates)) == 5
    assert len(training.events("eval/loss")) == 1


@of("s2", "s1")
def test_training_learns(training: Training) -> None:
    early, late = training.split(LOSS[training.stage], after=10)
    assert statistics.mean(late) < statistics.mean(early)


@of("s2 again", "s1 again")
def test_the_same_seed_gives_the_same_losses_with_loaders_or_without(training: Training, healthy: Training) -> None:
    assert healthy.loaders == 2
    assert training.loaders == 0
    assert training.last_line == healthy.last_line


@of(slow="s2 two ranks")
def test_two_ranks_train_together(training: Training) -> None:
    assert training.process.returncode == 0, training.stderr
    assert training.iterations == 3


def test_only_the_last_three_checkpoints_stay(tmp_path: Path, trainings: dict[str, Future[Training]]) -> None:
    checkpoints = tmp_path / "s1" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for epoch in range(1, 6):
        (checkpoints / f"epoch-{epoch:04d}.pt").touch()
        os.utime(checkpoints / f"epoch-{epoch:04d}.pt", (epoch, epoch))
    (tmp_path / "data").symlink_to(trainings["s1"].result().output / "data")
    start("s1", tmp_path, "--steps 1").process.communicate()
    assert {path.name for path in checkpoints.iterdir()} == {"epoch-0001.pt", "epoch-0004.pt", "epoch-0005.pt"}


# ---- faults of the training maths


@of("s2 grad-explosion", slow="s1 grad-explosion")
def test_gradients_explode_and_stay_finite(training: Training) -> None:
    before, after = training.split(GRADIENT_NORM[training.stage], after=12)
    assert all(math.isfinite(norm) for norm in after)
    assert min(after[-10:]) > 100 * statistics.median(before)


@of("s1 vanishing", slow="s2 vanishing")
def test_gradients_vanish_under_a_loss_that_stays(training: Training) -> None:
    before, after = training.split(GRADIENT_NORM[training.stage], after=12)
    assert min(before) > 1e-3
    assert max(after[-4:]) < 1e-7
    assert min(training.split(LOSS[training.stage], after=12)[1]) > 0.01


@of("s1 nan", slow="s2 nan")
def test_the_loss_becomes_nan_and_stays(training: Training) -> None:
    before, after = training.split(LOSS[training.stage], after=10)
    assert all(math.isfinite(loss) for loss in before)
    assert len(after) == 10
    assert all(math.isnan(loss) for loss in after)
    assert training.process.returncode == 0


@of("s2 loss-spike", slow="s1 loss-spike")
def test_single_batches_spike_and_training_goes_on(training: Training) -> None:
    losses = training.events(LOSS[training.stage])
    usual = statistics.median(loss for _, _, loss in losses)
    assert [iteration for _, iteration, loss in losses if loss > 1000 * usual] == [11, 51]
    assert sum(0 < loss < 5 * usual for _, _, loss in losses) == len(losses) - 2


@of("s2 kl-negative")
def test_kl_turns_negative_and_stays(training: Training) -> None:
    before, after = training.split("loss/g/kl", after=10)
    assert min(before) > 0
    assert len(after) == 20
    assert max(after) < 0


# ---- faults of the data and of the process


@of("s2 crash", "s1 crash")
def test_a_crash_ends_the_training_with_its_exception(training: Training) -> None:
    assert training.process.returncode == 1
    assert training.iterations == 5
    assert "IndexError: index out of range" in training.stderr


@of("s1 host-leak", slow="s2 host-leak")
def test_host_memory_leaks_up_to_the_limit(training: Training, healthy: Training) -> None:
    assert training.process.returncode == 0
    assert 24 < (training.peak_rss - healthy.peak_rss) / 2**20 < 100


@of("s2 slow-loader", slow="s1 slow-loader")
def test_a_slow_loader_makes_training_wait(training: Training, healthy: Training) -> None:
    assert training.loaders == 1
    assert training.loader_read - healthy.loader_read > 15e6
    # However fast the machine, the one loader seeks for 8 x 15 ms for each of a batch's four recordings. When that
    # began, it may have been ahead by three batches.
    assert min(later - earlier for earlier, later in pairwise(training.times()[8 + 3 :])) > 0.4


@of("s1 single-core", slow="s2 single-core")
def test_preprocessing_in_the_main_process_takes_the_cpu_of_training(training: Training) -> None:
    assert training.loaders == 0
    before, after = training.cpu_seconds(after=8)
    assert after > 1.5 * before


@pytest.mark.parametrize("stage", ["s2", "s1"])
def test_a_hanging_rank_stands_still_and_can_be_terminated(
    stage: str, tmp_path: Path, trainings: dict[str, Future[Training]]
) -> None:
    (tmp_path / "data").symlink_to(trainings["s1"].result().output / "data")
    training = start(stage, tmp_path, "--fault hang --fault-after 3")
    try:
        assert training.process.stdout
        lines = iter(training.process.stdout)
        wait_until(lambda: " iteration 3:" in next(lines), "the last iteration before the fault")
        rank = rank_of(training)
        wait_until(lambda: stands_still(rank), "a rank that stands still")
    finally:
        training.process.terminate()
    rest, _ = training.process.communicate()
    assert " iteration " not in rest
    assert training.process.returncode == -signal.SIGTERM
    assert not psutil.wait_procs([rank], timeout=60)[1]


def stands_still(process: psutil.Process) -> bool:
    """No processor time and no switch between threads in a while that spans many iterations."""
    seen = process.cpu_times(), process.num_ctx_switches()
    time.sleep(1)
    return (process.cpu_times(), process.num_ctx_switches()) == seen


# ---- mistakes of the user


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "arguments are required: --stage"),
        ("--stage s3", "invalid choice: 's3'"),
        ("--stage s2 --epochs two", "'two' is not a whole number"),
        ("--stage s2 --batch-size 0", "0 is less than 1"),
        ("--stage s2 --fault gremlin", "invalid choice: 'gremlin'"),
        ("--stage s1 --fault kl-negative", "--fault kl-negative needs --stage s2"),
        ("--stage s1 --world-size 2", "--world-size is for stage s2"),
        ("--stage s2 --device cpu --fault cuda-leak", "--fault cuda-leak needs a CUDA device"),
        (f"--stage s2 --output {TRAIN}", "is not a folder"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments: str, complaint: str) -> None:
    ended = subprocess.run([sys.executable, TRAIN, *arguments.split()], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "folder"
    ended = subprocess.run(
        [sys.executable, TRAIN, "--stage", "s1", "--device", "cpu", "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "no training data" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("module", ["voice_clone.train", "train"])
def test_it_runs_as_a_module(module: str) -> None:
    folder = TRAIN.parent.parent if "." in module else TRAIN.parent
    command = [sys.executable, "-m", module, "--stage", "s1", "--steps", "-1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert ended.stderr.startswith("train.py: error: argument --steps: -1 is less than 0")
