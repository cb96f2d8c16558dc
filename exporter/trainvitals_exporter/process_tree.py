"""The processes of each live run: its ranks, their DataLoader workers, and the rest.

A host may have thousands of processes, and a tree is looked at every few seconds. So the parent of a process that
belongs to no run is asked for once: /proc gives a process an inode number that a later one with its pid does not have.
The processes of runs are read afresh each time.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainvitals_exporter.run_table import Run, RunTable

_STATES: Final = {"R": "running", "S": "sleeping", "I": "sleeping", "D": "blocked", "Z": "zombie"}
_OTHER_STATE: Final = "other"
STATES: Final = (*dict.fromkeys(_STATES.values()), _OTHER_STATE)

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST_BYTES: Final = 64 * 1024
# What PyTorch names the main thread, and so the process, of a DataLoader worker.
_WORKER_NAME: Final = "pt_data_worker"
# Where inode numbers tell nothing (a /proc that is not Linux's own), parents are asked for again after this time.
_PARENTS_KEPT_SECONDS: Final = 60.0

Identity = tuple[int, int]
Group = tuple[str, str]  # rank ("" for what belongs to no rank) and role
Arguments = tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Process:
    """One process at one moment. `rank` is empty for one that belongs to none; `role` is one of PROCESS_ROLES.

    `started` is in clock ticks since the machine started, and tells a process from a later one with its pid.
    """

    pid: int
    started: int
    parent: int
    name: str
    state: str
    cpu_seconds: float
    threads: int
    resident: int
    arguments: Arguments
    rank: str = ""
    role: str = "other"

    @property
    def identity(self) -> Identity:
        """What no other process has."""
        return self.pid, self.started

    @property
    def group(self) -> Group:
        """What it is counted with."""
        return self.rank, self.role


@dataclass(frozen=True)
class Tree:
    """A live run and all its processes."""

    run: Run
    processes: tuple[Process, ...]


class ProcessTrees:
    """Looks the trees up in `procfs`. May be used from several threads."""

    def __init__(self, table: RunTable, procfs: Path) -> None:
        self.procfs = str(procfs)
        self._table = table
        self._lock = threading.Lock()
        self._trees: dict[str, Tree] = {}
        self._read_at = float("-inf")
        self._parents: dict[Identity, tuple[int, int]] = {}
        self._parents_since = float("-inf")
        self._arguments: dict[Identity, tuple[Arguments, bool]] = {}
        self._started: dict[tuple[str, int], int] = {}

    def trees(self, max_age: float = 0.0) -> dict[str, Tree]:
        """The tree of each live run by its name, read at most `max_age` seconds ago."""
        with self._lock:
            if time.monotonic() - self._read_at > max_age:
                self._trees = self._read_all()
                self._read_at = time.monotonic()
            return self._trees

    def _read_all(self) -> dict[str, Tree]:
        runs = {name: run for name, run in self._table.runs(max_age=1.0).items() if run.alive}
        children = self._children() if runs else {}
        trees = {name: Tree(run, tuple(self._tree(run, children))) for name, run in runs.items()}
        living = {process.identity for tree in trees.values() for process in tree.processes}
        self._arguments = {identity: self._arguments[identity] for identity in living}
        run_ids = {run.run_id for run in runs.values()}
        self._started = {key: started for key, started in self._started.items() if key[0] in run_ids}
        return trees

    def _children(self) -> Mapping[int, list[int]]:
        """The children of each process of the host."""
        with os.scandir(self.procfs) as entries:
            inodes = {int(entry.name): entry.inode() for entry in entries if entry.name.isdecimal()}
        if time.monotonic() - self._parents_since > _PARENTS_KEPT_SECONDS:
            self._parents, self._parents_since = {}, time.monotonic()
        parents, children = {}, defaultdict(list)
        for key in inodes.items():
            parent, inode = self._parents.get(key, (-1, -1))
            if inodes.get(parent, 0) != inode:  # unknown, or a parent that has gone: the process has another one now
                found = self._read(key[0])
                parent = found.parent if found else -1
            parents[key] = parent, inodes.get(parent, 0)
            children[parent].append(key[0])
        self._parents = parents
        return children

    def _tree(self, run: Run, children: Mapping[int, list[int]]) -> Iterable[Process]:
        ranks = {file.alive_pid: str(rank) for rank, file in run.ranks.items() if file.alive_pid}
        found: dict[int, Process] = {}
        for root in [file.alive_pid for file in run.files if file.alive_pid]:
            pending: list[tuple[int, Process | None]] = [(root, None)]
            while pending:
                pid, parent = pending.pop()
                process = self._read(pid) if pid not in found else None
                if process is None or not self._belongs(process, parent, run):
                    continue
                process = self._placed(process, parent, ranks)
                found[pid] = process
                pending += [(child, process) for child in children.get(pid, ())]
        return found.values()

    def _belongs(self, process: Process, parent: Process | None, run: Run) -> bool:
        """Whether this is still the process that was looked for, and no later one with its pid."""
        if parent is not None:
            return process.parent == parent.pid
        return self._started.setdefault((run.run_id, process.pid), process.started) == process.started

    def _placed(self, process: Process, parent: Process | None, ranks: Mapping[int, str]) -> Process:
        """The process with its arguments, its rank (the nearest at or above it), and its role there."""
        arguments = self._arguments_of(process)
        if process.pid in ranks:
            return replace(process, arguments=arguments, rank=ranks[process.pid], role="main")
        if parent is None or not parent.rank:
            return replace(process, arguments=arguments)
        role = "dataloader_worker" if _is_worker(process, arguments, parent, ranks) else "other"
        return replace(process, arguments=arguments, rank=parent.rank, role=role)

    def _arguments_of(self, process: Process) -> Arguments:
        """Read twice, for a process that has just been forked may become another program; then remembered."""
        known, settled = self._arguments.get(process.identity, ((), False))
        if not settled and process.state != "zombie":
            first = process.identity not in self._arguments
            try:
                known = tuple(read_bytes(f"{self.procfs}/{process.pid}/cmdline").split(b"\0"))
            except OSError:
                known = ()
            settled = not first
        self._arguments[process.identity] = known, settled
        return known

    def _read(self, pid: int) -> Process | None:
        """None for a process that has gone, or that nothing can be known of."""
        try:
            return parse_stat(read_bytes(f"{self.procfs}/{pid}/stat"))
        except (OSError, ValueError, IndexError):
            return None


def read_bytes(path: str, most: int = _MOST_BYTES) -> bytes:
    """The beginning of a file of /proc. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while most > 0 and (part := os.read(descriptor, most)):
            parts.append(part)
            most -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def parse_stat(text: bytes) -> Process:
    """What /proc/PID/stat tells (proc_pid_stat(5)). Raises ValueError or IndexError where it is no such text."""
    pid, _, rest = text.partition(b" (")
    name, _, numbers = rest.rpartition(b")")  # the name may hold anything
    fields = numbers.split()
    return Process(
        pid=int(pid),
        started=int(fields[19]),
        parent=int(fields[1]),
        name=name.decode(errors="replace"),
        state=_STATES.get(fields[0].decode(errors="replace"), _OTHER_STATE),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        resident=int(fields[21]) * _PAGE,
        arguments=(),
    )


def _is_worker(process: Process, arguments: Arguments, parent: Process, ranks: Mapping[int, str]) -> bool:
    """Whether a process is what multiprocessing, and so a DataLoader, makes of a rank.

    Forked, it has its parent's arguments; spawned, it runs multiprocessing.spawn; by fork server, its parent is one.
    """
    if process.name == _WORKER_NAME:
        return True
    if parent.pid not in ranks:
        return parent.parent in ranks and _runs(b"multiprocessing.forkserver", parent.arguments)
    if _runs(b"multiprocessing.resource_tracker", arguments) or _runs(b"multiprocessing.forkserver", arguments):
        return False
    return _runs(b"multiprocessing.spawn", arguments) or arguments == parent.arguments


def _runs(module: bytes, arguments: Arguments) -> bool:
    return any(module in argument for argument in arguments)
