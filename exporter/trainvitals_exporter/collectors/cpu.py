"""CPU time per core and the load average."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.settings import Settings

# In the kernel's order. After them come guest and guest_nice, which it counts under user and nice as well: the modes
# have to add up to the time passed.
_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
# A core that was away begins again at 0; what falls by less is the kernel's estimate of iowait and idle going back.
_RESTART_SECONDS: Final = 3.0


class Cpu:
    """Per core, because one saturated core starves a GPU while the average looks idle."""

    name = "cpu"
    interval = 5.0

    def __init__(self, procfs: Path) -> None:
        self._procfs = procfs
        self._last: dict[str, list[float]] = {}

    def collect(self) -> Iterable[Family]:
        """Read the kernel's CPU counters. Cores that are offline are absent, and the others keep their numbers."""
        out = Families()
        for line in (self._procfs / "stat").read_text().splitlines():
            name, *ticks = line.split()
            core = name.removeprefix("cpu")
            if name.startswith("cpu") and core:
                for mode, seconds in zip(_MODES, self._seconds(core, ticks), strict=False):
                    out.add("trainvitals_host_cpu_seconds_total", seconds, core, mode)
        if not any(out):
            raise ValueError("no core in the kernel's statistics")
        out.add("trainvitals_host_load1", float((self._procfs / "loadavg").read_text().split()[0]))
        return out

    def _seconds(self, core: str, ticks: list[str]) -> list[float]:
        """The core's counters by mode, none of which falls but when the core starts again.

        A counter that falls a little would look to Prometheus as if it began at 0, and all it ever counted as new.
        """
        now = [int(count) / _TICKS_PER_SECOND for count in ticks[: len(_MODES)]]
        last = self._last.get(core, now)
        if not any(before - after > _RESTART_SECONDS for before, after in zip(last, now, strict=True)):
            now = [max(pair) for pair in zip(last, now, strict=True)]
        self._last[core] = now
        return now


def create(settings: Settings) -> Cpu:
    """The collector."""
    return Cpu(settings.procfs)
