"""Running statistics that are cheap enough for every step."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_RECOMPUTE_EVERY: Final = 16


class Baseline:
    """The median of the last `size` finite values: what is normal for this run, unmoved by single spikes.

    `median` is None before `warm_up` values; it is recomputed every 16 values.
    """

    def __init__(self, size: int = 256, warm_up: int = 50) -> None:
        self.median: float | None = None
        self._values: deque[float] = deque(maxlen=size)
        self._warm_up = warm_up
        self._due = warm_up

    def add(self, value: float) -> None:
        """Take in one value; NaN and infinities are left out."""
        if not math.isfinite(value):
            return
        self._values.append(value)
        self._due -= 1
        if self._due <= 0:
            self.median = sorted(self._values)[len(self._values) // 2]
            self._due = _RECOMPUTE_EVERY


class RollingExtreme:
    """The largest (or, with `smallest`, the smallest) value of the last `window` seconds, to a tenth of the window."""

    def __init__(self, window: float = 60.0, *, smallest: bool = False) -> None:
        self._pick = min if smallest else max
        self._slice = window / 10
        self._window = window
        self._slices: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> float:
        """Take in a value at the time `now` (seconds, monotonic); returns the extreme. NaN is left out."""
        slices = self._slices
        while slices and slices[0][0] <= now - self._window:
            slices.popleft()
        if value == value:
            if slices and now - slices[-1][0] < self._slice:
                slices[-1] = (slices[-1][0], self._pick(slices[-1][1], value))
            else:
                slices.append((now, value))
        return self._pick((extreme for _, extreme in slices), default=math.nan)
