"""The phases of an iteration by the GPU's own clock: events in its stream, which nothing ever waits for."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import torch

from trainvitals import catalogue
from trainvitals.instruments.device_values import capturing
from trainvitals.runfile import RunFileWriter

# Two microseconds an event and as much to read it, five or six times an iteration, is too much for short ones. Between
# the bounds it stays as it was, so that the counters do not stutter.
_MEASURE_FROM_SECONDS: Final = 0.010
_MEASURE_DOWN_TO_SECONDS: Final = 0.004
_ITERATIONS_A_CHOICE: Final = 8
# This many marks without an answer mean that the GPU is some forty iterations behind.
_IN_FLIGHT: Final = 256
_OTHER: Final = catalogue.GPU_PHASES.index("other")
# Waiting for data and saving are not the GPU's: what it does meanwhile is something else.
_GPU_PHASE: Final = tuple(
    catalogue.GPU_PHASES.index(phase) if phase in catalogue.GPU_PHASES else _OTHER for phase in catalogue.PHASES
)


class GpuPhases:
    """Marks the ends of phases in the stream of one device, and adds up the time between neighbours.

    To be used on the training thread only: an event queried from another one would break a CUDA graph's capture.
    """

    def __init__(self, writer: RunFileWriter) -> None:
        self.measuring = False
        self._writer = writer
        self._device: int | None = None
        self._free: list[Any] = []
        # The end of a phase; None begins a chain of neighbours.
        self._waiting: deque[tuple[int | None, Any]] = deque()
        self._previous: Any = None
        self._broken = True
        self._slots: list[int] = []
        self._recent: list[float] = []
        self._last_boundary: float | None = None

    def mark(self, phase: int) -> None:
        """A phase ends here, a number as in `catalogue.PHASES`."""
        if capturing():
            self._broken = True
            return
        if len(self._waiting) >= _IN_FLIGHT:  # far behind, or a long evaluation, which has no iterations
            self._drain()
            if len(self._waiting) >= _IN_FLIGHT:
                self._broken = True
                return
        ended = None if self._broken else _GPU_PHASE[phase]
        self._broken = False
        stream = torch.cuda.current_stream(self._device)
        if ended is not None and self._waiting and self._waiting[-1][0] == ended:
            self._waiting[-1][1].record(stream)  # the same phase goes on
            return
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
        event.record(stream)
        self._waiting.append((ended, event))

    def boundary(self, now: float, device: int | None) -> None:
        """An iteration has ended; `device` is the one that the process computes on, None while that is not known."""
        if device != self._device:
            self._device = device
            self._restart()
        self._choose(now)
        if self._waiting and not capturing():
            self._drain()

    def _choose(self, now: float) -> None:
        """Measure long iterations, but not short ones. The median: some hold an evaluation, or the first warm-up."""
        last, self._last_boundary = self._last_boundary, now
        if last is not None:
            self._recent.append(now - last)
        if len(self._recent) < _ITERATIONS_A_CHOICE:
            return
        typical = sorted(self._recent)[_ITERATIONS_A_CHOICE // 2]
        self._recent.clear()
        long_enough = _MEASURE_DOWN_TO_SECONDS if self.measuring else _MEASURE_FROM_SECONDS
        measuring = self._device is not None and typical >= long_enough
        self._broken = self._broken or not measuring
        self.measuring = measuring

    def _drain(self) -> None:
        waiting = self._waiting
        while waiting and waiting[0][1].query():
            phase, event = waiting.popleft()
            previous, self._previous = self._previous, event
            if previous is None:
                continue
            if phase is not None:
                self._add(phase, previous.elapsed_time(event) / 1e3)
            self._free.append(previous)

    def _add(self, phase: int, seconds: float) -> None:
        if not self._slots:
            names = catalogue.GPU_PHASES
            self._slots = [self._writer.slot("trainvitals_gpu_phase_seconds_total", phase=name) for name in names]
        if seconds > 0:  # less where the script went from one stream to another
            self._writer.values[self._slots[phase]] += seconds

    def _restart(self) -> None:
        """Events belong to the device that they were first recorded on."""
        self._waiting.clear()
        self._free.clear()
        self._previous = None
        self._broken = True
