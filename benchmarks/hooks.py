"""What the hooks cost per iteration: the same loop bare and attached, in alternating blocks of one process.

Neighbouring blocks are compared, because a shared machine changes its speed within seconds; processes side by side
resolve nothing below 10 %. The noise row compares bare blocks with bare blocks: smaller differences mean nothing.

    python benchmarks/hooks.py [--pairs N] [--loops mlp,transformer,gan]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import trainvitals
from torch import nn
from torch.utils.data import DataLoader, Dataset
from trainvitals import rundir

Step = Callable[[], None]
BUDGET_US = {"mlp": 40.0, "gan": 60.0}
BUDGET_RATIO = {"transformer": 1.005}
WARM_UP = 5


class Noise(Dataset[torch.Tensor]):
    def __init__(self, *shape: int) -> None:
        self.items = torch.randn(256, *shape)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.items[index % 256]


def batches(workers: int, *shape: int) -> Iterator[torch.Tensor]:
    return iter(DataLoader(Noise(*shape), batch_size=32, num_workers=workers))


def plain(model: nn.Module, data: Iterator[torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(next(data)).square().mean().backward()
        optimizer.step()

    return step


def mlp() -> Step:
    """7k parameters, a third of a millisecond a step or more."""
    layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    return plain(nn.Sequential(*layers), batches(0, 64))


def transformer() -> Step:
    """1.2M parameters, tens of milliseconds a step."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, dropout=0.0)
    return plain(nn.TransformerEncoder(layer, 6), batches(0, 32, 128))


def gan() -> Step:
    """Two optimizers and two worker processes, about ten milliseconds a step."""
    generator = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256))
    critic = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1))
    optimizers = [torch.optim.AdamW(m.parameters()) for m in (critic, generator)]
    data = batches(2, 256)

    def step() -> None:
        real = next(data)
        fake = generator(torch.randn_like(real))
        optimizers[0].zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        (-critic(fake).mean()).backward()
        optimizers[1].step()

    return step


LOOPS: dict[str, tuple[Callable[[], Step], int]] = {
    "mlp": (mlp, 100),
    "transformer": (transformer, 12),
    "gan": (gan, 40),
}


def block(step: Step, steps: int) -> float:
    """The median seconds of a step."""
    for _ in range(WARM_UP):
        step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Pair(NamedTuple):
    bare: float
    other: float


def measure(step: Step, steps: int, pairs: int, *, attached: bool) -> list[Pair]:
    result = []
    for number in range(pairs):
        values = {}
        for on in (False, True) if number % 2 else (True, False):
            if on and attached:
                trainvitals.attach("benchmark")
            values[on] = block(step, steps)
            if on and attached:
                trainvitals.detach()
        result.append(Pair(values[False], values[True]))
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
    if kind == "attached":
        budget = f"<= {BUDGET_US[name]:.0f} us" if name in BUDGET_US else f"<= x{BUDGET_RATIO[name]}"
    print(
        f"{name:12} {kind:9} {bare:8.3f} ms  {added[0]:+8.1f} us ({added[1]:+.1f}..{added[2]:+.1f})"
        f"  x{ratio[0]:.3f} ({ratio[1]:.3f}..{ratio[2]:.3f})  {budget}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--loops", default=",".join(LOOPS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.environ[rundir.ENVIRONMENT] = directory
        print(f"{'loop':12} {'what':9} {'bare step':>11}  added per step (95 %)        ratio (95 %)             budget")
        for name in options.loops.split(","):
            make, steps = LOOPS[name]
            step = make()
            for kind in ("noise", "attached"):
                report(name, kind, measure(step, steps, options.pairs, attached=kind == "attached"))


if __name__ == "__main__":
    main()
