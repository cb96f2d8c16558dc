"""What this rank is: versions, frameworks, its place among the ranks, its GPUs."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import torch
import torch.distributed

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter

# The module that a script has imported when it trains with the framework, not merely uses a part of it.
_FRAMEWORKS: Final = {
    "lightning": ("lightning.pytorch.trainer", "pytorch_lightning.trainer", "lightning.fabric", "lightning_fabric"),
    "transformers": ("transformers.trainer",),
    "accelerate": ("accelerate.accelerator",),
}
_UUID_LENGTH: Final = 36


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _frameworks() -> str:
    return ",".join(name for name, modules in _FRAMEWORKS.items() if any(module in sys.modules for module in modules))


def _record(context: Context, writer: RunFileWriter) -> None:
    _record_rank(writer)
    about = {
        "run_id": context.session.run.run_id,
        "pid": str(os.getpid()),
        "script": writer.identity.script,
        "framework": _frameworks(),
        "torch_version": str(torch.__version__),
        "cuda_version": str(torch.version.cuda or ""),
    }
    writer.set("trainvitals_run_info", 1.0, **about)


def _record_rank(writer: RunFileWriter) -> None:
    rank, world_size = _rank_and_world_size()
    writer.set_rank(rank)
    writer.set("trainvitals_world_size", float(world_size))


def record_gpu(writer: RunFileWriter, index: int) -> None:
    """This rank computes on the CUDA device `index`, as PyTorch counts them."""
    properties = torch.cuda.get_device_properties(index)
    writer.set("trainvitals_cuda_memory_total_bytes", float(properties.total_memory), device=str(index))
    uuid = _uuid(index, properties)
    if uuid is not None:
        writer.set("trainvitals_run_gpu_info", 1.0, uuid=uuid)


def _uuid(index: int, properties: Any) -> str | None:
    """The device's uuid as NVML writes it; None where torch is too old to tell it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if index < len(visible) and visible[index].startswith("MIG-") and len(visible[index]) == len("MIG-") + _UUID_LENGTH:
        return visible[index]
    if not hasattr(properties, "uuid"):
        return None
    text = str(properties.uuid)
    if text.startswith(("GPU-", "MIG-")):
        return text
    # The name of a MIG instance ends with its profile, and CUDA tells the instance's own uuid.
    return f"MIG-{text}" if " MIG " in properties.name else f"GPU-{text}"


def install(context: Context) -> None:
    """Record them once this process trains, and the rank again when a process group comes later."""

    def look_again(now: float, writer: RunFileWriter) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            again(writer)

    record = context.session.guarded("facts", lambda now, writer: _record(context, writer))
    again = context.session.guarded("facts", lambda now, writer: _record_rank(writer))
    context.session.on_armed.append(record)
    context.vitals.on_second.append(look_again)
