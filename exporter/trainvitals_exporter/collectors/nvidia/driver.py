"""Calls into NVIDIA's management library (NVML), and what its errors mean.

NVML is not to be called from two threads at once, and a call can hang in the driver. So there is one thread that makes
all calls; when one of them hangs, that thread is given up, and another one takes its place after a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

import pynvml

# A call takes less than a few milliseconds. A driver without persistence mode wakes every GPU when it is opened.
HUNG_SECONDS: Final = 5.0
HUNG_OPENING_SECONDS: Final = 60.0
# How long after a hang a new thread tries its luck, doubled each time; and how many may hang at once.
_FIRST_RETRY_SECONDS: Final = 60.0
_LAST_RETRY_SECONDS: Final = 3600.0
_MOST_HUNG_THREADS: Final = 4
_WATCH_SECONDS: Final = 0.5

# Codes that older pynvml has no names for are numbers here.
_RESET_REQUIRED: Final = 16
_NO_DATA: Final = 21
_ARGUMENT_VERSION_MISMATCH: Final = 25
_DEPRECATED: Final = 26
GPU_NOT_FOUND: Final = 28

# One GPU has gone, or wants a reset before it answers again.
GPU_GONE: Final = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, _RESET_REQUIRED, GPU_NOT_FOUND})
# The driver was unloaded, upgraded or reset under us.
DRIVER_GONE: Final = frozenset({
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
})  # fmt: skip
# The card, the driver or the operator does not offer this: it is absent, and no fault.
NOT_OFFERED: Final = frozenset({
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    _ARGUMENT_VERSION_MISMATCH,
    _DEPRECATED,
})  # fmt: skip
# There is none of it now. (pynvml raises SUCCESS where a list of samples is empty.)
NOTHING_NOW: Final = frozenset({pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND, _NO_DATA})

NvmlError: type[Exception] = pynvml.NVMLError


class NotOffered(Exception):
    """Neither this driver, nor this card, nor this user's rights offer what was asked for."""


class Abandoned(BaseException):
    """The thread was given up while it hung; it has to end without another call."""


class Hung(Exception):
    """A call into the driver hangs."""


class Driver:
    """The way to NVML. Notes which call is under way, so that others can tell when it hangs."""

    def __init__(self) -> None:
        self._abandoned = False
        self._under_way: tuple[str, float] | None = None

    def call(self, name: str, *arguments: Any) -> Any:
        """What that function of pynvml returns. Raises NotOffered, or pynvml's NVMLError for all other errors."""
        if self._abandoned:
            raise Abandoned
        function = getattr(pynvml, name, None)
        if function is None:  # an older pynvml
            raise NotOffered(name)
        self._under_way = name, time.monotonic()
        try:
            return function(*arguments)
        except pynvml.NVMLLibraryMismatchError as error:  # no NVMLError: pynvml wants a newer driver for this call
            raise NotOffered(name) from error
        except pynvml.NVMLError as error:
            if error.value in NOT_OFFERED:
                raise NotOffered(name) from error
            raise
        finally:
            self._under_way = None

    def hanging(self) -> str | None:
        """The name of the call that hangs."""
        under_way = self._under_way
        if under_way is None:
            return None
        limit = HUNG_OPENING_SECONDS if under_way[0] in ("nvmlInit", "nvmlShutdown") else HUNG_SECONDS
        return under_way[0] if time.monotonic() - under_way[1] > limit else None

    def abandon(self) -> None:
        """Let the call that hangs be the last."""
        self._abandoned = True


S = TypeVar("S")
T = TypeVar("T")


class _Attempt(Generic[S]):
    """A thread and what it knows of the driver. Nothing of it is used any more once it is given up."""

    def __init__(self, make: Callable[[Driver], S]) -> None:
        self.driver = Driver()
        self._session = make(self.driver)
        self._jobs: SimpleQueue[Callable[[S], Any]] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="nvml", daemon=True)
        self.thread.start()

    def run(self, job: Callable[[S], T]) -> T:
        """What the job returns or raises. Raises Hung."""
        self._jobs.put(job)
        while True:
            try:
                result, error = self._results.get(timeout=_WATCH_SECONDS)
            except Empty:
                name = self.driver.hanging()
                if name is None:
                    continue
                self.driver.abandon()
                raise Hung(f"{name} hangs in the driver") from None
            if error is not None:
                raise error
            return result  # type: ignore[no-any-return]  # of this job, for there is one at a time

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                self._results.put((job(self._session), None))
            except Abandoned:
                return
            except Exception as error:
                self._results.put((None, error))


class DriverThread(Generic[S]):
    """Runs jobs on the thread that owns NVML. `make` makes what a thread keeps from job to job.

    `run` is called from one thread only.
    """

    def __init__(self, make: Callable[[Driver], S]) -> None:
        self._make = make
        self._attempt: _Attempt[S] | None = None
        self._hung: list[_Attempt[S]] = []
        self._why = ""
        self._retry_at = 0.0
        self._retry_after = _FIRST_RETRY_SECONDS

    def run(self, job: Callable[[S], T]) -> T:
        """What the job returns or raises. Raises Hung: when it hangs, and at once while an earlier one does."""
        attempt = self._attempt or self._new_attempt()
        try:
            result = attempt.run(job)
        except Hung as hung:
            self._attempt, self._why = None, str(hung)
            self._hung.append(attempt)
            self._retry_at = time.monotonic() + self._retry_after
            self._retry_after = min(2 * self._retry_after, _LAST_RETRY_SECONDS)
            raise
        if not self._hung:
            self._retry_after = _FIRST_RETRY_SECONDS
        return result

    def _new_attempt(self) -> _Attempt[S]:
        """A new thread: when none hangs any more, or after a while if few do."""
        self._hung = [attempt for attempt in self._hung if attempt.thread.is_alive()]
        patient = time.monotonic() < self._retry_at or len(self._hung) >= _MOST_HUNG_THREADS
        if self._hung and patient:
            raise Hung(self._why)
        self._attempt = _Attempt(self._make)
        return self._attempt
