"""Epochs as Lightning counts them: it may end them early (limit_train_batches) and goes on counting after a resume."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from trainvitals.instruments import Context


def install(context: Context) -> None:
    """Watch the fit loop of the package ``lightning``."""
    _watch(context, "lightning.pytorch.loops.fit_loop")


def install_pytorch_lightning(context: Context) -> None:
    """Watch that of the package ``pytorch_lightning``."""
    _watch(context, "pytorch_lightning.loops.fit_loop")


def _watch(context: Context, module: str) -> None:
    def tell(now: float, loop: Any) -> None:
        context.vitals.epoch_told = loop.epoch_progress.current.processed

    told = context.session.guarded("lightning_epochs", tell)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def advance(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            told(self)
            return result

        return advance

    loop = importlib.import_module(module)._FitLoop
    context.patches.wrap(loop, "on_advance_start", make)
    context.patches.wrap(loop, "on_advance_end", make)
