"""The folder that the stack lives in: our files are kept up to date there, the user's changes are left alone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from trainvitals import __version__

from trainvitals_exporter import whole_files
from trainvitals_exporter.stack import packaged
from trainvitals_exporter.stack.errors import StackError, WrongUse

MANIFEST: Final = ".trainvitals-stack.json"
BACKUP_SUFFIX: Final = ".bak"
_LOCK: Final = ".trainvitals-stack.lock"
# What a user may put there before we come.
_THEIRS: Final = {".env", "secrets", "compose.override.yaml", "compose.override.yml", _LOCK}

# For each file of ours, the digests by which it is known to be unchanged: more than one while they are being replaced.
Digests = dict[str, list[str]]


@dataclass
class Written:
    """What `write` did, by path in the folder."""

    new: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    backups: list[str] = field(default_factory=list)


def default() -> Path:
    """Where the stack of this user lives unless they say otherwise."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share") / "trainvitals-stack"


def holds_stack(folder: Path) -> bool:
    """Whether `write` was here before."""
    return (folder / MANIFEST).is_file()


def prepare(folder: Path) -> None:
    """Make the folder where there is none. Raises WrongUse where it is no place for our files, StackError."""
    if packaged.CHECKOUT is not None and folder.resolve() == packaged.CHECKOUT:
        raise WrongUse(f"{folder} is the source of trainvitals itself; name another folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # secrets will lie in it
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in _THEIRS)
    except (FileExistsError, NotADirectoryError):
        raise WrongUse(f"{folder} is not a folder, or lies below a file; name another one") from None
    except OSError as error:
        raise StackError(f"cannot use {folder}: {error.strerror}; name another folder") from None
    if foreign and not holds_stack(folder):
        raise WrongUse(
            f"{folder} was not made by `trainvitals stack` and holds other things "
            f"({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}); name a new or an empty folder"
        )


def lock(folder: Path) -> IO[str]:
    """Keep others of our kind out of the folder until the result is closed. Raises StackError."""
    try:
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise StackError(f"cannot write to {folder}: {error.strerror}; name another folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StackError(f"another `trainvitals stack` is at work in {folder}; wait for it to end") from None
    return file


def write(folder: Path, *, force: bool = False) -> Written:
    """Bring our files in a prepared and locked folder up to date.

    A file that the user changed is left alone; with `force` it is kept under another name and replaced. Interrupted at
    any point, the next call goes on from there. Raises StackError, packaged.NotPackaged.
    """
    sources = packaged.files()
    try:
        contents = {name: path.read_bytes() for name, path in sources.items()}
        known = _read_manifest(folder, force=force)
        coming = {name: _digest(content) for name, content in contents.items()}
        both = {name: {*known.get(name, []), *([coming[name]] if name in coming else [])} for name in {*known, *coming}}
        _write_manifest(folder, {name: sorted(digests) for name, digests in both.items()})
        written = Written()
        for name, content in sorted(contents.items()):
            _place(folder, name, content, known.get(name, []), written, force=force)
        for name in sorted(known.keys() - contents.keys()):
            _remove(folder, name, known[name], written)
        _write_manifest(folder, {name: [digest] for name, digest in coming.items()})
    except OSError as error:
        raise StackError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return written


def _place(folder: Path, name: str, content: bytes, known: list[str], written: Written, *, force: bool) -> None:
    path = folder / name
    there = _digest(path.read_bytes()) if path.is_file() else None
    if there == _digest(content):
        return
    if there is None:
        written.new.append(name)
    elif there in known:
        written.replaced.append(name)
    elif not force:
        written.left_alone.append(name)
        return
    else:
        backup = _free_name(path)
        path.replace(backup)
        written.backups.append(backup.relative_to(folder).as_posix())
        written.replaced.append(name)
    replace(path, content)


def _remove(folder: Path, name: str, known: list[str], written: Written) -> None:
    path = folder / name
    if not path.is_file():
        return
    if _digest(path.read_bytes()) not in known:
        written.left_alone.append(name)
        return
    path.unlink()
    written.removed.append(name)
    with suppress(OSError):  # until a folder is not empty
        for parent in path.relative_to(folder).parents:
            (folder / parent).rmdir()


def _free_name(path: Path) -> Path:
    backup = path.with_name(path.name + BACKUP_SUFFIX)
    number = 1
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}{BACKUP_SUFFIX}{number}")
    return backup


def replace(path: Path, content: bytes) -> None:
    """Put the content in the file's place in one move, in folders that containers' users can read. Raises OSError."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)
    whole_files.replace(path, content)


def _read_manifest(folder: Path, *, force: bool) -> Digests:
    """What `write` left the last time; raises StackError where that cannot be known and nobody insists."""
    try:
        files: Any = json.loads((folder / MANIFEST).read_text())["files"]
        return {str(name): [str(digest) for digest in digests] for name, digests in files.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        if force:
            return {}
        raise StackError(
            f"{folder / MANIFEST} is damaged, so the files that you changed are not known; `trainvitals stack write "
            f"--force {folder}` replaces all files and keeps a copy of each that differs"
        ) from None


def _write_manifest(folder: Path, files: Mapping[str, list[str]]) -> None:
    text = json.dumps({"version": __version__, "files": files}, indent=1, sort_keys=True)
    path = folder / MANIFEST
    if not path.exists() or path.read_text() != text:
        replace(path, text.encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
