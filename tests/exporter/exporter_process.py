"""What the exporter's tests have in common: the exporter and its runs as real processes, and a scrape one can ask."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_until

DEADLINE = 30.0


class Scrape:
    """One scrape's text, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def series(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of that name that has at least these labels."""
        return [(s.labels, s.value) for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the only such series, or None without one."""
        found = self.series(name, **labels)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def state(self, run: str) -> str | None:
        """The state that a run is in: one of six is 1, the others are 0."""
        states = {labels["state"]: value for labels, value in self.series("trainvitals_run_state", run=run)}
        if not states:
            return None
        assert len(states) == 6
        assert sorted(states.values()) == [0, 0, 0, 0, 0, 1]
        return next(state for state, value in states.items() if value)


class ExporterProcess:
    """A running exporter, on a free port of its own choice."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        preexec_fn: Callable[[], object] | None = None,
    ) -> None:
        self.tls = tls
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainvitals_exporter", *listen, *arguments],
            env={**os.environ, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
        )
        self.log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        self.url = wait_until(self._find_url, "the exporter says where it listens")
        wait_until(self._ready, "every collector has had its first say")

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request; an error status raises nothing."""
        request = urllib.request.Request(
            self.url + path, method=method, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        opener = urllib.request.OpenerDirector()
        opener.add_handler(urllib.request.HTTPHandler())
        opener.add_handler(urllib.request.HTTPSHandler(context=self.tls))
        with opener.open(request, timeout=DEADLINE) as response:
            return response.status, dict(response.headers), response.read()

    def scrape(self) -> Scrape:
        status, _, body = self.get()
        assert status == 200
        return Scrape(body.decode())

    def scrape_until(self, holds: Callable[[Scrape], object], what: str) -> Scrape:
        """The first scrape of which `holds` is true."""
        return wait_until(lambda: scrape if holds(scrape := self.scrape()) else None, what)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after that signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def _find_url(self) -> str | None:
        assert self.process.poll() is None, self.log
        return next((match[1] for line in self.log if (match := re.search(r"(https?://\S+)/metrics", line))), None)

    def _ready(self) -> bool:
        return self.get("/-/ready")[0] == 200

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)


class RunFileProcess:
    """A process that holds a run file, for the file's lock tells whether its process lives."""

    def __init__(self, directory: Path, run_id: str, kind: str, run: str = "", rank: int = -1) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("run_file_holder.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        identity = {"run_id": run_id, "run": run or run_id, "kind": kind, "script": "train.py"}
        self.path = Path(self._ask({"directory": str(directory), "identity": identity, "rank": rank}))

    @property
    def pid(self) -> int:
        return self.process.pid

    def set(self, name: str, value: float, /, **labels: str) -> RunFileProcess:
        self._ask({"name": name, "value": value, "labels": labels})
        return self

    def set_state(self, state: str) -> RunFileProcess:
        return self.set("trainvitals_run_state", 1, state=state)

    def end(self) -> RunFileProcess:
        """Die without a word, as after SIGKILL."""
        self.process.kill()
        self.process.wait()
        return self

    def _ask(self, order: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the process that holds a run file died"
        return answer
