"""Training comes first: with trainvitals attached, nothing that a training makes is different by a bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests.conftest import Launcher

PYTHON = sys.executable
HERE = Path(__file__).parent
TRAINER = HERE.parent.parent / "examples" / "voice_clone" / "train.py"

WORKOUT = (
    f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
import workout
if __name__ == "__main__":
    folder = Path(sys.argv[1]); folder.mkdir()
"""
    + """
    if sys.argv[2] == "ranks":
        workout.train_ranks(folder)
        print(json.dumps([json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]))
    else:
        print(json.dumps(workout.train(folder, workers=int(sys.argv[2]))))
"""
)


def trained(launcher: Launcher, *arguments: str) -> Any:
    """What the workout makes without trainvitals; and with it, which has to be the same."""
    script = str(launcher.script(WORKOUT))
    bare = subprocess.run(
        [PYTHON, script, str(launcher.directory / "bare"), *arguments], capture_output=True, text=True, check=True
    )
    attached = launcher.run(PYTHON, script, str(launcher.directory / "attached"), *arguments)
    assert (attached.code, attached.stderr.replace(bare.stderr, "")) == (0, "")
    assert json.loads(attached.stdout) == json.loads(bare.stdout)
    return attached


def test_a_gan_with_everything(launcher: Launcher) -> None:
    """And with two workers; without any, it is what test_faults.py does dozens of times."""
    rank = trained(launcher, "2").rank
    assert rank.value("trainvitals_iterations_total") == 20
    assert [rank.value("trainvitals_optimizer_steps_total", optimizer=label) for label in "012"] == [20, 20, 9]
    assert not [s for s in rank.samples if s.name == "trainvitals_hook_errors_total"]


def test_two_ranks(launcher: Launcher) -> None:
    ranks = trained(launcher, "ranks").ranks
    assert [rank.value("trainvitals_iterations_total") for rank in ranks] == [10, 10]
    assert [rank.value("trainvitals_optimizer_steps_total", optimizer="0") for rank in ranks] == [4, 4]


# Seeds what the examples do not; at the end of a process that trains, tells its random states and its checkpoints.
SITECUSTOMIZE = f"""
import json, multiprocessing, multiprocessing.util, os, random, sys
from pathlib import Path
import numpy
random.seed(1); numpy.random.seed(1)
output = Path(os.environ["OUTPUT"])
def tell():
    if "torch" not in sys.modules: return
    sys.path.insert(0, {str(HERE)!r})
    import torch, workout
    about = workout.random_states()
    for path in output.glob("*/checkpoints/*"):
        assert b"trainvitals" not in path.read_bytes()
        about[path.name] = workout.digest(torch.load(path))
    (output / f"{{'rank' if multiprocessing.parent_process() else 'main'}}.json").write_text(json.dumps(about))
if "resource_tracker" not in str(sys.orig_argv): multiprocessing.util.Finalize(None, tell, exitpriority=0)
"""


def left(output: Path) -> dict[str, Any]:
    """What an example's training leaves: all that it logged, and what SITECUSTOMIZE told."""
    made = {path.name: json.loads(path.read_text()) for path in output.glob("*.json")}
    (folder,) = output.glob("*/tensorboard")
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    made["scalars"] = {
        tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    return made


@pytest.mark.parametrize(
    ("stage", "trains"), [("s1", "main.json"), pytest.param("s2", "rank.json", marks=pytest.mark.slow)]
)
def test_the_example_s_stages(launcher: Launcher, stage: str, trains: str) -> None:
    """Both make the same losses, gradient norms and learning rates at every iteration, and the same checkpoints."""
    launcher.script(SITECUSTOMIZE, "sitecustomize.py")
    launcher.environment["PYTHONPATH"] = str(launcher.directory)
    options = f"--stage {stage} --device cpu --threads 1 --log-every 1 --batch-size 2 --workers 2 --steps 8".split()
    bare, attached = launcher.directory / "bare", launcher.directory / "attached"
    for output in (bare, attached):
        output.mkdir(exist_ok=True)
        launcher.environment["OUTPUT"] = str(output)
        command = [PYTHON, "-s", str(TRAINER), *options, "--output", str(output)]
        if output is bare:
            subprocess.run(command, env=launcher.environment, capture_output=True, check=True)
            attached.mkdir()
            (attached / "data").symlink_to(bare / "data")
        else:
            result = launcher.run(*command)
            assert (result.code, result.stderr) == (0, "")
            assert result.rank.value("trainvitals_iterations_total") == 8
    made, expected = left(attached), left(bare)
    assert made["scalars"] == expected["scalars"]
    assert 8 in map(len, expected["scalars"].values())
    assert made[trains] == expected[trains]
    assert "epoch-0001.pt" in expected[trains]
