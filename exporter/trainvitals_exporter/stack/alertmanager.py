"""What `trainvitals stack` asks of Alertmanager, through its API v2 and its metrics."""

from __future__ import annotations

import json
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml
from prometheus_client.parser import text_string_to_metric_families

from trainvitals_exporter import web
from trainvitals_exporter.web import Unanswered

_PATIENCE_SECONDS: Final = 10.0
_ENDING: Final = "_configs"

# How often Alertmanager tried to notify, and how often that failed, by the kind of an integration.
Attempts: TypeAlias = "tuple[Counter[str], Counter[str]]"


@dataclass(frozen=True)
class Integration:
    """One way of a receiver to tell people: `kind` as in Alertmanager's metrics, such as webhook or slack."""

    receiver: str
    kind: str
    settings: Mapping[str, Any]


class Alertmanager:
    """The Alertmanager at a URL. All methods raise Unanswered."""

    def __init__(self, url: str) -> None:
        self._url = url

    def version_and_integrations(self) -> tuple[str, list[Integration]]:
        """Its version, and all integrations of its configuration."""
        try:
            status = json.loads(self._ask("/api/v2/status"))
            receivers = yaml.safe_load(status["config"]["original"])["receivers"]
            return str(status["versionInfo"]["version"]), [
                Integration(receiver["name"], key.removesuffix(_ENDING), settings)
                for receiver in receivers for key, value in receiver.items() if key.endswith(_ENDING)
                for settings in value
            ]  # fmt: skip
        except (ValueError, KeyError, TypeError, yaml.YAMLError):
            raise self._no_alertmanager() from None

    def post(self, alert: Mapping[str, Any]) -> None:
        """Give it an alert, in the form of its API: labels, annotations, startsAt, endsAt."""
        self._ask("/api/v2/alerts", json.dumps([alert]).encode())

    def receivers_of(self, labels: Mapping[str, str]) -> Sequence[str]:
        """The names of the receivers that the alert of these labels is for; none where it does not know the alert."""
        matchers = [("filter", f"{name}={json.dumps(value)}") for name, value in labels.items()]
        try:
            alerts = json.loads(self._ask(f"/api/v2/alerts?{urllib.parse.urlencode(matchers)}"))
            return [receiver["name"] for alert in alerts for receiver in alert["receivers"]]
        except (ValueError, KeyError, TypeError):
            raise self._no_alertmanager() from None

    def attempts(self) -> Attempts:
        """How often it tried to notify, and how often that failed, by the integration's kind, since it started."""
        tried, failed = Counter[str](), Counter[str]()
        counted = {
            "alertmanager_notification_requests_total": tried,
            "alertmanager_notification_requests_failed_total": failed,
        }
        try:
            for family in text_string_to_metric_families(self._ask("/metrics").decode()):
                for sample in family.samples:
                    if sample.name in counted:
                        counted[sample.name][sample.labels["integration"]] += int(sample.value)
        except (ValueError, KeyError):
            raise self._no_alertmanager() from None
        return tried, failed

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        url, headers = self._url + path, {"Content-Type": "application/json"}
        try:
            answer = web.ask(url, body=body, headers=headers, patience=_PATIENCE_SECONDS)
        except Unanswered as error:
            raise Unanswered(
                f"no Alertmanager answers at {self._url} ({error}); start it, or name another with --alertmanager"
            ) from None
        if not answer.good:
            raise Unanswered(f"{url.split('?')[0]} answers with status {answer.status}")
        return answer.body

    def _no_alertmanager(self) -> Unanswered:
        return Unanswered(f"what answers at {self._url} is no Alertmanager that this version knows")
