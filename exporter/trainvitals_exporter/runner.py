"""Runs the collectors and keeps what each found last.

Every collector has a thread and a pace of its own, so a slow or hung one cannot hold up the others. A scrape renders
the newest snapshots and touches neither files nor drivers. Data and health are two things: a collection that failed
leaves no data behind, and a collector that hangs loses its data after a while.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from trainvitals import __version__

from trainvitals_exporter import rendering
from trainvitals_exporter.families import Families, Family, select

# A loaded machine may stall a collector for seconds; an operator should still see a hung driver at the next scrape.
STALE_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class Collector(Protocol):
    """One source of metrics. `collect` is called every `interval` seconds, always from the same thread."""

    name: str
    interval: float

    def collect(self) -> Iterable[Family]:
        """Everything there is to say now. Raises NothingToReport, Incomplete, or anything else when it failed."""
        ...


class NothingToReport(Exception):
    """This host has none of what the collector reads. The message says what is missing; no fault is meant."""


class Incomplete(Exception):
    """Part of what the collector reads failed; `families` hold the rest."""

    def __init__(self, reason: str, families: Iterable[Family]) -> None:
        super().__init__(reason)
        self.families = families


@dataclass(frozen=True)
class Snapshot:
    """What one collection found (`families`) and how it went (the rest). Times are of the monotonic clock."""

    families: tuple[Family, ...]
    success: bool
    duration: float
    taken: float
    last_success: float | None
    _rendered: dict[str, str] = field(default_factory=dict, compare=False)

    def render(self, content_type: str) -> str:
        """The families as text, rendered once per format."""
        text = self._rendered.get(content_type)
        if text is None:
            text = self._rendered[content_type] = rendering.render(self.families, content_type)
        return text


class _Worker:
    """The thread of one collector."""

    def __init__(self, collector: Collector, stop: threading.Event) -> None:
        self.name = collector.name
        self._collector = collector
        self._stop = stop
        self._begun = time.monotonic()
        self._snapshot: Snapshot | None = None
        self._last_success: float | None = None
        self._trouble = ""
        self.thread = threading.Thread(target=self._run, name=f"collector-{self.name}", daemon=True)

    def current(self) -> Snapshot | None:
        """The newest snapshot; one without data when that is too old; None before the first."""
        snapshot, now = self._snapshot, time.monotonic()
        begun = self._begun if snapshot is None else snapshot.taken + self._collector.interval
        if now - begun <= STALE_SECONDS:
            return snapshot
        self._report("hangs; its values are left out until it answers")
        return Snapshot((), False, now - begun, now, self._last_success)

    def _run(self) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            self._snapshot = snapshot = self._collect(start)
            # A collection that takes long is not repeated at once: no collector is busy more than half of the time.
            self._stop.wait(max(self._collector.interval - snapshot.duration, snapshot.duration))

    def _collect(self, start: float) -> Snapshot:
        families: tuple[Family, ...] = ()
        try:
            families = tuple(self._collector.collect())
            trouble = ""
        except NothingToReport as nothing:
            trouble = f"has nothing to report: {nothing}"
        except Incomplete as incomplete:
            families = tuple(incomplete.families)
            trouble = f"is incomplete: {incomplete}"
        except Exception as error:  # whatever it is, the other collectors go on
            trouble = f"failed: {type(error).__name__}: {error}"
            _log.debug("collector %s", self.name, exc_info=True)
        self._report(trouble)
        if not trouble:
            self._last_success = time.time()
        now = time.monotonic()
        return Snapshot(families, not trouble, now - start, now, self._last_success)

    def _report(self, trouble: str) -> None:
        """Log what changed, and only that."""
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("collector %s %s", self.name, trouble or "works again")


class Runner:
    """All collectors at work. `render` may be called from any thread."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._stop = threading.Event()
        self._workers = [_Worker(collector, self._stop) for collector in collectors]
        out = Families()
        out.add("trainvitals_exporter_build_info", 1, __version__, platform.python_version())
        self._build_info = tuple(out)

    def start(self) -> None:
        """Start collecting."""
        for worker in self._workers:
            worker.thread.start()

    def stop(self) -> None:
        """Stop collecting, without waiting for a collection that is under way."""
        self._stop.set()

    def ready(self) -> bool:
        """Whether each collector has had its first say, or too much time for it."""
        return all(worker.current() is not None for worker in self._workers)

    def wait_until_ready(self) -> None:
        """Return when ready() is true: after STALE_SECONDS at the latest."""
        while not self.ready():
            time.sleep(0.02)

    @property
    def collectors(self) -> list[str]:
        """The names of the collectors at work."""
        return [worker.name for worker in self._workers]

    def render(
        self,
        content_type: str,
        names: frozenset[str] = frozenset(),
        collectors: frozenset[str] = frozenset(),
        more: Iterable[Family] = (),
    ) -> bytes:
        """The body of one scrape: of metrics or samples with these names, and of these collectors, where any are named.

        `more` are families that belong to the exporter itself and so to no collector.
        """
        workers = [worker for worker in self._workers if not collectors or worker.name in collectors]
        snapshots = [(worker.name, worker.current()) for worker in workers]
        if names:
            found = (family for _, snapshot in snapshots if snapshot is not None for family in snapshot.families)
            text = [rendering.render(select(found, names), content_type)]
        else:
            text = [snapshot.render(content_type) for _, snapshot in snapshots if snapshot is not None]
        health = Families()
        for name, snapshot in snapshots:
            if snapshot is not None:
                health.add("trainvitals_collector_success", snapshot.success, name)
                health.add("trainvitals_collector_duration_seconds", snapshot.duration, name)
                if snapshot.last_success is not None:
                    health.add("trainvitals_collector_last_success_timestamp_seconds", snapshot.last_success, name)
        own = (*health, *self._build_info, *more)
        text.append(rendering.render(select(own, names) if names else own, content_type))
        if content_type == rendering.OPENMETRICS:
            text.append(rendering.OPENMETRICS_END)
        # A path or a label out of a run file may hold what UTF-8 cannot: no reason to lose the scrape.
        return "".join(text).encode("utf-8", "replace")
