"""What one training was asked to do. Plain values only: the settings travel to every rank by pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    stage: str
    epochs: int
    batch_size: int
    workers: int
    steps: int
    seed: int
    world_size: int
    output: Path
    device: str
    threads: int
    log_every: int
    fault: str
    fault_after: int
    leak_limit_mb: int


def default_threads(world_size: int) -> int:
    """Threads for one rank: the ranks share all cores but one, which is for loading data and for everything else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A model this small gains nothing beyond four.
    return max(1, min(4, (cores - 1) // world_size))
