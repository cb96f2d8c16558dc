"""What watching costs a whole process, with trainvitals and with TraceML: start, end, memory, and each step.

The same training is started bare and under each of them in turn; only differences within one round are compared. The
speed of a process varies by some 10 %, so that benchmarks/hooks.py tells better what a step takes; TraceML cannot be
switched off within a process, though. The noise rows compare bare processes with bare processes.

    python -m benchmarks.rivals [--rounds N] [--traceml DIR]

DIR is where TraceML lies (`make bench` puts it into .venv/rivals); without it its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from trainvitals import rundir

from benchmarks.hooks import interval

SCRIPT = Path(__file__).with_name("training_process.py")
STEPS = 1000


class Process(NamedTuple):
    """What a training process took: seconds until its first step was done, of them its CPU's; seconds after its last
    step; bytes; seconds a step.
    """

    start: float
    start_cpu: float
    end: float
    memory: float
    step: float


ROWS = {
    "start": ("time to the first step", 1e3, "ms", "<= 150 ms"),
    "start_cpu": ("CPU time to it, the launcher's left out", 1e3, "ms", ""),
    "end": ("time from the last step to the end", 1e3, "ms", ""),
    "memory": ("resident memory of the training process", 1 / 2**20, "MiB", "<= 8 MB"),
    "step": ("time of a step (mlp)", 1e6, "us", "<= 40 us"),
}


def train(rival: str, traceml: Path, directory: Path) -> Process:
    """Run the training to its end."""
    result = directory / "result.json"
    result.unlink(missing_ok=True)
    script = [str(SCRIPT), "mlp", str(STEPS), str(result)]
    environment = {**os.environ, rundir.ENVIRONMENT: str(directory / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *script]
    if rival == "trainvitals":
        command = [sys.executable, "-m", "trainvitals.cli", "run", "--", *command]
    elif rival == "TraceML":
        environment["PYTHONPATH"] = str(traceml.absolute())
        command = [sys.executable, "-m", "traceml_ai.launcher.cli", "run", script[0],
                   "--logs-dir", str(directory / "logs"), "--args", *script[1:], "traceml"]  # fmt: skip
    started = time.time()
    ran = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)
    ended = time.time()
    if not result.exists():
        sys.exit(f"{rival}: the training did not come to its end\n{ran.stdout}\n{ran.stderr}")
    told = json.loads(result.read_text())
    return Process(
        told["first_step_at"] - started,
        told["cpu_seconds_to_first_step"],
        ended - told["ended_at"],
        told["resident_bytes"],
        told["seconds_a_step"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--traceml", type=Path, default=Path(".venv/rivals"), metavar="DIR")
    options = parser.parse_args()
    rivals = ["bare", "noise", "trainvitals", "TraceML"]
    if not options.traceml.is_dir():
        print(f"no TraceML in {options.traceml}: `make bench` installs it")
        rivals.remove("TraceML")
    found: dict[str, list[Process]] = {rival: [] for rival in rivals}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds + 1):
            for rival in random.sample(rivals, len(rivals)):
                process = train(rival, options.traceml, Path(directory))
                if number:  # the first round warms up the machine's caches
                    found[rival].append(process)
    print(f"{'what':42} {'added by':12} {'median (95 %)':>32}   budget")
    for field, (what, factor, unit, budget) in ROWS.items():
        for rival in rivals[1:]:
            pairs = zip(found[rival], found["bare"], strict=True)
            added = interval([(getattr(its, field) - getattr(bare, field)) * factor for its, bare in pairs])
            text = f"{added[0]:+.1f} {unit} ({added[1]:+.1f}..{added[2]:+.1f})"
            print(f"{what:42} {rival:12} {text:>32}   {budget if rival == 'trainvitals' else ''}")


if __name__ == "__main__":
    main()
