"""The quota of CPU time that each rank's container or job has, and how often it is used up.

A run that is throttled by its quota waits for data while the host's cores are idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainvitals_exporter import cgroups
from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.process_tree import read_bytes
from trainvitals_exporter.run_table import RunTable
from trainvitals_exporter.settings import Settings


class CpuQuota:
    """Looks at the cgroup of each living rank."""

    name = "cpu_quota"
    interval = 5.0

    def __init__(self, table: RunTable, procfs: Path, sysfs: Path) -> None:
        self._table = table
        self._procfs = procfs
        self._hierarchies = sysfs / "fs" / "cgroup"

    def collect(self) -> Iterable[Family]:
        """Read the quotas; absent where there is none, or it cannot be seen."""
        out = Families()
        for name, run in self._table.runs(max_age=1.0).items():
            for rank, file in run.ranks.items():
                quota = self._quota(file.alive_pid) if file.alive_pid else None
                if quota is not None:
                    out.add("trainvitals_cgroup_cpu_quota_cores", quota.cores, name, str(rank))
                    out.add("trainvitals_cgroup_cpu_periods_total", quota.periods, name, str(rank))
                    out.add("trainvitals_cgroup_cpu_throttled_periods_total", quota.throttled, name, str(rank))
        return out

    def _quota(self, pid: int) -> cgroups.CpuQuota | None:
        try:
            text = read_bytes(f"{self._procfs}/{pid}/cgroup").decode(errors="surrogateescape")
        except OSError:
            return None
        return cgroups.cpu_quota(text, self._hierarchies)


def create(settings: Settings) -> CpuQuota:
    """The collector."""
    return CpuQuota(settings.runs, settings.procfs, settings.sysfs)
