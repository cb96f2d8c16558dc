"""Running statistics that are cheap enough for every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

_RECOMPUTE_EVERY: Final = 16
# Turns a median absolute deviation into the standard deviation of a normal distribution: 1 / quantile(0.75).
_TO_STANDARD_DEVIATION: Final = 1.4826


class Baseline:
    """What the last `size` finite values, none below 0, tell to be normal, unmoved by single spikes.

    `median` is None before `warm_up` values and is recomputed every 16.
    """

    def __init__(self, size: int = 256, warm_up: int = 50) -> None:
        self.median: float | None = None
        self._values: deque[float] = deque(maxlen=size)
        self._due = warm_up

    def add(self, values: Iterable[float]) -> None:
        """Take in some values; NaN and infinities are left out."""
        finite = [value for value in values if math.isfinite(value)]
        self._values.extend(finite)
        self._due -= len(finite)
        if self._due <= 0:
            self._due = _RECOMPUTE_EVERY
            self.median = _middle(self._values)

    def spread(self, median: float) -> float:
        """By which factor values are typically off the median: what a standard deviation of their logarithms says,
        estimated from their median absolute deviation.
        """
        off = _middle(_factor(each, median) for each in self._values)
        return math.pow(off, _TO_STANDARD_DEVIATION) if math.isfinite(off) else math.inf


def _middle(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _factor(value: float, median: float) -> float:
    """By which factor of 1 or more a value is off the median."""
    if value == median:
        return 1.0
    smaller, larger = (value, median) if value < median else (median, value)
    return larger / smaller if smaller else math.inf


class RollingExtreme:
    """The largest (or, with `smallest`, the smallest) value of the last `window` seconds, to a tenth of the window."""

    def __init__(self, window: float = 60.0, *, smallest: bool = False) -> None:
        self._sign = -1.0 if smallest else 1.0
        self._window = window
        self._slice_ends = -math.inf
        self._newest = -math.inf
        self._slices: deque[tuple[float, float]] = deque()
        self._extreme = math.nan

    def add(self, now: float, value: float) -> float:
        """Take in a value at the time `now` (seconds, monotonic); returns the extreme. NaN is left out."""
        signed = value * self._sign
        if now < self._slice_ends and not signed > self._newest:
            return self._extreme  # by far the most frequent case
        slices = self._slices
        while slices and slices[0][0] <= now - self._window:
            slices.popleft()
        if signed == signed:
            if now < self._slice_ends:
                slices[-1] = (slices[-1][0], signed)
            else:
                slices.append((now, signed))
                self._slice_ends = now + self._window / 10
            self._newest = signed
        self._extreme = self._sign * max((extreme for _, extreme in slices), default=math.nan)
        return self._extreme
