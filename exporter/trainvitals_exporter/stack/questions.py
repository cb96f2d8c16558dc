"""What `trainvitals stack` asks of running parts, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from trainvitals_exporter.web import Unanswered, content

# Fires always, to show that alerts arrive.
_WATCHDOG: Final = "Watchdog"


@dataclass(frozen=True)
class Monitoring:
    """What Prometheus knows, and how many Alertmanagers it sends alerts to.

    Targets that are down and rules that fail come with the reason. The alert that always fires is left out.
    """

    targets: int
    targets_down: dict[str, str]
    targets_unknown: int
    rules: int
    rules_failing: dict[str, str]
    alerts_firing: list[str]
    alertmanagers: int


def ready(url: str) -> bool:
    """Whether this URL is answered with success."""
    try:
        content(url)
    except Unanswered:
        return False
    return True


def version(part: str, address: str) -> str:
    """The version of what answers at the address. Raises Unanswered."""
    try:
        if part == "exporter":
            page = content(f"{address}/metrics?name[]=trainvitals_exporter_build_info").decode()
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
            return str(samples[0].labels["version"])
        if part == "prometheus":
            return str(_api(address, "status/buildinfo")["version"])
        if part == "alertmanager":
            return str(json.loads(content(f"{address}/api/v2/status"))["versionInfo"]["version"])
        return str(json.loads(content(f"{address}/api/health"))["version"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise Unanswered(f"what answers at {address} is no {part}") from None


def monitoring(prometheus: str) -> Monitoring:
    """What the Prometheus at this address knows. Raises Unanswered."""
    try:
        targets = _api(prometheus, "targets?state=active")["activeTargets"]
        rules = [rule for group in _api(prometheus, "rules")["groups"] for rule in group["rules"]]
        alerts = _api(prometheus, "alerts")["alerts"]
        return Monitoring(
            targets=len(targets),
            targets_down={
                f"{each['labels']['job']} {each['labels']['instance']}": each["lastError"]
                for each in targets if each["health"] == "down"
            },
            targets_unknown=sum(each["health"] == "unknown" for each in targets),
            rules=len(rules),
            rules_failing={each["name"]: each.get("lastError", "") for each in rules if each["health"] == "err"},
            alerts_firing=sorted(
                _named(each["labels"]) for each in alerts
                if each["state"] == "firing" and each["labels"]["alertname"] != _WATCHDOG
            ),
            alertmanagers=len(_api(prometheus, "alertmanagers")["activeAlertmanagers"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise Unanswered(f"what answers at {prometheus} is no Prometheus") from None


def _named(labels: dict[str, str]) -> str:
    run = labels.get("run")
    return f"{labels['alertname']} ({run})" if run else labels["alertname"]


def last_reload(part: str, address: str) -> tuple[bool, float]:
    """Whether Prometheus or Alertmanager took its configuration at the last try, and when it last did (Unix time).

    Raises Unanswered.
    """
    wanted = (f"{part}_config_last_reload_successful", f"{part}_config_last_reload_success_timestamp_seconds")
    found = dict(_samples(content(f"{address}/metrics").decode()))
    try:
        return found[wanted[0]] == 1, found[wanted[1]]
    except KeyError:
        raise Unanswered(f"what answers at {address} is no {part}") from None


def _samples(page: str) -> Iterator[tuple[str, float]]:
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                yield sample.name, sample.value
    except ValueError:
        raise Unanswered("its metrics cannot be read") from None


def _api(prometheus: str, path: str) -> Any:
    return json.loads(content(f"{prometheus}/api/v1/{path}"))["data"]
