"""`trainvitals stack test-alert`: would an alert reach anybody?"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from trainvitals_exporter.stack import robots
from trainvitals_exporter.stack.alertmanager import Alertmanager, Attempts, Integration
from trainvitals_exporter.web import Unanswered

NAME: Final = "TrainvitalsTest"
_SUMMARY: Final = "Test alert: this channel works"
_LOOK_EVERY: Final = 0.2


def send_test_alert(url: str, secrets: Path, timeout: float) -> int:
    """Send a test through the Alertmanager at `url`, and one to each robot whose address lies where the configuration
    says or in the folder `secrets`. Prints a line per check; returns 0 if all took it, else 1.
    """
    alertmanager = Alertmanager(url)
    try:
        version, integrations = alertmanager.version_and_integrations()
        _say("ok", f"Alertmanager {version} answers at {url}")
        reached, all_well = _through(alertmanager, integrations, timeout)
    except Unanswered as error:
        _say("REFUSED", str(error))
        return 1
    for integration in reached:
        if "payload" in integration.settings:
            all_well = _directly(integration, secrets) and all_well
    return 0 if all_well else 1


def _through(
    alertmanager: Alertmanager, integrations: Sequence[Integration], timeout: float
) -> tuple[list[Integration], bool]:
    """What Alertmanager gives the test alert to, and whether it was taken. Raises Unanswered."""
    now = datetime.now(timezone.utc)
    # A label of its own for each test: what Alertmanager has told once it does not tell again.
    labels = {"alertname": NAME, "severity": "critical", "run": f"test-alert-{now:%H%M%S-%f}",
              "instance": socket.gethostname()}  # fmt: skip
    description = f"Sent at {now:%H:%M:%S} UTC by `trainvitals stack test-alert`. Nothing is wrong."
    annotations = {"summary": _SUMMARY, "description": description}
    alert: dict[str, Any] = {"labels": labels, "annotations": annotations, "startsAt": now.isoformat()}
    before = alertmanager.attempts()
    alertmanager.post({**alert, "endsAt": (now + timedelta(seconds=timeout + 300)).isoformat()})
    try:
        deadline = time.monotonic() + timeout
        while not (names := alertmanager.receivers_of(labels)) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        reached = [integration for integration in integrations if integration.receiver in names]
        if not reached:
            who = f"its receiver {' and '.join(names)} has no channel" if names else "it knows nothing of the test"
            _say("REFUSED", f"Alertmanager tells nobody: {who}; see docs/alerting.md on choosing one")
            return reached, False
        well = [_taken(alertmanager, kind, reached, before, deadline) for kind in sorted({i.kind for i in reached})]
        return reached, all(well)
    finally:
        alertmanager.post({**alert, "endsAt": datetime.now(timezone.utc).isoformat()})


def _taken(
    alertmanager: Alertmanager, kind: str, reached: Sequence[Integration], before: Attempts, deadline: float
) -> bool:
    """Whether all integrations of this kind took what Alertmanager sent, by its own count."""
    wanted = sum(integration.kind == kind for integration in reached)
    while True:  # at least once: another channel may have taken all the time
        tried, failed = (now[kind] - then[kind] for now, then in zip(alertmanager.attempts(), before, strict=True))
        if failed:
            _say("REFUSED", f"{kind} did not take what Alertmanager sent; Alertmanager's log says why")
            return False
        if tried >= wanted:
            _say("ok", f"{kind} answered Alertmanager with success")
            return True
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_EVERY)
    _say("REFUSED", f"Alertmanager sent nothing to {kind} in time; is the test silenced, or --timeout too short?")
    return False


def _directly(integration: Integration, secrets: Path) -> bool:
    """Whether the robot itself says that it took a message."""
    named = integration.settings.get("url_file")
    if named is None:
        _say("UNKNOWN", f"the robot of {integration.receiver} cannot be asked: put its address in a file (url_file)")
        return False
    file = Path(named) if os.access(named, os.R_OK) else secrets / Path(named).name
    text = f"🔵 trainvitals · {_SUMMARY}"
    try:
        robots.send(file, integration.settings["payload"], text)
    except robots.Refused as error:
        _say("REFUSED", f"the robot of {file.name}: {error}")
        return False
    _say("ok", f"the robot of {file.name} took a message")
    return True


def _say(result: str, what: str) -> None:
    sys.stdout.write(f"{result:8} {what}\n")
    sys.stdout.flush()
