"""CPU, memory and states of each live run's process tree: its ranks, their DataLoader workers, the rest."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import psutil

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.run_table import Run, RunTable
from trainvitals_exporter.settings import Settings

_STATES: Final = {
    psutil.STATUS_RUNNING: "running",
    psutil.STATUS_SLEEPING: "sleeping",
    psutil.STATUS_IDLE: "sleeping",
    psutil.STATUS_DISK_SLEEP: "blocked",
    psutil.STATUS_ZOMBIE: "zombie",
}
_OTHER_STATE: Final = "other"

_Group = tuple[str, str]  # rank ("" for what belongs to no rank) and role


@dataclass(frozen=True)
class _Process:
    """One process at one moment. `identity` tells it from a later process with the same pid."""

    identity: tuple[int, float]
    parent: int
    cpu_seconds: float
    resident: int
    state: str
    arguments: tuple[str, ...]


class Processes:
    """The trees below the launcher and the ranks of every live run, each process counted once."""

    name = "processes"
    interval = 5.0

    def __init__(self, table: RunTable) -> None:
        self._table = table
        self._cpu: dict[str, _CpuCounter] = {}

    def collect(self) -> Iterable[Family]:
        """Walk the process trees."""
        out = Families()
        live = {name: run for name, run in self._table.runs(max_age=1.0).items() if run.alive}
        self._cpu = {run.run_id: self._cpu.get(run.run_id) or _CpuCounter() for run in live.values()}
        for name, run in live.items():
            self._add(out, name, run)
        return out

    def _add(self, out: Families, name: str, run: Run) -> None:
        ranks = {file.alive_pid: str(rank) for rank, file in run.ranks.items() if file.alive_pid}
        processes = _tree([file.alive_pid for file in run.files if file.alive_pid])
        groups = {pid: _group(pid, processes, ranks) for pid in processes}
        cpu_seconds = self._cpu[run.run_id].update(processes, groups)
        resident: Counter[_Group] = Counter()
        states: Counter[tuple[_Group, str]] = Counter()
        for pid, process in processes.items():
            resident[groups[pid]] += process.resident
            states[groups[pid], process.state] += 1
        for group, seconds in cpu_seconds.items():
            out.add("trainvitals_process_cpu_seconds_total", seconds, name, *group)
            out.add("trainvitals_process_resident_bytes", resident[group], name, *group)
            for state in (*dict.fromkeys(_STATES.values()), _OTHER_STATE):
                out.add("trainvitals_processes", states[group, state], name, *group, state)


class _CpuCounter:
    """CPU seconds by group, summed from differences: they do not fall when a process ends or changes its role."""

    def __init__(self) -> None:
        self._totals: dict[_Group, float] = defaultdict(float)
        self._last: dict[tuple[int, float], float] = {}

    def update(self, processes: Mapping[int, _Process], groups: Mapping[int, _Group]) -> Mapping[_Group, float]:
        for pid, process in processes.items():
            self._totals[groups[pid]] += max(process.cpu_seconds - self._last.get(process.identity, 0.0), 0.0)
        self._last = {process.identity: process.cpu_seconds for process in processes.values()}
        return self._totals


def create(settings: Settings) -> Processes:
    """The collector."""
    return Processes(settings.runs)


def _tree(roots: Iterable[int]) -> dict[int, _Process]:
    """These processes and all below them, by pid. Those that end meanwhile, or may not be read, are left out."""
    found: dict[int, _Process] = {}
    for root in roots:
        if root in found:
            continue
        try:
            top = psutil.Process(root)
            family = [top, *top.children(recursive=True)]
        except psutil.Error:
            continue
        for process in family:
            facts = _read(process)
            if facts is not None:
                found[process.pid] = facts
    return found


def _read(process: psutil.Process) -> _Process | None:
    with contextlib.suppress(psutil.Error), process.oneshot():
        state = _STATES.get(process.status(), _OTHER_STATE)
        gone = state == "zombie"  # it has neither memory nor arguments any more
        times = process.cpu_times()
        return _Process(
            identity=(process.pid, process.create_time()),
            parent=process.ppid(),
            cpu_seconds=times.user + times.system,
            resident=0 if gone else process.memory_info().rss,
            state=state,
            arguments=() if gone else tuple(process.cmdline()),
        )
    return None


def _group(pid: int, processes: Mapping[int, _Process], ranks: Mapping[int, str]) -> _Group:
    """The nearest rank at or above a process, and the process's role in it."""
    if pid in ranks:
        return ranks[pid], "main"
    parent = processes[pid].parent
    ancestor, seen = parent, {pid}
    while ancestor not in ranks:
        if ancestor not in processes or ancestor in seen:
            return "", "other"
        seen.add(ancestor)
        ancestor = processes[ancestor].parent
    return ranks[ancestor], "dataloader_worker" if _is_worker(pid, processes, ranks) else "other"


def _is_worker(pid: int, processes: Mapping[int, _Process], ranks: Mapping[int, str]) -> bool:
    """Whether a process is what multiprocessing, and so a DataLoader, makes of a rank.

    Forked, it has its parent's arguments; spawned, it runs multiprocessing.spawn; by fork server, its parent is one.
    """
    process = processes[pid]
    parent = processes.get(process.parent)
    if parent is None:
        return False
    if process.parent not in ranks:
        return parent.parent in ranks and _runs("multiprocessing.forkserver", parent)
    if _runs("multiprocessing.resource_tracker", process) or _runs("multiprocessing.forkserver", process):
        return False
    return _runs("multiprocessing.spawn", process) or process.arguments == parent.arguments


def _runs(module: str, process: _Process) -> bool:
    return any(module in argument for argument in process.arguments)
