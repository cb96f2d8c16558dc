"""Checkpoints: what the process that trains saves, how long that holds the training up, and what is left of the disk.

A *checkpoint* is all that is saved with no training batch in between: a GAN's two files, or weights and optimizer. A
save inside another (a framework's checkpoint calls torch.save) is part of that one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any, Final

import torch

from trainvitals import imports
from trainvitals.instruments import Context, quietly
from trainvitals.mounts import MountTable
from trainvitals.phases import CHECKPOINT, OTHER
from trainvitals.runfile import RunFileWriter

# Many scripts also save small things with torch.save: a history of losses, one sample. A file of less than this share
# of the largest save so far begins no checkpoint.
_SMALL: Final = 0.01
_FILESYSTEM_INFO: Final = "trainvitals_checkpoint_filesystem_info"


class _Save:
    """A call that saves. As it stands, that of a framework: it is made of the saves inside it."""

    # Whether it tells its size by itself, so that what is saved inside it need not be looked at.
    whole = False

    def __init__(self, target: Any = None) -> None:
        self.target = target
        self.started = 0.0
        self.batches = 0  # training batches until it began
        self.outer: _Save | None = None
        self.holds_up_training = False
        self.counts = True
        self.parts = 0
        self.size: int | None = 0  # bytes; None where that is not known
        self.folder: Path | None = None

    def add(self, part: _Save) -> None:
        """A save inside this one is done."""
        self.parts += part.parts
        self.size = _sum(self.size, part.size)
        self.folder = part.folder or self.folder

    def done(self, result: Any) -> None:
        """The call has returned `result`: settle what was saved, and where."""
        self.folder = _folder(self.target) or self.folder


class _File(_Save):
    """A save to one file: to a path, or to an object with ``write()``."""

    whole = True

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._offset = _offset(target)

    def done(self, result: Any) -> None:
        """The file is written: its size is that on disk, or by how much the object's position has moved."""
        self.parts = 1
        if isinstance(self.target, (str, os.PathLike)):
            status = Path(self.target).stat()
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        else:
            end = _offset(self.target)
            self.size = None if end is None or self._offset is None else end - self._offset
        self.folder = _folder(self.target)


class _Sharded(_Save):
    """A save by torch.distributed.checkpoint, which tells what it wrote. Its own threads may call torch.save."""

    whole = True

    def done(self, result: Any) -> None:
        """The checkpoint is complete, and `result` its metadata."""
        self.parts = 1
        self.size = _size_of_shard(result)
        self.folder = _folder(self.target)


class _Asynchronous(_Sharded):
    """The call that begins a save in the background."""


class _Move(_Save):
    """A file that was just saved goes to its place; where that is another disk, it is written once more."""

    def done(self, result: Any) -> None:
        """The file is at `result`."""
        self.folder = _folder(result)


class Checkpoints:
    """Makes checkpoints of the saves that begin and end."""

    def __init__(self, context: Context) -> None:
        self.patches = context.patches
        self._session = context.session
        self._vitals = context.vitals
        self._under_way: dict[int, _Save] = {}  # the innermost save of each thread
        self._in_background = 0
        self._batches: int | None = None  # until the newest checkpoint
        self._size: int | None = 0
        self._largest = 0
        self._files: set[Path] = set()
        self._places: set[tuple[str, str]] = set()
        self._watches_moves = False
        self._begin = context.session.guarded("checkpoint", self.begin, any_thread=True)
        self._end = context.session.guarded("checkpoint", self.end, any_thread=True)
        self._complete = context.session.guarded("checkpoint", self.complete, any_thread=True)
        context.session.on_armed.append(context.session.guarded("checkpoint", self._armed))

    def _armed(self, now: float, writer: RunFileWriter) -> None:
        self._saves = writer.slot("trainvitals_checkpoint_saves_total")
        self._seconds = writer.slot("trainvitals_checkpoint_seconds_total")

    def watch(self, owner: Any, name: str, make: Callable[..., _Save | None]) -> None:
        """Take calls of ``owner.name`` as saves, each described by ``make(*args, **kwargs)``."""

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def save(*args: Any, **kwargs: Any) -> Any:
                under_way = self._begin(make, args, kwargs)
                if under_way is None:
                    return original(*args, **kwargs)
                result, done = None, False
                try:
                    result = original(*args, **kwargs)
                    done = True
                    return result
                finally:
                    self._end(under_way, result, done=done)

            return save

        self.patches.wrap(owner, name, wrap)

    def begin(self, now: float, make: Callable[..., _Save | None], args: Any, kwargs: Any) -> _Save | None:
        """A save begins; gives it back if its end matters."""
        if self._session.writer is None:
            return None  # this process does not train, or not yet
        thread = get_ident()
        outer = self._under_way.get(thread)
        if outer is None:
            save = self._outermost(now, make, args, kwargs)
        elif outer.whole:
            save = None
        else:
            save = make(*args, **kwargs)
            if save is not None:
                save.outer, save.batches = outer, outer.batches
        if save is not None:
            self._under_way[thread] = save
        if isinstance(save, _Asynchronous):
            self._in_background += 1
        return save

    def _outermost(self, now: float, make: Callable[..., _Save | None], args: Any, kwargs: Any) -> _Save | None:
        holds_up = self._session.on_training_thread()
        if holds_up and self._vitals.fetching:
            return None  # a dataset that keeps what it has computed
        save = make(*args, **kwargs)
        if save is None or (isinstance(save, _File) and not holds_up and self._sharding()):
            return None
        save.started, save.batches, save.holds_up_training = now, self._vitals.batches_trained, holds_up
        # Of a save in the background, the call that began it sees the end.
        save.counts = holds_up or not (isinstance(save, _Sharded) and self._in_background)
        if holds_up:
            self._vitals.passed(now, OTHER)
            self._vitals.alive()
        return save

    def _sharding(self) -> bool:
        """Whether a save that has threads of its own is under way."""
        return any(isinstance(save, _Sharded) for save in list(self._under_way.values()))

    def end(self, now: float, save: _Save, result: Any, *, done: bool) -> None:
        """A save is over: `done`, or failed, which took its time as well."""
        if save.outer is None:
            self._under_way.pop(get_ident(), None)
        else:
            self._under_way[get_ident()] = save.outer
        if save.holds_up_training:
            self._vitals.passed(now, CHECKPOINT)
            self._vitals.alive()
            if self._session.writer is not None:
                self._session.writer.values[self._seconds] += now - save.started
        if isinstance(save, _Asynchronous):
            self._await(save, result, done=done)
        elif done:
            save.done(result)
            if save.outer is not None:
                save.outer.add(save)
            elif save.counts:
                self._count(save)

    def _await(self, save: _Asynchronous, response: Any, *, done: bool) -> None:
        if not done:
            self._in_background -= 1
            return
        future = getattr(response, "upload_completion", response)
        future.add_done_callback(functools.partial(self._complete, save))

    def complete(self, now: float, save: _Asynchronous, future: Any) -> None:
        """A save in the background is over; on whatever thread that is noticed."""
        self._in_background -= 1
        if not future.cancelled() and future.exception() is None:
            save.done(future.result())
            self._count(save)

    def _count(self, save: _Save) -> None:
        writer = self._session.writer
        if writer is None:
            return
        if isinstance(save, _Move):
            self._record_available(writer, save.folder)
            return
        if not save.parts:
            return  # another rank did the saving
        if save.batches != self._batches:
            if isinstance(save, _File) and save.size is not None and save.size < _SMALL * self._largest:
                return
            self._begin_checkpoint(writer, save.batches)
        self._largest = max(self._largest, save.size or 0)
        self._size = _sum(self._size, save.size)
        writer.set_or_retire("trainvitals_checkpoint_last_bytes", self._size)
        writer.set("trainvitals_checkpoint_last_timestamp_seconds", time.time())
        self._record_available(writer, save.folder)
        if isinstance(save, _File) and save.holds_up_training and isinstance(save.target, (str, os.PathLike)):
            self._watch_moves(Path(save.target).absolute())

    def _begin_checkpoint(self, writer: RunFileWriter, batches: int) -> None:
        writer.values[self._saves] += 1
        newest, self._batches = self._batches, max(batches, self._batches or 0)
        if newest is not None and batches > newest:
            writer.set("trainvitals_checkpoint_last_interval_iterations", float(batches - newest))
        self._size = 0
        self._files.clear()
        writer.retire("trainvitals_checkpoint_filesystem_avail_bytes")
        self._tell_places(writer, set())

    def _record_available(self, writer: RunFileWriter, folder: Path | None) -> None:
        if folder is not None:
            with contextlib.suppress(OSError):
                writer.set("trainvitals_checkpoint_filesystem_avail_bytes", float(shutil.disk_usage(folder).free))
                self._tell_places(writer, _places(folder))

    def _tell_places(self, writer: RunFileWriter, places: set[tuple[str, str]]) -> None:
        for mountpoint, device in self._places - places:
            writer.retire(_FILESYSTEM_INFO, mountpoint=mountpoint, device=device)
        for mountpoint, device in places:
            writer.set(_FILESYSTEM_INFO, 1.0, mountpoint=mountpoint, device=device)
        self._places = places

    def _watch_moves(self, file: Path) -> None:
        """Some scripts save in one folder and have shutil.move take the file to another, maybe on another disk."""
        self._files.add(file)
        if not self._watches_moves:
            self._watches_moves = True
            self.watch(shutil, "move", self._move)

    def _move(self, src: Any = None, *args: Any, **kwargs: Any) -> _Move | None:
        known = isinstance(src, (str, os.PathLike)) and Path(src).absolute() in self._files
        return _Move() if known else None


def _sum(size: int | None, other: int | None) -> int | None:
    return None if size is None or other is None else size + other


def _offset(target: Any) -> int | None:
    """Where an object with ``write()`` is at; None where it cannot tell."""
    try:
        offset = target.tell()
    except Exception:
        return None  # whatever it is, the script writes to it and nothing else
    return offset if isinstance(offset, int) else None


def _folder(target: Any) -> Path | None:
    """The folder where a path, or a file that is open, lies; None where that is nothing on this machine's disks."""
    name = target if isinstance(target, (str, os.PathLike)) else getattr(target, "name", None)
    if not isinstance(name, (str, os.PathLike)):
        return None
    path = Path(name).absolute()
    if path.is_file():
        return path.parent
    return path if path.is_dir() else None


def _places(folder: Path) -> set[tuple[str, str]]:
    """Mount point and disks of a folder; the type of its filesystem where no disk is known. Raises OSError."""
    table = MountTable()
    mount = table.of(table.resolve(folder))
    return {(mount.mountpoint, device) for device in table.disks(mount) or [mount.kind]} if mount else set()


def _size_of_shard(metadata: Any) -> int | None:
    """The bytes that this rank wrote of a distributed checkpoint. With several ranks, its files are named after it."""
    parts = getattr(metadata, "storage_data", None)
    if not isinstance(parts, dict) or not parts:
        return None
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    prefix = f"__{torch.distributed.get_rank()}_" if distributed and torch.distributed.get_world_size() > 1 else ""
    own = [part for part in parts.values() if Path(part.relative_path).name.startswith(prefix)]
    return sum(part.length for part in own) if own else None


def _to_file(tensors: Any = None, f: Any = None, *args: Any, filename: Any = None, **kwargs: Any) -> _File:
    return _File(f if filename is None else filename)


def _to_storage(state_dict: Any = None, storage_writer: Any = None, **kwargs: Any) -> Any:
    return kwargs.get("checkpoint_id") or getattr(storage_writer, "checkpoint_id", None)


def _watch_function(checkpoints: Checkpoints, owner: Any, package: Any, name: str, make: Callable[..., _Save]) -> None:
    """Watch a function that its package has under the same name."""
    same = getattr(package, name, None) is getattr(owner, name, None)
    checkpoints.watch(owner, name, make)
    if same:
        checkpoints.patches.wrap(package, name, lambda _: getattr(owner, name))
    else:
        checkpoints.watch(package, name, make)


def _watch_distributed(checkpoints: Checkpoints, package: Any) -> None:
    saver = package.state_dict_saver
    for name in ("save", "save_state_dict"):
        _watch_function(checkpoints, saver, package, name, lambda *a, **k: _Sharded(_to_storage(*a, **k)))
    _watch_function(checkpoints, saver, package, "async_save", lambda *a, **k: _Asynchronous(_to_storage(*a, **k)))


def _watch_safetensors(checkpoints: Checkpoints, module: Any) -> None:
    # The last is what the others call, and is found by scripts that took their names before attach().
    for name in ("save_file", "save_model", "serialize_file"):
        checkpoints.watch(module, name, _to_file)


def _watch_lightning(checkpoints: Checkpoints, module: Any) -> None:
    checkpoints.watch(module.Trainer, "save_checkpoint", lambda trainer, filepath=None, *a, **k: _Save(filepath))


def _watch_fabric(checkpoints: Checkpoints, module: Any) -> None:
    checkpoints.watch(module.Fabric, "save", lambda fabric, path=None, *a, **k: _Save(path))


def _watch_transformers(checkpoints: Checkpoints, module: Any) -> None:
    checkpoints.watch(module.Trainer, "_save_checkpoint", lambda *a, **k: _Save())


def _watch_accelerate(checkpoints: Checkpoints, module: Any) -> None:
    checkpoints.watch(module.Accelerator, "save_state", lambda *a, **k: _Save())


_LIBRARIES: Final[dict[str, Callable[[Checkpoints, Any], None]]] = {
    "torch.distributed.checkpoint": _watch_distributed,
    "safetensors.torch": _watch_safetensors,
    "lightning.pytorch.trainer.trainer": _watch_lightning,
    "pytorch_lightning.trainer.trainer": _watch_lightning,
    "lightning.fabric.fabric": _watch_fabric,
    "lightning_fabric.fabric": _watch_fabric,
    "transformers.trainer": _watch_transformers,
    "accelerate.accelerator": _watch_accelerate,
}


def install(context: Context) -> None:
    """Watch torch.save, and the functions of other libraries as soon as they are imported."""
    checkpoints = Checkpoints(context)
    _watch_function(checkpoints, torch.serialization, torch, "save", _to_file)
    for library, watch in _LIBRARIES.items():
        imports.when_imported(library, quietly(context, functools.partial(_watch_library, checkpoints, library, watch)))


def _watch_library(
    checkpoints: Checkpoints, library: str, watch: Callable[[Checkpoints, Any], None], context: Context
) -> None:
    watch(checkpoints, sys.modules[library])
