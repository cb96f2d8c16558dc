"""What this rank is: versions, frameworks, its place among the ranks, its GPUs."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import zlib
from pathlib import Path
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
_LOOPBACK: Final = ("localhost", "127.", "::1", "[::1]", "0.0.0.0")  # noqa: S104 (to know it, not to listen there)


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
    if world_size > 1:
        _record_world(writer)


def _record_world(writer: RunFileWriter) -> None:
    world = _world()
    # A process may join another group than before: of two names, rules could tell neither.
    earlier = {label["world"] for label in writer.labels("trainvitals_world_info")}
    for other in earlier - {world}:
        writer.retire("trainvitals_world_info", world=other)
    if world is not None:
        writer.set("trainvitals_world_info", 1.0, world=world)


def _world() -> str | None:
    """The same for all ranks that meet at one address and port, be they started by one launcher or by one on each host.

    It has to be told apart from other such meetings: only one can be at an address and port at a time, but a loopback
    address is another one on each host and in each network namespace, and a name on Kubernetes in each of its own.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return None
    on_kubernetes, where = "KUBERNETES_SERVICE_HOST" in os.environ, ""
    if on_kubernetes and address.startswith(_LOOPBACK):
        address = socket.gethostname()  # Kubeflow tells the master "localhost", and the others the name of its pod
    with contextlib.suppress(OSError):
        if on_kubernetes:
            lines = Path("/etc/resolv.conf").read_text().splitlines()
            searched = [line.split()[1:] for line in lines if line.startswith("search ")]
            where = searched[0][0] if searched and searched[0] else ""  # the namespace's; others may be the node's
        elif address.startswith(_LOOPBACK):
            where = f"{socket.gethostname()} {Path('/proc/self/ns/net').stat().st_ino}"
    together = (os.environ.get("TORCHELASTIC_RUN_ID"), address, port, where)
    return f"{zlib.crc32(repr(together).encode()):08x}"


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
