"""Where a training writes: TensorBoard scalars, a line of progress now and then, checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

KEPT_CHECKPOINTS = 3


class Log:
    """Scalars to TensorBoard and to stdout every `every` iterations. Ranks other than the first write nothing."""

    def __init__(self, folder: Path, every: int, rank: int = 0) -> None:
        self.every = every
        self._writer = SummaryWriter(str(folder)) if rank == 0 else None
        self._since, self._counted = time.monotonic(), 0

    def due(self, iteration: int) -> bool:
        return self._writer is not None and iteration % self.every == 0

    def scalars(self, iteration: int, values: Mapping[str, Tensor | float]) -> None:
        if self._writer:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, iteration)

    def progress(self, epoch: int, iteration: int, values: Mapping[str, Tensor | float]) -> None:
        now = time.monotonic()
        rate = (iteration - self._counted) / max(now - self._since, 1e-9)
        self._since, self._counted = now, iteration
        print(f"epoch {epoch} iteration {iteration}: {describe(values)}, {rate:.1f} it/s", flush=True)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def describe(values: Mapping[str, Tensor | float]) -> str:
    return ", ".join(f"{tag} {torch.as_tensor(value).detach():.6g}" for tag, value in values.items())


def save_checkpoint(folder: Path, epoch: int, state: Mapping[str, object]) -> None:
    """Write beside, then move: a checkpoint is whole or not there. Older ones than the last three go."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{os.getpid()}.tmp"
    torch.save(dict(state), unfinished)
    unfinished.replace(folder / f"epoch-{epoch:04d}.pt")
    by_age = sorted(folder.glob("epoch-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for old in by_age[:-KEPT_CHECKPOINTS]:
        old.unlink(missing_ok=True)
