"""``trainvitals.attach()``: the same from code, without a launcher."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import Launcher, run_files, state_of

TRAIN = """
import sys, torch, trainvitals
from torch.utils.data import DataLoader, TensorDataset
def train(steps=8):
    model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in DataLoader(TensorDataset(torch.randn(steps, 4), torch.randn(steps, 1))):
        optimizer.zero_grad(); ((model(x) - y) ** 2).mean().backward(); optimizer.step()
"""


def python(launcher: Launcher, text: str, *, code: int = 0) -> str:
    command = [sys.executable, str(launcher.script(TRAIN + text))]
    result = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result.stderr


def test_attach_records_and_names_the_run(launcher: Launcher) -> None:
    stderr = python(
        launcher,
        """
trainvitals.attach('night'); trainvitals.log(before=0.9, mos=1.0, wrong='x')
train(); trainvitals.log(mos=3.5, wrong=None, other=[1])
assert {"attach", "detach", "log"} <= set(dir(trainvitals))
""",
    )
    assert stderr.splitlines() == [
        "trainvitals: log(wrong=...) is given a str that is no number; it is left out",
        "trainvitals: log(other=...) is given a list that is no number; it is left out",
    ]
    (file,) = run_files(launcher.run_dir)
    assert (file.identity.run, file.identity.kind, state_of(file)) == ("night", "rank", "finished")
    assert file.value("trainvitals_iterations_total") == 8
    assert {dict(s.labels)["tag"]: s.value for s in file.samples if s.name == "trainvitals_scalar"} == {
        "before": 0.9,
        "mos": 3.5,
    }
    assert file.value("trainvitals_world_size") == 1


def test_attach_before_torch_is_imported(launcher: Launcher) -> None:
    text = "import sys, trainvitals\ntrainvitals.attach()\nassert 'torch' not in sys.modules\n" + TRAIN + "train()"
    subprocess.run([sys.executable, str(launcher.script(text))], env=launcher.environment, check=True)
    (file,) = run_files(launcher.run_dir)
    assert (file.identity.run, file.value("trainvitals_iterations_total")) == ("train", 8)


def test_an_exception_after_attach_is_noted(launcher: Launcher) -> None:
    python(launcher, "trainvitals.attach(); train(); raise ValueError('odd')", code=1)
    (file,) = run_files(launcher.run_dir)
    assert state_of(file) == "failed"
    assert file.value("trainvitals_run_end_info", signal="", exception="ValueError") == 1


def test_processes_that_attach_too_join_the_run(launcher: Launcher) -> None:
    python(
        launcher,
        """
import torch.distributed as dist, torch.multiprocessing as mp
def rank(number, world):
    trainvitals.attach()
    dist.init_process_group("gloo", init_method="file://" + __file__ + ".init", rank=number, world_size=world)
    train()
if __name__ == "__main__":
    trainvitals.attach("pair"); mp.spawn(rank, args=(2,), nprocs=2)
""",
    )
    files = run_files(launcher.run_dir)
    assert sorted(file.rank for file in files) == [0, 1]
    assert {file.identity.run for file in files} == {"pair"}
    assert len({file.identity.run_id for file in files}) == 1


def test_nothing_is_recorded_after_detach(launcher: Launcher) -> None:
    python(launcher, "trainvitals.attach(); train(3); trainvitals.detach(); train(50)")
    (file,) = run_files(launcher.run_dir)
    assert (file.value("trainvitals_iterations_total"), state_of(file)) == (3, "finished")


def test_an_unusable_run_directory_is_one_line_and_training_goes_on(launcher: Launcher) -> None:
    launcher.run_dir.touch()
    stderr = python(launcher, "trainvitals.attach(); train(); print('trained')")
    assert stderr.startswith("trainvitals: this process is not being recorded: ")
    assert stderr.count("\n") == 1


def test_detach_attach_and_log_without_anything_attached(launcher: Launcher) -> None:
    python(launcher, "trainvitals.detach(); trainvitals.log(x=1); train()")
    assert run_files(launcher.run_dir) == []


def test_ranks_of_torchrun_that_attach_by_themselves_are_one_run(launcher: Launcher) -> None:
    script = launcher.script(TRAIN + "trainvitals.attach(); train()")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    subprocess.run(command, env=launcher.environment, capture_output=True, check=True)
    files = run_files(launcher.run_dir)
    assert sorted(file.rank for file in files) == [0, 1]
    assert len({file.identity.run_id for file in files}) == 1
