"""What is watched once a training uses CUDA (or ROCm), or another accelerator; before that, nothing is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from trainvitals.instruments import Context
from trainvitals.phases import FORWARD
from trainvitals.runfile import RunFileWriter

if TYPE_CHECKING:
    from trainvitals.instruments.cuda_memory import CudaMemory
    from trainvitals.instruments.out_of_memory import OutOfMemory


def install(context: Context) -> None:
    """Wait for a training, and for CUDA, in any order."""
    if torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]  # of torch
        _install_cuda(context)
    elif is_built() and "transfer" not in context.off:
        start = context.session.guarded("transfer", lambda now, writer: _watch_transfers(context))
        context.session.on_armed.append(start)


def is_built() -> bool:
    """Whether torch is built for any accelerator."""
    if torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]  # of torch
        return True
    return hasattr(torch, "accelerator") and torch.accelerator.current_accelerator() is not None


def _watch_transfers(context: Context) -> None:
    from trainvitals.instruments import transfer

    context.vitals.phases.on_phase = transfer.install(context)


def _install_cuda(context: Context) -> None:
    from trainvitals.instruments.out_of_memory import OutOfMemory

    out_of_memory = None if "out_of_memory" in context.off else OutOfMemory(context)

    def initialized(now: float) -> None:
        # It may be the middle of torch.cuda.init(), in any thread: no call into CUDA but the one that is known to work.
        if out_of_memory is not None:
            out_of_memory.begin(context)
        if context.session.writer is None:
            context.session.on_armed.append(start)
        else:
            _watch(context, context.session.writer, out_of_memory)

    def training(now: float, writer: RunFileWriter) -> None:
        memory = _watch(context, writer, out_of_memory)
        context.session.guarded("cuda_memory", memory.look)(writer)

    start = context.session.guarded("accelerator", training)
    _when_initialized(context, context.session.guarded("accelerator", initialized, any_thread=True))


def _when_initialized(context: Context, action: Callable[[], None]) -> None:
    """Call `action` now or at the end of CUDA's initialisation, by torch's own list of what waits for it."""
    torch.cuda._lazy_call(action)  # type: ignore[no-untyped-call]  # of torch

    def forget() -> None:
        torch.cuda._queued_calls[:] = [call for call in torch.cuda._queued_calls if call[0] is not action]

    context.patches.on_undo(forget)


def _watch(context: Context, writer: RunFileWriter, out_of_memory: OutOfMemory | None) -> CudaMemory:
    """A training uses CUDA. Its memory is looked at by the caller, or else at the end of the iteration."""
    from trainvitals.instruments import facts, gpu_phases, transfer
    from trainvitals.instruments.cuda_memory import CudaMemory

    vitals, guarded = context.vitals, context.session.guarded
    memory = CudaMemory(facts.record_gpu, values_wanted="cuda_memory" not in context.off)
    phases = gpu_phases.GpuPhases(writer)
    mark = guarded("gpu_phases", lambda now, phase: phases.mark(phase))
    read_phases = guarded("gpu_phases", lambda start, now: phases.boundary(now, memory.busiest))
    read_memory = guarded("cuda_memory", lambda start, now, writer: memory.boundary(now, vitals.iterations, writer))
    near_peak = guarded("cuda_memory", lambda now: memory.backward_begins(now))
    epoch_ends = guarded("cuda_memory", lambda start, now, writer: memory.epoch_ends(now))
    copies = None if "transfer" in context.off else transfer.install(context)
    measure_phases = "gpu_phases" not in context.off

    def on_iteration(now: float, writer: RunFileWriter) -> None:
        if memory.due(now):
            read_memory(now, writer)
        if measure_phases:
            read_phases(now)

    def on_phase(phase: int) -> None:
        if copies is not None:
            copies(phase)
        if phases.measuring:
            mark(phase)
        if phase == FORWARD and memory.peak_is_hidden and memory.due(perf_counter()):
            near_peak()
        if out_of_memory is not None and (error := sys.exc_info()[1]) is not None:
            out_of_memory.look_at(error)

    vitals.on_iteration.append(on_iteration)
    vitals.on_epoch.append(epoch_ends)
    vitals.phases.on_phase = on_phase
    return memory
