"""NVIDIA GPUs, through the driver's management library (NVML).

NVML is not to be called from two threads at once, and a call can hang in the driver. All calls are made by this
collector's one thread; when a call hangs, that thread waits alone and nothing queues up behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import Incomplete, NothingToReport
from trainvitals_exporter.settings import Settings

# One GPU has gone. (28 is NVML_ERROR_GPU_NOT_FOUND, which older pynvml has no name for.)
_GPU_GONE: Final = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, 28})
# The driver was unloaded, upgraded or reset under us.
_DRIVER_GONE: Final = frozenset({
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
})  # fmt: skip
# The card, the driver or the operator does not offer this: it is absent, and no fault.
_NOT_OFFERED: Final = frozenset({
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    25,  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH, without a name in older pynvml: a struct newer than the driver
})  # fmt: skip

# Drivers say "unknown" with all bits set or with plain garbage; these bounds are far beyond any GPU.
_HIGHEST_WATTS: Final = 10_000
_HIGHEST_CELSIUS: Final = 200
_HIGHEST_BYTES: Final = 2**50
_HIGHEST_JOULES: Final = 1e15

_Handle = Any  # an opaque pointer; pynvml ships no types


@dataclass(frozen=True)
class _Gpu:
    handle: _Handle
    uuid: str
    index: str
    info: tuple[str, str, str, str]  # name, driver version, CUDA version, PCI bus id


class Nvidia:
    """Each GPU's utilisation, memory, power and temperature; what a card does not offer is absent."""

    name = "nvidia"
    interval = 2.0

    def __init__(self) -> None:
        self._gpus: list[_Gpu] = []

    def collect(self) -> Iterable[Family]:
        """Ask the driver. It is opened at the first collection, and anew after it, or a GPU, has gone."""
        out = Families()
        troubles: dict[str, pynvml.NVMLError] = {}
        try:
            if not self._gpus:
                pynvml.nvmlInit()
                self._gpus = _open(troubles)
            reopen = bool(troubles)
            for gpu in self._gpus:
                _add(out, gpu, troubles)
        except pynvml.NVMLError as error:
            self._close()
            if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise NothingToReport("there is no NVIDIA driver (libnvidia-ml.so.1 was not found)") from error
            if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
                raise NothingToReport("the NVIDIA driver is not loaded") from error
            raise
        if not self._gpus and not troubles:
            self._close()
            raise NothingToReport("the NVIDIA driver sees no GPU")
        if reopen or any(error.value in _GPU_GONE for error in troubles.values()):
            self._close()
        if troubles:
            raise Incomplete(", ".join(f"GPU {index}: {error}" for index, error in troubles.items()), out)
        return out

    def _close(self) -> None:
        self._gpus = []
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def create(settings: Settings) -> Nvidia:
    """The collector."""
    return Nvidia()


def _open(troubles: dict[str, pynvml.NVMLError]) -> list[_Gpu]:
    """All GPUs that may be asked; `troubles` gets what is wrong with others, by index."""
    driver = _text(_offered(pynvml.nvmlSystemGetDriverVersion))
    cuda = _offered(pynvml.nvmlSystemGetCudaDriverVersion_v2)  # such as 12040
    cuda_version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            name = _text(_offered(pynvml.nvmlDeviceGetName, handle))
            pci = _offered(pynvml.nvmlDeviceGetPciInfo, handle)
        except pynvml.NVMLError as error:
            if error.value in _DRIVER_GONE:
                raise
            if error.value != pynvml.NVML_ERROR_NO_PERMISSION:  # the driver counts GPUs that a container may not use
                troubles[str(index)] = error
            continue
        gpus.append(_Gpu(handle, uuid, str(index), (name, driver, cuda_version, _text(pci.busId) if pci else "")))
    return gpus


def _add(out: Families, gpu: _Gpu, troubles: dict[str, pynvml.NVMLError]) -> None:
    """Add what one GPU tells. A lost one tells nothing; of one with an odd answer, the other answers count."""
    values: dict[str, float] = {}
    for read in (_utilization, _memory, _power, _energy, _temperature):
        values |= _read_noting_trouble(read, gpu, troubles)
        if gpu.index in troubles and troubles[gpu.index].value in _GPU_GONE:
            return
    out.add("trainvitals_gpu_info", 1, gpu.uuid, gpu.index, *gpu.info)
    for name, value in values.items():
        out.add(name, value, gpu.uuid, gpu.index)


def _read_noting_trouble(
    read: Callable[[_Handle], dict[str, float]], gpu: _Gpu, troubles: dict[str, pynvml.NVMLError]
) -> dict[str, float]:
    try:
        return read(gpu.handle)
    except pynvml.NVMLError as error:
        if error.value in _DRIVER_GONE:
            raise
        troubles[gpu.index] = error
        return {}


def _utilization(handle: _Handle) -> dict[str, float]:
    rates = _offered(pynvml.nvmlDeviceGetUtilizationRates, handle)
    if rates is None:
        return {}
    return {
        **_plausible("trainvitals_gpu_utilization_ratio", rates.gpu, 1, per_unit=100),
        **_plausible("trainvitals_gpu_memory_bandwidth_utilization_ratio", rates.memory, 1, per_unit=100),
    }


def _memory(handle: _Handle) -> dict[str, float]:
    """Version 2 of the call keeps the driver's own memory apart; older drivers count it as used."""
    kinds = ["total", "used", "free", "reserved"]
    memory = _offered(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is None:
        kinds.remove("reserved")
        memory = _offered(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return {}
    values: dict[str, float] = {}
    for kind in kinds:
        values |= _plausible(f"trainvitals_gpu_memory_{kind}_bytes", getattr(memory, kind), _HIGHEST_BYTES)
    return values


def _power(handle: _Handle) -> dict[str, float]:
    draw = _offered(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _offered(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    return {
        **_plausible("trainvitals_gpu_power_watts", draw, _HIGHEST_WATTS, per_unit=1000),
        **_plausible("trainvitals_gpu_power_limit_watts", limit, _HIGHEST_WATTS, per_unit=1000),
    }


def _energy(handle: _Handle) -> dict[str, float]:
    energy = _offered(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return _plausible("trainvitals_gpu_energy_joules_total", energy, _HIGHEST_JOULES, per_unit=1000)


def _temperature(handle: _Handle) -> dict[str, float]:
    """The older call is announced to go with CUDA 14; the newer one is missing from older drivers and pynvml."""
    degrees = _offered(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    newer_call = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)
    if degrees is None and newer_call is not None:
        degrees = _offered(newer_call, handle, pynvml.NVML_TEMPERATURE_GPU)
    return _plausible("trainvitals_gpu_temperature_celsius", degrees, _HIGHEST_CELSIUS)


def _offered(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or None where it is not offered."""
    try:
        return call(*arguments)
    except pynvml.NVMLLibraryMismatchError:  # not an NVMLError: pynvml needs a newer driver for this call
        return None
    except pynvml.NVMLError as error:
        if error.value in _NOT_OFFERED:
            return None
        raise


def _plausible(name: str, raw: int | None, highest: float, per_unit: int = 1) -> dict[str, float]:
    """The metric and its value in base units; nothing where the value is missing or garbage."""
    if raw is None or not 0 <= raw / per_unit <= highest:
        return {}
    return {name: raw / per_unit}


def _text(value: str | bytes | None) -> str:
    """Older pynvml returns bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
