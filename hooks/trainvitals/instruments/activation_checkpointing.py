"""Activation checkpointing: activations that are computed again in the backward instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils import checkpoint

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter


def install(context: Context) -> None:
    """Watch for the first use of torch.utils.checkpoint, also through wrappers of it.

    Scripts have imported the name of the function, so that one which all its modes call, compiled ones while they are
    compiled, is watched instead.
    """
    seen = False

    def tell(writer: RunFileWriter) -> None:
        writer.set("trainvitals_gradient_checkpointing_enabled", float(seen))

    def note(now: float) -> None:
        nonlocal seen
        seen = True
        if context.session.writer is not None:
            tell(context.session.writer)

    noted = context.session.guarded("activation_checkpointing", note, any_thread=True)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_autocast_kwargs(*args: Any, **kwargs: Any) -> Any:
            if not seen:
                noted()
            return original(*args, **kwargs)

        return get_autocast_kwargs

    context.patches.wrap(checkpoint, "_get_autocast_kwargs", make)
    context.session.on_armed.append(tell)
