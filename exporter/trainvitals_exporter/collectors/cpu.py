"""CPU time per core and the load average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import psutil

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.settings import Settings

# The kernel counts guest time under user and nice as well, and the modes have to add up to the time passed.
_COUNTED_TWICE: Final = ("guest", "guest_nice")


class Cpu:
    """Per core, because one saturated core starves a GPU while the average looks idle."""

    name = "cpu"
    interval = 5.0

    def collect(self) -> Iterable[Family]:
        """Read the kernel's CPU counters."""
        out = Families()
        for core, times in enumerate(psutil.cpu_times(percpu=True)):
            for mode, seconds in times._asdict().items():
                if mode not in _COUNTED_TWICE:
                    out.add("trainvitals_host_cpu_seconds_total", seconds, str(core), mode)
        out.add("trainvitals_host_load1", psutil.getloadavg()[0])
        return out


def create(settings: Settings) -> Cpu:
    """The collector."""
    return Cpu()
