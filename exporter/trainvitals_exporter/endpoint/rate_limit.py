"""A token bucket."""

from __future__ import annotations

import threading
import time


class RateLimit:
    """Allows `burst` requests at once, and one more every `interval` seconds."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._burst = burst
        self._tokens = float(burst)
        self._filled = time.monotonic()
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Whether this request may pass; it counts if it may."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._filled) / self._interval)
            self._filled = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
