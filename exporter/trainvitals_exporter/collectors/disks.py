"""What the host's physical disks do, and whether they rotate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import NothingToReport
from trainvitals_exporter.settings import Settings


class Disks:
    """Whole physical disks only: partitions, LVM, RAID and encryption end up on them, and would count twice."""

    name = "disks"
    interval = 5.0

    def __init__(self, sys_block: Path) -> None:
        self._sys_block = sys_block

    def collect(self) -> Iterable[Family]:
        """Read the kernel's disk counters."""
        out = Families()
        counters = psutil.disk_io_counters(perdisk=True)
        # Loop, RAM, device-mapper and RAID devices have no hardware behind them, partitions no folder of their own.
        disks = [name for name in sorted(counters) if (self._sys_block / name / "device").exists()]
        if not disks:
            raise NothingToReport("no physical disk can be seen")
        for disk in disks:
            io = counters[disk]
            out.add("trainvitals_host_disk_read_bytes_total", io.read_bytes, disk)
            out.add("trainvitals_host_disk_written_bytes_total", io.write_bytes, disk)
            out.add("trainvitals_host_disk_busy_seconds_total", io.busy_time / 1000, disk)
            rotational = self._sys_block / disk / "queue" / "rotational"
            if rotational.exists():
                out.add("trainvitals_host_disk_info", 1, disk, rotational.read_text().strip())
        return out


def create(settings: Settings) -> Disks:
    """The collector. A container sees the host's disks in its own /sys as well, if not under `rootfs`."""
    sys_block = settings.rootfs / "sys" / "block"
    return Disks(sys_block if sys_block.is_dir() else Path("/sys/block"))
