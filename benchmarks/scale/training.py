"""The training that is recorded: a small GAN on 8 ranks (gloo), as the first users' is, with all that hooks can see.

`python -m benchmarks.scale.training FOLDER` starts the ranks, each with a GPU of the tests' fake CUDA, and waits.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from tests.hooks.fake_cuda import fake

RANKS = 8
GIB = 1 << 30
PACE = 0.5  # seconds; the ranks share few cores
PATCHES = Path(__file__).parents[1] / "faultbench" / "patches"


def main(folder: Path, port: str) -> None:
    """Start the ranks as torchrun does, and wait for them."""
    ranks = []
    for rank in range(RANKS):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "FAULTBENCH_GPU": rank, "FAULTBENCH_FACTOR": 1}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in about.items()},
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PYTHONPATH": os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(PATCHES))),
        }
        ranks.append(subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder), port], env=environment))
    for each in ranks:
        each.wait()


def train(folder: Path) -> None:
    """One rank, until it is killed."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    fake.init()
    generator, discriminator = (
        DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, out))) for out in (16, 1)
    )
    optimizers = [torch.optim.AdamW(net.parameters(), lr=2e-4) for net in (discriminator, generator)]
    scaler = torch.amp.GradScaler("cpu")
    log = SummaryWriter(str(folder / f"tensorboard{rank}"))
    data = TensorDataset(torch.randn(65536, 16))
    for epoch in itertools.count():
        for iteration, (real,) in enumerate(DataLoader(data, batch_size=16, num_workers=2, persistent_workers=False)):
            begun = time.perf_counter()
            losses = step(generator, discriminator, optimizers, scaler, real)
            fake.use(0, 60 * GIB + iteration % 13 * GIB // 8, 66 * GIB)
            fake.work(PACE / 2)
            if iteration % 2 == 0:
                for tag, value in losses.items():
                    log.add_scalar(tag, value, iteration)
            if iteration % 20 == 10 and rank == 0:
                torch.save(generator.state_dict(), folder / "checkpoint.pt")
            time.sleep(max(0.0, PACE - (time.perf_counter() - begun)))
        log.add_scalar("epoch", epoch)


def step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: list[torch.optim.AdamW],
    scaler: torch.amp.GradScaler,
    real: Tensor,
) -> dict[str, float]:
    """Update both networks on one batch. Returns what such a script logs."""
    optim_d, optim_g = optimizers
    with torch.autocast("cpu", torch.bfloat16):
        made = generator(torch.randn_like(real))
        loss_d = (1 - discriminator(real)).square().mean() + discriminator(made.detach()).square().mean()
    update(loss_d, optim_d, scaler)
    with torch.autocast("cpu", torch.bfloat16):
        loss_g = (1 - discriminator(made)).square().mean()
        mel, kl = (made - real).abs().mean(), made.square().mean()
    update(loss_g + mel + kl, optim_g, scaler)
    scaler.update()
    parts = {"loss/g/adv": loss_g, "loss/g/mel": mel, "loss/g/kl": kl, "loss/g/fm": mel + kl, "loss/d/total": loss_d}
    rates = {f"lr/{name}": optimizer.param_groups[0]["lr"] for name, optimizer in zip("dg", optimizers, strict=True)}
    return {**{tag: value.item() for tag, value in parts.items()}, **rates, "loss/g/total": (loss_g + mel + kl).item()}


def update(loss: Tensor, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler) -> None:
    """One step of an optimizer."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 5.0)
    scaler.step(optimizer)


if __name__ == "__main__":
    if "RANK" in os.environ:
        train(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
