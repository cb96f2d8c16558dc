"""Proportional memory (PSS) of each live run's processes: what DataLoader workers that share a dataset really take.

The kernel walks all pages of a process for it: a quarter of a second for eight workers that share 2 GiB, in which none
of them can map memory. So a run is measured when it is new, then rarely, the more so the longer it takes, and by a
collector of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.process_tree import Group, Process, ProcessTrees, Tree, read_bytes
from trainvitals_exporter.runner import NothingToReport
from trainvitals_exporter.settings import Settings

_SHORTEST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 900.0
_MOST_OF_TIME: Final = 0.002


@dataclass(frozen=True)
class _Measurement:
    """Bytes by group, whether any were refused, and the time (of the monotonic clock) to measure again."""

    sums: dict[Group, int]
    refused: bool
    due: float


class Pss:
    """Takes a five-hundredth of a core's time at most, unless that would mean pauses of more than 15 minutes."""

    name = "pss"
    interval = 10.0

    def __init__(self, trees: ProcessTrees) -> None:
        self._trees = trees
        self._measured: dict[str, _Measurement] = {}

    def collect(self) -> Iterable[Family]:
        """Measure one run that is due, and tell what is known of all that live."""
        trees = self._trees.trees(max_age=self.interval)
        run_ids = {tree.run.run_id for tree in trees.values()}
        self._measured = {run_id: about for run_id, about in self._measured.items() if run_id in run_ids}
        due = [tree for tree in trees.values() if self._due(tree) <= time.monotonic()]
        if due:
            self._measure(min(due, key=self._due), len(trees))
        out = Families()
        for name, tree in trees.items():
            sums = self._measured[tree.run.run_id].sums if tree.run.run_id in self._measured else {}
            living = {process.group for process in tree.processes}
            for group in sums.keys() & living:
                out.add("trainvitals_process_proportional_bytes", sums[group], name, *group)
        if any(about.refused for about in self._measured.values()) and not list(out):
            raise NothingToReport("the kernel lets only root, or the owner, read another process's smaps_rollup")
        return out

    def _due(self, tree: Tree) -> float:
        known = self._measured.get(tree.run.run_id)
        return known.due if known else float("-inf")

    def _measure(self, tree: Tree, runs: int) -> None:
        """Measure all processes of a run; a group with one that cannot be read is left out."""
        start = time.thread_time()
        sums: dict[Group, int] = {}
        refused = set()
        for process in tree.processes:
            group = process.group
            try:
                sums[group] = sums.get(group, 0) + self._proportional(process)
            except PermissionError:
                refused.add(group)
        taken = time.thread_time() - start
        pause = min(max(_SHORTEST_PAUSE, taken * runs / _MOST_OF_TIME), _LONGEST_PAUSE)
        sums = {group: size for group, size in sums.items() if group not in refused}
        self._measured[tree.run.run_id] = _Measurement(sums, bool(refused), time.monotonic() + pause)

    def _proportional(self, process: Process) -> int:
        """Bytes; 0 for a process that has gone. Raises PermissionError."""
        folder = f"{self._trees.procfs}/{process.pid}"
        try:
            _, found, rest = read_bytes(f"{folder}/smaps_rollup").partition(b"\nPss:")
            if found:
                return int(rest.split(maxsplit=1)[0]) * 1024
        except OSError as error:  # newer kernels say "no such process" where they do not permit it
            if _has_memory(folder):
                raise PermissionError(error.errno, error.strerror) from error
        return 0


def _has_memory(folder: str) -> bool:
    """Whether the process of this folder of /proc is neither gone nor about to go. Everybody may read its size."""
    try:
        return not read_bytes(f"{folder}/statm").startswith(b"0 ")
    except OSError:
        return False


def create(settings: Settings) -> Pss:
    """The collector."""
    return Pss(settings.trees)
