"""A short training that does a bit of everything, and tells digests of all that it made and of all random states.

Imported by the scripts of the tests here, which run it with and without trainvitals attached.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import pickle
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing as mp
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torch.utils.tensorboard.writer import SummaryWriter


class Numbers(Dataset[torch.Tensor]):
    """Draws from every random generator that a data set may use."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, outputs))


def digest(made: Any) -> str:
    """Of the bytes that torch.save makes of it. Fails where they name this package."""
    buffer = io.BytesIO()
    torch.save(made, buffer)
    assert b"trainvitals" not in buffer.getvalue()
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def random_states() -> dict[str, str]:
    return {
        "torch": digest(torch.get_rng_state()),
        "numpy": hashlib.sha256(pickle.dumps(np.random.get_state())).hexdigest(),
        "random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
    }


def batches(workers: int, epochs: int) -> Iterator[tuple[int, torch.Tensor]]:
    loader = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=workers)
    for epoch in range(epochs):
        for number, batch in enumerate(loader):
            yield epoch * 10 + number, batch


def train(folder: Path, *, workers: int = 0, epochs: int = 2) -> dict[str, Any]:
    """A GAN with mixed precision, a skipped step, accumulation, all kinds of clipping, LBFGS, a schedule, activation
    checkpointing, evaluation, TensorBoard and checkpoints. Leaves its files in `folder`."""
    seed()
    torch.set_num_threads(1)
    generator, critic, third = network(4), network(1), nn.Linear(4, 1)
    optimizers: list[Any] = [
        torch.optim.AdamW(critic.parameters()),
        torch.optim.SGD(generator.parameters(), lr=0.01, momentum=0.9),
        torch.optim.LBFGS(third.parameters(), max_iter=2),
    ]
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.99)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    seen: list[Any] = []
    losses: list[float] = []
    with SummaryWriter(str(folder / "tensorboard")) as summary:
        for number, batch in batches(workers, epochs):
            seen.append(batch.tolist())
            with torch.autocast("cpu", torch.bfloat16):
                fake = torch.utils.checkpoint.checkpoint(generator, batch, use_reentrant=False)
                critic_loss = (critic(fake.detach()) - critic(batch)).mean() * (float("inf") if number == 3 else 1.0)
            scaler.scale(critic_loss / 2).backward()
            if number % 2:
                scaler.unscale_(optimizers[0])
                clip_grad.clip_grad_value_(critic.parameters(), 0.5)
                scaler.step(optimizers[0])
                optimizers[0].zero_grad()
                schedule.step()
            with torch.autocast("cpu", torch.bfloat16):
                loss = -critic(fake).mean() + fake.square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizers[1])
            clip_grad_norm_(generator.parameters(), 0.1)
            scaler.step(optimizers[1])
            optimizers[1].zero_grad()
            scaler.update()
            optimizers[2].step(functools.partial(_closure, third, optimizers[2], batch))
            losses += [critic_loss.item(), loss.item()]
            summary.add_scalar("loss", loss.item(), number)
            if number % 10 == 9:
                with torch.no_grad():
                    losses += [generator(other).sum().item() for _, other in batches(0, 1)]
                torch.save({"model": generator.state_dict(), "step": number}, folder / "checkpoint.pt")
    models = [generator, critic, third]
    # Its bytes hold addresses.
    assert b"trainvitals" not in pickle.dumps([models, optimizers, scaler, schedule])
    return {
        "weights": digest([model.state_dict() for model in models]),
        "models": digest(copy.deepcopy(models)),
        "optimizers": digest([optimizer.state_dict() for optimizer in optimizers]),
        "checkpoint": hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest(),
        "losses": [repr(loss) for loss in losses],  # NaN is not equal to itself
        "batches": seen,
        **random_states(),
    }


def _closure(model: nn.Linear, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss: torch.Tensor = (model(batch) - 1).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]  # of torch
    return loss


def train_ranks(folder: Path) -> None:
    """Train by DistributedDataParallel on two ranks; each leaves its digests in `folder`."""
    mp.spawn(_rank, (folder,), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]  # of torch


def _rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    seed()
    torch.set_num_threads(1)
    model = nn.parallel.DistributedDataParallel(network(1))
    optimizer = torch.optim.AdamW(model.parameters())
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(Numbers())
    loader = DataLoader(Numbers(), batch_size=4, sampler=sampler, num_workers=1)
    seen, losses = [], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            seen.append(batch.tolist())
            with nullcontext() if number % 2 else model.no_sync():
                loss = model(batch).square().mean()
                loss.backward()
            losses.append(loss.item())
            if number % 2:
                clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    made = {"weights": digest(model.state_dict()), "optimizer": digest(optimizer.state_dict())}
    report = {**made, "losses": losses, "batches": seen, **random_states()}
    (folder / f"{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()
