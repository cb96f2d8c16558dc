"""Scalars that the script sends to Weights & Biases, whether its runs are online, offline or disabled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Final

import torch

from trainvitals.instruments import Context

# Deeper ones are no scalars to look at; a dictionary may contain itself.
_MAX_DEPTH: Final = 4


def install(context: Context) -> None:
    """Watch ``Run.log``, which ``wandb.log`` is too. A run that was begun earlier has that function already."""
    import wandb
    from wandb.sdk.wandb_run import Run

    mirrored = _mirror(context)

    def method(original: Callable[..., Any]) -> Callable[..., Any]:
        def log(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
            mirrored(data)
            return original(self, data, *args, **kwargs)

        return log

    def function(original: Callable[..., Any]) -> Callable[..., Any]:
        def log(data: Any, *args: Any, **kwargs: Any) -> Any:
            mirrored(data)
            return original(data, *args, **kwargs)

        return log

    if getattr(wandb, "run", None) is not None:
        context.patches.wrap(wandb, "log", function)
    context.patches.wrap(Run, "log", method)


def install_disabled(context: Context) -> None:
    """Watch what takes the values of a disabled run."""
    from wandb.sdk.lib.disabled import SummaryDisabled

    mirrored = _mirror(context)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Any, data: Any = (), *args: Any, **kwargs: Any) -> Any:
            mirrored(data)
            return original(self, data, *args, **kwargs)

        return update

    context.patches.wrap(SummaryDisabled, "update", make)


def _mirror(context: Context) -> Callable[..., Any]:
    vitals = context.vitals

    def each(data: Any, prefix: str, depth: int) -> None:
        if not isinstance(data, Mapping) or depth > _MAX_DEPTH:
            return
        for key, value in data.items():
            tag = f"{prefix}{key}"
            if isinstance(value, Real):
                vitals.scalar(tag, float(value))
            elif isinstance(value, Mapping):
                each(value, f"{tag}.", depth + 1)  # as its charts name them
            elif isinstance(value, torch.Tensor):
                tensor(tag, value)
            elif math.prod(getattr(value, "shape", (0,))) == 1 and hasattr(value, "item"):  # NumPy's arrays of one
                vitals.scalar(tag, float(value.item()))

    def tensor(tag: str, value: torch.Tensor) -> None:
        if value.numel() != 1 or value.is_complex() or hasattr(value, "to_local"):
            return
        # what lies on a device is read by the training thread only
        if value.device.type == "cpu" or context.session.on_training_thread():
            vitals.read_tensor(value.detach()).then(functools.partial(vitals.scalar, tag))

    return context.session.guarded("wandb", lambda now, data: each(data, "", 0), any_thread=True)
