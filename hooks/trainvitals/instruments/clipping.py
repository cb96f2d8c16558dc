"""Gradient clipping: the norm has to be taken before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad

from trainvitals.instruments import Context
from trainvitals.instruments.compiled_steps import compiling, traceable
from trainvitals.instruments.optimizer import Gradients


def install(context: Context, gradients: Gradients) -> None:
    """Watch torch's clipping functions; a script's own clipping function is not seen."""
    before = context.session.guarded("clipping", gradients.before_clipping)

    def materialized(parameters: Any) -> list[torch.Tensor]:
        return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)

    def clips(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                return original(parameters, *args, **kwargs)
            parameters = materialized(parameters)
            before(parameters, None)
            return original(parameters, *args, **kwargs)

        return traceable(clip)

    context.patches.wrap(clip_grad, "clip_grad_value_", clips)
    context.patches.wrap(torch.nn.utils, "clip_grad_value_", lambda _: clip_grad.clip_grad_value_)
    if hasattr(clip_grad, "_clip_grads_with_norm_") and hasattr(clip_grad, "_get_total_norm"):
        _watch_inner_functions(context, before)
    else:  # torch < 2.6
        context.patches.wrap(clip_grad, "clip_grad_norm_", clips)
        context.patches.wrap(torch.nn.utils, "clip_grad_norm_", lambda _: clip_grad.clip_grad_norm_)


def _watch_inner_functions(context: Context, before: Callable[..., Any]) -> None:
    """The halves of clip_grad_norm_: they are found by scripts that imported its name earlier, and know the norm."""
    measured: list[Any] = [None]

    def measures(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_total_norm(tensors: Any, norm_type: float = 2.0, *args: Any, **kwargs: Any) -> Any:
            total_norm = original(tensors, norm_type, *args, **kwargs)
            if compiling():
                return total_norm
            measured[0] = total_norm if float(norm_type) == 2.0 else None
            return total_norm

        return traceable(get_total_norm)

    def clips(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grads_with_norm(parameters: Any, max_norm: float, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                return original(parameters, max_norm, total_norm, *args, **kwargs)
            if not isinstance(parameters, (list, torch.Tensor)):
                parameters = list(parameters)
            known, measured[0] = measured[0], None
            before([parameters] if isinstance(parameters, torch.Tensor) else parameters,
                   total_norm if known is total_norm else None)  # fmt: skip
            return original(parameters, max_norm, total_norm, *args, **kwargs)

        return traceable(clip_grads_with_norm)

    context.patches.wrap(clip_grad, "_get_total_norm", measures)
    context.patches.wrap(clip_grad, "_clip_grads_with_norm_", clips)
