"""How long tasks waited for CPU, memory and disks: pressure stall information.

https://docs.kernel.org/accounting/psi.html
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import NothingToReport
from trainvitals_exporter.settings import Settings


class Pressure:
    """The kernel's totals, whose rate is the share of time in which some or all tasks were held up."""

    name = "pressure"
    interval = 5.0

    def __init__(self, procfs: Path) -> None:
        self._pressure = procfs / "pressure"

    def collect(self) -> Iterable[Family]:
        """Read the kernel's totals."""
        out = Families()
        for resource in ("cpu", "memory", "io"):
            try:
                lines = (self._pressure / resource).read_text().splitlines()
            except OSError as error:  # missing, or EOPNOTSUPP where it is compiled in but switched off
                raise NothingToReport("this kernel has no pressure stall information, or it is off (psi=0)") from error
            for line in lines:
                kind, *averages = line.split()
                microseconds = dict(pair.split("=") for pair in averages)["total"]
                if (resource, kind) != ("cpu", "full"):  # undefined for the whole system; newer kernels write 0
                    out.add("trainvitals_host_pressure_seconds_total", int(microseconds) / 1e6, resource, kind)
        return out


def create(settings: Settings) -> Pressure:
    """The collector."""
    return Pressure(settings.procfs)
