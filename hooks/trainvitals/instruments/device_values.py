"""Reading a tensor's value without making the device wait.

On a CPU the value is there. On an accelerator it is copied to pinned memory in the stream's own order, and read at a
later iteration, once an event says that the copy is done; nothing ever waits for it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import torch

from trainvitals.instruments import Context

# More values than this on their way mean that the device is far behind; the newest are then left out and counted.
_IN_FLIGHT: Final = 256


# absent in some versions
_is_functorch_wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda tensor: False)


def capturing() -> bool:
    """Whether a CUDA graph is being captured: whatever is done then is replayed for ever, or breaks the capture."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]  # of torch


@functools.lru_cache(maxsize=256)
def holds_values(kind: Any) -> bool:
    """Whether tensors of this class are just that. Others decide themselves what an operator does: a DTensor's value
    would need a collective, which could hang, and a FakeTensor has none.
    """
    return kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and not hasattr(kind, "to_local")


class Reading:
    """A value on its way: ``value`` is None until it has arrived."""

    __slots__ = ("_then", "value")

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self._then: list[Callable[[float], None]] | None = None

    def then(self, action: Callable[[float], None]) -> None:
        """Call ``action(value)`` now if the value is there, else when it arrives."""
        if self.value is not None:
            action(self.value)
        elif self._then is None:
            self._then = [action]
        else:
            self._then.append(action)

    def arrive(self, value: float) -> None:
        """The value is there."""
        self.value = value
        actions, self._then = self._then, None
        for action in actions or ():
            action(value)


class DeviceValues:
    """All readings of this process. Used on the training thread only: an event queried from another one would break a
    CUDA graph's capture.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buffer: torch.Tensor | None = None
        self._free: list[torch.Tensor] = []
        # An event belongs to the device that it was first recorded on.
        self._events: dict[torch.device, list[Any]] = {}
        # Kinds of devices, and whether values can be read from them: one has none, another no such memory to copy to.
        self._supported = {"cuda": True, "meta": False, "mps": False}
        self._waiting: deque[tuple[torch.device, Any, torch.Tensor, Reading]] = deque()

    def read(self, tensor: torch.Tensor) -> Reading:
        """Begin to read a tensor of one real element. A value that cannot be had is left out and counted."""
        if type(tensor) is torch.Tensor:
            return self._read(tensor)
        if not holds_values(type(tensor)):
            return self._leave_out("no_value")
        with torch._C.DisableTorchFunctionSubclass():  # what a subclass does when it is asked is not for us to cause
            return self._read(tensor)

    def drain(self) -> None:
        """Deliver what has arrived."""
        waiting = self._waiting
        if not waiting or capturing():
            return
        while waiting and waiting[0][1].query():
            device, event, place, reading = waiting.popleft()
            self._free.append(place)
            self._events[device].append(event)
            reading.arrive(place.item())

    def _read(self, tensor: torch.Tensor) -> Reading:
        if tensor.is_cpu:
            try:
                return Reading(float(tensor.item()))
            except (RuntimeError, TypeError, ValueError):  # complex, sparse, many elements, inside of vmap
                return self._leave_out("no_value")
        if capturing():
            return Reading()
        self.drain()
        device = tensor.device
        if not self._supports(device):
            return self._leave_out("device_not_supported")
        if not _can_be_copied(tensor):
            return self._leave_out("no_value")
        if not self._room():
            return self._leave_out("device_behind")
        return self._copy(tensor, device)

    def _copy(self, tensor: torch.Tensor, device: torch.device) -> Reading:
        events = self._events.setdefault(device, [])
        event = events.pop() if events else _new_event(device)
        place = self._free.pop()
        try:
            with torch.no_grad():
                place.copy_(tensor.detach().reshape(()), non_blocking=True)
            event.record(_current_stream(device))
        except BaseException:
            self._free.append(place)
            raise
        reading = Reading()
        self._waiting.append((device, event, place, reading))
        return reading

    def _supports(self, device: torch.device) -> bool:
        """Whether what a reading needs works on this kind of device. Tried once."""
        if device.type not in self._supported:
            try:
                torch.zeros(1, device="cpu", pin_memory=True)
                event = _new_event(device)
                event.record(_current_stream(device))
                event.query()
                self._supported[device.type] = True
            except (AttributeError, RuntimeError, TypeError):
                self._supported[device.type] = False
        return self._supported[device.type]

    def _room(self) -> bool:
        if self._buffer is None:
            with torch.inference_mode(mode=False):  # else it could not be written to outside of that mode
                self._buffer = torch.zeros(_IN_FLIGHT, dtype=torch.float64, device="cpu", pin_memory=True)
                self._free = list(self._buffer.unbind())
            self._context.vitals.on_iteration.append(lambda now, writer: self.drain())
        return bool(self._free)

    def _leave_out(self, reason: str) -> Reading:
        writer = self._context.session.writer
        if writer is not None:
            writer.values[writer.slot("trainvitals_series_dropped_total", reason=reason)] += 1
        return Reading()


def _can_be_copied(tensor: torch.Tensor) -> bool:
    """Whether a plain copy of it to the host is its value: one real number, and not of a functorch transform."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_complex()
        and not tensor.is_quantized
        and not _is_functorch_wrapped(tensor)
        and tensor.numel() == 1
    )


def _new_event(device: torch.device) -> Any:
    return torch.cuda.Event() if device.type == "cuda" else torch.Event(device.type)  # type: ignore[no-untyped-call]  # of torch


def _current_stream(device: torch.device) -> Any:
    return torch.cuda.current_stream(device) if device.type == "cuda" else torch.accelerator.current_stream(device)
