"""Reads run files again and again, at little cost.

Finding out what is new and whom to trust takes a full scan of the run directories; between scans only the files of
living processes are read, because those of dead ones do not change.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from trainvitals import rundir, runfile
from trainvitals.runfile import InvalidRunFile, RunFile

from trainvitals_exporter.messages import printable

# A scan sees at once what changes a directory's list of files; this is for the rest, such as a file truncated in place.
_FULL_SCAN_SECONDS: Final = 30.0
_LOGGED_REJECTIONS: Final = 5

_log = logging.getLogger(__name__)

_Listing = frozenset[tuple[str, int, int, int]]


class RunFiles:
    """The run files below `directories()`, which is asked anew each time."""

    def __init__(self, directories: Callable[[], Iterable[Path]]) -> None:
        self._directories = directories
        self._files: dict[Path, RunFile] = {}
        self._rejected: dict[str, str] = {}
        self._listing: _Listing = frozenset()
        self._next_scan = 0.0

    def read(self) -> list[RunFile]:
        """All files that can be read and trusted, each with its values as of now."""
        directories = list(self._directories())
        listing = frozenset(entry for directory in directories for entry in _list(directory))
        if listing == self._listing and time.monotonic() < self._next_scan:
            self._read_living()
        if listing != self._listing or time.monotonic() >= self._next_scan:
            self._listing = listing
            self._next_scan = time.monotonic() + _FULL_SCAN_SECONDS
            self._scan(directories)
        return list(self._files.values())

    def rejected(self) -> Counter[str]:
        """How many files were not read, by reason."""
        return Counter(self._rejected.values())

    def _scan(self, directories: list[Path]) -> None:
        self._files.clear()
        rejected: dict[str, str] = {}
        for result in rundir.read_all(directories):
            if isinstance(result, InvalidRunFile):
                rejected[str(result)] = result.reason
            else:
                self._files[result.path] = result
        new = [detail for detail in rejected if detail not in self._rejected]
        for detail in new[:_LOGGED_REJECTIONS]:
            _log.warning("run file rejected: %s", printable(detail))
        if len(new) > _LOGGED_REJECTIONS:
            _log.warning("%d more run files rejected", len(new) - _LOGGED_REJECTIONS)
        self._rejected = rejected

    def _read_living(self) -> None:
        try:
            for path, file in [(path, file) for path, file in self._files.items() if file.alive_pid is not None]:
                # The scan made sure that nobody but the folder's owner can put files there.
                self._files[path] = runfile.read(path, path.parent.lstat().st_uid, file)
        except (OSError, InvalidRunFile):
            self._next_scan = 0.0  # a scan tells what is wrong, and of which file


def _list(directory: Path) -> list[tuple[str, int, int, int]]:
    """What tells whether the directory has changed: its own owner and permissions, and each run file's inode."""
    try:
        status = directory.lstat()
        with os.scandir(directory) as entries:
            files = [(e.path, e.inode(), 0, 0) for e in entries if e.name.endswith(runfile.SUFFIX)]
    except OSError as error:
        return [(str(directory), error.errno or 0, 0, 0)]
    return [(str(directory), status.st_ino, status.st_uid, status.st_mode), *files]
