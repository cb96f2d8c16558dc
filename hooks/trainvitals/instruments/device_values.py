"""Reading a tensor's value without making the device wait.

On a CPU the value is there. On an accelerator it is copied to pinned memory in the stream's own order, and read at a
later iteration, once an event says that the copy is done; nothing ever waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import torch

from trainvitals.instruments import Context

# More values than this on their way mean that the device is far behind; the newest are then left out and counted.
_IN_FLIGHT: Final = 256


def capturing() -> bool:
    """Whether a CUDA graph is being captured: whatever is done then is replayed for ever, or breaks the capture."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]  # of torch


class Reading:
    """A value on its way: ``value`` is None until it has arrived."""

    __slots__ = ("_then", "value")

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self._then: list[Callable[[float], None]] = []

    def then(self, action: Callable[[float], None]) -> None:
        """Call ``action(value)`` now if the value is there, else when it arrives."""
        if self.value is None:
            self._then.append(action)
        else:
            action(self.value)

    def arrive(self, value: float) -> None:
        """The value is there."""
        self.value = value
        for action in self._then:
            action(value)
        self._then.clear()


class DeviceValues:
    """All readings of this process. Used on the training thread only: an event queried from another one would break a
    CUDA graph's capture.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buffer: torch.Tensor | None = None
        self._free: list[Any] = []
        self._waiting: deque[tuple[Any, torch.Tensor, Reading]] = deque()
        context.vitals.on_iteration.append(lambda now, writer: self.drain())

    def read(self, tensor: torch.Tensor) -> Reading:
        """Begin to read a tensor of one element."""
        if tensor.device.type == "cpu":
            return Reading(float(tensor))
        if capturing():
            return Reading()
        self.drain()
        if tensor.device.type != "cuda" or not self._room():
            self._count_dropped(tensor.device.type)
            return Reading()
        place = self._free.pop()
        with torch.no_grad():
            place.copy_(tensor.detach().reshape(()), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of torch
        event.record(torch.cuda.current_stream(tensor.device))
        reading = Reading()
        self._waiting.append((event, place, reading))
        return reading

    def drain(self) -> None:
        """Deliver what has arrived."""
        waiting = self._waiting
        if not waiting or capturing():
            return
        while waiting and waiting[0][0].query():
            _, place, reading = waiting.popleft()
            self._free.append(place)
            reading.arrive(float(place))

    def _room(self) -> bool:
        if self._buffer is None:
            with torch.inference_mode(mode=False):  # else it could not be written to outside of that mode
                self._buffer = torch.zeros(_IN_FLIGHT, dtype=torch.float64, device="cpu", pin_memory=True)
                self._free = list(self._buffer.unbind())
        return bool(self._free)

    def _count_dropped(self, device: str) -> None:
        writer = self._context.session.writer
        if writer is not None:
            reason = "device_behind" if device == "cuda" else "device_not_supported"
            writer.values[writer.slot("trainvitals_series_dropped_total", reason=reason)] += 1
