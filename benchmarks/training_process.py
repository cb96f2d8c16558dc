"""A training process for rivals.py: python training_process.py LOOP STEPS RESULT [traceml]. Writes JSON to RESULT."""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a launcher may run this file from anywhere

import psutil
import torch

from benchmarks.loops import LOOPS

WARM_UP = 100


def main(name: str, steps: int, result: Path, *, traceml: bool) -> None:
    torch.set_num_threads(1)
    loop = LOOPS[name][0]("cpu")
    traced: Callable[[], AbstractContextManager[Any]] = nullcontext
    if traceml:
        import traceml_ai

        traceml_ai.init(mode="auto")
        traced = functools.partial(traceml_ai.trace_step, loop.model)
    times = []
    started = cpu = 0.0
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        with traced():
            loop.step()
        times.append(time.perf_counter() - start)
        if not started:
            started, cpu = time.time(), time.process_time()
    about = {
        "first_step_at": started,
        "cpu_seconds_to_first_step": cpu,
        "seconds_a_step": statistics.median(times[WARM_UP:]),
        "resident_bytes": psutil.Process().memory_info().rss,
        "ended_at": time.time(),
    }
    result.write_text(json.dumps(about))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), traceml="traceml" in sys.argv[4:])
