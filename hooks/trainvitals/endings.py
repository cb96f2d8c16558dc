"""How a process or a run ended. An exit code alone does not tell: Lightning turns SIGTERM into 0, for one."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Final

from trainvitals.catalogue import FINAL_STATES, RUN_STATES
from trainvitals.descriptors import Descriptor
from trainvitals.runfile import RunFile, RunFileWriter

_TERMINATING: Final = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM))
# As CUDA and PyTorch's CPU allocator put it.
_OUT_OF_MEMORY: Final = re.compile("out of memory|can't allocate memory")
# The best first: what ends as several processes did has fared as the worst of them.
SEVERITY: Final = ("finished", "killed", "failed", "out_of_memory")


@dataclass(frozen=True)
class End:
    """How something ended: a final state of the catalogue; the signal and the exception are "" where there was none."""

    state: str
    signal: str = ""
    exception: str = ""


def of_exception(kind: type[BaseException], error: BaseException) -> End:
    """The end by an uncaught exception.

    mp.spawn's parent raises ProcessRaisedException, whose text ends with the traceback of the rank: that is the cause.
    """
    if issubclass(kind, KeyboardInterrupt):
        return End("killed", signal="SIGINT")
    name, text = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."), str(error)
    if kind.__name__ == "ProcessRaisedException":
        name = _cause_in(text) or name
    out_of_memory = name.endswith(("OutOfMemoryError", "MemoryError")) or (
        (issubclass(kind, RuntimeError) or name.endswith("RuntimeError")) and _OUT_OF_MEMORY.search(text) is not None
    )
    return End("out_of_memory" if out_of_memory else "failed", exception=name)


def _cause_in(traceback: str) -> str | None:
    """The exception's name in a printed traceback: the first line at the margin after the last frame."""
    after_frames = re.split(r"^ +File .*\n", traceback, flags=re.MULTILINE)[-1]
    found = re.search(r"^([A-Za-z_][\w.]*)(:|$)", after_frames, flags=re.MULTILINE)
    return found.group(1) if found else None


def record_state(writer: RunFileWriter, state: str) -> None:
    """Write the state of a process or a run into its run file."""
    for each in RUN_STATES:
        writer.set("trainvitals_run_state", float(each == state), state=each)


def record(writer: RunFileWriter, end: End) -> None:
    """Write how a process or a run ended into its run file."""
    record_state(writer, end.state)
    writer.set("trainvitals_run_end_info", 1.0, signal=end.signal, exception=end.exception)


def final_state(file: RunFile) -> str | None:
    """The final state that a run file tells; None while there is none."""
    return next((state for state in FINAL_STATES if file.value("trainvitals_run_state", state=state) == 1), None)


def worst(ends: Iterable[End]) -> End | None:
    """The end that explains the others: out of memory before failed before killed before finished."""
    return max(ends, key=lambda end: SEVERITY.index(end.state), default=None)


class Watch:
    """Sees, from inside a process, an uncaught exception or a terminating signal, and changes nothing about either."""

    def __init__(self) -> None:
        self._exception: End | None = None
        self._signals: tuple[Descriptor, Descriptor] | None = None
        self._uninstall_excepthook: Callable[[], None] = lambda: None

    def install(self, on_exception: Callable[[End], None]) -> None:
        """Begin to watch for an uncaught exception."""
        original = sys.excepthook
        watching = True

        def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
            with contextlib.suppress(Exception):
                if watching:  # who replaced sys.excepthook after us may go on calling this for ever
                    self._exception = of_exception(kind, error)
                    on_exception(self._exception)
            original(kind, error, traceback)

        def uninstall() -> None:
            nonlocal watching
            watching = False
            if sys.excepthook is excepthook:
                sys.excepthook = original

        sys.excepthook = excepthook
        self._uninstall_excepthook = uninstall

    def watch_signals(self) -> None:
        """Watch for signals that the script handles, too. Does nothing outside the main thread, nor without pipes.

        The interpreter writes a signal's number to this pipe when the script has a handler for it (Lightning does);
        without a handler a terminating signal ends the process and the parent sees it. No handler is touched.
        """
        if threading.current_thread() is not threading.main_thread() or self._signals is not None:
            return
        if not hasattr(os, "set_blocking"):  # Windows before Python 3.12
            return
        try:
            self._signals = _pipe()
        except OSError:  # no file descriptor left: then only the parent sees what ends the process
            return
        previous = signal.set_wakeup_fd(self._signals[1].number, warn_on_full_buffer=False)
        if previous != -1:  # somebody else (asyncio) uses this: it stays theirs
            signal.set_wakeup_fd(previous)

    def seen(self) -> End:
        """How things look: as ended well if neither an exception nor a signal was seen. To be asked once."""
        if self._exception is not None:
            return self._exception
        received = self._received_signal()
        return End("killed", signal=received) if received else End("finished")

    def uninstall(self) -> None:
        """Stop watching."""
        self._uninstall_excepthook()
        self._close_signals()

    def _received_signal(self) -> str:
        if self._signals is None or not self._signals[0].is_ours():
            return ""
        received = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._signals[0].number, 65536):
                received += chunk
        return next((signal.Signals(number).name for number in received if number in _TERMINATING), "")

    def _close_signals(self) -> None:
        if self._signals is None:
            return
        try:
            current = signal.set_wakeup_fd(-1)
        except ValueError:
            return  # not the main thread: signals go on being written to the pipe, which so has to stay
        if current not in (-1, self._signals[1].number):
            signal.set_wakeup_fd(current)
        for descriptor in self._signals:
            descriptor.close()
        self._signals = None


def _pipe() -> tuple[Descriptor, Descriptor]:
    ends = os.pipe()
    for number in ends:
        os.set_blocking(number, False)
    return Descriptor(ends[0]), Descriptor(ends[1])


def raised_by_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler of the script raised this: it may run in the middle of a hook, and is no error of ours.

    Known are handlers that are installed right now (timeouts by SIGALRM, Lightning's and Slurm's by SIGTERM).
    """
    numbers = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
    handlers = {code for number in numbers if (code := _code_of(signal.getsignal(number))) is not None}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False


def _code_of(function: Any) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004 (its code is wanted, not a call)
    return getattr(getattr(function, "__func__", function), "__code__", None)


def oom_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory, in this cgroup where it tells, else on the host.

    Sources: memory.events of cgroup v2, /proc/vmstat (Linux 4.13). None where neither can be read.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                events = Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events"
                with contextlib.suppress(OSError):
                    return _counter(events, "oom_kill")
    with contextlib.suppress(OSError):
        return _counter(Path("/proc/vmstat"), "oom_kill")
    return None


def _counter(path: Path, name: str) -> int | None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None
