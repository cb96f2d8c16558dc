"""Where run files lie, and whom to trust about them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from trainvitals import runfile

ENVIRONMENT: Final = "TRAINVITALS_RUN_DIR"
# A process's log file has the name of its run file, but for this.
LOG_SUFFIX: Final = ".log"
# Its reports on running out of GPU memory: what happened, and PyTorch's own snapshot.
OUT_OF_MEMORY_SUFFIXES: Final = (".oom.json", ".oom.pickle")
# The report of a run that has ended.
REPORT_SUFFIX: Final = ".report.json"
# Long enough for every scrape and every look the next morning; then the user's next run removes the file.
_KEEP_DEAD_SECONDS: Final = 24 * 3600.0


class RunDirError(Exception):
    """The run directory cannot be used; the message says why and what to do."""


def own() -> Path:
    """The folder that this user's runs write to.

    `$TRAINVITALS_RUN_DIR`, or a folder in memory: a file on a disk could stall the training when the disk is busy.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen).absolute()  # the script may change to another folder
    if not hasattr(os, "getuid"):
        return Path(tempfile.gettempdir()) / "trainvitals"
    uid = os.getuid()
    runtime = Path(f"/run/user/{uid}")
    if runtime.is_dir() and runtime.stat().st_uid == uid:
        return runtime / "trainvitals"
    shared_memory = Path("/dev/shm")  # noqa: S108 (prepare() refuses a folder that another user made first)
    if sys.platform.startswith("linux") and os.access(shared_memory, os.W_OK):
        return shared_memory / f"trainvitals-{uid}"
    return Path(tempfile.gettempdir()) / f"trainvitals-{uid}"


def prepare(directory: Path) -> None:
    """Make `directory` ready for this user's run files. Raises RunDirError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _owner_of(directory)
        if hasattr(os, "getuid") and directory.stat().st_uid != os.getuid():
            raise RunDirError(
                f"run directory {directory} belongs to another user; set {ENVIRONMENT} to one of your own"
            )
        probe = directory / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirError(
            f"cannot write to run directory {directory}: {error.strerror}; "
            f"set {ENVIRONMENT} to a folder you can write to"
        ) from error
    _remove_old(directory)


def everyone(root: Path = Path("/")) -> list[Path]:
    """The folders in which any user's runs may be found on this host: where `own()` puts them.

    So does whoever sets `ENVIRONMENT` for a container or a job: one folder each in /run/trainvitals-runs. `root` is
    where the host's / is found, in a container.
    """
    found = {own()}
    for pattern in ("run/user/*/trainvitals", "run/trainvitals-runs/*", "dev/shm/trainvitals-*", "tmp/trainvitals-*"):
        found.update(folder for folder in root.glob(pattern) if folder.is_dir())
    return sorted(found)


def read_all(
    directories: Iterable[Path], skip: Callable[[os.DirEntry[str]], bool] = lambda entry: False
) -> Iterator[runfile.RunFile | runfile.InvalidRunFile]:
    """Every run file below these folders but those that `skip` names, each either read or with the reason why not.

    Missing folders are empty.
    """
    for directory in directories:
        try:
            owner = _owner_of(directory)
            with os.scandir(directory) as entries:
                paths = sorted(Path(e.path) for e in entries if e.name.endswith(runfile.SUFFIX) and not skip(e))
        except FileNotFoundError:
            continue
        except RunDirError as error:
            yield runfile.InvalidRunFile("untrusted_folder", str(error))
            continue
        except OSError as error:
            yield runfile.InvalidRunFile("unreadable", str(error))
            continue
        for path in paths:
            try:
                yield runfile.read(path, owner)
            except FileNotFoundError:
                continue
            except runfile.InvalidRunFile as error:
                yield error
            except OSError as error:
                yield runfile.InvalidRunFile("unreadable", str(error))


def _owner_of(directory: Path) -> int:
    """The user who alone can put files there. Raises RunDirError where others can, too."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RunDirError(f"{directory} is not a folder (symbolic links are not followed)")
    if os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RunDirError(f"others can write to {directory}; run: chmod go-w {directory}")
    return status.st_uid


def _remove_old(directory: Path) -> None:
    try:
        paths = list(directory.iterdir())
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError, runfile.InvalidRunFile):
            if time.time() - path.stat().st_mtime < _KEEP_DEAD_SECONDS:
                continue
            if path.name.endswith((*OUT_OF_MEMORY_SUFFIXES, REPORT_SUFFIX)):
                path.unlink()
            if path.suffix != runfile.SUFFIX:
                continue
            if runfile.read(path, path.stat().st_uid).alive_pid is None:
                path.unlink()
                path.with_suffix(LOG_SUFFIX).unlink(missing_ok=True)
