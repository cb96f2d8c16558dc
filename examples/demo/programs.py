"""Finding programs, starting them quietly, and ending them whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainvitals_exporter.stack import programs


class DemoError(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


def find(name: str) -> str:
    """The path of a monitoring program. Raises DemoError where it is not installed."""
    if path := programs.find(name):
        return path
    raise DemoError(f"{name} is not on PATH; install it, on Debian and Ubuntu with: make tools")


def free_ports(count: int) -> list[int]:
    """So many TCP ports of the loopback interface that nobody uses right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Programs:
    """Programs that run in the background, each with its output in a log file; a context manager that ends them all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own, so that what it starts can be ended with it."""
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )
        self._running.append((name, process))
        return process

    def started(self) -> list[tuple[str, subprocess.Popen[bytes]]]:
        """Name and process of all that was started."""
        return list(self._running)

    def log(self, name: str) -> Path:
        """Where a program's output goes."""
        return self._logs / f"{name}.log"

    def wait_for(self, name: str, url: str, timeout: float = 60.0) -> None:
        """Wait until the program answers at `url`. Raises DemoError when it ends, or does not within `timeout` s."""
        deadline = time.monotonic() + timeout
        while not answers(url):
            ended = next((p.poll() for n, p in self._running if n == name and p.poll() is not None), None)
            if ended is not None or time.monotonic() > deadline:
                why = "did not answer in time" if ended is None else f"ended with exit code {ended}"
                raise DemoError(f"{name} {why}; its last words:\n{self.last_words(name)}")
            time.sleep(0.2)

    def last_words(self, name: str) -> str:
        """The end of a program's output."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-8:])

    def stop(self) -> None:
        """End every program and what it started; the newest first."""
        while self._running:
            end_group(self._running.pop()[1])


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process group to end, and insist after ten seconds."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        deadline = time.monotonic() + patience
        while group_lives(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not group_lives(process.pid):
            return


def group_lives(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def answers(url: str) -> bool:
    """Whether an HTTP server answers at `url` with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 (always one of our own addresses)
            return bool(200 <= response.status < 300)
    except (OSError, urllib.error.URLError):
        return False
