"""What of the machine is seen from here: all of it, or the inside of a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trainvitals_exporter.doctor.findings import Finding, Where, not_checked, ok

# The kernel's fixed number for the first PID namespace (PROC_PID_INIT_INO).
_FIRST_NAMESPACE: Final = "pid:[4026531836]"
_MARKS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc")


def check(_where: Where) -> Iterator[Finding]:
    """Containers, and who looks."""
    container, outside = _in_container(), _sees_all_processes()
    if container:
        yield ok(
            "machine", "inside a container: an exporter outside sees its runs only if the run directory is mounted, "
            "and one inside sees the host's processes only with --pid=host",
        )  # fmt: skip
    elif not outside:
        yield ok("machine", "in a PID namespace of its own: processes outside are not seen from here")
    else:
        yield ok("machine", "not in a container")
    if os.geteuid() != 0:
        yield not_checked("other users", "their run directories and processes are not seen; root would see them")


def _in_container() -> bool:
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return True
    try:
        text = Path("/proc/1/cgroup").read_text()
    except OSError:
        return False
    return any(mark in text for mark in _MARKS)


def _sees_all_processes() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST_NAMESPACE
    except OSError:
        return True
