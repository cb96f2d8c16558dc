"""Automatic mixed precision: the loss without its scale, the scale, and the steps that the GradScaler skips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainvitals.instruments import Context
from trainvitals.instruments.backward import Losses
from trainvitals.instruments.device_values import DeviceValues
from trainvitals.instruments.optimizer import Gradients


def install(context: Context, values: DeviceValues, losses: Losses, gradients: Gradients) -> None:
    """Watch the methods of GradScaler; the class under torch.cuda.amp inherits them."""
    grad_scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
    scaled = context.session.guarded("amp", losses.scaled)
    skipped = context.session.guarded("amp", gradients.skipped)

    def read_scale(now: float, scaler: Any) -> None:
        writer = context.session.writer
        if writer is not None and scaler._scale is not None:
            values.read(scaler._scale).then(lambda value: writer.set("trainvitals_amp_scale", value))

    updated = context.session.guarded("amp", read_scale)

    def scales(original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(self: Any, outputs: Any) -> Any:
            result = original(self, outputs)
            if self._enabled:
                scaled(outputs, result)
            return result

        return scale

    def steps(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            gradients.stepped = False
            result = original(self, optimizer, *args, **kwargs)
            if self._enabled and not gradients.stepped:
                skipped(optimizer)
            return result

        return step

    def updates(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if self._enabled:
                updated(self)
            return result

        return update

    context.patches.wrap(grad_scaler, "scale", scales)
    context.patches.wrap(grad_scaler, "step", steps)
    context.patches.wrap(grad_scaler, "update", updates)
