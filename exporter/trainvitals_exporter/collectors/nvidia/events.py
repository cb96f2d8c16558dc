"""XIDs: the errors that the driver writes to the kernel's log, as NVML's event API tells them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable
from typing import Any, Final

import pynvml

from trainvitals_exporter.collectors.nvidia.device import Device, code
from trainvitals_exporter.collectors.nvidia.driver import Driver, NotOffered, NvmlError

# A GPU in agony may send events faster than they are fetched.
_MOST_AT_ONCE: Final = 256


class Xids:
    """The XIDs of these GPUs, from now on. Each is told once."""

    def __init__(self, driver: Driver, gpus: Iterable[Device]) -> None:
        self._driver = driver
        self._gpus = {_address(gpu.handle): gpu for gpu in gpus}
        self._set: Any = None
        with contextlib.suppress(NotOffered, NvmlError):
            self._set = driver.call("nvmlEventSetCreate")
        if self._set is not None:
            for gpu in self._gpus.values():
                with contextlib.suppress(NotOffered, NvmlError):  # such as a card without events
                    driver.call("nvmlDeviceRegisterEvents", gpu.handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def new(self) -> list[tuple[Device, int]]:
        """Those since the last time, without waiting. Raises NVMLError for what is no matter of events alone."""
        found: list[tuple[Device, int]] = []
        while self._set is not None and len(found) < _MOST_AT_ONCE:
            try:
                event = self._driver.call("nvmlEventSetWait_v2", self._set, 0)
            except NotOffered:
                break
            except NvmlError as error:
                if code(error) == pynvml.NVML_ERROR_TIMEOUT:
                    break
                raise
            gpu = self._gpus.get(_address(event.device))
            if gpu is not None and event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                found.append((gpu, int(event.eventData)))
        return found

    def close(self) -> None:
        """Give the set back to the driver."""
        if self._set is not None:
            with contextlib.suppress(NotOffered, NvmlError):
                self._driver.call("nvmlEventSetFree", self._set)
            self._set = None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
