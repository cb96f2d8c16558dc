"""The demonstration: what it needs, what it leaves behind, and (slow) that it shows what it promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.conftest import tool, wait_until

DEMO = [sys.executable, str(Path(__file__).parents[1] / "examples" / "demo" / "demo.py"), "--native"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short name: sockets of multiprocessing have to fit in 108 characters."""
    with tempfile.TemporaryDirectory(prefix="tv-") as name:
        yield Path(name)


def environment(folder: Path, **more: str) -> Mapping[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", **more}


def left_behind(folder: Path) -> list[list[str]]:
    """Command lines of processes that have to do with this folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(folder) in word for word in line)]


def test_a_missing_prometheus_is_one_clear_line(folder: Path) -> None:
    nowhere = environment(folder, PATH=str(folder))
    result = subprocess.run(DEMO, env=nowhere, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        "demo: prometheus is not on PATH; install it, on Debian and Ubuntu with: make tools"
    ]


def test_ctrl_c_ends_everything_it_started(folder: Path) -> None:
    tool("prometheus")
    log = folder / "out"
    with log.open("w") as output:
        demo = subprocess.Popen(DEMO, env=environment(folder), stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: " iteration " in log.read_text(), "training", 120)
        assert len(left_behind(folder)) > 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 130
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(60)
    assert left_behind(folder) == []
    assert [path for path in folder.iterdir() if path != log] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration(folder: Path) -> None:
    result = subprocess.run(DEMO, env=environment(folder), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no alert: healthy" in result.stdout
    assert "notification: TrainingGradientExplosion (critical), run sick" in result.stdout
    assert left_behind(folder) == []
