"""What docs/threat-model.md promises, as far as no other test holds it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import Launcher

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "threat-model.md"
SECRET = "hf_3kQ9sYtV"  # noqa: S105 (not one that opens anything)
SCRIPT = f"""
import logging, os, sys, warnings
import torch

model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(30):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).sum()
    if step == 20:
        loss = loss * float("nan")
    loss.backward()
    optimizer.step()
logging.warning("token %s", sys.argv[1])
raise {{exception}}("cannot log in with {SECRET}")
"""


@pytest.mark.parametrize("exception", ["RuntimeError", "torch.OutOfMemoryError"])
def test_no_secret_gets_into_metrics_run_files_or_logs(tmp_path: Path, exception: str) -> None:
    launcher = Launcher(tmp_path)
    launcher.environment |= {
        "WANDB_API_KEY": SECRET,
        "HF_TOKEN": SECRET,
        "SLURM_JOB_ID": SECRET,
        "POD_NAME": f"/{SECRET}",
    }
    script = launcher.script(SCRIPT.format(exception=exception))
    with launcher.popen(sys.executable, str(script), f"--token={SECRET}") as run:
        _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert SECRET in said, "the script's own traceback is the script's own affair"
    ours = [line for line in said.splitlines() if "trainvitals" in line and "File " not in line]
    assert [line for line in ours if SECRET in line] == []

    left = [path for path in launcher.run_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".vitals" for path in left)
    assert [path.name for path in left if SECRET.encode() in path.read_bytes()] == []

    exporter = [sys.executable, "-m", "trainvitals.cli", "exporter", "--once", "--run-dir", str(launcher.run_dir)]
    page = subprocess.run(exporter, env=launcher.environment, capture_output=True, text=True, check=True)
    assert 'trainvitals_run_state{run="train",state="' in page.stdout
    assert SECRET not in page.stdout + page.stderr


def test_run_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path)
    script = launcher.script("import torch, os\ntorch.nn.Linear(1, 1)\nraise SystemExit(3)")
    before = os.umask(0)
    try:
        with launcher.popen(sys.executable, str(script)) as run:
            run.communicate(timeout=120)
    finally:
        os.umask(before)
    assert run.returncode == 3
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in launcher.run_dir.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE(launcher.run_dir.stat().st_mode) == 0o700


def compose() -> dict[str, dict[str, object]]:
    services: dict[str, dict[str, object]] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    return services


def test_nothing_can_be_administered_from_outside() -> None:
    flags = [str(flag) for service in compose().values() for flag in service.get("command", [])]  # type: ignore[attr-defined]
    assert [flag for flag in flags if flag.startswith("--web.enable")] == []


def test_grafana_tells_nobody() -> None:
    environment = compose()["grafana"]["environment"]
    assert isinstance(environment, dict)
    off = ("REPORTING", "CHECK_FOR", "FEEDBACK", "NEWS")
    told = {name: value for name, value in environment.items() if any(word in name for word in off)}
    assert len(told) == 5
    assert set(told.values()) == {"false"}


def test_each_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, test in named:
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{file}::{test}"
