"""Memory of the CUDA devices, as PyTorch's caching allocator sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from trainvitals.baselines import RollingExtreme, SteadyGrowth
from trainvitals.runfile import RunFileWriter

# The statistics cost some 20 us a call, too much for each step of a small model.
_EVERY_SECONDS: Final = 0.1
_LOOK_FOR_DEVICES_SECONDS: Final = 10.0


class _Total:
    """A counter of the allocator's, which the script may reset, as one that only rises."""

    def __init__(self) -> None:
        self.value = 0.0
        self._seen = 0.0

    def see(self, value: float) -> None:
        self.value += value - self._seen if value >= self._seen else value
        self._seen = value


class _EpochPeak:
    """Most memory in use since the epoch began. The allocator's own peak is read; to reset it is left to the script."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._counter: float | None = None

    def see(self, current: float, counter: float) -> None:
        """Take in the memory in use and the allocator's peak.

        A peak that has risen since it was last seen was reached since then, and so was one that fell: it was reset.
        """
        moved = self._counter is not None and counter != self._counter
        self.bytes = max(self.bytes, counter if moved else current)
        self._counter = counter

    @property
    def hidden(self) -> bool:
        """Whether an earlier, higher peak would hide a new one: then only looking at the right moment shows it."""
        return self._counter is None or self.bytes < self._counter

    def next_epoch(self) -> float:
        """The peak of the epoch that ends here."""
        peak, self.bytes = self.bytes, 0.0
        return peak


class _Device:
    """The memory of one device, and its places in the run file."""

    def __init__(self, writer: RunFileWriter, index: int) -> None:
        self.index = index
        self.statistics: dict[str, Any] = {}
        self.peak = _EpochPeak()
        self._floor = RollingExtreme(smallest=True)
        self._growth = SteadyGrowth()
        self._first_epoch = True
        self._retries, self._ooms = _Total(), _Total()
        self._writer, self._values = writer, writer.values
        names = ("allocated", "reserved", "inactive_split", "allocated_floor")
        self._memory = [self._slot(f"cuda_memory_{name}_bytes") for name in names]
        self._slot_of_retries, self._slot_of_ooms = (
            self._slot("cuda_alloc_retries_total"),
            self._slot("cuda_ooms_total"),
        )
        self._slot_of_peak = self._slot("cuda_memory_peak_bytes")

    def read(self) -> None:
        """Ask the allocator. What it counts and its peak are true at any time."""
        self.statistics = statistics = torch.cuda.memory_stats_as_nested_dict(self.index)
        allocated = statistics["allocated_bytes"]["all"]
        self.peak.see(float(allocated["current"]), float(allocated["peak"]))
        self._retries.see(float(statistics["num_alloc_retries"]))
        self._ooms.see(float(statistics["num_ooms"]))
        values = self._values
        values[self._slot_of_peak] = max(values[self._slot_of_peak], self.peak.bytes)
        values[self._slot_of_retries] = self._retries.value
        # The observer of out-of-memory errors may have counted one more already.
        values[self._slot_of_ooms] = max(values[self._slot_of_ooms], self._ooms.value)

    def at_boundary(self, now: float, iteration: int) -> None:
        """What was read was read between two iterations."""
        statistics, values = self.statistics, self._values
        names = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes")
        current = [float(statistics[name]["all"]["current"]) for name in names]
        for slot, value in zip(self._memory, [*current, self._floor.add(now, current[0])], strict=True):
            values[slot] = value
        if (growth := self._growth.add(iteration, current[0])) is not None:
            self._set("floor_growth_bytes", growth)
        if self._first_epoch:  # it may be the only one
            self._set("epoch_peak_bytes", self.peak.bytes)

    def epoch_ends(self) -> None:
        """The peak of the epoch is known."""
        self._first_epoch = False
        self._set("epoch_peak_bytes", self.peak.next_epoch())

    def _set(self, name: str, value: float) -> None:
        self._writer.set(f"trainvitals_cuda_memory_{name}", value, device=str(self.index))

    def _slot(self, name: str) -> int:
        return self._writer.slot(f"trainvitals_{name}", device=str(self.index))


class CudaMemory:
    """The devices on which this process has memory, read ten times a second at most, however many they are."""

    def __init__(self, on_device: Callable[[RunFileWriter, int], None], *, values_wanted: bool) -> None:
        # The device on which this process has most.
        self.busiest: int | None = None
        # Whether looking near the end of a forward can show a peak that the allocator's own does not.
        self.peak_is_hidden = False
        self._on_device = on_device
        self._values_wanted = values_wanted
        self._known: set[int] = set()
        self._devices: list[_Device] = []
        self._due = self._look_due = self._peak_due = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time to read again; `now` by perf_counter()."""
        return now >= self._due

    def look(self, now: float, writer: RunFileWriter) -> None:
        """At any time: read what is due. A peak that rises after the first time is the training's."""
        if now >= self._look_due:
            self._look_due = now + _LOOK_FOR_DEVICES_SECONDS
            self._look_for_devices(writer)
        self._read(now)

    def boundary(self, now: float, iteration: int, writer: RunFileWriter) -> None:
        """Between two iterations; `iteration` is how many there have been."""
        self.look(now, writer)
        for device in self._devices:
            device.at_boundary(now, iteration)

    def backward_begins(self, now: float) -> None:
        """The end of a forward is when activations take most."""
        if now >= self._peak_due:
            # every other reading is left to the boundaries
            self._peak_due = now + 2 * _EVERY_SECONDS * len(self._devices)
            self._read(now)

    def epoch_ends(self, now: float) -> None:
        """A pass over the training data has ended."""
        if self.due(now):
            self._read(now)
        for device in self._devices:
            device.epoch_ends()
        self.peak_is_hidden = bool(self._devices)

    def _look_for_devices(self, writer: RunFileWriter) -> None:
        """Find the devices on which this process has got memory. Nothing is initialised by asking."""
        reserved = _reserved_bytes()
        if reserved is None:
            used = [torch.cuda.current_device()]
        else:
            used = sorted(
                (index for index, size in enumerate(reserved) if size), key=reserved.__getitem__, reverse=True
            )
        self.busiest = used[0] if used else None
        for index in used:
            if index not in self._known:
                self._on_device(writer, index)  # where it fails, it is tried again, so that the errors add up
                self._known.add(index)
                if self._values_wanted and reserved is not None:
                    self._devices.append(_Device(writer, index))

    def _read(self, now: float) -> None:
        self._due = now + _EVERY_SECONDS * len(self._devices) if self._devices else self._look_due
        for device in self._devices:
            device.read()
        self.peak_is_hidden = any(device.peak.hidden for device in self._devices)


def _reserved_bytes() -> list[int] | None:
    """What the allocator holds on each device, in bytes; None where it keeps no statistics."""
    try:
        statistics = [torch.cuda.memory_stats_as_nested_dict(index) for index in range(torch.cuda.device_count())]
        return [each["reserved_bytes"]["all"]["current"] for each in statistics]
    except (RuntimeError, KeyError):  # a pluggable allocator, say
        return None
