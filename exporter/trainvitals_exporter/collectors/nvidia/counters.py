"""Makes sure that what is served as a counter counts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from trainvitals_exporter.collectors.nvidia.device import Reading

# A counter may start anew, when the driver is reloaded or the GPU reset; that happens rarely.
_MOST_FALLS: Final = 2
_FALLS_WITHIN_SECONDS: Final = 3600.0
_FORGET_SECONDS: Final = 3600.0


@dataclass
class _History:
    value: float
    seen: float
    reading: Reading | None = None
    believed: bool = True
    fallen_to: float | None = None
    falls: deque[float] = field(default_factory=deque)


class Counters:
    """Passes counters on, but not garbage.

    A value below the last one is believed if the next one confirms it: then the counter started anew. One that falls
    again and again is none, for example a register too narrow for what it counts, and is left out until it is steady.
    """

    def __init__(self) -> None:
        self._histories: dict[Hashable, _History] = {}
        self._forget_at = 0.0

    def believed(self, key: Hashable, reading: Reading) -> bool:
        """Whether that counter may be served with that reading, which may be one that was judged before."""
        now = time.monotonic()
        self._forget(now)
        history = self._histories.setdefault(key, _History(reading.value, now))
        history.seen = now
        if history.reading is not reading:
            history.reading = reading
            history.believed = self._judge(history, reading.value, now)
        return history.believed

    def _judge(self, history: _History, value: float, now: float) -> bool:
        while history.falls and history.falls[0] < now - _FALLS_WITHIN_SECONDS:
            history.falls.popleft()
        if value < history.value and (history.fallen_to is None or value < history.fallen_to):
            history.fallen_to = value
            return False
        if value < history.value:
            history.falls.append(now)
        history.value, history.fallen_to = value, None
        return len(history.falls) <= _MOST_FALLS

    def _forget(self, now: float) -> None:
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_SECONDS
            self._histories = {k: h for k, h in self._histories.items() if h.seen > now - _FORGET_SECONDS}
