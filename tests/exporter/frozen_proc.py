"""A /proc of files that a test writes: whatever machine it takes, and processes that do as they are told."""

from __future__ import annotations

import shutil
from pathlib import Path

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            {soft}                 524288               files
"""


class FrozenProc:
    """Processes are folders below `path`, as proc(5) describes them. Times are in clock ticks, memory in pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def process(
        self, pid: int, parent: int = 1, *, name: str = "python", state: str = "S", ticks: int = 0, started: int = 100,
        threads: int = 1, pages: int = 0, arguments: str = "python\0train.py\0",
    ) -> FrozenProc:  # fmt: skip
        """Write, or write anew, what is always there."""
        fields = [
            state, parent, 0, 0, 0, -1, 0, 0, 0, 0, 0, ticks, 0, 0, 0, 20, 0, threads, 0, started, 0, pages,
            *[0] * 30,
        ]  # fmt: skip
        stat = f"{pid} ({name}) {' '.join(map(str, fields))}\n"
        return self.write(pid, "stat", stat).write(pid, "cmdline", arguments)

    def write(self, pid: int, name: str, content: str | bytes) -> FrozenProc:
        """Write any other file of a process."""
        file = self.path / str(pid) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def io(self, pid: int, read: int, written: int) -> FrozenProc:
        text = f"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: {read}\nwrite_bytes: {written}\n"
        return self.write(pid, "io", text + "cancelled_write_bytes: 0\n")

    def open_files(self, pid: int, count: int, limit: int | str) -> FrozenProc:
        for number in range(count):
            self.write(pid, f"fd/{number}", "")
        return self.write(pid, "limits", LIMITS.format(soft=limit))

    def end(self, pid: int) -> FrozenProc:
        shutil.rmtree(self.path / str(pid))
        return self
