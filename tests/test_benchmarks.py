"""The benchmarks run, and their rows are there. What they measure is for people: no other machine would agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def benchmark(name: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.slow
def test_hooks() -> None:
    shown = benchmark("hooks", "--pairs", "2", "--loops", "mlp,gan")
    rows = [line.split()[:2] for line in shown]
    for loop in ("mlp", "gan"):
        assert [kind for name, kind in rows if name == loop] == ["noise", "wrappers", "hooks", "classic"]
    assert [name for name, _ in rows[-2:]] == ["attach()", "detach()"]


@pytest.mark.slow
def test_time_of_each_hook() -> None:
    shown = benchmark("hooks", "--pairs", "2", "--loops", "mlp", "--attribute")
    hooks = [line for line in shown if ":" in line]
    assert {line.split(":")[0].strip() for line in hooks} >= {"dataloader", "backward", "optimizer", "gradient_norm"}
    total = next(float(line.split()[-1]) for line in shown if line.split()[:2] == ["all", "hooks"])
    assert total == pytest.approx(sum(float(line.split()[-1]) for line in hooks), abs=0.1)


@pytest.mark.slow
def test_rivals(tmp_path: Path) -> None:
    shown = benchmark("rivals", "--rounds", "1", "--traceml", str(tmp_path / "not-installed"))
    assert "make bench" in shown[0]
    assert sum(" trainvitals " in line for line in shown) == 5


@pytest.mark.slow
def test_scrape(tmp_path: Path) -> None:
    rivals = ["--rivals", str(tmp_path / "not-installed")]
    shown = benchmark("scrape", "--seconds", "2", "--only", "trainvitals, 0 us;nvitop, 0 us;bare", *rivals)
    assert "make bench" in shown[0]
    rows = {line[:34].strip(): line[34:].split() for line in shown[1:]}
    assert len(rows) == 9
    ours, bare = rows["series"]
    assert int(ours) == int(bare) > 1000


@pytest.mark.slow
def test_dashboards() -> None:
    shown = benchmark("dashboards", "--days", "1")
    rows = [line.strip("| ").split(" | ") for line in shown if "1 h" in line]
    assert {row[0].removesuffix(", folded rows") for row in rows} >= {"Training run", "GPU", "Compare runs"}
    assert all(int(samples.replace(",", "")) > 0 for _, _, _, samples, *_ in rows)
