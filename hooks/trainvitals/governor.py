"""Keeps what the hooks cost under a share of the training's time, by making the dear measurements less often."""

from __future__ import annotations

import math
from typing import Final

# The baselines have to be taught first; what a few first steps cost tells little about the others, too.
_STEPS_AT_FIRST: Final = 50
_WINDOW_SECONDS: Final = 0.5
_LARGEST_INTERVAL: Final = 64
_LONGEST_SECONDS: Final = 10


class Governor:
    """Which steps to measure: one of `interval`, so that all hooks together take at most `share` of the wall time.

    What the other hooks take comes first; where they take it all, one of 64 steps is still measured. `interval` is
    reckoned anew every half second from what was measured in it.
    """

    def __init__(self, share: float) -> None:
        self.interval = 1
        self._share = share
        self._steps_to_go = _STEPS_AT_FIRST
        self._since: tuple[float, float] | None = None
        self._steps = 0
        self._measured = 0
        self._seconds = 0.0

    def measured(self, seconds: float) -> None:
        """A measurement was made, which took so long."""
        self._measured += 1
        self._seconds += seconds

    def step(self, now: float, hook_seconds: float) -> None:
        """A step that could have been measured has passed; `hook_seconds` is what all hooks have taken so far."""
        self._steps += 1
        if self._steps_to_go:
            self._steps_to_go -= 1
        elif self._since is None or now - self._since[0] >= _WINDOW_SECONDS:
            if self._since is not None and self._measured:
                self._reckon(now - self._since[0], hook_seconds - self._since[1])
            elif self._since is not None:
                return  # an interval longer than the window: wait for a measurement
            self._since = (now, hook_seconds)
            self._steps = self._measured = 0
            self._seconds = 0.0

    def _reckon(self, wall: float, hooks: float) -> None:
        each_step = self._steps * self._seconds / self._measured
        left = self._share * wall - (hooks - self._seconds)
        wanted = math.ceil(each_step / left) if left > 0 else _LARGEST_INTERVAL
        # Long steps can be dear and still have to be looked at; and one odd half second is no reason for a leap.
        wanted = min(wanted, _LARGEST_INTERVAL, int(_LONGEST_SECONDS * self._steps / wall), 4 * self.interval)
        self.interval = max(1, wanted, self.interval // 2)
