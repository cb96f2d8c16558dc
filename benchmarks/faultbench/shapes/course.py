"""The course of a run: how fast it goes, and when it falls ill."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

BEGINNING_FILE: Final = "FAULTBENCH_BEGINNING"
ONSET_FILE: Final = "FAULTBENCH_ONSET"
GPU_FILE: Final = "FAULTBENCH_GPU_LINES"
HOST_BYTES: Final = "FAULTBENCH_HOST_BYTES"
FACTOR: Final = "FAULTBENCH_FACTOR"


def note_onset() -> None:
    """Tell the bench that the fault begins now; what is told later does not count."""
    _note(os.environ.get(ONSET_FILE))


def note_beginning() -> None:
    """Tell the bench that the training begins now; the first to say so counts."""
    _note(os.environ.get(BEGINNING_FILE))


def _note(path: str | None) -> None:
    if path and not Path(path).exists():
        new = Path(f"{path}.{os.getpid()}")
        new.write_text(repr(time.time()))
        new.rename(path)


def factor() -> float:
    """How many times faster than the clock on the wall time passes here."""
    return float(os.environ.get(FACTOR, "1"))


def parse(faults: Iterable[str], description: str | None) -> Course:
    """The course that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fault", choices=sorted(faults), default="none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--onset", type=float, default=10.0, help="seconds until the fault begins")
    parser.add_argument("--pace", type=float, default=0.1, help="seconds from iteration to iteration")
    parser.add_argument("--length", type=float, default=float("inf"), help="seconds until the run is done")
    parser.add_argument("--output", type=Path, default=Path())
    return Course(parser.parse_args())


class Course:
    """Options of a run, and where it is in its course. Its clock starts with the first batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.fault: str = options.fault
        self.seed: int = options.seed
        self.output: Path = options.output
        self.pace: float = options.pace
        self._onset: float = options.onset
        self._length: float = options.length
        self._began = 0.0
        self.iteration = 0

    @property
    def age(self) -> float:
        """Seconds since the first batch."""
        return time.monotonic() - self._began if self._began else 0.0

    @property
    def sick(self) -> bool:
        """Whether the fault has begun; the first to be told so makes it known."""
        if self.fault == "none" or self.age < self._onset:
            return False
        note_onset()
        return True

    @property
    def sick_for(self) -> float:
        """Seconds since the fault began, in the time of the compressed world times its factor."""
        return (self.age - self._onset) * factor() if self.sick else 0.0

    def paced(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, one every `pace` seconds, until the run's length is reached."""
        for batch in batches:
            if not self._began:
                self._began = time.monotonic()
                note_beginning()
            started = time.monotonic()
            self.iteration += 1
            yield batch
            time.sleep(max(0.0, self.pace - (time.monotonic() - started)))
            if self.age >= self._length:
                return
