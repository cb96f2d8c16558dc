"""Runs the training loops of a whole test module in one command under ``trainvitals run``.

Each loop is a process of its own, forked off right after the imports, so that torch is imported once and not thirty
times. A loop is written above the test that judges what was recorded of it::

    @loop("for x, y in data: ...; true(loss=loss)")
    def test_something(recorded: Recorded) -> None: ...
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher

Test = TypeVar("Test", bound=Callable[..., None])

# What the script knows to be true it says by true(...), of which the last value of a name counts.
PRELUDE = """
import collections, contextlib, copy, gc, itertools, json, math, os, sys, time
import torch
import torch._dynamo  # a first optimizer step imports it: a second for each loop
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
torch.set_num_threads(1)
torch.manual_seed(0)
facts = {}
def true(**values):
    facts.update({name: value.item() if hasattr(value, "item") else value for name, value in values.items()})
def norm(parameters):
    return math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in parameters if p.grad is not None))
def pairs(n):
    return TensorDataset(torch.randn(n, 4), torch.randn(n, 1))
def loader(n=64, batch=8, **kw):
    return DataLoader(pairs(n), batch_size=batch, **kw)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
def loss_of(x, y, m=model):
    return ((m(x) - y) ** 2).mean()
"""

_RUN_ALL = """
import multiprocessing
def run(name):
    script, report = os.path.abspath(name + ".py"), os.path.abspath(name + ".json")
    os.makedirs(name + ".work"); os.chdir(name + ".work")
    begun = time.perf_counter()
    exec(compile(open(script).read(), script, "exec"), globals())
    about = {"pid": os.getpid(), "seconds": time.perf_counter() - begun}
    with open(report, "w") as file: json.dump({**about, **facts}, file)
if __name__ == "__main__":
    for name in sys.argv[1:]:
        process = multiprocessing.get_context("fork").Process(target=run, args=(name,)); process.start(); process.join()
"""

_loops: dict[str, dict[str, str]] = {}


def loop(text: str, prelude: str = "") -> Callable[[Test], Test]:
    """The training loop that a test judges. `prelude` (imports) is run once for all loops that have the same."""

    def register(test: Test) -> Test:
        _loops.setdefault(test.__module__ + prelude, {})[test.__name__] = text
        test.prelude = prelude  # type: ignore[attr-defined]  # for the fixture to find
        return test

    return register


@dataclass
class Recorded:
    """What was recorded of one loop, beside what the loop itself said was true."""

    rank: RunFile
    true: dict[str, Any]

    def value(self, name: str, **labels: str) -> float | None:
        return self.rank.value(f"trainvitals_{name}", **labels)

    def family(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric by one of its labels."""
        found = [s for s in self.rank.samples if s.name == f"trainvitals_{name}"]
        return {dict(sample.labels)[label]: sample.value for sample in found}

    def check(
        self,
        iterations: int,
        steps: Mapping[str, int] | int,
        *,
        lr: float | None = None,
        epoch: int | None = None,
        accumulation: int | None = None,
        samples: int | None = None,
    ) -> None:
        """What holds in every loop. `steps` by optimizer; its loss and norm are true under "loss0", "norm0" (or "loss",
        "norm" for optimizer "0").
        """
        steps = steps if isinstance(steps, Mapping) else {"0": steps}
        assert self.value("iterations_total") == iterations
        assert self.family("optimizer_steps_total", "optimizer") == steps
        for label in steps:
            for name, metric in (("loss", "loss"), ("norm", "gradient_norm")):
                expected = self.true.get(name + label, self.true.get(name) if label == "0" else None)
                if expected is not None:
                    assert self.value(metric, optimizer=label) == pytest.approx(expected, rel=1e-4), (metric, label)
        if lr is not None:
            assert self.value("learning_rate", optimizer="0", group="0") == pytest.approx(lr)
        if epoch is not None:
            assert self.value("epoch") == epoch
        if accumulation is not None:
            found = self.family("gradient_accumulation_iterations", "optimizer")
            assert found == dict.fromkeys(steps, accumulation)
        if samples is not None:
            assert self.value("samples_total") == samples
        self._check_time(iterations)
        assert self.family("hook_errors_total", "hook") == {}

    def _check_time(self, iterations: int) -> None:
        phases = self.family("phase_seconds_total", "phase")
        assert min(phases.values()) >= 0
        inside = self.value("iteration_seconds_sum")
        assert inside is not None
        assert sum(self.family("iteration_seconds_bucket", "le").values()) == pytest.approx(iterations, abs=1)
        # to the microsecond's rounding: phases cover all iterations, and no more than there was
        assert inside <= sum(phases.values()) + 1e-6
        assert sum(phases.values()) <= self.true["seconds"] + 0.1
        assert not math.isnan(inside)


def recorded_fixture() -> Callable[..., Any]:
    """The fixture `recorded` for a test module: what was recorded of the loop above the test."""
    runs: dict[str, _Runs] = {}

    @pytest.fixture
    def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
        key = request.function.__module__ + request.function.prelude
        if key not in runs:
            wanted = {item.originalname for item in request.session.items if isinstance(item, pytest.Function)}
            loops = {name: text for name, text in _loops[key].items() if name in wanted}
            runs[key] = _run(tmp_path_factory.mktemp("loops"), request.function.prelude, loops)
        if request.function.__name__ not in runs[key].recorded:
            pytest.fail(runs[key].stderr)
        return runs[key].recorded[request.function.__name__]

    return recorded


@dataclass
class _Runs:
    recorded: dict[str, Recorded]
    stderr: str


def _run(folder: Path, prelude: str, loops: Mapping[str, str]) -> _Runs:
    for name, text in loops.items():
        (folder / f"{name}.py").write_text(text)
    launcher = Launcher(folder)
    launcher.environment["TRAINVITALS_OVERHEAD"] = "1"  # the norm of each step, however short
    script = launcher.script(PRELUDE + prelude + _RUN_ALL, "loops.py")
    result = launcher.run(sys.executable, str(script), *loops)
    assert result.code == 0, result.stderr
    ranks: dict[str, RunFile] = {}
    for file in result.ranks:
        (about,) = [dict(s.labels) for s in file.samples if s.name == "trainvitals_run_info"]
        ranks[about["pid"]] = file
    recorded = {}
    for report in folder.glob("*.json"):
        true = json.loads(report.read_text())
        if str(true["pid"]) in ranks:
            recorded[report.stem] = Recorded(ranks[str(true["pid"])], true)
    return _Runs(recorded, f"{result.stdout}\n{result.stderr}")
