"""The demonstration: what it needs, what it leaves behind, and (slow) that it shows what it promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.conftest import tool, wait_until

DEMO = [sys.executable, str(Path(__file__).parents[1] / "examples" / "demo" / "demo.py"), "--native"]


def environment(tmp_path: Path, **more: str) -> Mapping[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", **more}


def left_behind(tmp_path: Path) -> list[list[str]]:
    """Command lines of processes that have to do with this folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(tmp_path) in word for word in line)]


def test_a_missing_prometheus_is_one_clear_line(tmp_path: Path) -> None:
    nowhere = environment(tmp_path, PATH=str(tmp_path))
    result = subprocess.run(DEMO, env=nowhere, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        "demo: prometheus is not on PATH; install it, on Debian and Ubuntu with: make tools"
    ]


def test_ctrl_c_ends_everything_it_started(tmp_path: Path) -> None:
    tool("prometheus")
    log = tmp_path / "out"
    with log.open("w") as output, subprocess.Popen(
        DEMO, env=environment(tmp_path), stdout=output, stderr=output, start_new_session=True
    ) as demo:  # fmt: skip
        wait_until(lambda: " iteration " in log.read_text(), "training", 120)
        assert len(left_behind(tmp_path)) > 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 130
    assert left_behind(tmp_path) == []
    assert [path for path in tmp_path.iterdir() if path != log] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration(tmp_path: Path) -> None:
    result = subprocess.run(DEMO, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no alert: healthy" in result.stdout
    assert "notification: TrainingGradientExplosion (critical), run sick" in result.stdout
    assert left_behind(tmp_path) == []
