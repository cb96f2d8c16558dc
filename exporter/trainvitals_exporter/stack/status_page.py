"""`trainvitals stack status`: what runs, what answers, what Prometheus knows."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainvitals_exporter.messages import printable
from trainvitals_exporter.stack import questions
from trainvitals_exporter.stack.choices import PARTS
from trainvitals_exporter.stack.questions import Monitoring
from trainvitals_exporter.stack.state import NATIVE, State
from trainvitals_exporter.web import Unanswered


@dataclass(frozen=True)
class Part:
    """`state` is up, down, or absent where the part was not started since it is not installed."""

    part: str
    state: str
    address: str | None
    version: str | None
    pid: int | None


@dataclass(frozen=True)
class Status:
    """`way` is None where nothing was started; `monitoring` is None where Prometheus does not answer."""

    folder: Path
    way: str | None
    parts: list[Part]
    monitoring: Monitoring | None

    @property
    def settled(self) -> bool:
        """Whether Prometheus has seen all that it is to see, be it well or not."""
        known = self.monitoring
        without = any(part.part == "alertmanager" and part.state == "absent" for part in self.parts)
        return (
            known is not None
            and known.targets > 0
            and known.targets_unknown == 0
            and (known.alertmanagers > 0 or without)
        )

    @property
    def well(self) -> bool:
        """Whether everything that was started works, and works together."""
        known = self.monitoring
        return (
            known is not None
            and self.settled
            and all(part.state != "down" for part in self.parts)
            and not known.targets_down
            and not known.rules_failing
            and known.rules > 0
        )


def look(folder: Path, state: State) -> Status:
    """How the stack in this folder is."""
    parts = [_part(name, state) for name in PARTS] if state.way else []
    known = None
    if any(part.part == "prometheus" and part.state == "up" for part in parts):
        with contextlib.suppress(Unanswered):
            known = questions.monitoring(state.addresses["prometheus"])
    return Status(folder, state.way, parts, known)


def show(status: Status, *, as_json: bool) -> None:
    """Print it, as a table or as JSON."""
    if as_json:
        content: dict[str, Any] = {**asdict(status), "folder": str(status.folder), "well": status.well}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{printable(line)}\n" for line in _lines(status))


def _part(name: str, state: State) -> Part:
    address = state.addresses.get(name)
    if address is None:
        return Part(name, "absent", None, None, None)
    process = state.alive(name)
    version = None
    if process or state.way != NATIVE:  # or it is somebody else who answers there
        with contextlib.suppress(Unanswered):
            version = questions.version(name, address)
    return Part(name, "up" if version else "down", address, version, process.pid if process else None)


def _lines(status: Status) -> Iterator[str]:
    if status.way is None:
        yield f"nothing runs from {status.folder}; start it: trainvitals stack up {status.folder}"
        return
    yield f"{'part':13} {'state':7} {'address':24} {'version':9} pid"
    for part in status.parts:
        yield f"{part.part:13} {part.state:7} {part.address or '-':24} {part.version or '-':9} {part.pid or '-'}"
    yield ""
    known = status.monitoring
    if known is None:
        yield "Prometheus does not answer, so nothing is known of targets, rules and alerts"
    else:
        yield from _monitoring(known)
    way = "programs of this machine; logs: native/logs" if status.way == NATIVE else "Docker; logs: docker compose logs"
    yield f"folder        {status.folder} ({way})"


def _monitoring(known: Monitoring) -> Iterator[str]:
    yield f"targets up    {known.targets - len(known.targets_down) - known.targets_unknown} of {known.targets}"
    for target, why in known.targets_down.items():
        yield f"              {target} is down: {why}"
    yield f"rules         {known.rules} loaded, {len(known.rules_failing)} failing"
    for rule, why in known.rules_failing.items():
        yield f"              {rule} fails: {why}"
    firing = f": {', '.join(known.alerts_firing)}" if known.alerts_firing else ""
    yield f"alerts        {len(known.alerts_firing)} firing{firing}"
    yield f"alerts go to  {known.alertmanagers or 'no'} Alertmanager"
