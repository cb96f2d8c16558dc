"""Backwards: where a forward ends, that a batch is for training, and the loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from trainvitals.instruments import Context
from trainvitals.instruments.device_values import DeviceValues, Reading


class Losses:
    """The value of the newest backward, and how many backwards there were."""

    def __init__(self, context: Context, values: DeviceValues) -> None:
        self.newest: Reading | None = None
        self.count = 0
        self._scaled: tuple[weakref.ref[torch.Tensor], torch.Tensor] | None = None
        self._vitals = context.vitals
        self._values = values
        self._depth = 0

    def scaled(self, now: float, loss: Any, result: Any) -> None:
        """The GradScaler turned `loss` into `result`, which is about to be differentiated."""
        if isinstance(loss, torch.Tensor) and isinstance(result, torch.Tensor):
            self._scaled = (weakref.ref(result), loss.detach())

    def begin(self, now: float, roots: Any) -> None:
        """A backward from `roots` begins; Tensor.backward calls autograd.backward, which is not another one."""
        self._depth += 1
        if self._depth > 1:
            return
        self.count += 1
        self._vitals.backward_begins(now)
        scaled, self._scaled = self._scaled, None
        root = roots[0] if isinstance(roots, (tuple, list)) and len(roots) == 1 else roots
        if scaled is not None and scaled[0]() is root:
            root = scaled[1]
        # the value of a DTensor would need a collective, which could hang
        readable = type(root) is torch.Tensor or (isinstance(root, torch.Tensor) and not hasattr(root, "to_local"))
        if readable and root.numel() == 1:
            self.newest = self._values.read(root.detach())

    def end(self, now: float) -> None:
        """That backward has ended."""
        self._depth -= 1
        if self._depth == 0:
            self._vitals.backward_ends(now)


def install(context: Context, values: DeviceValues) -> Losses:
    """Watch Tensor.backward and autograd.backward."""
    losses = Losses(context, values)
    begin = context.session.guarded("backward", losses.begin)
    end = context.session.guarded("backward", losses.end)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            begin(args[0] if args else kwargs.get("tensors"))
            try:
                return original(*args, **kwargs)
            finally:
                end()

        return backward

    context.patches.wrap(torch.Tensor, "backward", make)
    context.patches.wrap(torch.autograd, "backward", make)
    return losses
