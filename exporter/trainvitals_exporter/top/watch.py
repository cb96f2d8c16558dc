"""Keeps watch over the sources: makes the picture of this moment out of their newest answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainvitals_exporter.top.model import Machine, MachineView
from trainvitals_exporter.top.overview import Picture, SourceView
from trainvitals_exporter.top.sources import ALERTS_INTERVAL, Poller, Prometheus, Scrape, Source

# Values of a source that skipped a beat are still shown without a word.
_FRESH_INTERVALS: Final = 3.0


@dataclass
class _Watched:
    name: str
    poller: Poller[Scrape]
    machine: Machine
    seen: float = -1.0
    view: MachineView | None = field(default=None)


class Watch:
    """The sources, asked every `interval` seconds, and a Prometheus, whose absence is told only if `strict`."""

    def __init__(
        self, sources: Sequence[Source], prometheus: Prometheus, interval: float, *, strict: bool, remark: str = ""
    ) -> None:
        self._interval = interval
        self._remark = remark
        self._strict = strict
        self._watched = [_Watched(each.name, Poller(each.fetch, interval), Machine(each.name)) for each in sources]
        self._alerts = Poller(prometheus.fetch, ALERTS_INTERVAL)

    def start(self) -> None:
        """Begin asking."""
        for each in self._watched:
            each.poller.start()
        self._alerts.start()

    def stop(self) -> None:
        """Ask no more."""
        for each in self._watched:
            each.poller.stop()
        self._alerts.stop()

    def asked(self) -> bool:
        """Whether each exporter has answered, or failed to."""
        return all(each.poller.answer.value is not None or each.poller.answer.error for each in self._watched)

    def picture(self) -> Picture:
        """What there is to see now. Waits for nothing."""
        now = time.monotonic()
        sources = []
        for each in self._watched:
            answer = each.poller.answer
            if answer.value is not None and answer.taken != each.seen:
                each.seen = answer.taken
                each.view = each.machine.update(answer.value, answer.taken)
            late = now - answer.taken > _FRESH_INTERVALS * max(self._interval, 1.0)
            silence = now - answer.taken if late or answer.error else None
            sources.append(SourceView(each.name, silence, answer.error))
        remark = self._remark
        if self._strict and self._alerts.answer.error:
            remark = f"no alerts: {self._alerts.answer.error}"
        alerts = self._alerts.answer.value or ()
        if self._alerts.answer.error:
            alerts = ()  # whether they still fire is not known
        views = tuple(each.view for each in self._watched if each.view is not None)
        return Picture(views, tuple(sources), alerts, time.strftime("%H:%M:%S"), remark)
