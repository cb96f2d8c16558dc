"""The /dev/shm that each rank sees: a container has its own, of 64 MiB unless told otherwise.

DataLoader workers hand their batches over in it, and one that finds no space there dies of a bus error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trainvitals.mounts import MountTable

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.run_table import RunTable
from trainvitals_exporter.settings import Settings

_SHM = Path("/dev/shm")  # noqa: S108 (nothing is written there)


class Shm:
    """Has a thread of its own, because a rank's root folder may lie on a filesystem that does not answer."""

    name = "shm"
    interval = 10.0

    def __init__(self, table: RunTable, procfs: Path) -> None:
        self._table = table
        self._procfs = procfs

    def collect(self) -> Iterable[Family]:
        """Look through each rank's eyes; absent where the kernel does not permit that."""
        out = Families()
        for name, run in self._table.runs(max_age=1.0).items():
            for rank, file in run.ranks.items():
                space = self._space(file.alive_pid) if file.alive_pid else None
                if space is not None and space.f_blocks:  # none of a tmpfs without a limit
                    out.add("trainvitals_shm_size_bytes", space.f_blocks * space.f_frsize, name, str(rank))
                    out.add("trainvitals_shm_avail_bytes", space.f_bavail * space.f_frsize, name, str(rank))
        return out

    def _space(self, pid: int) -> os.statvfs_result | None:
        process = self._procfs / str(pid)
        try:
            # Only a tmpfs mounted right there: anything else could be made to block, or lead elsewhere.
            mount = MountTable(process / "mountinfo").of(_SHM)
            if mount is None or (mount.mountpoint, mount.kind) != (str(_SHM), "tmpfs"):
                return None
            return os.statvfs(process / "root" / _SHM.relative_to("/"))
        except (OSError, ValueError, IndexError):
            return None


def create(settings: Settings) -> Shm:
    """The collector."""
    return Shm(settings.runs, settings.procfs)
