"""Moving batches to the device: the time that the host spends in ``tensor.to(device)`` and ``tensor.cuda()``.

A copy counts between a fetch's end and the first backward. Blocking copies take long, others only begin in that time.

The two methods are hot, and other code has them in tables (torchvision looks `torch.Tensor.to` up in one to decide what
a result is). So only ``tensor.to`` is another one: ``torch.Tensor.to`` stays what it was, in the script's tables, for
``__torch_function__``, which torch calls with what it finds there, for Dynamo, and for pickle.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from time import perf_counter
from types import MethodType
from typing import Any, Final

import torch

from trainvitals.instruments import Context, accelerator
from trainvitals.instruments.device_values import holds_values
from trainvitals.phases import DATA_WAIT, FORWARD, OTHER, TRANSFER
from trainvitals.vitals import Vitals

# What lies between the copies of one batch's tensors is not worth a phase of its own.
_TOGETHER_SECONDS: Final = 20e-6
# A model that copies so often is not loading its batch: it keeps some of itself on the host.
_MAX_COPIES: Final = 64
_BEFORE_FORWARD: Final = (DATA_WAIT, TRANSFER)
# Where Dynamo tells that it begins to compile; torch imports it when it is needed.
_COMPILER: Final = "torch._dynamo.callback"


class _Window:
    """Whether copies count now. The state of the training thread."""

    def __init__(self, vitals: Vitals) -> None:
        self.open = False
        self._vitals = vitals
        self._copies = 0
        self._last_end = 0.0

    def phase_ended(self, phase: int) -> None:
        """A phase has ended, a number as in `catalogue.PHASES`."""
        if phase == DATA_WAIT:
            self._copies = 0
            self._last_end = perf_counter()
        self.open = phase in _BEFORE_FORWARD and self._copies < _MAX_COPIES

    def copied(self, now: float, start: float) -> None:
        """A tensor has been copied to the device."""
        self._copies += 1
        if start - self._last_end > _TOGETHER_SECONDS:
            self._vitals.passed(start, FORWARD)
        self._last_end = now
        self._vitals.passed(now, TRANSFER)


class _Method:
    """Stands in a class for a method that is inherited: instances get ours while the window is open."""

    def __init__(self, original: Any, window: _Window, copied: Callable[[float], None]) -> None:
        @functools.wraps(original)
        def timed(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = original(tensor, *args, **kwargs)
            if not _on_host(result):
                copied(start)
            return result

        self._original = original
        self._bind = original.__get__
        self._timed = timed
        self._window = window

    def __get__(self, tensor: Any, owner: Any = None) -> Any:
        if tensor is None:
            return self._original
        if self._window.open and _may_be_copied(tensor):
            # a method of this tensor's own, as Dynamo too knows them
            return MethodType(self._timed, tensor)
        return self._bind(tensor, owner)


def _may_be_copied(tensor: torch.Tensor) -> bool:
    """Whether a copy of it to the device would be a real one: not that of a FakeTensor, say."""
    kind: Any = type(tensor)
    return holds_values(kind) and _on_host(tensor)


def _on_host(tensor: torch.Tensor) -> bool:
    """Whether no device holds it. A subclass's own `__torch_function__` is not to notice that we ask."""
    if type(tensor) is torch.Tensor:
        return tensor.is_cpu or tensor.is_meta
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.is_cpu or tensor.is_meta


class _Methods:
    """The two methods in `torch.Tensor`, and when they are not there."""

    def __init__(self, window: _Window, copied: Callable[[float], None]) -> None:
        self._window = window
        self._copied = copied
        self._ours: dict[str, tuple[_Method, Any]] = {}
        self._compiler: Any = None

    def put(self, *_: Any) -> None:
        """Replace them."""
        for name in ("to", "cuda"):
            if name not in self._ours:
                method = _Method(getattr(torch.Tensor, name), self._window, self._copied)
                self._ours[name] = method, vars(torch.Tensor).get(name)  # None where it is inherited, as torch has it
                setattr(torch.Tensor, name, method)

    def take(self, *_: Any) -> None:
        """Put back what was there, but not where somebody has replaced ours."""
        for name, (method, before) in self._ours.items():
            if vars(torch.Tensor).get(name) is not method:
                continue
            if before is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, before)
        self._ours.clear()

    def follow(self, compiler: Any) -> None:
        """Be away while Dynamo compiles: it reads the class itself, and takes a method there for a subclass's own."""
        self._compiler = compiler
        compiler.register_start_callback(self.take)
        compiler.register_end_callback(self.put)

    @property
    def follows(self) -> bool:
        """Whether Dynamo tells; its reset() forgets whom to."""
        return self._compiler is not None and self.take in self._compiler.start_callbacks

    def leave(self) -> None:
        """Put back what was there, for good."""
        self.take()
        if self.follows:
            self._compiler.remove_start_callback(self.take)
            self._compiler.remove_end_callback(self.put)


def install(context: Context) -> Callable[[int], None]:
    """Watch the copies from now on. Returns what wants to be told of each phase that has ended."""
    window = _Window(context.vitals)
    methods = _Methods(window, context.session.guarded("transfer", window.copied))
    follow = context.session.guarded("transfer", lambda now, module: methods.follow(module.callback_handler))

    def phase_ended(phase: int) -> None:
        if phase == DATA_WAIT and _COMPILER in sys.modules and not methods.follows:
            follow(sys.modules[_COMPILER])
        window.phase_ended(phase)

    methods.put()
    context.patches.on_undo(methods.leave)
    return phase_ended


def install_accelerate(context: Context) -> None:
    """Watch Accelerate's loaders, the Hugging Face Trainer's too: they copy a batch before they fetch the one after it,
    which is after a step and so outside of the window.
    """
    if not accelerator.is_built():
        return
    copied = context.session.guarded("transfer", lambda now, start: _copied_ahead(context.vitals, now, start))

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def send_to_device(tensor: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = original(tensor, device, *args, **kwargs)
            if getattr(device, "type", device) != "cpu":
                copied(start)
            return result

        return send_to_device

    context.patches.wrap(sys.modules["accelerate.data_loader"], "send_to_device", make)


def _copied_ahead(vitals: Vitals, now: float, start: float) -> None:
    vitals.passed(start, OTHER)
    vitals.passed(now, TRANSFER)
