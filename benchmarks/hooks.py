"""What the hooks cost per iteration: the same loop with and without, in short alternating blocks of one process.

Neighbouring blocks are compared, because a shared machine changes its speed within seconds; processes side by side
resolve nothing below 10 %. Of each loop there are these rows:

- noise: bare blocks against bare blocks; smaller differences mean nothing.
- wrappers: attached with the hooks switched off, against detached.
- hooks: the hooks on against off, in the state that they reach after some seconds. With the wrappers, this is the cost.
- classic: what people write themselves, `loss.item()` and four scalars to TensorBoard at each step, against bare.

    python -m benchmarks.hooks [--pairs N] [--loops mlp,transformer,gan] [--device cuda] [--attribute]

With --attribute the time inside each hook is told instead; what remains are the wrappers and torch's calls of hooks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import trainvitals
from torch.utils.tensorboard import SummaryWriter
from trainvitals import attachment, rundir

from benchmarks.attribution import Stopwatch
from benchmarks.loops import LOOPS

Step = Callable[[], Any]
BUDGET_US = {"mlp": 40.0, "gan": 60.0}
BUDGET_RATIO = {"transformer": 1.005}
# Until the hooks have found out what of theirs is too dear for each step.
SETTLING_SECONDS = 2.2


class Side(NamedTuple):
    """One of two things to compare: `enter` begins a block of steps."""

    enter: Callable[[], None]
    step: Step


def nothing() -> None:
    """Enter a block that needs no preparation."""


@contextmanager
def noise(step: Step) -> Iterator[tuple[Side, Side]]:
    yield Side(nothing, step), Side(nothing, step)


@contextmanager
def wrappers(step: Step) -> Iterator[tuple[Side, Side]]:
    def switched_off() -> None:
        trainvitals.attach("benchmark")
        switch(on=False)

    yield Side(trainvitals.detach, step), Side(switched_off, step)
    trainvitals.detach()


@contextmanager
def hooks(step: Step) -> Iterator[tuple[Side, Side]]:
    trainvitals.attach("benchmark")
    warm_up(step, SETTLING_SECONDS)
    yield Side(lambda: switch(on=False), step), Side(lambda: switch(on=True), step)
    switch(on=True)
    trainvitals.detach()


@contextmanager
def classic(step: Step) -> Iterator[tuple[Side, Side]]:
    with tempfile.TemporaryDirectory() as directory, SummaryWriter(directory) as writer:
        number = itertools.count()

        def logged() -> None:
            loss, now = step().item(), next(number)
            for tag in ("loss", "learning_rate", "gradient_norm", "epoch"):
                writer.add_scalar(tag, loss, now)

        yield Side(nothing, step), Side(nothing, logged)


KINDS = {"noise": noise, "wrappers": wrappers, "hooks": hooks, "classic": classic}


def switch(*, on: bool) -> None:
    """Let the hooks work, or return at once."""
    if attachment._attachment is not None:
        attachment._attachment.session.active = on


def warm_up(step: Step, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        step()


def block(side: Side, steps: int) -> float:
    """The median seconds of a step."""
    side.enter()
    side.step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        side.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Pair(NamedTuple):
    bare: float
    other: float


def measure(step: Step, steps: int, pairs: int, kind: str) -> list[Pair]:
    result = []
    with KINDS[kind](step) as (bare, other):
        for number in range(pairs):
            if number % 2:
                result.append(Pair(block(bare, steps), block(other, steps)))
            else:
                later = block(other, steps)
                result.append(Pair(block(bare, steps), later))
    return result


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[25], medians[975]


def report(name: str, kind: str, pairs: list[Pair]) -> None:
    added = interval([(pair.other - pair.bare) * 1e6 for pair in pairs])
    ratio = interval([pair.other / pair.bare for pair in pairs])
    bare = statistics.median(pair.bare for pair in pairs) * 1e3
    budget = ""
    if kind == "hooks":
        budget = f"<= {BUDGET_US[name]:.0f} us" if name in BUDGET_US else f"<= x{BUDGET_RATIO[name]}"
    print(
        f"{name:12} {kind:11} {bare:8.3f} ms  {added[0]:+8.1f} us ({added[1]:+.1f}..{added[2]:+.1f})"
        f"  x{ratio[0]:.3f} ({ratio[1]:.3f}..{ratio[2]:.3f})  {budget}"
    )


def report_attaching(step: Step) -> None:
    """Print what it takes to attach and to detach, in a process that has done so before."""
    seconds: dict[str, list[float]] = {"attach()": [], "detach()": []}
    for _ in range(20):
        for name, action in (("attach()", trainvitals.attach), ("detach()", trainvitals.detach)):
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
            step()
    for name, times in seconds.items():
        print(f"{name:12} {statistics.median(times) * 1e3:.2f} ms")


def attribute(name: str, pairs: int, device: str) -> None:
    """Print where the time goes that the hooks add to a loop's step."""
    make, steps = LOOPS[name]
    step = make(device).step
    added = statistics.median(pair.other - pair.bare for pair in measure(step, steps, pairs, "hooks")) * 1e6
    stopwatch = Stopwatch()
    with stopwatch.installed():
        trainvitals.attach("benchmark")
    warm_up(step, SETTLING_SECONDS)
    stopwatch.running = True
    for _ in range(steps * pairs):
        step()
    stopwatch.running = False
    trainvitals.detach()
    rows = stopwatch.rows(steps * pairs)
    print(f"{name + ', hook':58} calls/step  us/call   longest  us/step")
    for hook, calls, median, longest, a_step in rows:
        print(f"  {hook:56} {calls:10.2f} {median:8.2f} {longest:9.1f} {a_step:8.2f}")
    inside = sum(row[-1] for row in rows)
    print(f"  {'all hooks':56} {'':29} {inside:8.2f}")
    print(f"  {'added by them (alternating blocks, median)':56} {'':29} {added:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--loops", default=",".join(LOOPS))
    parser.add_argument("--device", default="cpu", help="where the loops compute; on a GPU a step is its launch")
    parser.add_argument("--attribute", action="store_true", help="tell the time inside each hook")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ[rundir.ENVIRONMENT] = directory
        if options.attribute:
            for name in options.loops.split(","):
                attribute(name, options.pairs, options.device)
            return
        print(
            f"{'loop':12} {'what':11} {'bare step':>11}  added per step (95 %)        ratio (95 %)             budget"
        )
        for name in options.loops.split(","):
            make, steps = LOOPS[name]
            step = make(options.device).step
            warm_up(step, 0.5)
            for kind in KINDS:
                report(name, kind, measure(step, steps, options.pairs, kind))
        report_attaching(step)


if __name__ == "__main__":
    main()
