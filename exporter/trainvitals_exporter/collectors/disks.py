"""What the host's physical disks do, and whether they rotate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from trainvitals.mounts import physical_disks

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import NothingToReport
from trainvitals_exporter.settings import Settings

# Optical and floppy drives, and what never has hardware of its own, by names that are quicker to see than /sys.
_NO_DISK: Final = re.compile(r"(sr|fd|loop|ram|zram|dm-|md|nbd)\d+")
_NVME_PATH: Final = re.compile(r"^nvme(\d+)c\d+n(\d+)$")
# The kernel takes every disk of these for a rotating one, because nobody tells it.
_PARAVIRTUAL: Final = re.compile(r"(vd|xvd)[a-z]+\d*")
_EMULATORS: Final = ("qemu", "msft", "vmware", "vbox", "virtual")


@dataclass(frozen=True)
class _Counters:
    """What a disk has done since it is there."""

    read_bytes: int
    written_bytes: int
    busy_seconds: float


class Disks:
    """Whole physical disks only: partitions, LVM, RAID and encryption end up on them, and would count twice."""

    name = "disks"
    interval = 5.0

    def __init__(self, sysfs: Path) -> None:
        self._blocks = sysfs / "block"

    def collect(self) -> Iterable[Family]:
        """Read the kernel's disk counters."""
        out = Families()
        counters = _of_heads(_read())
        disks = [name for name in sorted(counters) if self._is_physical(name)]
        if not disks:
            raise NothingToReport("no physical disk can be seen")
        for disk in disks:
            out.add("trainvitals_host_disk_read_bytes_total", counters[disk].read_bytes, disk)
            out.add("trainvitals_host_disk_written_bytes_total", counters[disk].written_bytes, disk)
            out.add("trainvitals_host_disk_busy_seconds_total", counters[disk].busy_seconds, disk)
            rotational = self._rotational(disk)
            if rotational is not None:
                out.add("trainvitals_host_disk_info", 1, disk, rotational)
        return out

    def _is_physical(self, name: str) -> bool:
        # Partitions have no folder here.
        block = self._blocks / name
        return not _NO_DISK.fullmatch(name) and block.exists() and physical_disks(block) == {name}

    def _rotational(self, disk: str) -> str | None:
        """ "1" or "0"; None where it is not known, as of the disks of most virtual machines."""
        told = _text(self._blocks / disk / "queue" / "rotational")
        return None if told == "1" and self._is_made_up(disk) else told

    def _is_made_up(self, disk: str) -> bool:
        if _PARAVIRTUAL.fullmatch(disk):
            return True
        about = " ".join(_text(self._blocks / disk / "device" / what) or "" for what in ("vendor", "model")).lower()
        return any(word in about for word in _EMULATORS)


def create(settings: Settings) -> Disks:
    """The collector."""
    return Disks(settings.sysfs)


def _read() -> dict[str, _Counters]:
    # Prometheus takes care of counters that begin again.
    found = psutil.disk_io_counters(perdisk=True, nowrap=False)
    return {name: _Counters(io.read_bytes, io.write_bytes, io.busy_time / 1000) for name, io in found.items()}


def _of_heads(counters: Mapping[str, _Counters]) -> dict[str, _Counters]:
    """With the I/O of NVMe paths at the disk that they lead to: older kernels count only the paths."""
    found = dict(counters)
    for name, path in counters.items():
        head = _NVME_PATH.sub(r"nvme\1n\2", name)
        if head != name and counters.get(head) == _Counters(0, 0, 0.0):
            so_far = found[head]
            found[head] = _Counters(
                so_far.read_bytes + path.read_bytes,
                so_far.written_bytes + path.written_bytes,
                max(so_far.busy_seconds, path.busy_seconds),  # at once, perhaps: a sum could pass the time there was
            )
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
