"""Attaching trainvitals to this process, and detaching it again."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from trainvitals import imports, instruments, options, rundir
from trainvitals.patching import Patches
from trainvitals.session import Run, Session
from trainvitals.vitals import Vitals


class Attachment:
    """Everything of ours in this process."""

    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        self._undo: Callable[[], None] = lambda: None
        self._vitals: Vitals | None = None
        # the scalars that were complained about
        self._refused: set[str] = set()
        self._finalizer: multiprocessing.util.Finalize | None = None

    def start(self, *, torch_is_here: bool) -> None:
        """Watch the libraries that are imported, and the others as soon as they are."""
        if torch_is_here:
            self._instrument()
        else:
            imports.when_imported("torch", lambda module: self._instrument())

    def _instrument(self) -> None:
        self.session.start()
        self.session.on_armed.append(lambda writer: self._stop_with_multiprocessing())
        patches = Patches()
        self._undo = patches.undo
        self._vitals = Vitals(self.session)
        context = instruments.Context(self.session, self._vitals, patches, self.session.run.options.off)
        instruments.install_torch(context)
        instruments.install_after_torch(context)
        if not self.session.active:  # detached meanwhile, by a signal handler
            self.stop()

    def log(self, scalars: dict[str, Any]) -> None:
        """Record the script's own scalars."""
        if self._vitals is not None:
            self.session.guarded("log", self._log, any_thread=True)(scalars)

    def _log(self, now: float, scalars: dict[str, Any]) -> None:
        assert self._vitals is not None  # noqa: S101 (log() has looked)
        for tag, value in scalars.items():
            device = getattr(getattr(value, "device", None), "type", None)  # NumPy's devices are strings
            if device is None:
                self._log_number(tag, value)
            elif device == "cpu" or self.session.on_training_thread():  # the device's readings belong to that thread
                self._vitals.read_tensor(value).then(functools.partial(self._vitals.scalar, tag))

    def _log_number(self, tag: str, value: Any) -> None:
        assert self._vitals is not None  # noqa: S101 (log() has looked)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            if tag not in self._refused:
                self._refused.add(tag)
                imports.tell(f"log({tag}=...) is given a {type(value).__name__} that is no number; it is left out")
            return
        self._vitals.scalar(tag, number)

    def tell_epoch(self, number: int) -> None:
        """Take over a framework's own count."""
        if self._vitals is not None:
            self._vitals.epoch_told = number

    def stop(self) -> None:
        """Put back what was replaced and let go of the run file."""
        self._cancel_finalizer()
        imports.forget()
        if self._vitals is not None:
            self.session.guarded("finish", self._vitals.finish, any_thread=True)()
        self.session.guarded("undo", lambda now: self._undo(), any_thread=True)()
        self.session.end()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._cancel_finalizer()
        self.session.abandon()  # first, so that whatever the rest does cannot write to the parent's file
        with contextlib.suppress(Exception):
            self._undo()

    def _stop_with_multiprocessing(self) -> None:
        """Children that multiprocessing has forked leave without the interpreter's exit."""
        self._finalizer = multiprocessing.util.Finalize(None, self.stop, exitpriority=0)

    def _cancel_finalizer(self) -> None:
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None


_attachment: Attachment | None = None
_watches_process = False
_environment_before: dict[str, str | None] = {}


def attach(
    name: str | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    overhead: float | None = None,
    off: Iterable[str] | None = None,
    run_dir: str | Path | None = None,
) -> None:
    """Record the training in this process as the run `name`, by default named after the script.

    `labels` are labels of the run, `overhead` is the share of an iteration that the hooks may take (0.01), `off` names
    instruments to leave out, `run_dir` is the folder of the run files. Each has an environment variable as well.

    Processes started from here that attach too join the same run; its name, labels and folder are its first process's.
    Attaching twice is attaching once. Raises ValueError for an unusable option. Prints one line and does nothing where
    the run directory cannot be used.
    """
    if _attachment is not None or options.disabled():
        return
    try:
        run = Run.from_environment(name=name, labels=labels, overhead=overhead, off=off, run_dir=run_dir)
        rundir.prepare(run.directory)
    except (rundir.RunDirError, OSError) as error:
        imports.tell(f"this process is not being recorded: {error}")
        return
    for variable, value in run.to_environment().items():
        _environment_before[variable] = os.environ.get(variable)
        os.environ[variable] = value
    start(run, torch_is_here="torch" in sys.modules)


def detach() -> None:
    """Stop recording: every replaced function is put back, the run file stays with its last values."""
    global _attachment
    if _attachment is None:
        return
    attachment, _attachment = _attachment, None
    attachment.stop()
    while _environment_before:
        variable, value = _environment_before.popitem()
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


def attached() -> bool:
    """Whether this process is being recorded."""
    return _attachment is not None


def tell_epoch(number: int) -> None:
    """So many passes over the data are complete, by a framework's own count; what was seen counts where it is more."""
    if _attachment is not None:
        _attachment.tell_epoch(number)


def log(**scalars: Any) -> None:
    """Record scalars of the script's own, by name: floats, or tensors of one element, which are read without a sync."""
    if _attachment is not None:
        _attachment.log(scalars)


def start(run: Run, *, torch_is_here: bool = True) -> None:
    """Attach this process to a run; by default right after the import of torch."""
    global _attachment
    _attachment = Attachment(run)
    _attachment.start(torch_is_here=torch_is_here)
    _watch_process()


def _watch_process() -> None:
    """See its exit and its forks. Once for all: of these two, Python forgets one never and the other only by half."""
    global _watches_process
    if _watches_process:
        return
    _watches_process = True
    atexit.register(_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew)


def _exit() -> None:
    if _attachment is not None:
        _attachment.stop()


def _renew() -> None:
    """A forked child is not its parent. Most train nothing (DataLoader workers) and stay silent; one may be a rank."""
    global _attachment
    if _attachment is not None:
        run = _attachment.session.run
        _attachment.abandon()
        _attachment = Attachment(run)
        _attachment.start(torch_is_here="torch" in sys.modules)
