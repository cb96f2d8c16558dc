"""Running statistics that are cheap enough for every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
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

    @property
    def missing(self) -> int:
        """How many finite values are still needed for the first median."""
        return self._due if self.median is None else 0

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


class SteadyGrowth:
    """How fast the floor of a value has risen since the first, for each step; 0 where it does not rise all the time.

    Values are kept as the floors of 8 to 16 equally long slices: there are no sixteen before half of them are merged.
    """

    def __init__(self, values_per_slice: int = 8) -> None:
        self._values_per_slice = values_per_slice
        self._floors: list[tuple[float, float]] = []  # the step in the middle of each slice, and its floor
        self._begun = self._count = 0
        self._floor = math.inf
        self._growth: float | None = None

    def add(self, step: int, value: float) -> float | None:
        """Take in a value at a step, later than those before; None before eight slices are complete."""
        if not self._count:
            self._begun, self._floor = step, value
        self._floor = min(self._floor, value)
        self._count += 1
        if self._count == self._values_per_slice:
            self._floors.append(((self._begun + step) / 2, self._floor))
            self._count = 0
            if len(self._floors) == 16:
                self._merge()
            if len(self._floors) >= 8:
                self._growth = _steady_growth(self._floors)
        return self._growth

    def _merge(self) -> None:
        pairs = zip(self._floors[::2], self._floors[1::2], strict=True)
        self._floors = [((a + b) / 2, min(low, other)) for (a, low), (b, other) in pairs]
        self._values_per_slice *= 2


def _steady_growth(floors: list[tuple[float, float]]) -> float:
    """The least of three estimates, each of which sees through another thing that is no growth."""
    half = len(floors) // 2
    steps = _middle(_slope([a], [b]) for a, b in pairwise(floors))  # one step up
    halves = _slope(floors[:half], floors[half:])  # a saw-tooth
    lately = _slope(floors[-2:-1], floors[-1:])  # a warm-up that has come to its end
    return max(0.0, min(steps, halves, lately))


def _slope(earlier: list[tuple[float, float]], later: list[tuple[float, float]]) -> float:
    """From the floor of some slices to that of others."""
    distance = sum(at for at, _ in later) / len(later) - sum(at for at, _ in earlier) / len(earlier)
    return (min(floor for _, floor in later) - min(floor for _, floor in earlier)) / distance
