"""Which run, and which rank of it, a process on a GPU belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainvitals_exporter.run_table import RunTable

Owner = tuple[str, str]  # run and rank; empty where there is none

NOBODY: Final[Owner] = ("", "")
_MOST_ANCESTORS: Final = 32


class Owners:
    """Looks processes up in the run table.

    Both sides name processes as this PID namespace does: the driver, and the kernel, which tells whose lock a run file
    holds even when that process is in a container.
    """

    def __init__(self, table: RunTable, procfs: Path) -> None:
        self._table = table
        self._procfs = procfs

    def known(self) -> dict[int, Owner]:
        """The processes that have a run file: ranks, launchers, and helpers that belong to no rank."""
        known: dict[int, Owner] = {}
        for name, run in self._table.runs(max_age=1.0).items():
            known |= {file.alive_pid: (name, "") for file in run.files if file.alive_pid}
            known |= {file.alive_pid: (name, str(rank)) for rank, file in run.ranks.items() if file.alive_pid}
        return known

    def of(self, pid: int, known: Mapping[int, Owner]) -> Owner:
        """The owner of a process: of itself, or of its nearest ancestor that has one."""
        for _ in range(_MOST_ANCESTORS if known else 0):
            if pid in known:
                return known[pid]
            pid = self._parent(pid)
            if pid <= 1:
                break
        return NOBODY

    def _parent(self, pid: int) -> int:
        try:
            # The command's name, in parentheses, may hold anything.
            return int((self._procfs / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return 0
