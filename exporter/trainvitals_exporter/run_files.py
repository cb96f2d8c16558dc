"""Reads run files again and again, at little cost.

Finding out what is new and whom to trust takes a full scan of the run directories; between scans only the files of
living processes are read, because those of dead ones do not change. There may be thousands of dead ones: those of runs
that are over are read once, and then only looked at in a scan.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from trainvitals import rundir, runfile
from trainvitals.runfile import InvalidRunFile, RunFile

from trainvitals_exporter.messages import printable

# A scan sees at once what changes a directory's list of files; this is for the rest, such as a file truncated in place.
_FULL_SCAN_SECONDS: Final = 30.0
# The time of a folder's last change is no finer than a tick of the clock; on some filesystems that is two seconds.
_MTIME_GRAIN_SECONDS: Final = 2.5
_LOGGED_REJECTIONS: Final = 5

_log = logging.getLogger(__name__)

# A folder's inode, owner and permissions, and the name and inode of each run file in it.
_Listing = tuple[int, int, int, frozenset[tuple[str, int]]]
_Version = tuple[int, int, int]


class RunFiles:
    """The run files below `directories()`, which is asked anew each time, but for those that `is_over` says may go.

    One of a run with other files that may not go stays as well.
    """

    def __init__(self, directories: Callable[[], Iterable[Path]], is_over: Callable[[RunFile], bool]) -> None:
        self._directories = directories
        self._is_over = is_over
        self._files: dict[Path, RunFile] = {}
        self._over: dict[str, tuple[_Version, str]] = {}  # by path, with the id of the run
        self._rejected: dict[str, str] = {}
        self._listings: dict[Path, _Listing] = {}
        self._changed: dict[Path, tuple[int, float]] = {}  # a folder's mtime, and since when that is known
        self._next_scan = 0.0

    def read(self) -> list[RunFile]:
        """All files that can be read and trusted, each with its values as of now."""
        listings = {directory: self._list(directory) for directory in self._directories()}
        if listings == self._listings and time.monotonic() < self._next_scan:
            self._read_living()
        if listings != self._listings or time.monotonic() >= self._next_scan:
            self._listings = listings
            self._next_scan = time.monotonic() + _FULL_SCAN_SECONDS
            self._scan(listings)
        return list(self._files.values())

    def rejected(self) -> Counter[str]:
        """How many files were not read, by reason."""
        return Counter(self._rejected.values())

    def _scan(self, directories: Iterable[Path]) -> None:
        self._files.clear()
        known, self._over = self._over, {}
        rejected: dict[str, str] = {}
        for result in rundir.read_all(directories, skip=lambda entry: self._still_over(entry, known)):
            if isinstance(result, InvalidRunFile):
                rejected[str(result)] = result.reason
            elif self._is_over(result) and (version := _version(result.path)):
                self._over[str(result.path)] = version, result.identity.run_id
            else:
                self._files[result.path] = result
        wanted = {file.identity.run_id for file in self._files.values()}
        for path in [Path(path) for path, (_, run_id) in self._over.items() if run_id in wanted]:
            with contextlib.suppress(OSError, InvalidRunFile):
                self._files[path] = runfile.read(path, path.parent.lstat().st_uid)
        new = [detail for detail in rejected if detail not in self._rejected]
        for detail in new[:_LOGGED_REJECTIONS]:
            _log.warning("run file rejected: %s", printable(detail))
        if len(new) > _LOGGED_REJECTIONS:
            _log.warning("%d more run files rejected", len(new) - _LOGGED_REJECTIONS)
        self._rejected = rejected

    def _still_over(self, entry: os.DirEntry[str], known: Mapping[str, tuple[_Version, str]]) -> bool:
        """Whether this file was over at the last scan and has not changed since; then it is not read again."""
        about = known.get(entry.path)
        if about is not None and _version(entry) == about[0]:
            self._over[entry.path] = about
        return entry.path in self._over

    def _list(self, directory: Path) -> _Listing:
        """What tells whether a folder has changed; listed anew only where its mtime cannot tell that nothing did."""
        earlier, (mtime, since) = self._listings.get(directory), self._changed.get(directory, (0, 0.0))
        try:
            status = directory.lstat()
            if status.st_mtime_ns != mtime:
                self._changed[directory] = status.st_mtime_ns, time.monotonic()
            elif earlier and time.monotonic() - since > _MTIME_GRAIN_SECONDS:
                return status.st_ino, status.st_uid, status.st_mode, earlier[3]
            with os.scandir(directory) as entries:
                files = frozenset(
                    (entry.name, entry.inode()) for entry in entries if entry.name.endswith(runfile.SUFFIX)
                )
        except OSError as error:
            self._changed.pop(directory, None)
            return error.errno or 0, 0, 0, frozenset()
        return status.st_ino, status.st_uid, status.st_mode, files

    def _read_living(self) -> None:
        try:
            for path, file in [(path, file) for path, file in self._files.items() if file.alive_pid is not None]:
                # The scan made sure that nobody but the folder's owner can put files there.
                self._files[path] = runfile.read(path, path.parent.lstat().st_uid, file)
        except (OSError, InvalidRunFile):
            self._next_scan = 0.0  # a scan tells what is wrong, and of which file


def _version(file: Path | os.DirEntry[str]) -> _Version | None:
    """What tells whether a file has changed, None for one that has gone."""
    try:
        status = file.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
