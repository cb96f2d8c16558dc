"""The host's memory and swap."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.settings import Settings

_METRICS: Final = {
    "MemTotal": "trainvitals_host_memory_total_bytes",
    "MemAvailable": "trainvitals_host_memory_available_bytes",
    "SwapTotal": "trainvitals_host_swap_total_bytes",
    "SwapFree": "trainvitals_host_swap_free_bytes",
}


class Memory:
    """Available memory is the kernel's own estimate of what can be had without swapping."""

    name = "memory"
    interval = 5.0

    def __init__(self, procfs: Path) -> None:
        self._procfs = procfs

    def collect(self) -> Iterable[Family]:
        """Read the kernel's memory counters. What it does not tell is absent, not guessed."""
        out = Families()
        for line in (self._procfs / "meminfo").read_text().splitlines():
            name, _, amount = line.partition(":")
            if name in _METRICS:
                out.add(_METRICS[name], int(amount.split()[0]) * 1024)  # the kernel's kB are KiB
        if not any(out):
            raise ValueError("nothing known in the kernel's memory statistics")
        return out


def create(settings: Settings) -> Memory:
    """The collector."""
    return Memory(settings.procfs)
