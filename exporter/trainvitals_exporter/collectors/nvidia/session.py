"""The driver, opened: its GPUs and MIG instances, and one round of readings of all of them."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

import pynvml

from trainvitals_exporter.collectors.nvidia.device import Device, Reading, code
from trainvitals_exporter.collectors.nvidia.driver import (
    DRIVER_GONE,
    GPU_GONE,
    GPU_NOT_FOUND,
    Driver,
    NotOffered,
    NvmlError,
)
from trainvitals_exporter.collectors.nvidia.events import Xids
from trainvitals_exporter.collectors.nvidia.readings import GPU_READERS, MIG_READERS
from trainvitals_exporter.runner import NothingToReport

# A GPU that has gone may come back, which shows when the driver is opened anew. That is dear, so it is done ever rarer.
_FIRST_REOPEN_SECONDS: Final = 5.0
_LAST_REOPEN_SECONDS: Final = 60.0
# MIG instances may be made and destroyed, and GPUs hidden and shown, while the driver stays.
_LOOK_AROUND_SECONDS: Final = 10.0
_MOST_REFERENCES: Final = 8
_NO_GPU: Final = "the NVIDIA driver shows no GPU"


@dataclass
class Findings:
    """What one round found. `troubles` says by GPU index what is wrong."""

    readings: list[tuple[Device, Reading]] = field(default_factory=list)
    xids: list[tuple[Device, int]] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)


@dataclass
class _Gpu:
    """A GPU with its MIG instances; `gone` says why it is not asked any more."""

    device: Device
    instances: list[Device] = field(default_factory=list)
    gone: str = ""


class Session:
    """NVML as one thread uses it: opened at the first round, and anew after it, or a GPU, has gone."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._gpus: list[_Gpu] = []
        self._xids: Xids | None = None
        self._opened = False
        self._maybe_open = True  # by a thread that was given up
        self._count = 0
        self._missing: dict[str, str] = {}
        self._reopen_at = float("inf")
        self._reopen_after = _FIRST_REOPEN_SECONDS
        self._look_around_at = 0.0

    def read(self) -> Findings:
        """One round. Raises NothingToReport on a machine without GPU or driver, and NVMLError for other failures."""
        if time.monotonic() >= self._reopen_at:
            self.close()
        try:
            if not self._opened:
                self._open()
            return self._read()
        except NvmlError as error:
            self.close()
            if code(error) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise NothingToReport("there is no NVIDIA driver (libnvidia-ml.so.1 was not found)") from error
            if code(error) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
                raise NothingToReport("the NVIDIA driver is not loaded") from error
            if code(error) == GPU_NOT_FOUND:  # what opening it says since R545 where there is none
                raise NothingToReport(_NO_GPU) from error
            raise

    def close(self) -> None:
        """Let go of the driver altogether, so that a GPU can be reset or the driver be unloaded."""
        if not self._maybe_open:
            return
        if self._xids is not None:
            self._xids.close()
        self._gpus, self._xids, self._opened, self._missing = [], None, False, {}
        self._reopen_at = float("inf")
        # NVML counts how often it was opened, and closes at the last time only.
        with contextlib.suppress(NvmlError, NotOffered):
            for _ in range(_MOST_REFERENCES):
                self._driver.call("nvmlShutdown")
        self._maybe_open = False

    def _open(self) -> None:
        self._maybe_open = True
        self._driver.call("nvmlInit")
        self._opened = True
        version = self._tell("nvmlSystemGetDriverVersion")
        cuda = self._tell("nvmlSystemGetCudaDriverVersion_v2")  # such as 12040
        versions = _text(version), f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
        self._count = self._driver.call("nvmlDeviceGetCount")
        for index in range(self._count):
            self._open_gpu(index, versions)
        self._xids = Xids(self._driver, [gpu.device for gpu in self._gpus])
        self._look_around_at = 0.0
        if self._missing:
            self._reopen_later()

    def _open_gpu(self, index: int, versions: tuple[str, str]) -> None:
        try:
            handle = self._driver.call("nvmlDeviceGetHandleByIndex", index)
            device = self._device(handle, str(index), index, versions)
        except NotOffered:  # the driver counts GPUs that a container may not use
            return
        except NvmlError as error:
            if code(error) in DRIVER_GONE:
                raise
            self._missing[str(index)] = str(error)
            return
        self._gpus.append(_Gpu(device))

    def _device(self, handle: Any, index: str, number: int, versions: tuple[str, str]) -> Device:
        device = Device(self._driver, handle, _text(self._driver.call("nvmlDeviceGetUUID", handle)), index, number)
        name, pci = _text(device.ask("nvmlDeviceGetName")), device.ask("nvmlDeviceGetPciInfo")
        device.memory["versions"] = versions
        device.memory["info"] = Reading("gpu_info", 1, (name, *versions, _text(pci.busId) if pci else ""))
        device.memory["scrambled_processes"] = _scrambles_processes(versions[0])
        return device

    def _read(self) -> Findings:
        if not self._gpus and not self._missing:
            self.close()
            raise NothingToReport(_NO_GPU)
        findings = Findings(troubles=dict(self._missing))
        if time.monotonic() >= self._look_around_at:
            self._look_around(findings)
        for gpu in self._gpus:
            if not gpu.gone:
                self._read_gpu(gpu, findings)
            if gpu.gone:
                findings.troubles[gpu.device.index] = gpu.gone
        if not self._missing and not any(gpu.gone for gpu in self._gpus):
            self._reopen_after = _FIRST_REOPEN_SECONDS
        if self._xids is not None:
            try:
                findings.xids = self._xids.new()
            except NvmlError as error:
                if code(error) not in GPU_GONE:  # which GPU, its own calls tell
                    raise
        return findings

    def _read_gpu(self, gpu: _Gpu, findings: Findings) -> None:
        """Add what one GPU tells. A lost one tells nothing; of one with an odd answer, the other answers count."""
        readings: list[tuple[Device, Reading]] = []
        troubles: dict[str, str] = {}
        try:
            for device in (gpu.device, *gpu.instances):
                told = device.read(GPU_READERS if device is gpu.device else MIG_READERS, troubles)
                readings += [(device, device.memory["info"]), *((device, reading) for reading in told)]
                if "mig" in device.memory:
                    readings.append((device, device.memory["mig"]))
        except NvmlError as error:
            if code(error) in DRIVER_GONE:
                raise
            self._note_gone(gpu, error)
            return
        if any(device.index in troubles for device in gpu.instances):
            self._look_around_at = 0.0  # what was taken for an instance may be none any more
        findings.readings += readings
        findings.troubles |= troubles

    def _note_gone(self, gpu: _Gpu, error: Exception) -> None:
        gpu.gone = str(error)
        self._reopen_later()

    def _reopen_later(self) -> None:
        if self._reopen_at == float("inf"):
            self._reopen_at = time.monotonic() + self._reopen_after
            self._reopen_after = min(2 * self._reopen_after, _LAST_REOPEN_SECONDS)

    def _look_around(self, findings: Findings) -> None:
        """Find out which GPUs and MIG instances there are now."""
        self._look_around_at = time.monotonic() + _LOOK_AROUND_SECONDS
        if self._driver.call("nvmlDeviceGetCount") != self._count:
            self._reopen_at = 0.0
        for gpu in self._gpus:
            if gpu.gone:
                continue
            try:
                gpu.instances = self._instances(gpu)
            except NvmlError as error:
                if code(error) in DRIVER_GONE:
                    raise
                if code(error) in GPU_GONE:
                    self._note_gone(gpu, error)
                else:
                    findings.troubles[gpu.device.index] = str(error)
                    self._look_around_at = 0.0

    def _instances(self, gpu: _Gpu) -> list[Device]:
        """The MIG instances that a GPU is divided into now."""
        current, _ = gpu.device.ask("nvmlDeviceGetMigMode") or (0, 0)
        known = {instance.uuid: instance for instance in gpu.instances}
        found = []
        for place in range((gpu.device.ask("nvmlDeviceGetMaxMigDeviceCount") or 0) if current else 0):
            handle = gpu.device.ask("nvmlDeviceGetMigDeviceHandleByIndex", varying=(place,))
            if handle is None:
                continue
            with contextlib.suppress(NotOffered):
                uuid = _text(self._driver.call("nvmlDeviceGetUUID", handle))
                instance = known.get(uuid) or self._instance(gpu.device, handle, place)
                instance.handle = handle
                found.append(instance)
        return found

    def _instance(self, parent: Device, handle: Any, place: int) -> Device:
        """One of them, labelled with the numbers of GPU, GPU instance and compute instance."""
        gpu_instance = str(self._driver.call("nvmlDeviceGetGpuInstanceId", handle))
        compute_instance = str(self._driver.call("nvmlDeviceGetComputeInstanceId", handle))
        index = f"{parent.index}.{gpu_instance}.{compute_instance}"
        device = self._device(handle, index, place, parent.memory["versions"])
        device.memory["mig"] = Reading("gpu_mig_info", 1, (parent.uuid, gpu_instance, compute_instance))
        return device

    def _tell(self, name: str) -> Any:
        try:
            return self._driver.call(name)
        except NotOffered:
            return None


def _scrambles_processes(driver_version: str) -> bool:
    """Whether this driver has longer entries in its process lists than pynvml: the first ones of R535."""
    match = re.match(r"535\.(\d+)", driver_version)
    return match is not None and int(match[1]) < 86


def _text(value: str | bytes | None) -> str:
    """Older pynvml returns bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
