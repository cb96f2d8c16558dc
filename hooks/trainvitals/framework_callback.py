"""What the callbacks for Lightning and for Hugging Face's Trainer have in common."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from trainvitals import attachment


class Recording:
    """A recording that lasts from `begin` to `end`, unless somebody else has begun one already."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._ours = False

    def begin(self) -> None:
        """Attach, if this process is not attached."""
        if not attachment.attached():
            attachment.attach(self._name)
            self._ours = True

    def epoch(self, number: int) -> None:
        """So many passes over the data are complete, by the framework's own count."""
        attachment.tell_epoch(number)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Record those metrics that are single numbers."""
        attachment.log(**{name: value for name, value in metrics.items() if _is_single_number(value)})

    def end(self) -> None:
        """Detach, if it was `begin` that attached."""
        if self._ours:
            self._ours = False
            attachment.detach()


def _is_single_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "numel") and value.numel() == 1)
