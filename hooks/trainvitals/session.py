"""This process's part in a run: who it is, its run file, the guard around every hook, and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from time import perf_counter
from typing import Any, Final

from trainvitals import endings, imports, rundir
from trainvitals.options import NO_OPTIONS, Options
from trainvitals.runfile import Identity, RunFileFull, RunFileWriter

RUN_ID: Final = "TRAINVITALS_RUN_ID"
# One error may be a rare case; a hook that keeps failing would only cost the training time.
_GIVE_UP_AFTER: Final = 10


@dataclass(frozen=True)
class Run:
    """A run as its processes know it. `directory` is where its run files lie."""

    run_id: str
    name: str
    directory: Path
    options: Options = NO_OPTIONS

    @classmethod
    def from_environment(cls, **given: Any) -> Run:
        """The run that this process was started in, or else a new one with the options `given` that are not None.

        Raises ValueError for an unusable one of these; one in the environment is told of on stderr.
        """
        script = Path(sys.argv[0] if sys.argv else "").stem or "python"
        run_id = os.environ.get(RUN_ID)
        if run_id:  # its name, its labels and where its files lie are decided
            given = {name: value for name, value in given.items() if name in ("overhead", "off")}
        options = Options.read(os.environ, given, lambda error: imports.tell(f"{error}; going by the default"))
        return cls(
            run_id or _run_id_of_torchrun() or new_run_id(),
            options.name or script,
            options.run_dir or rundir.own(),
            options,
        )

    def to_environment(self) -> dict[str, str]:
        """The variables by which the processes that this one starts join the run."""
        options = dataclasses.replace(self.options, name=self.name, run_dir=self.directory)
        return {RUN_ID: self.run_id, **options.to_environment()}

    def create_file(self, kind: str, script: str) -> RunFileWriter:
        """Make the run file of this process. Raises RunDirError, OSError."""
        rundir.prepare(self.directory)
        writer = RunFileWriter(self.directory, Identity(self.run_id, self.name, kind, script))
        for name, value in self.options.labels:
            writer.set("trainvitals_run_label_info", 1.0, label=name, value=value)
        return writer


def new_run_id() -> str:
    """A short name that no other run has."""
    return os.urandom(6).hex()


def _run_id_of_torchrun() -> str | None:
    """The same name for all ranks that torchrun starts on this host, also again after a failure."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    together = (launch, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), os.getppid())
    return f"{zlib.crc32(repr(together).encode()):08x}"


class Session:
    """One process's attachment to its run. It stays without a file until the process first trains (`arm()`)."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.active = True
        self.hook_seconds = 0.0
        # What part of it was for work that a run does a few times only.
        self.seconds_once = 0.0
        # The share of the training's time that the hooks may take.
        self.overhead = run.options.overhead
        self.writer: RunFileWriter | None = None
        self.training_thread: int | None = None
        self.on_armed: list[Callable[[RunFileWriter], None]] = []
        self._endings = endings.Watch()
        self._armed = False
        self._errors: dict[str, int] = {}

    def start(self) -> None:
        """Begin to watch how the process ends."""
        self._endings.install(self._note_exception)

    def arm(self) -> RunFileWriter | None:
        """This process trains: make its run file. None where that failed; the training goes on unwatched."""
        if self._armed:
            return self.writer
        self._armed = True
        try:
            self._begin()
        finally:
            if not self.active:  # ended meanwhile, by a signal handler or another thread
                self._let_go()
        return self.writer

    def _begin(self) -> None:
        self.training_thread = get_ident()
        writer = self.writer = self._create("rank")
        if writer is None:
            return
        self._endings.watch_signals()
        endings.record_state(writer, "running")
        writer.slot("trainvitals_series_dropped_total", reason="run_file_full")  # there is room for it now
        for hook, errors in self._errors.items():  # from before there was a file to count them in
            if errors:
                writer.set("trainvitals_hook_errors_total", float(errors), hook=hook)
        for action in self.on_armed:
            self.guarded("armed", lambda now, action=action: action(writer))()

    def on_training_thread(self) -> bool:
        """Whether the calling thread is the one that trains. A thread that takes over from an ended one is."""
        current = get_ident()
        if self.training_thread is None or self.training_thread == current:
            return True
        if all(thread.ident != self.training_thread for thread in threading.enumerate()):
            self.training_thread = current
            return True
        return False

    def guarded(self, name: str, function: Callable[..., Any], *, any_thread: bool = False) -> Callable[..., Any]:
        """`function` as a hook that cannot hurt: it is called as ``function(now, *args)``, `now` from perf_counter().

        An exception is counted and swallowed, the time it takes is counted, and after ten errors under this name it
        is called no more.
        """
        errors = self._errors
        errors.setdefault(name, 0)

        def hook(*args: Any, **kwargs: Any) -> Any:
            if errors[name] >= _GIVE_UP_AFTER or not self.active:
                return None
            here = self.training_thread == get_ident()
            if not (here or any_thread or self.on_training_thread()):
                return None
            before, start = self.hook_seconds, perf_counter()
            try:
                return function(start, *args, **kwargs)
            except RunFileFull:
                self._count("trainvitals_series_dropped_total", reason="run_file_full")
            except Exception as error:
                if endings.raised_by_signal_handler(error):
                    raise
                errors[name] += 1
                self._count("trainvitals_hook_errors_total", hook=name)
            finally:
                if here or self.training_thread == get_ident():  # what another thread takes holds nobody up
                    self.hook_seconds = before + perf_counter() - start  # a hook may have called another one
            return None

        return hook

    def end(self) -> None:
        """The process ends, or the watching does: record how, and let go of the run file."""
        if not self.active:
            return
        self.active = False
        self._let_go()

    def _let_go(self) -> None:
        end = self._endings.seen()
        self._endings.uninstall()
        writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                endings.record(writer, end)
            with contextlib.suppress(Exception):
                writer.close()

    def abandon(self) -> None:
        """Let go without a trace: after a fork, the file and the signals are the parent's."""
        self.active = False
        writer, self.writer = self.writer, None
        self._endings.uninstall()
        if writer is not None:
            writer.abandon()

    def _note_exception(self, end: endings.End) -> None:
        """An uncaught exception ends a process that trains nothing, such as the one that waits for mp.spawn's ranks."""
        if self.writer is None and RUN_ID in os.environ:
            writer = self._create("process")
            if writer is not None:
                endings.record(writer, end)
                writer.close()

    def _create(self, kind: str) -> RunFileWriter | None:
        script = Path(sys.argv[0] if sys.argv else "").name
        try:
            return self.run.create_file(kind, script)
        except (OSError, rundir.RunDirError) as error:
            imports.tell(f"this process is not being recorded: {error}")
            return None

    def _count(self, name: str, **labels: str) -> None:
        # Whatever goes wrong while an error is counted must not reach the script either.
        with contextlib.suppress(Exception):
            if self.writer is not None:
                self.writer.values[self.writer.slot(name, **labels)] += 1
