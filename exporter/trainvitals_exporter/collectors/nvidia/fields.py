"""What the driver tells by numbered fields, many in one call.

Each field has an answer of its own, for cards and drivers differ in what they know. A field that is not offered is left
out of the next calls for a while, and its value comes from an older call where there is one that does not block.

The numbers are spelled out because pynvml's names cannot be relied on: R565's header gave 251 to 253 to the clocks
event counters that later drivers have at 269 to 271, and something else at the former.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from trainvitals_exporter.collectors.nvidia.device import Device, Reading, plausible
from trainvitals_exporter.collectors.nvidia.driver import DRIVER_GONE, GPU_GONE, NOT_OFFERED, NOTHING_NOW

HIGHEST_JOULES: Final = 1e15
HIGHEST_CELSIUS: Final = 200
_HIGHEST_BYTES: Final = 2.0**63
_HIGHEST_SECONDS: Final = 1e10
_HIGHEST_COUNT: Final = 2.0**62
_ALL_LINKS: Final = 0xFFFFFFFF
_UNSIGNED_INT: Final = 1
# An older driver calls a field that it does not know an invalid argument.
_SUCCESS_OR_NOT_OFFERED: Final = NOT_OFFERED | NOTHING_NOW | {pynvml.NVML_ERROR_INVALID_ARGUMENT}
# The member of the value's union by its type; other types are not read.
_MEMBER_OF_TYPE: Final = {0: "dVal", _UNSIGNED_INT: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}


@dataclass(frozen=True)
class _Field:
    """A field of the driver, and the metric that it gives."""

    number: int
    name: str
    highest: float
    per_unit: float = 1
    labels: tuple[str, ...] = ()
    scope: int = 0
    lowest: float = 0
    wide: bool = False  # of 32 bits, it would go round several times between two readings

    @property
    def key(self) -> tuple[str, int]:
        """What it is remembered by when the card does not offer it."""
        return "field", self.number


def _throttle(number: int, reason: str) -> _Field:
    return _Field(number, "gpu_clocks_event_seconds_total", _HIGHEST_SECONDS, 1e9, (reason,))


def _bytes(number: int, name: str, kibibytes: bool = False) -> _Field:
    scope = _ALL_LINKS if "nvlink" in name else 0
    return _Field(number, name, _HIGHEST_BYTES, 1 / 1024 if kibibytes else 1, (), scope, wide=True)


# Of two fields for the same value, the first that a card offers counts.
_COUNTERS: Final = (
    _Field(83, "gpu_energy_joules_total", HIGHEST_JOULES, 1000),
    # Cards without a sensor answer 0.
    _Field(82, "gpu_memory_temperature_celsius", HIGHEST_CELSIUS, lowest=1),
    _bytes(197, "gpu_pcie_transmit_bytes_total"),
    _bytes(198, "gpu_pcie_receive_bytes_total"),
    _bytes(138, "gpu_nvlink_transmit_bytes_total", kibibytes=True),
    _bytes(139, "gpu_nvlink_receive_bytes_total", kibibytes=True),
    _bytes(202, "gpu_nvlink_transmit_bytes_total"),  # the fifth NVLink generation
    _bytes(204, "gpu_nvlink_receive_bytes_total"),
    _throttle(74, "sw_power_cap"),
    _throttle(75, "thermal"),  # both thermal reasons, for drivers that do not tell them apart
    _throttle(76, "sync_boost"),
    _throttle(269, "sw_thermal_slowdown"),
    _throttle(270, "hw_thermal_slowdown"),
    _throttle(271, "hw_power_brake_slowdown"),
)
_ERRORS: Final = (
    _Field(3, "gpu_ecc_errors_total", _HIGHEST_COUNT, labels=("corrected",)),
    _Field(4, "gpu_ecc_errors_total", _HIGHEST_COUNT, labels=("uncorrected",)),
    _Field(142, "gpu_remapped_rows", 1e6, labels=("correctable",)),
    _Field(143, "gpu_remapped_rows", 1e6, labels=("uncorrectable",)),
)


def counters(device: Device) -> Iterable[Reading]:
    """Energy, memory temperature, PCIe and NVLink bytes, time with lowered clocks."""
    found = _read(device, _COUNTERS)
    if ("gpu_clocks_event_seconds_total", ("sw_thermal_slowdown",)) in found:
        found.pop(("gpu_clocks_event_seconds_total", ("thermal",)), None)
    yield from found.values()
    if ("gpu_energy_joules_total", ()) not in found:
        energy = device.ask("nvmlDeviceGetTotalEnergyConsumption")
        yield from plausible("gpu_energy_joules_total", energy, HIGHEST_JOULES, 1000)


def errors(device: Device) -> Iterable[Reading]:
    """ECC errors since the driver was loaded, and rows of memory that were replaced."""
    found = _read(device, _ERRORS)
    yield from found.values()
    for kind, type_ in (("corrected", 0), ("uncorrected", 1)):
        if ("gpu_ecc_errors_total", (kind,)) not in found:
            count = device.ask("nvmlDeviceGetTotalEccErrors", type_, 0)  # 0: since the driver was loaded
            yield from plausible("gpu_ecc_errors_total", count, _HIGHEST_COUNT, labels=(kind,))
    if not any(name == "gpu_remapped_rows" for name, _ in found):
        correctable, uncorrectable, *_ = device.ask("nvmlDeviceGetRemappedRows") or (None, None)
        yield from plausible("gpu_remapped_rows", correctable, 1e6, labels=("correctable",))
        yield from plausible("gpu_remapped_rows", uncorrectable, 1e6, labels=("uncorrectable",))


def _read(device: Device, fields: Sequence[_Field]) -> dict[tuple[str, tuple[str, ...]], Reading]:
    """The readings of those fields that the card offers, by name and labels. Raises NVMLError when the GPU has gone."""
    asked = [field for field in fields if not device.in_vain(field.key)]
    answers = device.ask("nvmlDeviceGetFieldValues", varying=([(f.number, f.scope) for f in asked],)) if asked else None
    found: dict[tuple[str, tuple[str, ...]], Reading] = {}
    for field, answer in zip(asked, answers or (), strict=False):
        if answer.nvmlReturn in GPU_GONE | DRIVER_GONE:
            raise pynvml.NVMLError(answer.nvmlReturn)
        if answer.nvmlReturn not in _SUCCESS_OR_NOT_OFFERED:
            device.note_trouble(f"field {field.number}: {pynvml.NVMLError(answer.nvmlReturn)}")
            continue
        if answer.nvmlReturn != pynvml.NVML_SUCCESS or (field.wide and answer.valueType == _UNSIGNED_INT):
            device.note_in_vain(field.key)
            continue
        raw = _value(answer)
        for reading in plausible(field.name, raw, field.highest, field.per_unit, field.labels, field.lowest):
            found.setdefault((reading.name, reading.labels), reading)
    return found


def _value(answer: Any) -> float | None:
    member = _MEMBER_OF_TYPE.get(answer.valueType)
    if member is None or not isinstance(answer.value, ctypes.Union):
        return None
    return getattr(answer.value, member, None)
