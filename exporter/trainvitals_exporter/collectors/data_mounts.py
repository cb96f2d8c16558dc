"""Which filesystems each rank and its DataLoader workers read from, as their open files tell.

The hooks tell where a dataset lies if its attributes say so (`trainvitals_dataloader_dataset_info`); this needs no
dataset that says so, but a file that is open just then. Archives are, all the time; of a dataset of many small files
one is at times, the more so the slower the disk, so what was seen is remembered for some minutes.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from trainvitals.mounts import MountTable

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.process_tree import Process, ProcessTrees, Tree
from trainvitals_exporter.settings import Settings

_KEPT_SECONDS: Final = 300.0
_MOST_WORKERS: Final = 3  # of a rank each time, others the next time
_MOST_FILES: Final = 256
_MOST_PLACES: Final = 4
# What is open for reading there is no data: devices, libraries, the system's tables.
_NO_DATA: Final = ("/dev/", "/proc/", "/sys/", "/usr/", "/etc/", "/lib", "/bin/", "/run/")

_Place = tuple[str, str]  # mount point, as the rank sees it, and disk or type of filesystem


class DataMounts:
    """Looks at the names of open files only, never at the files: their filesystem may not answer."""

    name = "data_mounts"
    interval = 30.0

    def __init__(self, trees: ProcessTrees, sysfs: Path) -> None:
        self._trees = trees
        self._sysfs = sysfs
        self._seen: dict[tuple[str, str], dict[_Place, float]] = {}

    def collect(self) -> Iterable[Family]:
        """Look at each rank and some of its workers."""
        out, now, served = Families(), time.monotonic(), {}
        for name, tree in self._trees.trees(max_age=self.interval).items():
            for rank, processes in _looked_at(tree):
                key = tree.run.run_id, rank
                places = self._seen.get(key, {}) | dict.fromkeys(self._places(processes), now)
                newest = sorted(places.items(), key=lambda item: -item[1])[:_MOST_PLACES]
                served[key] = {place: at for place, at in newest if now - at <= _KEPT_SECONDS}
                for place in served[key]:
                    out.add("trainvitals_reads_from_info", 1, name, rank, *place)
        self._seen = served
        return out

    def _places(self, processes: Iterable[Process]) -> set[_Place]:
        places: set[_Place] = set()
        for process in processes:
            folder = Path(self._trees.procfs, str(process.pid))
            try:
                paths = set(_read_from(folder / "fd"))
                table = MountTable(folder / "mountinfo", self._sysfs) if paths else None
            except (OSError, ValueError, IndexError):
                continue  # it has gone, or is not to be looked into
            mounts = {mount for path in paths if table and (mount := table.of(Path(path)))}
            places |= {(m.mountpoint, disk) for m in mounts if table for disk in table.disks(m) or [m.kind]}
        return places


def create(settings: Settings) -> DataMounts:
    """The collector."""
    return DataMounts(settings.trees, settings.sysfs)


def _looked_at(tree: Tree) -> Iterator[tuple[str, list[Process]]]:
    """Each rank with its own process and some of its workers."""
    for main in tree.processes:
        if main.role == "main":
            workers = [p for p in tree.processes if (p.rank, p.role) == (main.rank, "dataloader_worker")]
            yield main.rank, [main, *random.sample(workers, min(len(workers), _MOST_WORKERS))]


def _read_from(folder: Path) -> Iterator[str]:
    """The paths of a process's files that are open for reading only. Raises OSError where it may not be looked into."""
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(_MOST_FILES), strict=False):
            try:
                path = os.readlink(entry.path)  # noqa: PTH115 (a Path could not tell "socket:[1]" from a file)
                is_data = path.startswith("/") and not path.startswith(_NO_DATA) and " (deleted)" not in path
                # The permissions of the link are those that the file was opened with.
                if is_data and not entry.stat(follow_symlinks=False).st_mode & stat.S_IWUSR:
                    yield path
            except OSError:
                continue  # closed meanwhile
