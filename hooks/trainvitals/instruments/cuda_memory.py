"""Memory of the CUDA device, as PyTorch's caching allocator sees it."""

from __future__ import annotations

from typing import Final

import torch

from trainvitals.baselines import RollingExtreme
from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter

# memory_stats() builds a dictionary of some hundred entries, far too dear for each step of a small model.
_EVERY_SECONDS: Final = 0.1
_STATISTICS: Final = {
    "trainvitals_cuda_memory_allocated_bytes": "allocated_bytes.all.current",
    "trainvitals_cuda_memory_reserved_bytes": "reserved_bytes.all.current",
    "trainvitals_cuda_memory_inactive_split_bytes": "inactive_split_bytes.all.current",
}


def install(context: Context) -> None:
    """Read the allocator's statistics at iteration boundaries, ten times a second at most."""
    floor = RollingExtreme(smallest=True)
    due = 0.0

    def read(now: float, writer: RunFileWriter) -> None:
        nonlocal due
        if now < due or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # of torch
            return
        due = now + _EVERY_SECONDS
        device = str(torch.cuda.current_device())
        statistics = torch.cuda.memory_stats()
        for name, key in _STATISTICS.items():
            writer.set(name, float(statistics[key]), device=device)
        lowest = floor.add(now, float(statistics["allocated_bytes.all.current"]))
        writer.set("trainvitals_cuda_memory_allocated_floor_bytes", lowest, device=device)

    guarded = context.session.guarded("cuda_memory", lambda start, now, writer: read(now, writer))
    context.vitals.on_iteration.append(guarded)
