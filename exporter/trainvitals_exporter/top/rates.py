"""What can only be told from several scrapes: rates of counters, and values over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final

RATE_SECONDS: Final = 10.0
HISTORY_LENGTH: Final = 600


class Rates:
    """Increases of counters over the newest seconds. A counter that fell was reset: it begins anew."""

    def __init__(self, window: float = RATE_SECONDS) -> None:
        self._window = window
        self._points: dict[Hashable, deque[tuple[float, float]]] = {}
        self._seen: set[Hashable] = set()

    def add(self, key: Hashable, time: float, value: float | None) -> None:
        """Take note of a counter's value at that time, in seconds; of None, nothing."""
        if value is None:
            return
        self._seen.add(key)
        points = self._points.setdefault(key, deque())
        if points and (value < points[-1][1] or time < points[-1][0]):
            points.clear()
        if not points or time > points[-1][0]:
            points.append((time, value))
        while len(points) > 2 and points[1][0] <= time - self._window:
            points.popleft()

    def increase(self, key: Hashable) -> float | None:
        """By how much it has grown within the window; None before there are two values."""
        points = self._points.get(key, deque())
        return points[-1][1] - points[0][1] if len(points) > 1 else None

    def rate(self, key: Hashable) -> float | None:
        """The same per second."""
        increase = self.increase(key)
        if increase is None:
            return None
        points = self._points[key]
        seconds = points[-1][0] - points[0][0]
        return increase / seconds if seconds > 0 else None

    def forget_unseen(self) -> None:
        """Forget the counters that were not added since the last call."""
        self._points = {key: points for key, points in self._points.items() if key in self._seen}
        self._seen = set()


class History:
    """The newest values of something, one a scrape; None where there was none. `first` is the number of the oldest."""

    def __init__(self) -> None:
        self.values: deque[float | None] = deque(maxlen=HISTORY_LENGTH)
        self.first = 0

    def add(self, value: float | None) -> None:
        """Append the newest value."""
        if len(self.values) == HISTORY_LENGTH:
            self.first += 1
        self.values.append(value)

    def shown(self) -> tuple[int, tuple[float | None, ...]]:
        """The values, and the number of the first."""
        return self.first, tuple(self.values)


def total(values: Iterable[float | None]) -> float | None:
    """The sum of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
