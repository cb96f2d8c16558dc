"""Each option has the same effect as a flag, as a variable, and in attach(); and a bad one is said to be bad."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainvitals import instruments, options
from trainvitals.options import OPTIONS, Options
from trainvitals.runfile import RunFile

from tests.conftest import Launcher, run_files

TRAIN = """
import os, sys, torch, trainvitals
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter
def train():
    model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    writer = SummaryWriter(os.path.dirname(__file__) + "/events")
    for x, y in DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 1))):
        optimizer.zero_grad(); ((model(x) - y) ** 2).mean().backward(); optimizer.step()
        writer.add_scalar("tag", 1.0)
"""
LABELS = {"team": "voice", "try": "7 of 8"}
TOLD = Options("night", tuple(LABELS.items()), 0.25, frozenset({"tensorboard", "garbage_collection"}))


def labels(file: RunFile) -> dict[str, str]:
    told = [dict(s.labels) for s in file.samples if s.name == "trainvitals_run_label_info"]
    return {labels["label"]: labels["value"] for labels in told}


def as_told(rank: RunFile) -> bool:
    """Whether this rank goes by TOLD in everything."""
    return (
        rank.identity.run == "night"
        and labels(rank) == LABELS
        and rank.value("trainvitals_hook_share_limit_ratio") == 0.25
        and rank.value("trainvitals_scalar", tag="tag") is None
        and rank.value("trainvitals_gc_pause_seconds_total") is None
        and rank.value("trainvitals_iterations_total") == 8
    )


def flags(told: Options) -> list[str]:
    named = [f"--label={name}={value}" for name, value in told.labels]
    return ["--name", str(told.name), *named, f"--overhead={told.overhead}", f"--off={','.join(told.off)}"]


def test_flags_reach_every_rank(launcher: Launcher, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    script = launcher.script(TRAIN + "train()")
    launcher.environment["TRAINVITALS_OVERHEAD"] = "0.5"  # a flag counts more
    result = launcher.run(sys.executable, str(script), options=[*flags(TOLD), "--run-dir", str(elsewhere)])
    assert result.code == 0, result.stderr
    assert result.files == []
    files = {file.identity.kind: file for file in run_files(elsewhere)}
    assert labels(files["launcher"]) == LABELS
    assert as_told(files["rank"])


def test_variables_do_the_same(launcher: Launcher) -> None:
    launcher.environment.update(TOLD.to_environment(), TRAINVITALS_RUN_DIR=str(launcher.run_dir))
    result = launcher.python(TRAIN + "train()")
    assert result.launcher.identity.run == "night"
    assert labels(result.launcher) == LABELS
    assert as_told(result.rank)


def test_attach_does_the_same_and_its_children_inherit(launcher: Launcher, tmp_path: Path) -> None:
    text = """
import torch.multiprocessing as mp
def child(number): trainvitals.attach("another name"); train()
if __name__ == "__main__":
    def told(): return {name: text for name, text in os.environ.items() if name.startswith("TRAINVITALS")}
    before = told()
    options = dict(labels={"team": "voice", "try": "7 of 8"}, overhead=0.25, off=["tensorboard", "garbage_collection"])
    trainvitals.attach("night", **options, run_dir=sys.argv[1]); train()
    mp.spawn(child, nprocs=1)
    trainvitals.detach()
    assert told() == before
"""
    command = [sys.executable, str(launcher.script(TRAIN + text)), str(tmp_path / "elsewhere")]
    subprocess.run(command, env=launcher.environment, check=True)
    files = run_files(tmp_path / "elsewhere")
    assert [as_told(file) for file in files] == [True, True]
    assert len({file.identity.run_id for file in files}) == 1


def test_a_run_inside_a_run_has_a_name_of_its_own(launcher: Launcher) -> None:
    inner = [sys.executable, "-m", "trainvitals.cli", "run", "--", sys.executable, "-c", ""]
    result = launcher.run(*inner, options=["--name", "outer", "--label", "team=voice"])
    names = sorted((file.identity.run, *labels(file).values()) for file in result.files)
    assert names[0] == ("outer", "voice")
    assert names[1][0].startswith("python")


BAD = {
    "name": [" ", "a\nb", "x" * 200],
    "labels": ["team", "=voice", "team=", "a=b\tc", "a=" + "x" * 200, ",".join(f"l{n}=x" for n in range(17))],
    "overhead": ["0", "-1", "1.5", "nan", "inf", "much"],
    "off": ["tensorboard,backward", "nothing-like-it"],
}


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.name in BAD], ids=lambda option: option.name)
def test_a_bad_option_is_a_usage_error(option: options.Option) -> None:
    for bad in BAD[option.name]:
        given = [[option.flag, text] for text in (bad.split(",") if option.name == "labels" else [bad])]
        for arguments, environment in (
            ([argument for pair in given for argument in pair], {}),
            ([], {option.variable: bad}),
        ):
            run = [sys.executable, "-m", "trainvitals.cli", "run", *arguments, "--", "true"]
            result = subprocess.run(run, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
            assert result.returncode == 2, (bad, result.stderr)
            assert (option.variable if environment else option.name) in result.stderr.splitlines()[-1]
            assert "Traceback" not in result.stderr


def test_a_bad_variable_in_a_training_process_is_one_line(launcher: Launcher) -> None:
    for option in OPTIONS:
        if option.name in BAD:
            launcher.environment[option.variable] = BAD[option.name][-1]
    command = [sys.executable, str(launcher.script(TRAIN + "trainvitals.attach(); train()"))]
    result = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=True)
    told = [line for line in result.stderr.splitlines() if line.startswith("trainvitals: ")]
    assert len(told) == len(BAD)
    assert "Traceback" not in result.stderr
    (file,) = run_files(launcher.run_dir)
    assert (file.identity.run, labels(file)) == ("train", {})
    assert file.value("trainvitals_hook_share_limit_ratio") == Options().overhead
    assert file.value("trainvitals_scalar", tag="tag") == 1.0


def test_attach_raises_for_a_bad_option(launcher: Launcher) -> None:
    text = """
import trainvitals
for bad in ({"overhead": 2}, {"labels": {"a,b": "c"}}, {"labels": ["team"]}, {"off": ["backward"]}, {"name": ""}):
    try: trainvitals.attach(**bad)
    except ValueError as error: assert next(iter(bad)) in str(error), error
    else: raise SystemExit(f"{bad} was taken")
"""
    subprocess.run([sys.executable, str(launcher.script(text))], env=launcher.environment, check=True)
    assert run_files(launcher.run_dir) == []


def test_what_is_left_out_is_not_installed_and_the_rest_is(launcher: Launcher) -> None:
    for off in (instruments.OPTIONAL, frozenset[str]()):
        launcher.environment["TRAINVITALS_OFF"] = ",".join(off)
        result = launcher.python(
            """
import sys, torch, torch.utils.tensorboard, torch._dynamo
print(*[name.rpartition(".")[2] for name in sys.modules if name.startswith("trainvitals.instruments.")])
"""
        )
        installed = set(result.stdout.split())
        assert {"backward", "dataloader", "optimizer", "compile"} <= installed
        if off:
            assert not installed & off
        else:
            assert {"tensorboard", "autocast", "ddp", "garbage_collection"} <= installed


def test_optional_instruments_are_files() -> None:
    folder = Path(instruments.__file__).parent
    assert {f"{name}.py" for name in instruments.OPTIONAL} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("told", [Options(), TOLD, Options(run_dir=Path("/runs"), overhead=1 / 3)])
def test_what_is_told_to_a_child_arrives(told: Options) -> None:
    def refuse(error: ValueError) -> None:
        raise error

    assert Options.read(told.to_environment(), {}, refuse) == told


def test_disabled_means_the_command_alone(launcher: Launcher) -> None:
    launcher.environment["TRAINVITALS_DISABLED"] = "1"
    text = TRAIN + "trainvitals.attach(); train(); assert 'TRAINVITALS_RUN_ID' not in os.environ; sys.exit(7)"
    assert launcher.run(sys.executable, str(launcher.script(text))).code == 7
    assert launcher.run("no-such-command-anywhere").code == 127
    assert not launcher.run_dir.exists()
    for off in ("0", "no", ""):
        launcher.environment["TRAINVITALS_DISABLED"] = off
        launcher.run(sys.executable, "-c", "")
    assert [file.identity.kind for file in run_files(launcher.run_dir)] == ["launcher"] * 3


def test_a_part_of_a_run_can_stay_away(launcher: Launcher) -> None:
    text = "import os\nos.environ['TRAINVITALS_DISABLED'] = 'yes'\n" + TRAIN + "trainvitals.attach(); train()"
    assert launcher.python(text).ranks == []


def test_help_and_documentation_tell_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
    run = [sys.executable, "-m", "trainvitals.cli", "run", "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    for option in OPTIONS:
        assert f"{option.flag} {option.metavar}" in shown
        assert f"${option.variable}" in "".join(shown.split())
        row = f"| `{option.flag} {option.metavar}` | `{option.name}` | `{option.variable}` | {option.help} | {option.default} |"
        assert row in page
    assert options.DISABLED in page
