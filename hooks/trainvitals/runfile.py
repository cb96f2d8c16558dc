"""The run file: how values leave a training process without locks, threads, system calls or formatting.

Each process of a run maps one file into memory and stores plain doubles in it; the exporter reads it as it pleases.
The file outlives its process, so that the last values before a crash can still be scraped.

Format (native byte order; every offset is a multiple of 8)::

    0   8s   magic, b"trnvital"
    8   u32  format version, 1
    12  u32  committed: length in bytes of the header and all complete entries
    16  i32  rank, -1 while there is none
    20  i32  process id, as the writing process sees it
    24  40x  reserved, zero
    64       entries, one after the other:
             u32  length of the key in bytes
             4x   reserved, zero
             key  UTF-8 JSON: [metric name, {label: value}], padded to 8 with spaces
             f64  value, or the NaN `RETIRED` for a series that is no more

The first entry is ``["identity", {...}]``; its value is the Unix time of creation. An entry is complete before
`committed` covers it and its key never changes after, so a reader needs no lock and may remember keys by their offset.
A value is one aligned 8-byte store, so it is never seen half written.

A living process holds an exclusive POSIX record lock on its file. The kernel drops it when the process ends, however it
ends, and it tells a reader in another PID namespace which process holds it: no stale pid can be taken for a live run.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import math
import mmap
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from trainvitals.descriptors import Descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAGIC: Final = b"trnvital"
VERSION: Final = 1
SUFFIX: Final = ".vitals"
CAPACITY: Final = 128 * 1024  # over a thousand series
_MAX_SIZE: Final = 4 * CAPACITY
_MAX_LABEL_LENGTH: Final = 512
_REMEMBERED_KEY_LENGTH: Final = 512  # bytes; far longer than most, and short enough for thousands of them
_OPEN_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_HEADER: Final = struct.Struct("=8sIIii40x")
_ENTRY: Final = struct.Struct("=I4x")
_COMMITTED_OFFSET: Final = 12
# A NaN that no computation makes; one that a script logs stays an ordinary value.
_RETIRED_BITS: Final = struct.pack("=Q", 0x7FF8_7265_7469_7265)
RETIRED: Final = float(struct.unpack("=d", _RETIRED_BITS)[0])
_RANK_OFFSET: Final = 16
# struct flock of Linux on 64-bit machines: l_type, l_whence, l_start, l_len, l_pid
_FLOCK: Final = struct.Struct("@hhqqi4x")


class RunFileFull(Exception):
    """The file has no room for another series."""


class InvalidRunFile(Exception):
    """The file cannot be read or trusted. `reason` is a short fixed word, fit for a metric's label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """Who writes a run file: the run, and this process's part in it ("launcher" or "rank")."""

    run_id: str
    run: str
    kind: str
    script: str = ""


Labels: TypeAlias = tuple[tuple[str, str], ...]
Series: TypeAlias = tuple[str, Labels]


@dataclass(frozen=True)
class Sample:
    """One value in a run file. A histogram's bucket holds its own count, not yet that of the smaller ones."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, eq=False)
class Layout:
    """Which series a run file holds in its first `committed` bytes, and at which index of its values."""

    committed: int
    slots: dict[Series, int]
    by_name: dict[str, list[Labels]]


@dataclass(frozen=True)
class RunFile:
    """What a reader sees of a run file. `alive_pid` is None once the process has ended."""

    path: Path
    inode: int
    identity: Identity
    rank: int
    pid: int
    alive_pid: int | None
    created: float
    layout: Layout
    values: memoryview[float]

    @property
    def samples(self) -> list[Sample]:
        """All series with their values."""
        found = ((name, labels, self.at(slot)) for (name, labels), slot in self.layout.slots.items())
        return [Sample(name, labels, value) for name, labels, value in found if value is not None]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one series, or None where the file has none."""
        slot = self.layout.slots.get((name, tuple(sorted(labels.items()))))
        return None if slot is None else self.at(slot)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each series of this name."""
        found = self.layout.by_name.get(name, ())
        return [dict(labels) for labels in found if self.at(self.layout.slots[name, labels]) is not None]

    def at(self, slot: int) -> float | None:
        """The value at an index, None where the series is retired."""
        value = self.values[slot]
        return None if value != value and struct.pack("=d", value) == _RETIRED_BITS else value


class RunFileWriter:
    """A run file that this process writes.

    Store with ``writer.values[slot] = float``, where `slot` comes from `slot()`. Raises OSError where the file cannot
    be made; the space is allocated at once, because a full disk would otherwise kill the process at a later store.
    """

    def __init__(self, directory: Path, identity: Identity, rank: int = -1) -> None:
        self.identity = identity
        self.rank = rank
        pid = os.getpid()
        self.path = _free_path(directory, f"{identity.run_id}.{identity.kind}.{pid}")
        # Windows renames no open file: there, readers find one without its beginning for a moment.
        made = self.path if sys.platform == "win32" else self.path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            made.unlink()
        fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)
        self._descriptor = Descriptor(fd)
        try:
            _allocate(fd)
            self._map = mmap.mmap(fd, CAPACITY)
            _HEADER.pack_into(self._map, 0, MAGIC, VERSION, _HEADER.size, rank, pid)
            self.values = memoryview(self._map).cast("d")
            self._committed = _HEADER.size
            self._adding = threading.RLock()
            self._under_way = False
            self._slots: dict[Series, int] = {}
            about = {"run_id": identity.run_id, "run": identity.run, "kind": identity.kind, "script": identity.script}
            self.slot("identity", time.time(), **about)
            if fcntl is not None:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if made != self.path:
                made.rename(self.path)  # readers see no file before it is whole and locked
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                made.unlink()
            raise

    def slot(self, name: str, initial: float = 0.0, /, **labels: str) -> int:
        """The index in `values` of a series, added with the value `initial` when new. Raises RunFileFull."""
        key = (name, tuple(sorted(labels.items())))
        with self._adding:  # scalars may come from any thread
            known = self._slots.get(key)
            if known is None:
                key = (name, tuple((label, _clean(value)) for label, value in key[1]))
                known = self._slots.get(key)
            return self._add(key, initial) if known is None else known

    def _add(self, key: Series, initial: float) -> int:
        if self._under_way:
            raise RuntimeError("a signal handler or finalizer adds a series in the middle of adding another")
        self._under_way = True
        try:
            return self._append(key, initial)
        finally:
            self._under_way = False

    def _append(self, key: Series, initial: float) -> int:
        text = json.dumps([key[0], dict(key[1])], separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        end = self._committed + _ENTRY.size + len(text) + 8
        if end > CAPACITY:
            raise RunFileFull(f"{self.path.name} is full at {len(self._slots)} series")
        _ENTRY.pack_into(self._map, self._committed, len(text))
        self._map[self._committed + _ENTRY.size : end - 8] = text
        slot = (end - 8) // 8
        self.values[slot] = initial
        struct.pack_into("=I", self._map, _COMMITTED_OFFSET, end)
        self._committed = end
        self._slots[key] = slot
        return slot

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Store a value by name: for what changes rarely."""
        self.values[self.slot(name, value, **labels)] = value

    def set_or_retire(self, name: str, value: float | None, /, **labels: str) -> None:
        """Store what may have become unknown: None lets the series vanish."""
        if value is None:
            self.retire(name, **labels)
        else:
            self.set(name, float(value), **labels)

    def retire(self, name: str, /, **labels: str) -> None:
        """Let a series vanish that is true no longer; it can be set again. Its room in the file stays taken."""
        slot = self._slots.get((name, tuple(sorted(labels.items()))))
        if slot is not None:
            self.values[slot] = RETIRED

    def samples(self) -> list[Sample]:
        """All values as they are now. Reading the file instead would give up its lock."""
        current = [Sample(name, labels, self.values[slot]) for (name, labels), slot in list(self._slots.items())]
        return [each for each in current[1:] if struct.pack("=d", each.value) != _RETIRED_BITS]

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each series of this name that has not vanished."""
        slots = [(dict(labels), slot) for (known, labels), slot in list(self._slots.items()) if known == name]
        return [labels for labels, slot in slots if struct.pack("=d", self.values[slot]) != _RETIRED_BITS]

    def set_rank(self, rank: int) -> None:
        """Tell which rank this process is, once that is known."""
        self.rank = rank
        struct.pack_into("=i", self._map, _RANK_OFFSET, rank)

    def close(self) -> None:
        """Let go of the file, and of its lock. It stays in the directory with its last values."""
        with contextlib.suppress(OSError):  # stores into memory leave the time of the file alone
            os.utime(self.path)
        if self._let_go():
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor.number, self._committed)  # it lies in memory, and there may be thousands
            self._descriptor.close()

    def abandon(self) -> None:
        """Let go of what a forked child has inherited; the file is its parent's."""
        if self._let_go():
            self._descriptor.close()

    def _let_go(self) -> bool:
        """Unmap the file. Whether its descriptor is still ours."""
        self.values.release()
        if not self._descriptor.is_ours():
            _never_closed.append(self._map)  # it has a descriptor, too, which would be closed with it
            return False
        self._map.close()
        return True


_never_closed: Final[list[mmap.mmap]] = []


def _clean(label: str) -> str:
    """A label as readers can take it: of bounded length, and valid UTF-8."""
    return label[:_MAX_LABEL_LENGTH].encode(errors="replace").decode()


def _free_path(directory: Path, stem: str) -> Path:
    """A process that attaches again has a file of an earlier time."""
    names = itertools.chain([stem], (f"{stem}.{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := directory / (name + SUFFIX)).exists())


def _allocate(fd: int) -> None:
    try:
        os.posix_fallocate(fd, 0, CAPACITY)
    except (AttributeError, OSError) as error:  # not on macOS or Windows, nor on every file system
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        if os.write(fd, bytes(CAPACITY)) < CAPACITY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        os.lseek(fd, 0, os.SEEK_SET)


def read(path: Path, owner: int, earlier: RunFile | None = None) -> RunFile:
    """Read a run file that has to belong to the user `owner`; `earlier` is what was read of it before.

    Raises InvalidRunFile for anything else than a well-formed regular file of bounded size, and OSError
    (FileNotFoundError when it has just been removed).
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _OPEN_FLAGS)
    except OSError as error:
        if path.is_symlink():
            raise InvalidRunFile("symlink", str(path)) from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRunFile("not_a_file", str(path))
        if status.st_uid != owner:
            raise InvalidRunFile("foreign_owner", f"{path} belongs to user {status.st_uid}, its folder to {owner}")
        if status.st_size > _MAX_SIZE:
            raise InvalidRunFile("too_large", f"{path} has more than {_MAX_SIZE} bytes")
        data = os.read(fd, _HEADER.size)
        if len(data) == _HEADER.size:
            data += os.read(fd, min(_HEADER.unpack(data)[2], _MAX_SIZE))
        holder = _lock_holder(fd, data)
    finally:
        os.close(fd)
    return _parse(path, status.st_ino, data, holder, earlier)


def _lock_holder(fd: int, data: bytes) -> int | None:
    """The process that holds the file's lock, None when it is dead, 0 when there is one that cannot be told.

    That is so in a PID namespace out of sight, and on Windows always.
    """
    if fcntl is None:
        return 0
    if not sys.platform.startswith("linux"):  # struct flock differs from system to system
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(_HEADER.unpack_from(data)[4]) if len(data) >= _HEADER.size else 0
        return None
    query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _parse(path: Path, inode: int, data: bytes, holder: int | None, earlier: RunFile | None) -> RunFile:
    if len(data) < _HEADER.size:
        raise InvalidRunFile("truncated", f"{path} ends too early")
    magic, version, committed, rank, pid = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise InvalidRunFile("not_a_run_file", str(path))
    if version != VERSION:
        raise InvalidRunFile("unknown_version", f"{path} has version {version}, this reader knows {VERSION}")
    if committed > len(data):
        raise InvalidRunFile("truncated", f"{path} ends too early")
    values = memoryview(data[: committed - committed % 8]).cast("d")
    if earlier is not None and (earlier.inode, earlier.layout.committed) == (inode, committed):
        return replace(earlier, rank=rank, pid=pid, alive_pid=holder, values=values)  # keys never change
    keys = list(_parse_keys(path, data, committed))
    if not keys or keys[0][0][0] != "identity":
        raise InvalidRunFile("malformed", f"{path} does not tell its run")
    (_, about), slot = keys[0]
    try:
        identity = Identity(**dict(about))
    except TypeError as error:
        raise InvalidRunFile("malformed", f"{path}: {error}") from error
    if not identity.run_id or not identity.run or not math.isfinite(values[slot]):
        raise InvalidRunFile("malformed", f"{path} does not tell its run")
    layout = _layout(committed, dict(keys[1:]))
    return RunFile(path, inode, identity, rank, pid, holder, values[slot], layout, values)


def _layout(committed: int, slots: dict[Series, int]) -> Layout:
    by_name: dict[str, list[Labels]] = {}
    for name, labels in slots:
        by_name.setdefault(name, []).append(labels)
    return Layout(committed, slots, by_name)


def _parse_keys(path: Path, data: bytes, committed: int) -> Iterator[tuple[Series, int]]:
    """Each series with the index of its value."""
    offset = _HEADER.size
    while offset < committed:
        (length,) = _ENTRY.unpack_from(data, offset) if offset + _ENTRY.size <= committed else (committed,)
        start, end = offset + _ENTRY.size, offset + _ENTRY.size + length + 8
        if end > committed or length % 8:
            raise InvalidRunFile("malformed", f"{path}: the entry at {offset} does not fit")
        try:
            parse = _parse_short_key if length <= _REMEMBERED_KEY_LENGTH else _parse_key
            yield parse(data[start : end - 8]), (end - 8) // 8
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidRunFile("malformed", f"{path}: the entry at {offset} has no readable key") from error
        offset = end


def _parse_key(text: bytes) -> Series:
    labels: dict[str, str]
    name, labels = json.loads(text)
    # Two labels must not become one later, where what UTF-8 cannot hold is replaced.
    return _clean(str(name)), tuple(sorted((_clean(str(k)), _clean(str(v))) for k, v in labels.items()))


_parse_short_key = functools.lru_cache(maxsize=8192)(_parse_key)  # the ranks of a run have the same keys
