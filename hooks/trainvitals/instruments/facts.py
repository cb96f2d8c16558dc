"""What this rank is: versions, its place among the ranks, its GPU."""

from __future__ import annotations

import os

import torch
import torch.distributed

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _record(context: Context, writer: RunFileWriter) -> None:
    rank, world_size = _rank_and_world_size()
    writer.set_rank(rank)
    writer.set("trainvitals_world_size", float(world_size))
    about = {
        "run_id": context.session.run.run_id,
        "pid": str(os.getpid()),
        "script": writer.identity.script,
        "torch_version": str(torch.__version__),
        "cuda_version": str(torch.version.cuda or ""),
    }
    writer.set("trainvitals_run_info", 1.0, **about)
    # Asking for devices earlier than the script does might pin the wrong ones: it may still set CUDA_VISIBLE_DEVICES.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # of torch
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        writer.set("trainvitals_run_gpu_info", 1.0, uuid=f"GPU-{properties.uuid}")


def install(context: Context) -> None:
    """Record them once this process trains."""
    record = context.session.guarded("facts", lambda now, writer: _record(context, writer))
    context.session.on_armed.append(record)
