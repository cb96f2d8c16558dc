"""Runs the blocks of a page in namespaces of their own: python -m tests.doc_sandbox PLAN, as process 1 of `unshare`.

There, nothing is on the network but the loopback interface with all its ports free, no file outside of /tmp can be
changed, run files of others are not seen, and whatever is left running ends with process 1.

PLAN is a JSON file: {"steps": [{"where", "script", "background", "exit_code"}, ...], "folder": DIR}. Tells of the first
step that went wrong, and exits with 1.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

_PATIENCE_SECONDS: Final = 120.0
_STOPPED: Final = (0, 130, 143, -signal.SIGINT, -signal.SIGTERM)
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class StepError(Exception):
    """A step went wrong; the message says where and how."""


def main(plan_file: str) -> int:
    """Prepare the namespaces, run the steps, and bury orphans meanwhile."""
    _bring_up_loopback()
    _close_the_rest_off()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it, and so would all servers
    worker = os.fork()
    if worker == 0:
        os._exit(_run(json.loads(Path(plan_file).read_text())))
    while True:
        pid, status = os.wait()
        if pid == worker:
            return os.waitstatus_to_exitcode(status)


def _bring_up_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _close_the_rest_off() -> None:
    for place in ("/dev/shm", "/run/user"):  # noqa: S108
        if Path(place).is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    if os.environ.get("TRAINVITALS_DOCS_READ_ONLY"):
        subprocess.run(["mount", "--bind", "/tmp", "/tmp"], check=True)  # noqa: S108
        subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)


def _run(plan: dict[str, Any]) -> int:
    folder, servers = Path(plan["folder"]), []
    try:
        for step in plan["steps"]:
            if step["background"]:
                servers.append((step, _start(step, folder)))
            else:
                _to_the_end(step, folder)
        for step, server in servers:
            _stop(step, server, folder)
    except StepError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        return 1
    return 0


def _shell(step: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    state = shlex.quote(str(folder / "state"))
    script = f"[ ! -f {state} ] || . {state}\nset -eo pipefail\n{step['script']}\n"
    if not step["background"]:
        script += f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {state}\n"
    with _log(folder).open("wb") as log:
        return subprocess.Popen(
            ["bash", "-c", script], cwd=folder / "checkout", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _log(folder: Path) -> Path:
    return folder / "output"


def _to_the_end(step: dict[str, Any], folder: Path) -> None:
    process = _shell(step, folder)
    patience = step.get("patience", _PATIENCE_SECONDS)
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        raise _wrong(step, f"has not ended within {patience:.0f} s", folder) from None
    if code != step["exit_code"]:
        raise _wrong(step, f"exit code {code}, not {step['exit_code']}", folder)


def _start(step: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """Start a server, and wait until it listens or says something."""
    before, process = _listening(), _shell(step, folder)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _listening() - before or _log(folder).stat().st_size:
            _log(folder).rename(folder / f"output-{process.pid}")
            return process
        time.sleep(0.05)
    raise _wrong(step, "ended" if process.poll() is not None else "neither listens nor says anything", folder)


def _stop(step: dict[str, Any], process: subprocess.Popen[bytes], folder: Path) -> None:
    log = folder / f"output-{process.pid}"
    if process.poll() is not None:
        raise _wrong(step, f"ended before it was stopped, with exit code {process.returncode}", folder, log)
    os.killpg(process.pid, signal.SIGINT)
    try:
        code = process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise _wrong(step, "does not end at Ctrl-C", folder, log) from None
    if code not in _STOPPED:
        raise _wrong(step, f"ends with exit code {code} at Ctrl-C", folder, log)


def _listening() -> set[str]:
    """The addresses that anything in here listens at."""
    rows = [row.split() for file in ("tcp", "tcp6") for row in Path("/proc/net", file).read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A"}


def _wrong(step: dict[str, Any], what: str, folder: Path, log: Path | None = None) -> StepError:
    output = (log or _log(folder)).read_text(errors="replace")[-4000:]
    return StepError(f"{step['where']}: {what}\n{step['script']}\n--- its output:\n{output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
