"""Backwards: where a forward ends, that a batch is for training, and the loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

import torch

from trainvitals.instruments import Context
from trainvitals.instruments.device_values import DeviceValues, Reading

_MAX_SCALED: Final = 64


class Losses:
    """The value of the newest backward, and how many backwards there were."""

    def __init__(self, context: Context, values: DeviceValues) -> None:
        self.newest: Reading | None = None
        self.count = 0
        self._scaled: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        self._session = context.session
        self._vitals = context.vitals
        self._values = values
        self._under_way = False
        self.on_end: Callable[[], None] | None = None

    def scaled(self, now: float, loss: Any, result: Any) -> None:
        """The GradScaler turned `loss` into `result`, which is about to be differentiated."""
        if isinstance(loss, torch.Tensor) and isinstance(result, torch.Tensor):
            if len(self._scaled) >= _MAX_SCALED:
                self._scaled.clear()  # whoever scales so many without a backward does something else
            self._scaled[id(result)] = (weakref.ref(result), loss.detach())

    def begin(self, now: float, roots: Any) -> bool:
        """A backward from `roots` begins. Whether it is one to report the end of: one inside another is not."""
        if self._under_way:
            return False
        self.count += 1
        self._vitals.backward_begins(now)
        loss = self._unscaled(roots[0] if isinstance(roots, (tuple, list)) and len(roots) == 1 else roots)
        self.newest = None if loss is None else self._values.read(loss)
        self._under_way = True
        return True

    def end(self, now: float) -> None:
        """That backward has ended."""
        self._under_way = False  # also when another thread has become the one that trains
        if self._session.on_training_thread():
            self._vitals.backward_ends(now)
            if self.on_end is not None:
                self.on_end()

    def _unscaled(self, root: Any) -> torch.Tensor | None:
        """The loss that a backward from `root` is of; None where it is not known."""
        # The value of a DTensor would need a collective, which could hang.
        readable = type(root) is torch.Tensor or (isinstance(root, torch.Tensor) and not hasattr(root, "to_local"))
        if not readable or root.numel() != 1:
            return None
        if not self._scaled:
            return root  # type: ignore[no-any-return]  # it is a tensor
        reference, loss = self._scaled.pop(id(root), (None, None))
        if reference is not None and reference() is root:
            return loss
        # Scaled losses that had no backward of their own: this may well be their sum.
        self._scaled = {key: known for key, known in self._scaled.items() if known[0]() is not None}
        return None


def install(context: Context, values: DeviceValues) -> Losses:
    """Watch torch.autograd.backward, which Tensor.backward calls too."""
    losses = Losses(context, values)
    begin = context.session.guarded("backward", losses.begin)
    end = context.session.guarded("backward", losses.end, any_thread=True)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(*args: Any, **kwargs: Any) -> Any:
            reported = begin(args[0] if args else kwargs.get("tensors"))
            try:
                return original(*args, **kwargs)
            finally:
                if reported:
                    end()

        return backward

    context.patches.wrap(torch.autograd, "backward", make)
    return losses
