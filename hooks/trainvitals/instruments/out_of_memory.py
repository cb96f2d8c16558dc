"""Running out of GPU memory: how often, by how much, and a report of what lay there.

The allocator tells an observer of each allocation that failed, whatever the script then does. What else there is (an
allocator without observers, CUDA's own errors) is seen when the exception passes one of our hooks or ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch

from trainvitals import rundir
from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter

_REPORT_SUFFIX, _SNAPSHOT_SUFFIX = rundir.OUT_OF_MEMORY_SUFFIXES
_VERSION: Final = 1
_EVENTS: Final = 3
_LARGEST_BLOCKS: Final = 20
# A script that tries smaller and smaller batches fails often; the blocks are listed for the first of them.
_BLOCKS_EVERY_SECONDS: Final = 10.0
_LARGEST_SNAPSHOT: Final = 64 * 1024 * 1024
_UNITS: Final = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_REQUESTED: Final = re.compile(r"Tried to allocate ([\d.]+) (bytes|[KMGT]iB)")
_DEVICE: Final = re.compile(r"GPU (\d+)")
# CUDA's own, such as for a context or a library's workspace, do not pass the allocator.
_CUDA_ERROR: Final = re.compile("(CUDA|HIP) error: out of memory")

# torch takes an observer for the life of the process and gives none back: this one forwards to who listens now.
_listener: Callable[[int, int, int, int], None] | None = None
_observed: bool | None = None


def _observer(device: int, requested: int, total: int, free: int) -> None:
    if _listener is not None:
        _listener(device, requested, total, free)


def _observe() -> bool:
    """Have the allocator tell. Only once CUDA is initialised: before, this has crashed. Whether the allocator can."""
    global _observed
    if _observed is None:
        try:
            torch._C._cuda_attach_out_of_memory_observer(_observer)  # type: ignore[attr-defined]  # where torch has CUDA
            _observed = True
        except (AttributeError, RuntimeError):
            _observed = False
    return _observed


class OutOfMemory:
    """Counts and reports. Its observer is called wherever the allocator is: in autograd's threads, too."""

    def __init__(self, context: Context) -> None:
        self._session = context.session
        self._observed = False
        self._report = _Report(context)
        self._before_training: list[tuple[int, int]] = []
        self._is_known: Callable[[RuntimeError], bool] = lambda error: False
        self._failed = context.session.guarded("out_of_memory", self._allocation_failed, any_thread=True)
        self._raised = context.session.guarded("out_of_memory", self._exception_raised, any_thread=True)
        context.session.on_armed.append(self._armed)

    def begin(self, context: Context) -> None:
        """CUDA is there: begin to watch. May be called in any thread."""
        global _listener
        listener = _listener = lambda *about: self._failed(*about)
        self._observed = _observe()

        def stop_listening() -> None:
            global _listener
            if _listener is listener:
                _listener = None

        context.patches.on_undo(stop_listening)
        context.patches.wrap(sys, "excepthook", self._watch_uncaught)

    def look_at(self, error: BaseException) -> None:
        """An exception passes one of our hooks."""
        if isinstance(error, RuntimeError):
            self._raised(error)

    def _watch_uncaught(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
            self.look_at(error)
            original(kind, error, traceback)

        return excepthook

    def _exception_raised(self, now: float, error: RuntimeError) -> None:
        by_allocator = isinstance(error, torch.cuda.OutOfMemoryError)
        if by_allocator and self._observed:
            return
        text = str(error)
        if not by_allocator and _CUDA_ERROR.search(text) is None:
            return
        if self._is_known(error):
            return
        self._is_known = _recognizer(error)
        device = _DEVICE.search(text)
        index = int(device.group(1)) if device else torch.cuda.current_device()
        requested = _REQUESTED.search(text)
        size = float(requested.group(1)) * _UNITS[requested.group(2)] if requested else 0.0
        self._happened(now, index, int(size), {"exception": text[:2000]})

    def _allocation_failed(self, now: float, device: int, requested: int, total: int, free: int) -> None:
        self._happened(now, device, requested, {"device_total_bytes": total, "device_free_bytes": free})

    def _happened(self, now: float, device: int, requested: int, about: dict[str, Any]) -> None:
        writer = self._session.writer
        if writer is None:
            self._before_training.append((device, requested))
        else:
            _count(writer, device, requested)
        self._report.add(now, {"device": device, "requested_bytes": requested or None, **about})

    def _armed(self, writer: RunFileWriter) -> None:
        for device, requested in self._before_training:
            _count(writer, device, requested)
        self._before_training.clear()


def _recognizer(error: RuntimeError) -> Callable[[RuntimeError], bool]:
    """What tells this exception from others. To hold on to it would keep its frames, and so the memory they use."""
    try:
        reference = weakref.ref(error)
    except TypeError:  # Python's own classes; a later one at the same place is rarer than one that passes many hooks
        address = id(error)
        return lambda other: id(other) == address
    return lambda other: reference() is other


def _count(writer: RunFileWriter, device: int, requested: int) -> None:
    writer.values[writer.slot("trainvitals_cuda_ooms_total", device=str(device))] += 1
    if requested:
        writer.set("trainvitals_cuda_oom_requested_bytes", float(requested), device=str(device))


class _Report:
    """The newest few events in one small file next to the run file, and beside it, where PyTorch records the history of
    allocations, its snapshot for pytorch.org/memory_viz.
    """

    def __init__(self, context: Context) -> None:
        self._session = context.session
        self._events: list[dict[str, Any]] = []
        self._blocks_due = 0.0

    def add(self, now: float, event: dict[str, Any]) -> None:
        """Record an event and write the file anew. Allocates nothing on the device."""
        writer = self._session.writer
        stem = self._stem(writer)
        event = {"time": time.time(), **event, "allocator": _allocator(event["device"])}
        event["settings"] = {
            name: os.environ[name]
            for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")
            if name in os.environ
        }
        if now >= self._blocks_due:
            with contextlib.suppress(RuntimeError, AttributeError):  # an allocator without snapshots
                event.update(_memory(event["device"], stem.with_name(stem.name + _SNAPSHOT_SUFFIX)))
            self._blocks_due = now + _BLOCKS_EVERY_SECONDS
        if writer is not None:
            event["vital_signs"] = _vital_signs(writer)
        self._events = [*self._events, event][-_EVENTS:]
        report = {"version": _VERSION, "run": self._session.run.name, "pid": os.getpid(), "events": self._events[::-1]}
        _replace(stem.with_name(stem.name + _REPORT_SUFFIX), json.dumps(report, indent=1).encode())

    def _stem(self, writer: RunFileWriter | None) -> Path:
        if writer is not None:
            return writer.path.with_suffix("")
        # The first forward of all: there is no run file yet.
        rundir.prepare(self._session.run.directory)
        return self._session.run.directory / f"{self._session.run.run_id}.process.{os.getpid()}"


def _allocator(device: int) -> dict[str, Any]:
    with contextlib.suppress(RuntimeError):
        statistics = torch.cuda.memory_stats_as_nested_dict(device)
        flat = {name: value["all"] for name, value in statistics.items() if isinstance(value, dict) and "all" in value}
        return {**flat, **{name: value for name, value in statistics.items() if isinstance(value, int)}}
    return {}


def _memory(device: int, snapshot_path: Path) -> dict[str, Any]:
    """Bytes by segment type and block state, and the largest blocks. With the history on, the snapshot is written."""
    history_on = getattr(torch._C, "_cuda_isHistoryEnabled", bool)()
    snapshot = torch.cuda.memory._snapshot() if history_on else {"segments": torch.cuda.memory_snapshot()}  # type: ignore[no-untyped-call]  # of torch
    sums: dict[str, dict[str, int]] = {}
    blocks = []
    for segment in snapshot["segments"]:
        if segment["device"] != device:
            continue
        states = sums.setdefault(segment["segment_type"], {})
        for block in segment["blocks"]:
            states[block["state"]] = states.get(block["state"], 0) + block["size"]
            about = {"bytes": block["size"], "state": block["state"], "segment_type": segment["segment_type"]}
            blocks.append({**about, "segment_bytes": segment["total_size"], "stream": segment["stream"]})
    blocks.sort(key=lambda block: block["bytes"], reverse=True)
    result = {"bytes_by_segment_type_and_state": sums, "largest_blocks": blocks[:_LARGEST_BLOCKS]}
    if history_on:
        data = pickle.dumps(snapshot)
        if len(data) <= _LARGEST_SNAPSHOT:  # the run directory lies in memory, as a rule
            _replace(snapshot_path, data)
        result["snapshot"] = snapshot_path.name if len(data) <= _LARGEST_SNAPSHOT else f"too large: {len(data)} bytes"
    return result


def _vital_signs(writer: RunFileWriter) -> dict[str, float | str]:
    """All values of the run file but histograms. JSON knows neither NaN nor infinities: these are strings."""
    signs: dict[str, float | str] = {}
    for sample in writer.samples():
        if not sample.name.endswith("_bucket"):
            labels = ",".join(f"{name}={value}" for name, value in sample.labels)
            finite = sample.value - sample.value == 0
            signs[f"{sample.name}{{{labels}}}"] = sample.value if finite else str(sample.value)
    return signs


def _replace(path: Path, data: bytes) -> None:
    """Write a file of the owner's alone, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
