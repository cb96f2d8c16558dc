"""Attaching trainvitals to this process, and detaching it again."""

from __future__ import annotations

import atexit
import functools
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from typing import Any

from trainvitals import imports, instruments, rundir
from trainvitals.patching import Patches
from trainvitals.session import Run, Session
from trainvitals.vitals import Vitals


class Attachment:
    """Everything of ours in this process."""

    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        self._undo: Callable[[], None] = lambda: None
        self._vitals: Vitals | None = None
        self._finalizer: multiprocessing.util.Finalize | None = None

    def start(self, *, torch_is_here: bool) -> None:
        """Watch the libraries that are imported, and the others as soon as they are."""
        if torch_is_here:
            self._instrument()
        else:
            imports.when_imported("torch", lambda module: self._instrument())

    def _instrument(self) -> None:
        self.session.start()
        atexit.register(self.stop)
        self.session.on_armed.append(lambda writer: self._stop_with_multiprocessing())
        patches = Patches()
        self._undo = patches.undo
        self._vitals = Vitals(self.session)
        context = instruments.Context(self.session, self._vitals, patches)
        instruments.install_torch(context)
        for library, install in instruments.AFTER_TORCH.items():
            imports.when_imported(library, instruments.quietly(context, install))

    def log(self, scalars: dict[str, Any]) -> None:
        """Record the script's own scalars."""
        if self._vitals is not None:
            self.session.guarded("log", self._log, any_thread=True)(scalars)

    def _log(self, now: float, scalars: dict[str, Any]) -> None:
        assert self._vitals is not None  # noqa: S101 (log() has looked)
        for tag, value in scalars.items():
            device = getattr(getattr(value, "device", None), "type", "cpu")  # NumPy's devices are strings
            if device == "cpu":
                self._vitals.scalar(tag, float(value.detach() if hasattr(value, "detach") else value))
            elif self.session.on_training_thread():  # the device's readings belong to that thread
                self._vitals.read_tensor(value).then(functools.partial(self._vitals.scalar, tag))

    def stop(self) -> None:
        """Put back what was replaced and let go of the run file."""
        self._unregister()
        imports.forget()
        if self._vitals is not None:
            self.session.guarded("finish", self._vitals.finish, any_thread=True)()
        self._undo()
        self.session.end()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._unregister()
        self._undo()
        self.session.abandon()

    def _stop_with_multiprocessing(self) -> None:
        """Children that multiprocessing has forked leave without the interpreter's exit."""
        self._finalizer = multiprocessing.util.Finalize(None, self.stop, exitpriority=0)

    def _unregister(self) -> None:
        atexit.unregister(self.stop)
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None


_attachment: Attachment | None = None
_watches_forks = False
_added_to_environment: list[str] = []


def attach(name: str | None = None) -> None:
    """Record the training in this process as the run `name`, by default named after the script.

    Processes started from here that attach too join the same run. Attaching twice is attaching once. Prints one line
    and does nothing where the run directory cannot be used.
    """
    if _attachment is not None:
        return
    run = Run.from_environment(name)
    try:
        rundir.prepare(run.directory)
    except rundir.RunDirError as error:
        sys.stderr.write(f"trainvitals: this process is not being recorded: {error}\n")
        return
    for variable, value in run.to_environment().items():
        if variable not in os.environ:
            os.environ[variable] = value
            _added_to_environment.append(variable)
    start(run, torch_is_here="torch" in sys.modules)


def detach() -> None:
    """Stop recording: every replaced function is put back, the run file stays with its last values."""
    global _attachment
    if _attachment is None:
        return
    _attachment.stop()
    _attachment = None
    while _added_to_environment:
        os.environ.pop(_added_to_environment.pop(), None)


def log(**scalars: Any) -> None:
    """Record scalars of the script's own, by name: floats, or tensors of one element, which are read without a sync."""
    if _attachment is not None:
        _attachment.log(scalars)


def start(run: Run, *, torch_is_here: bool = True) -> None:
    """Attach this process to a run; by default right after the import of torch."""
    global _attachment, _watches_forks
    _attachment = Attachment(run)
    _attachment.start(torch_is_here=torch_is_here)
    if not _watches_forks and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew)
        _watches_forks = True


def _renew() -> None:
    """A forked child is not its parent. Most train nothing (DataLoader workers) and stay silent; one may be a rank."""
    global _attachment
    if _attachment is not None:
        run = _attachment.session.run
        _attachment.abandon()
        _attachment = Attachment(run)
        _attachment.start(torch_is_here="torch" in sys.modules)
