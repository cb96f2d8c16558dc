"""What is read of a GPU, by which call, and how often.

Each reader yields what its calls gave and passes over what the card does not offer or answers with garbage: drivers say
"unknown" with all bits set, or with values that no GPU can have.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import pynvml

from trainvitals_exporter.collectors.nvidia import fields, processes
from trainvitals_exporter.collectors.nvidia.device import Device, Reader, Reading, code, plausible
from trainvitals_exporter.collectors.nvidia.driver import NvmlError

# The longest scrape interval that the rules work with: no scrape misses a peak.
WINDOW_SECONDS: Final = 15.0
_HIGHEST_WATTS: Final = 10_000
_HIGHEST_BYTES: Final = 2**50
_HIGHEST_HERTZ: Final = 2e10
_CLOCKS: Final = {"graphics": 0, "sm": 1, "memory": 2, "video": 3}
# By bit; drivers may set more, which no documentation names.
_CLOCKS_EVENT_REASONS: Final = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


def _utilization(device: Device) -> Iterable[Reading]:
    """Average and peak of the driver's own samples; where it keeps none, of its answers to this."""
    rates = device.ask("nvmlDeviceGetUtilizationRates")
    window = device.memory.setdefault("utilization", deque())
    now = time.monotonic()
    # The first time, the driver's buffer fills the window. What is older than that is of no use.
    earliest = now - WINDOW_SECONDS
    samples = _samples(device, earliest)
    window.extend(samples if samples or rates is None else [(now, rates.gpu)])
    while window and window[0][0] < earliest:
        window.popleft()
    values = [value for _, value in window if 0 <= value <= 100]
    if values:
        yield Reading("gpu_utilization_ratio", sum(values) / len(values) / 100)
        yield Reading("gpu_utilization_ratio_max", max(values) / 100)
    if rates is not None:
        yield from plausible("gpu_memory_bandwidth_utilization_ratio", rates.memory, 1, 100)


def _samples(device: Device, earliest: float) -> list[tuple[float, int]]:
    """The driver's utilisation samples that are new, each with its time by the monotonic clock and its percentage."""
    clock = time.time() - time.monotonic()  # the driver's timestamps are Unix time
    newest = min(device.memory.get("newest_sample", 0), int(time.time() * 1e6))  # the clock may be set back
    since = max(newest, int((earliest + clock) * 1e6))
    try:
        answer = device.ask("nvmlDeviceGetSamples", pynvml.NVML_GPU_UTILIZATION_SAMPLES, varying=(since,))
    except NvmlError as error:
        if code(error) != pynvml.NVML_ERROR_INVALID_ARGUMENT:  # what the driver says to a buffer for no samples
            raise
        return []
    samples = [sample for sample in answer[1] if sample.timeStamp > since] if answer else []
    device.memory["newest_sample"] = max((sample.timeStamp for sample in samples), default=newest)
    return [(sample.timeStamp / 1e6 - clock, sample.sampleValue.uiVal) for sample in samples]


def _memory(device: Device) -> Iterable[Reading]:
    """Version 2 of the call keeps the driver's own memory apart; older drivers count it as used."""
    kinds = ["total", "used", "free", "reserved"]
    memory = device.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    if memory is None:
        kinds.remove("reserved")
        memory = device.ask("nvmlDeviceGetMemoryInfo")
    if memory is None or not 0 < memory.total <= _HIGHEST_BYTES:
        return
    for kind in kinds:
        yield from plausible(f"gpu_memory_{kind}_bytes", getattr(memory, kind), memory.total)


def _power(device: Device) -> Iterable[Reading]:
    draw = device.ask("nvmlDeviceGetPowerUsage")
    yield from plausible("gpu_power_watts", draw, _HIGHEST_WATTS, 1000, lowest=0.001)


def _power_limit(device: Device) -> Iterable[Reading]:
    limit = device.ask("nvmlDeviceGetEnforcedPowerLimit")
    yield from plausible("gpu_power_limit_watts", limit, _HIGHEST_WATTS, 1000, lowest=0.001)


def _temperature(device: Device) -> Iterable[Reading]:
    """The older call is announced to go with CUDA 14; the newer one is missing from older drivers and pynvml."""
    degrees = device.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    if degrees is None:
        degrees = device.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU)
    yield from plausible("gpu_temperature_celsius", degrees, fields.HIGHEST_CELSIUS)


def _clocks_events(device: Device) -> Iterable[Reading]:
    """Called throttle reasons before R535. A reason that the card never gives is absent."""
    active = device.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if active is None:
        active = device.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    if active is None:
        return
    if "reasons" not in device.memory:
        supported = device.ask("nvmlDeviceGetSupportedClocksEventReasons")
        if supported is None:
            supported = device.ask("nvmlDeviceGetSupportedClocksThrottleReasons")
        device.memory["reasons"] = supported or sum(_CLOCKS_EVENT_REASONS)
    for bit, reason in _CLOCKS_EVENT_REASONS.items():
        if bit & device.memory["reasons"]:
            yield Reading("gpu_clocks_event_active", float(bool(active & bit)), (reason,))


def _clocks(device: Device) -> Iterable[Reading]:
    for clock, number in _CLOCKS.items():
        megahertz = device.ask("nvmlDeviceGetClockInfo", number)
        hertz = None if megahertz is None else megahertz * 10**6
        yield from plausible("gpu_clock_hertz", hertz, _HIGHEST_HERTZ, labels=(clock,), lowest=1)


def _state(device: Device) -> Iterable[Reading]:
    # The intended speed, which may be above what the maker calls full.
    yield from plausible("gpu_fan_speed_ratio", device.ask("nvmlDeviceGetFanSpeed"), 2, 100)
    yield from plausible("gpu_performance_state", device.ask("nvmlDeviceGetPerformanceState"), 15)
    generation = device.ask("nvmlDeviceGetCurrPcieLinkGeneration")
    yield from plausible("gpu_pcie_link_generation", generation, 16, lowest=1)
    yield from plausible("gpu_pcie_link_width", device.ask("nvmlDeviceGetCurrPcieLinkWidth"), 64, lowest=1)


def _codecs(device: Device) -> Iterable[Reading]:
    for engine in ("encoder", "decoder"):
        percent, _ = device.ask(f"nvmlDeviceGet{engine.capitalize()}Utilization") or (None, None)
        yield from plausible(f"gpu_{engine}_utilization_ratio", percent, 1, 100)


GPU_READERS: Final = (
    Reader(0, _memory),
    Reader(0, _power),
    Reader(0, fields.counters),
    Reader(4, _utilization),  # the driver keeps the samples
    Reader(4, _temperature),
    Reader(4, _clocks_events),
    Reader(10, _clocks),
    Reader(10, _state),
    Reader(10, _codecs),
    Reader(10, fields.errors),
    Reader(10, processes.memory),
    Reader(10, processes.utilization),
    Reader(60, _power_limit),
)
# The rest is told for the whole GPU only; its utilisation, with MIG on, not at all.
MIG_READERS: Final = (Reader(0, _memory), Reader(10, processes.memory))
