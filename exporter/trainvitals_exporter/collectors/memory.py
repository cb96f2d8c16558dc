"""The host's memory and swap."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.settings import Settings


class Memory:
    """Available memory is the kernel's own estimate of what can be had without swapping."""

    name = "memory"
    interval = 5.0

    def collect(self) -> Iterable[Family]:
        """Read the kernel's memory counters."""
        out = Families()
        memory = psutil.virtual_memory()
        out.add("trainvitals_host_memory_total_bytes", memory.total)
        out.add("trainvitals_host_memory_available_bytes", memory.available)
        swap = psutil.swap_memory()
        out.add("trainvitals_host_swap_total_bytes", swap.total)
        out.add("trainvitals_host_swap_free_bytes", swap.free)
        return out


def create(settings: Settings) -> Memory:
    """The collector."""
    return Memory()
