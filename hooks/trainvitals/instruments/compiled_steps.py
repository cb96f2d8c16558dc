"""Optimizer steps inside a function that torch.compile compiles, without a graph break or a graph more.

Dynamo traces the hooks of a step, unlike the rest of this package. What they do is then part of the compiled code: to
leave a note of the step, which the next event of the loop finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

# Dynamo leaves out what lies in this package's folder.
_TRACED_FILE: Final = "<trainvitals: traced by torch.compile>"
# False while torch.compile traces nothing, and in a torch (< 2.3) that does not tell.
compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", lambda: False)


def traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Dynamo trace this function of ours, which is to do nothing of its own while ``compiling()``."""
    itself: Any = function
    itself.__code__ = itself.__code__.replace(co_filename=_TRACED_FILE)
    return function


class CompiledSteps:
    """The optimizer that stepped in compiled code and has not been reported yet."""

    def __init__(self) -> None:
        self.newest: Any = None

    def hooks(self, before: Callable[..., Any], after: Callable[..., Any]) -> tuple[Any, Any]:
        """`before` and `after` an optimizer's step, as they are to be given to torch."""
        steps = self

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> Any:
            return None if compiling() else before(optimizer, args, kwargs)

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if compiling():
                steps.newest = optimizer  # never read here, else Dynamo would guard it and recompile
            else:
                after(optimizer, args, kwargs)

        return traceable(before_step), traceable(after_step)
