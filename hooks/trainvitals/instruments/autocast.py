"""Automatic mixed precision: the data type that training computes in."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch._guards import TracingContext
from torch.amp import autocast_mode

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter

_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_tracing_context: Final = getattr(TracingContext, "try_get", TracingContext.get)  # torch < 2.2


def _is_on(device: str, dtype: torch.dtype) -> bool:
    """Whether this thread is under autocast right now."""
    if hasattr(torch, "get_autocast_dtype"):
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == dtype
    return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()  # torch < 2.4


def install(context: Context) -> None:
    """Watch autocast being entered: backward is called outside of it, where nothing tells any more that it was on.

    What is entered without gradients is evaluation. Code that torch.compile compiles enters autocast only while it is
    compiled, and is under autocast ever after.
    """
    entered: dict[tuple[str, torch.dtype], float] = {}

    def note(now: float, autocast: Any) -> None:
        compiling = "torch._dynamo" in sys.modules and _tracing_context() is not None
        key = (autocast.device, autocast.fast_dtype)
        entered[key] = math.inf if compiling else max(now, entered.get(key, now))

    noted = context.session.guarded("autocast", note)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def __enter__(self: Any) -> Any:  # noqa: N807 (it replaces that method)
            result = original(self)
            if self._enabled and torch.is_grad_enabled():
                noted(self)
            return result

        return __enter__

    def tell(writer: RunFileWriter) -> None:
        began = context.vitals.iteration_began
        for name, dtype in _DTYPES.items():
            on = any(
                known == dtype and (since >= began or _is_on(device, dtype))
                for (device, known), since in entered.items()
            )
            writer.set("trainvitals_amp_enabled", float(on), dtype=name)

    context.patches.wrap(autocast_mode.autocast, "__enter__", make)
    context.vitals.on_second.append(context.session.guarded("autocast", lambda start, now, writer: tell(writer)))
