"""Where the files of a dataset lie, as far as its own attributes tell."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trainvitals.mounts import MountTable

# Every dataset has its own names for its files; these are in most of them.
_TELLING: Final = ("path", "root", "dir", "folder", "file")
_MAX_ATTRIBUTES: Final = 64
_MAX_ENTRIES: Final = 3
_MAX_DEPTH: Final = 6
_MAX_CHECKS: Final = 48
_MAX_LENGTH: Final = 4096  # of a path on Linux
_MAX_PLACES: Final = 4


def places_of(dataset: Any) -> set[tuple[str, str]]:
    """Mount point and disk of the files that `dataset` names, at most four; empty where it names none.

    In place of the disk stands the type of the filesystem, such as "nfs4", where no disk is known. Only what is on
    this machine's own disks is looked at, and only its name. Raises OSError where the system has no mount table.
    """
    table = MountTable()
    places: set[tuple[str, str]] = set()
    for text, telling in itertools.islice(_possible_paths(dataset, "", _MAX_DEPTH), _MAX_CHECKS):
        path = table.resolve(Path(text))
        mount = table.of(path)
        if mount is None or not (os.path.lexists(path) if mount.is_local else telling or Path(text).is_absolute()):
            continue
        places.update((mount.mountpoint, device) for device in table.disks(mount) or [mount.kind])
        if len(places) >= _MAX_PLACES:
            break
    return set(sorted(places)[:_MAX_PLACES])


def _possible_paths(value: Any, name: str, depth: int) -> Iterator[tuple[str, bool]]:
    """The strings in `value`, an attribute called `name`, that may be paths, and whether the name says so."""
    kind = type(value)
    if issubclass(kind, (str, os.PathLike)):
        text, telling = os.fspath(value), any(word in name.lower() for word in _TELLING)
        if isinstance(text, str) and (telling or os.sep in text) and _is_sound(text):
            yield text, telling or kind is not str
    elif depth == 0:
        return
    elif kind in (list, tuple):
        for entry in value[:_MAX_ENTRIES]:
            yield from _possible_paths(entry, name, depth - 1)
    elif kind is dict:
        for key, entry in itertools.islice(value.items(), _MAX_ENTRIES):
            yield from _possible_paths(key, name, depth - 1)
            yield from _possible_paths(entry, f"{name} {key}" if isinstance(key, str) else name, depth - 1)
    elif kind.__name__ == "memmap":
        yield from _possible_paths(value.filename, "filename", depth)
    elif not name or any(base.__name__.endswith("Dataset") for base in kind.__mro__):
        for attribute, entry in itertools.islice(getattr(value, "__dict__", {}).items(), _MAX_ATTRIBUTES):
            yield from _possible_paths(entry, attribute, depth - 1)


def _is_sound(text: str) -> bool:
    return 0 < len(text) < _MAX_LENGTH and "://" not in text and "\0" not in text and "\n" not in text
