"""Plays the chats and pagers that Alertmanager tells, and starts Alertmanager with a channel's configuration."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.demo.programs import Programs, free_ports

FOLDER = Path(__file__).parents[1] / "prometheus" / "alertmanager"


@dataclass
class Told:
    """A request that a channel got."""

    path: str
    body: Any


@dataclass
class Chat:
    """An HTTP server that takes everything; what it answers may be set by path, as status and body."""

    url: str = ""
    told: list[Told] = field(default_factory=list)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)

    def at(self, path: str) -> list[Any]:
        """The bodies that came to this path, in their order."""
        return [each.body for each in list(self.told) if each.path == path]


@contextlib.contextmanager
def chat() -> Iterator[Chat]:
    played = Chat()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            played.told.append(Told(self.path, body))
            status, answer = played.answers.get(self.path, (200, "{}"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if answer.startswith("{") else "text/plain")
            self.send_header("Content-Length", str(len(answer.encode())))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    played.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Running:
    """An Alertmanager."""

    url: str
    secrets: Path
    programs: Programs

    def post(self, *alerts: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts", json.dumps(alerts).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()

    def alerts(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)
        return found


def alert(name: str, severity: str, *, ended: bool = False, text: str = "Say this.", **labels: str) -> dict[str, Any]:
    """An alert as Prometheus posts it."""
    return labelled(name, severity, labels, ended=ended, text=text)


def labelled(
    name: str, severity: str, labels: Mapping[str, str], *, ended: bool = False, text: str = "Say this."
) -> dict[str, Any]:
    """The same with labels in a mapping."""
    now = datetime.now(timezone.utc)
    given = {"alertname": name, "severity": severity, "job": "trainvitals", "instance": "gpu-1:10288", **labels}
    return {
        "labels": given,
        "annotations": {
            "summary": f"Summary of {name}",
            "description": text,
            "runbook_url": f"https://example.org/runbooks/{name}.md",
            "dashboard_url": "http://127.0.0.1:3000/d/trainvitals-run?"
            + urllib.parse.urlencode({"var-run": given.get("run", ""), "from": 1, "to": "now"}),
        },
        # Alertmanager waits for others to join a new group, but not if an alert began longer ago than it would wait.
        "startsAt": (now + timedelta(minutes=-5 if ended else 5)).isoformat(),
        "endsAt": (now if ended else now + timedelta(hours=1)).isoformat(),
    }


def configuration(work: Path, language: str, channel: str, edits: Sequence[tuple[str, str]] = ()) -> Path:
    """A copy of the channel's configuration with its secrets in `work`, and impatient: 0.5 s in place of 15 and 30."""
    text = (FOLDER / language / f"{channel}.yml").read_text(encoding="utf-8")
    fixed = [
        ("/run/secrets/", f"{work}/secrets/"),
        ("../templates/", f"{FOLDER}/templates/"),
        ("30s", "500ms"),
        ("15s", "500ms"),
    ]
    for old, new in (*fixed, *edits):
        assert old in text or old == "/run/secrets/", old
        text = text.replace(old, new)
    (work / "secrets").mkdir(exist_ok=True)
    path = work / f"{channel}-{language}.yml"
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def running(program: str, file: Path, secrets: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Start an Alertmanager with this configuration, after its secrets were put where it looks for them."""
    for name, secret in (secrets or {}).items():
        (file.parent / "secrets" / name).write_text(secret)
    with Programs(file.parent) as programs:
        (port,) = free_ports(1)
        programs.start("alertmanager", [
            program, f"--config.file={file}", f"--storage.path={file.parent / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
        ])  # fmt: skip
        programs.wait_for("alertmanager", f"http://127.0.0.1:{port}/-/ready")
        yield Running(f"http://127.0.0.1:{port}", file.parent / "secrets", programs)
