"""Which runs there are on this host, what state each is in, and which name it goes by.

A run's processes each have a run file; here they become one run again. What is true of a run follows from its files
alone, except for the suffix of its name and the moment of its end, which this table remembers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainvitals.endings import SEVERITY, final_state
from trainvitals.runfile import RunFile

from trainvitals_exporter.messages import printable
from trainvitals_exporter.run_files import RunFiles

# The last vital signs of a run have to outlast a few scrapes and the longest `for` of an alert on its end.
KEEP_ENDED_SECONDS: Final = 15 * 60.0
_SEEN_LATE_SECONDS: Final = 2.0
_SIGNS_OF_LIFE: Final = ("trainvitals_heartbeat_timestamp_seconds", "trainvitals_last_iteration_timestamp_seconds")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run: the file of its launcher (`trainvitals run`), of each rank, and of processes that train nothing."""

    run_id: str
    launcher: RunFile | None
    ranks: Mapping[int, RunFile]
    others: tuple[RunFile, ...]

    @property
    def files(self) -> list[RunFile]:
        """All files of the run."""
        return [*([self.launcher] if self.launcher else []), *self.ranks.values(), *self.others]

    @property
    def alive(self) -> bool:
        """Whether any rank lives, or the launcher does and has not said how the run ended."""
        return self._any_rank_lives() or (_lives(self.launcher) and self._verdict() is None)

    @property
    def created(self) -> float:
        """Unix time of the run's start."""
        told = _finite(self.launcher, "trainvitals_run_start_timestamp_seconds")
        return told or min(file.created for file in self.files)

    @property
    def wanted_name(self) -> str:
        """The name that the run was given; another run may have it as well."""
        return min(self.files, key=lambda file: (file is not self.launcher, file.created)).identity.run

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the run was given."""
        told = [self.launcher] if self.launcher else self.ranks.values()
        found = [labels for file in told for labels in file.labels("trainvitals_run_label_info")]
        return {labels["label"]: labels["value"] for labels in found if labels.keys() == {"label", "value"}}

    @property
    def state(self) -> str:
        """One of `catalogue.RUN_STATES`."""
        if self._any_rank_lives():
            return "running"  # even without its launcher: a rank can outlive its parent
        verdict = self._verdict()
        if verdict is not None:
            return verdict
        if _lives(self.launcher):
            return "running" if self.ranks else "starting"
        return max((_rank_end(file) for file in self.ranks.values()), key=SEVERITY.index, default="killed")

    @property
    def exit_code(self) -> float | None:
        """What the launcher says the command exited with."""
        return _finite(self.launcher, "trainvitals_run_exit_code")

    @property
    def end_info(self) -> tuple[str, str] | None:
        """The signal and the exception that an ended run died of, empty where there was none; None if nobody told.

        The launcher knows best; where it could not tell either, the worst rank does, then any other process.
        """
        if self.alive:
            return None
        worst_first = sorted(self.ranks.values(), key=lambda file: -SEVERITY.index(_rank_end(file)))
        launchers = [self.launcher] if self.launcher else []
        told = [info for file in (*launchers, *worst_first, *self.others) if (info := _end_info(file)) is not None]
        if self.state == "finished":
            return told[0] if told else None  # what some rank stumbled over did not end the run
        return next((info for info in told if any(info)), told[0] if told else None)

    def last_sign_of_life(self) -> float:
        """Unix time of the newest thing that the files show to have happened."""
        return max(self.created, *map(_last_sign_of_life, self.files))

    def _any_rank_lives(self) -> bool:
        return any(_lives(file) for file in self.ranks.values())

    def _verdict(self) -> str | None:
        return final_state(self.launcher) if self.launcher else None


class RunTable:
    """The runs to be served, each with the name it is served under. May be used from several threads."""

    def __init__(self, directories: Callable[[], Iterable[Path]], keep_ended: float = KEEP_ENDED_SECONDS) -> None:
        self._files = RunFiles(directories, self._is_over)
        self._keep_ended = keep_ended
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._seen_alive: set[str] = set()
        self._ended: dict[str, float] = {}
        self._counted: set[str] = set()
        self._endings: Counter[tuple[str, str]] = Counter()
        self._duplicates: set[tuple[str, int]] = set()
        self._runs: dict[str, Run] = {}
        self._read_at = float("-inf")

    def runs(self, max_age: float = 0.0) -> dict[str, Run]:
        """The runs by their unique names, read at most `max_age` seconds ago."""
        with self._lock:
            if time.monotonic() - self._read_at > max_age:
                runs = self._group(self._files.read())
                self._forget_gone({run.run_id for run in runs})
                served = [run for run in runs if self._to_be_served(run)]
                self._runs = self._named(served)
                self._count_endings(served)
                self._read_at = time.monotonic()
            return self._runs

    def endings(self) -> Mapping[tuple[str, str], int]:
        """How many runs have ended, by name and state: a run that is started again hides the one that failed."""
        with self._lock:
            return self._endings.copy()

    def rejected(self) -> Counter[str]:
        """How many run files were not read, by reason."""
        with self._lock:
            return self._files.rejected()

    def _group(self, files: Iterable[RunFile]) -> list[Run]:
        """Make runs of the files. A process that does not train is no run by itself."""
        by_run = defaultdict(list)
        # A living process before a dead one, a newer one before an older one: the last to be put in a place stays.
        for file in sorted(files, key=lambda file: (_lives(file), file.created)):
            by_run[file.identity.run_id].append(file)
        runs = []
        for run_id, members in by_run.items():
            launcher = next((file for file in reversed(members) if file.identity.kind == "launcher"), None)
            ranks: dict[int, RunFile] = {}
            for file in members:
                if file.identity.kind == "rank":
                    self._note_duplicate(ranks.get(max(file.rank, 0)), file)
                    ranks[max(file.rank, 0)] = file
            others = tuple(file for file in members if file.identity.kind == "process")
            if launcher or ranks:
                runs.append(Run(run_id, launcher, dict(sorted(ranks.items())), others))
        return runs

    def _note_duplicate(self, dropped: RunFile | None, kept: RunFile) -> None:
        key = (kept.identity.run_id, max(kept.rank, 0))
        if dropped is not None and _lives(dropped) and key not in self._duplicates:
            self._duplicates.add(key)
            _log.warning(
                "processes %d and %d both say they are rank %d of run %s; only the newer is served",
                dropped.pid, kept.pid, key[1], printable(kept.identity.run),
            )  # fmt: skip

    def _to_be_served(self, run: Run) -> bool:
        now = time.monotonic()
        if run.alive:
            self._seen_alive.add(run.run_id)
            self._ended.pop(run.run_id, None)
            return True
        if run.run_id not in self._ended:
            ago = 0.0 if run.run_id in self._seen_alive else max(time.time() - run.last_sign_of_life(), 0.0)
            self._ended[run.run_id] = now - ago
        kept = now - self._ended[run.run_id] <= self._keep_ended
        if not kept:
            self._seen_alive.discard(run.run_id)
        return kept

    def _is_over(self, file: RunFile) -> bool:
        """Whether the run of a dead process's file need not be served, unless another file of it says so."""
        run_id = file.identity.run_id
        if _lives(file) or run_id in self._seen_alive:
            return False
        if run_id in self._ended:
            return time.monotonic() - self._ended[run_id] > self._keep_ended
        return time.time() - _last_sign_of_life(file) > self._keep_ended

    def _named(self, runs: Sequence[Run]) -> dict[str, Run]:
        """Give each run a name of its own, and keep to it. One that ended gives way to one that began after that."""
        newest: dict[str, float] = {}
        for run in runs:
            wanted = run.wanted_name
            if self._names.get(run.run_id, wanted) == wanted:  # else it has a name beside the others
                newest[wanted] = max(run.created, newest.get(wanted, run.created))
        named: dict[str, Run] = {}
        for run in sorted(runs, key=self._precedence):
            if self._ended_before(run, newest.get(run.wanted_name, run.created)):
                continue
            name = self._names.get(run.run_id)
            if name is None or name in named:
                name = self._names[run.run_id] = _free_name(run.wanted_name, named)
            named[name] = run
        return named

    def _precedence(self, run: Run) -> tuple[bool, bool, float]:
        """Living runs come first, among them those that have their name already, then the earlier."""
        return (not run.alive, run.run_id not in self._names, run.created)

    def _ended_before(self, run: Run, moment: float) -> bool:
        """Whether a run ended before a moment (Unix time), to the second or two that its end may be seen too late."""
        if run.run_id not in self._ended or moment <= run.created:
            return False
        return time.time() - (time.monotonic() - self._ended[run.run_id]) < moment + _SEEN_LATE_SECONDS

    def _count_endings(self, runs: Iterable[Run]) -> None:
        for run in runs:
            if run.run_id in self._ended and run.run_id not in self._counted:
                self._counted.add(run.run_id)
                self._endings[self._names.get(run.run_id, run.wanted_name), run.state] += 1
        for name, state in [key for key in self._endings if key[0] not in self._runs]:
            del self._endings[name, state]

    def _forget_gone(self, run_ids: set[str]) -> None:
        self._seen_alive &= run_ids
        self._counted &= run_ids
        self._duplicates = {key for key in self._duplicates if key[0] in run_ids}
        for memory in (self._names, self._ended):
            for run_id in memory.keys() - run_ids:
                del memory[run_id]


def _free_name(wanted: str, taken: Mapping[str, Run]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _finite(file: RunFile | None, name: str) -> float | None:
    """A value of which NaN or infinity makes no sense: None then, and where there is none."""
    value = file.value(name) if file is not None else None
    return value if value is not None and math.isfinite(value) else None


def _lives(file: RunFile | None) -> bool:
    return file is not None and file.alive_pid is not None


def _last_sign_of_life(file: RunFile) -> float:
    times = [file.created, *(_finite(file, name) or 0.0 for name in _SIGNS_OF_LIFE)]
    with contextlib.suppress(OSError):
        times.append(file.path.stat().st_mtime)
    return max(times)


def _rank_end(file: RunFile) -> str:
    """How a rank's process ended; one that could not say so was killed."""
    return final_state(file) or "killed"


def _end_info(file: RunFile) -> tuple[str, str] | None:
    for labels in file.labels("trainvitals_run_end_info"):
        return labels.get("signal", ""), labels.get("exception", "")
    return None
