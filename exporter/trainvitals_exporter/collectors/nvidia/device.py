"""One GPU, or one MIG instance of a GPU, and what was read of it last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from trainvitals_exporter.collectors.nvidia.driver import (
    DRIVER_GONE,
    GPU_GONE,
    NOTHING_NOW,
    Driver,
    NotOffered,
    NvmlError,
)

# Collections are not quite evenly spaced; what is due in a moment need not wait for the next one.
_EARLY_SECONDS: Final = 0.5
# A card may offer later what it does not now, when its MIG mode or a permission changes.
_ASK_AGAIN_SECONDS: Final = 60.0


class Reading(NamedTuple):
    """One value: the metric's name without the prefix, the value in base units, and the metric's own labels."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class Reader(NamedTuple):
    """Something that is read of a device every `seconds`; 0 is at each collection."""

    seconds: float
    read: Callable[[Device], Iterable[Reading]]


class Device:
    """A GPU or a MIG instance. `uuid` and `index` are its labels; `memory` holds what readers keep for themselves.

    `number` tells the GPUs apart that are read at different moments, so that they are not all asked at once.
    """

    def __init__(self, driver: Driver, handle: Any, uuid: str, index: str, number: int) -> None:
        self._driver = driver
        self.handle = handle
        self.uuid = uuid
        self.index = index
        self.memory: dict[str, Any] = {}
        self._number = number
        self._asked_in_vain: dict[Any, float] = {}
        self._kept: dict[Reader, Sequence[Reading]] = {}
        self._due: dict[Reader, float] = {}
        self._trouble = ""

    def ask(self, name: str, *arguments: Any, varying: tuple[Any, ...] = ()) -> Any:
        """What that function of pynvml tells of this device; None where it is not offered, or has nothing to tell now.

        What is not offered is asked for again a minute later only. `varying` are arguments that make no difference to
        that. Raises NVMLError for all that is neither.
        """
        key = (name, arguments)
        if self.in_vain(key):
            return None
        try:
            return self._driver.call(name, self.handle, *arguments, *varying)
        except NotOffered:
            self.note_in_vain(key)
            return None
        except UnicodeDecodeError:  # a name from a damaged card
            return None
        except NvmlError as error:
            if code(error) in NOTHING_NOW:
                return None
            raise

    def in_vain(self, key: Any) -> bool:
        """Whether it makes no sense to ask for this now."""
        return time.monotonic() < self._asked_in_vain.get(key, 0.0)

    def note_in_vain(self, key: Any) -> None:
        """Do not ask for this for a while."""
        self._asked_in_vain[key] = time.monotonic() + _ASK_AGAIN_SECONDS

    def read(self, plan: Iterable[Reader], troubles: dict[str, str]) -> list[Reading]:
        """All readings, those that are due read anew. A reader that fails leaves nothing, and its trouble.

        Raises NVMLError when the GPU or the driver has gone.
        """
        readings: list[Reading] = []
        now = time.monotonic()
        for reader in plan:
            if now >= self._due.get(reader, 0.0) - _EARLY_SECONDS:
                self._kept[reader] = self._read(reader, now, troubles)
            readings += self._kept[reader]
        return readings

    def _read(self, reader: Reader, now: float, troubles: dict[str, str]) -> Sequence[Reading]:
        first = reader not in self._due
        self._due[reader] = now + reader.seconds - (self._number % 5 * reader.seconds / 5 if first else 0.0)
        self._trouble = ""
        readings: Sequence[Reading] = ()
        try:
            readings = list(reader.read(self))
        except Exception as error:  # whatever it is, the other readings go on
            if code(error) in DRIVER_GONE | GPU_GONE:
                raise
            self._trouble = f"{type(error).__name__}: {error}"
        if self._trouble:
            troubles[self.index] = self._trouble
            self._due[reader] = now
        return readings

    def note_trouble(self, trouble: str) -> None:
        """Tell that something failed which leaves the reader's other readings alone."""
        self._trouble = trouble


def code(error: Exception) -> int:
    """The NVML error code of an NVMLError; 0 of any other exception."""
    return int(getattr(error, "value", 0))


def plausible(
    name: str, raw: float | None, highest: float, per_unit: float = 1, labels: tuple[str, ...] = (), lowest: float = 0
) -> Iterable[Reading]:
    """The reading in base units; nothing where the value is missing or garbage."""
    if raw is not None and lowest <= raw / per_unit <= highest:
        yield Reading(name, raw / per_unit, labels)
