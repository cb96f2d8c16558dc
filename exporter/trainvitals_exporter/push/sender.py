"""Gets pushes to their destination in order, from a thread of its own, and keeps them while that cannot be reached."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from trainvitals_exporter.push.client import Client, Push, Refused, TryAgain

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Sender:
    """`room` is for how many bytes of bodies to keep; what is oldest makes way, but the newest is always kept."""

    def __init__(self, client: Client, address: str, room: int) -> None:
        self._client = client
        self._address = address
        self._room = room
        self._waiting: deque[Push] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._trouble = ""
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def put(self, pushes: Iterable[Push]) -> None:
        """Send these after all others."""
        with self._changed:
            for push in pushes:
                self._waiting.append(push)
                while len(self._waiting) > 1 and sum(len(each.body) for each in self._waiting) > self._room:
                    self._lose(self._waiting.popleft())
            self._changed.notify_all()

    def finish(self, pushes: Iterable[Push], seconds: float) -> bool:
        """Send these and what waits, each once more and all within that time. Tells whether all was taken."""
        self.put(pushes)
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            for push in self._waiting:
                self._lost += push.samples
            taken = not self._waiting and not self._trouble
            if not taken:
                lost = f"; {self._lost} samples were lost" if self._lost else ""
                _log.warning("ended before all was pushed%s", lost)
        return taken

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while (push := self._next()) is not None:
            try:
                self._client.send(push)
            except TryAgain as again:
                self._report(f"{again}; trying again, what is not pushed yet is kept")
                if self._deadline is not None:
                    return
                self._sleep(max(again.seconds or 0.0, pause * random.uniform(0.5, 1)))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except Refused as refused:
                self._report(f"refused: {refused}")
                self._done(push, taken=False)
            else:
                pause = FIRST_PAUSE_SECONDS
                self._done(push, taken=True)
                self._report("")

    def _next(self) -> Push | None:
        """The oldest, once there is one; None when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
            return self._waiting[0] if self._waiting else None

    def _done(self, push: Push, taken: bool) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is push:  # it may have made way meanwhile
                self._waiting.popleft()
                if not taken:
                    self._lose(push)

    def _lose(self, push: Push) -> None:
        if not self._lost and push.samples:
            _log.warning("samples are being lost: refused, or too many wait to be pushed")
        self._lost += push.samples

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._deadline is not None, seconds)

    def _report(self, trouble: str) -> None:
        """Log what changed, and only that."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            _log.warning("%s: %s", self._address, trouble)
            return
        with self._changed:
            lost, self._lost = self._lost, 0
        _log.info("%s: takes pushes again%s", self._address, f"; {lost} samples were lost meanwhile" if lost else "")
