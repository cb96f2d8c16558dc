"""Where the hooks' time goes: the microseconds of each guarded hook, without those of hooks that it calls."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from trainvitals.session import Session


class Stopwatch:
    """Times every hook that is guarded while it is installed, and called while it runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.running = False
        self._inner = [0.0]  # for each hook under way, the time of the hooks inside it
        self._empty = 0.0
        self._empty = self._time_of_nothing()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Time the hooks of sessions that start in here."""
        original = Session.guarded

        def guarded(session: Session, name: str, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
            hook = original(session, name, function, **options)
            return self._timed(f"{name}: {getattr(function, '__qualname__', repr(function))}", hook)

        Session.guarded = guarded  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Session.guarded = original  # type: ignore[method-assign]

    def rows(self, steps: int) -> list[tuple[str, float, float, float, float]]:
        """Of each hook: name, calls a step; microseconds of its median and its longest call, mean microseconds a step.

        The dearest comes first.
        """
        rows = [
            (name, len(times) / steps, statistics.median(times) * 1e6, max(times) * 1e6, sum(times) / steps * 1e6)
            for name, times in self.seconds.items()
            if times
        ]
        return sorted(rows, key=lambda row: -row[-1])

    def _timed(self, label: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        times, inner, empty = self.seconds[label], self._inner, self._empty

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return hook(*args, **kwargs)
            inner.append(0.0)
            start = perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                taken = perf_counter() - start
                times.append(taken - inner.pop() - empty)
                inner[-1] += taken

        return timed

    def _time_of_nothing(self) -> float:
        """What a hook that does nothing seems to take."""
        nothing = self._timed("", lambda: None)
        self.running = True
        for _ in range(10_000):
            nothing()
        self.running = False
        return statistics.median(self.seconds.pop(""))
