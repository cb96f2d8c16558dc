"""CPU, memory, I/O, open files and states of each live run's processes: its ranks, their DataLoader workers, the rest.

What the kernel does not let the exporter read, because the process is another user's, is absent: it is left out for the
whole group, because the sum of some is not the sum of all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.process_tree import STATES, Group, Identity, Process, ProcessTrees, Tree, read_bytes
from trainvitals_exporter.settings import Settings

_IO_FIELDS: Final = {
    b"read_bytes": "trainvitals_process_read_bytes_total",
    b"write_bytes": "trainvitals_process_written_bytes_total",
}


class Processes:
    """The trees below the launcher and the ranks of every live run, each process counted once."""

    name = "processes"
    interval = 5.0

    def __init__(self, trees: ProcessTrees) -> None:
        self._trees = trees
        self._counters: dict[str, _Counters] = {}
        self._files = _Files(trees.procfs)

    def collect(self) -> Iterable[Family]:
        """Walk the process trees."""
        out = Families()
        trees = self._trees.trees()
        self._counters = {t.run.run_id: self._counters.get(t.run.run_id) or _Counters() for t in trees.values()}
        for name, tree in trees.items():
            self._add(out, name, tree)
        return out

    def _add(self, out: Families, name: str, tree: Tree) -> None:
        counters = self._counters[tree.run.run_id]
        cpu = counters.cpu.update({process: process.cpu_seconds for process in tree.processes})
        groups: dict[Group, list[Process]] = {group: [] for group in cpu}
        for process in tree.processes:
            groups[process.group].append(process)
        for group, processes in groups.items():
            out.add("trainvitals_process_cpu_seconds_total", cpu[group], name, *group)
            out.add("trainvitals_process_resident_bytes", sum(p.resident for p in processes), name, *group)
            out.add("trainvitals_process_threads", sum(p.threads for p in processes), name, *group)
            states = Counter(process.state for process in processes)
            for state in STATES:
                out.add("trainvitals_processes", states[state], name, *group, state)
            self._add_open_files(out, processes, name, *group)
        self._add_io(out, name, tree, counters)

    def _add_io(self, out: Families, name: str, tree: Tree, counters: _Counters) -> None:
        readings = {process: self._files.io(process.pid) for process in tree.processes}
        refused = {process.group for process, reading in readings.items() if reading is None}
        for field, counter in counters.io.items():
            values = {process: reading.get(field) for process, reading in readings.items() if reading is not None}
            for group, total in counter.update({p: values.get(p) for p in tree.processes}).items():
                if group not in refused:
                    out.add(_IO_FIELDS[field], total, name, *group)

    def _add_open_files(self, out: Families, processes: Iterable[Process], *labels: str) -> None:
        """Of the process that is nearest to its limit: it is the one that fails with "too many open files"."""
        nearest = (0, 0)
        for process in processes:
            if process.state == "zombie":
                continue
            found = self._files.open(process.pid)
            if found is None:
                return
            count, limit = found
            if limit and (not nearest[1] or count / limit > nearest[0] / nearest[1]):
                nearest = found
        if nearest[1]:
            out.add("trainvitals_process_open_fds", nearest[0], *labels)
            out.add("trainvitals_process_max_fds", nearest[1], *labels)


class _Counters:
    """What is counted of one run."""

    def __init__(self) -> None:
        self.cpu = _GroupCounter()
        # The kernel adds the I/O of a child that has been waited for to its parent's.
        self.io = {field: _GroupCounter(handed_to_parents=True) for field in _IO_FIELDS}


class _GroupCounter:
    """Sums by group, made of differences: they do not fall when a process ends or changes its role."""

    def __init__(self, *, handed_to_parents: bool = False) -> None:
        self._handed_to_parents = handed_to_parents
        self._totals: dict[Group, float] = defaultdict(float)
        self._last: dict[Identity, tuple[float, int]] = {}

    def update(self, values: Mapping[Process, float | None]) -> Mapping[Group, float]:
        """Take the values of all processes there are, None where one cannot be read, and return the sums."""
        last, handed = self._last, self._handed_over({process.identity for process in values})
        self._last = {}
        for process, value in values.items():
            before, _ = last.get(process.identity, (0.0, 0))
            if value is None:
                if process.identity in last:
                    self._last[process.identity] = last[process.identity]
                continue
            self._totals[process.group] += max(value - before - handed[process.pid], 0.0)
            self._last[process.identity] = value, process.parent
        return self._totals

    def _handed_over(self, living: set[Identity]) -> Mapping[int, float]:
        """What parents have counted again, of children that have ended since the last time."""
        handed: dict[int, float] = defaultdict(float)
        if self._handed_to_parents:
            for identity in self._last.keys() - living:
                value, parent = self._last[identity]
                handed[parent] += value
        return handed


class _Files:
    """Reads the files of one process in /proc."""

    def __init__(self, procfs: str) -> None:
        self._procfs = procfs
        own = Path(procfs) / "self" / "fd"
        # Since Linux 6.2 the size of the folder is the number of files in it.
        self._size_is_count = own.exists() and own.stat().st_size > 0

    def io(self, pid: int) -> dict[bytes, float] | None:
        """Its I/O by field, empty for a process that has gone; None where reading it is not permitted."""
        try:
            lines = read_bytes(f"{self._procfs}/{pid}/io").split(b"\n")
            return {field: float(value) for field, _, value in (line.partition(b": ") for line in lines) if value}
        except PermissionError:
            return None
        except (OSError, ValueError):
            return {}

    def open(self, pid: int) -> tuple[int, int] | None:
        """How many files it has open, and how many it may have; 0 where that is unlimited, or it has gone.

        None where reading it is not permitted.
        """
        try:
            folder = Path(f"{self._procfs}/{pid}/fd")
            count = folder.stat().st_size if self._size_is_count else sum(1 for _ in folder.iterdir())
            return count, _open_files_limit(read_bytes(f"{self._procfs}/{pid}/limits"))
        except PermissionError:
            return None
        except OSError:
            return 0, 0


def create(settings: Settings) -> Processes:
    """The collector."""
    return Processes(settings.trees)


def _open_files_limit(text: bytes) -> int:
    """The soft limit; 0 for none."""
    _, found, rest = text.partition(b"Max open files")
    soft = rest.split(maxsplit=1)[0] if found and rest.split() else b""
    return int(soft) if soft.isdigit() else 0
