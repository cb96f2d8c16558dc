"""What the stack says while it is watched."""

from __future__ import annotations

import json
import queue
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Final

from examples.demo.receiver import Receiver

ABOVE_INFO: Final = ("warning", "critical")


@dataclass
class Alert:
    """An alert that fired. Times are Unix times; `notified` is when the webhook was told."""

    name: str
    labels: dict[str, str]
    first_seen: float
    descriptions: list[str] = field(default_factory=list)
    notified: float | None = None

    @property
    def above_info(self) -> bool:
        """Whether somebody is told of it."""
        return self.labels.get("severity") in ABOVE_INFO

    def matches(self, pattern: str) -> bool:
        """Whether it has ever said so, white space apart."""
        return any(re.search(pattern, re.sub(r"\s+", " ", text)) for text in self.descriptions)


class Observer:
    """Follows the alerts of one Prometheus and the notifications of its Alertmanager. Called from one thread."""

    def __init__(self, prometheus: str, receiver: Receiver) -> None:
        self.alerts: list[Alert] = []
        self._prometheus = prometheus
        self._url = f"{prometheus}/api/v1/alerts"
        self._receiver = receiver

    def look(self) -> None:
        """See what fires now and what was notified since."""
        with urllib.request.urlopen(self._url, timeout=10) as response:  # noqa: S310 (our own address)
            firing = [alert for alert in json.load(response)["data"]["alerts"] if alert["state"] == "firing"]
        now = time.time()
        for told in firing:
            self._note(told, now)
        self.listen()

    def listen(self) -> None:
        """Take the notifications that have come."""
        while True:
            try:
                told = self._receiver.alerts.get_nowait()
            except queue.Empty:
                return
            if told["status"] == "firing":
                alert = self._note(told, time.time())
                alert.notified = alert.notified or time.time()

    def missed(self) -> tuple[float, float]:
        """How many evaluations of rules Prometheus had no time for, and how many there should have been."""
        names = ("prometheus_rule_group_iterations_missed_total", "prometheus_rule_group_iterations_total")
        missed, all_ = (self._sum(name) for name in names)
        return missed, all_

    def _sum(self, metric: str) -> float:
        query = urllib.parse.urlencode({"query": f"sum(last_over_time({metric}[1h]))"})
        with urllib.request.urlopen(f"{self._prometheus}/api/v1/query?{query}", timeout=10) as response:  # noqa: S310
            result = json.load(response)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def _note(self, told: dict[str, Any], now: float) -> Alert:
        labels, description = told["labels"], told["annotations"].get("description", "")
        known = next((alert for alert in self.alerts if alert.labels == labels), None)
        if known is None:
            known = Alert(labels["alertname"], labels, now)
            self.alerts.append(known)
        if description not in known.descriptions:
            known.descriptions.append(description)
        return known
