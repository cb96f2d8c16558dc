"""The example trainer, unchanged, with its own faults; paced, so that several fit on a machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.faultbench.shapes.course import note_beginning, note_onset

sys.path.append(str(Path(__file__).resolve().parents[3] / "examples"))

AFTER, PACE = "FAULTBENCH_AFTER", "FAULTBENCH_PACE"


def slow_down(trainer: Any) -> None:
    """Let a Trainer take its time for each iteration, and tell when that of the fault begins."""
    original = trainer._train_batch
    after, pace = int(os.environ[AFTER]), float(os.environ[PACE])

    def paced(self: Any, *batch: Any) -> None:
        started = time.monotonic()
        if self.iteration == 1:
            note_beginning()
        if self.iteration == after + 1 and self.settings.fault != "none":
            note_onset()
        original(self, *batch)
        time.sleep(max(0.0, pace - (time.monotonic() - started)))

    trainer._train_batch = paced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("fault", "seed", "onset", "pace", "output", "stage"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    os.environ[PACE] = options.pace
    os.environ[AFTER] = str(int(float(options.onset) / float(options.pace)))
    patch()
    train = importlib.import_module("voice_clone.train")
    sys.argv = [
        "train.py", "--stage", options.stage, "--epochs", "100000", "--fault", options.fault, "--seed", options.seed,
        "--fault-after", os.environ[AFTER], "--output", options.output, "--batch-size", "4", "--workers", "1",
        "--threads", "1", "--device", "cpu",
    ]  # fmt: skip
    train.main()


def patch() -> None:
    for stage in ("s1", "s2"):
        slow_down(importlib.import_module(f"voice_clone.{stage}").Trainer)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a rank, which is started as a process of its own
    patch()
