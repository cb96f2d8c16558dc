"""Programs in the background: started to outlive us, known again later, ended with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from trainvitals_exporter.messages import printable

_LOOK_EVERY: Final = 0.1
_POLITE_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 10.0
_LAST_LINES: Final = 8


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same number: `started` is its start in clock ticks since `boot`."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process of this number; None where there is none, or only the remains of one."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if fields[0] in "ZXx" else cls(pid, int(fields[19]), boot)

    @classmethod
    def from_json(cls, value: Any) -> Process:
        """The opposite of `vars()`. Raises TypeError, KeyError, ValueError."""
        return cls(int(value["pid"]), int(value["started"]), str(value["boot"]))

    def lives(self) -> bool:
        """Whether it has not ended."""
        return Process.of(self.pid) == self


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> int:
    """Start a program in a session of its own, so that neither Ctrl-C nor the end of ours reaches it; returns its pid.

    The log of the last start is kept beside the new one. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_suffix(".previous.log"))
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        ).pid  # fmt: skip


def stop(process: Process) -> bool:
    """End a process and its group: politely, then by force. Returns whether force was needed."""
    for number, patience in ((signal.SIGTERM, _POLITE_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        if number == signal.SIGTERM and not process.lives():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while _group_lives(process.pid) and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):  # if it is our own child, it wants to be buried
                os.waitpid(process.pid, os.WNOHANG)
            time.sleep(_LOOK_EVERY)
        if not _group_lives(process.pid):
            return number == signal.SIGKILL
    return True


def _group_lives(group: int) -> bool:
    """Whether the group has a process that has not ended; the number is taken by no other group until it has none."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group:
                members.append(process.pid)
    return any(Process.of(pid) for pid in members)


def last_words(log: Path) -> str:
    """The end of a program's output, for people."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        lines = []
    return "\n".join(f"    {printable(line)[:400]}" for line in lines) or "    (nothing)"


def holder(port: int) -> str | None:
    """Who listens at this TCP port of the loopback interface, in words; None where it can be had."""
    # As servers do it, so that a connection that is only winding up does not count.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return "the system: ports below 1024 are for root"
        except OSError:
            pass
        else:
            return None
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "a process that this user may not see"
