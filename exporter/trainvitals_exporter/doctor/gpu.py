"""Can GPUs be read on this machine, by this user?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trainvitals_exporter.collectors.nvidia.driver import GPU_NOT_FOUND
from trainvitals_exporter.doctor.findings import Finding, Where, not_checked, ok, problem, warning

_DEVICES: Final = Path("/dev")
_PCI: Final = Path("/sys/bus/pci/devices")
_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"


def check(_where: Where) -> Iterator[Finding]:
    """NVML, and what it needs."""
    import pynvml

    here = cards()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield _why_not(error, pynvml, here)
        return
    try:
        version, count = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
        if count:
            yield ok("gpu driver", f"NVIDIA driver {version}, {count} GPU{'' if count == 1 else 's'}")
        else:
            yield warning(
                "gpu driver", f"NVIDIA driver {version} is loaded and shows no GPU",
                "in a container, give it the GPUs (docker run --gpus all); else see `nvidia-smi` and `dmesg`",
            )  # fmt: skip
    except pynvml.NVMLError as error:
        yield _why_not(error, pynvml, here)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _why_not(error: Exception, pynvml: object, here: int) -> Finding:
    code = getattr(error, "value", None)

    def is_(name: str) -> bool:
        return bool(code == getattr(pynvml, f"NVML_ERROR_{name}"))

    closed = _closed_devices()
    if is_("NO_PERMISSION") or (closed and not is_("LIBRARY_NOT_FOUND")):
        which = closed[0] if closed else "the driver"
        return problem(
            "gpu driver", f"no permission to use {which}",
            "add this user to the group that owns the file (often video or render), or make /dev/nvidia* readable and "
            "writable for all, as the driver does by default; root would see the GPUs",
        )  # fmt: skip
    if is_("LIB_RM_VERSION_MISMATCH"):
        return problem(
            "gpu driver", "the driver's library and its kernel module are of different versions",
            "reboot, or load the new kernel module: the driver was upgraded while it was loaded",
        )  # fmt: skip
    if not here and (is_("LIBRARY_NOT_FOUND") or is_("DRIVER_NOT_LOADED") or code == GPU_NOT_FOUND):
        return not_checked("gpu driver", "no NVIDIA GPU is here; all else works without")
    if is_("LIBRARY_NOT_FOUND"):
        return problem(
            "gpu driver", "there is an NVIDIA GPU, and no libnvidia-ml.so.1 to read it by",
            "install the NVIDIA driver; in a container, start it with the NVIDIA runtime (docker run --gpus all) and "
            "NVIDIA_DRIVER_CAPABILITIES=utility,compute",
        )  # fmt: skip
    return problem("gpu driver", f"the NVIDIA driver does not answer: {error}", "see what `nvidia-smi` and `dmesg` say")


def _closed_devices() -> list[str]:
    """The driver's device files that this user may not open."""
    names = [path for path in _DEVICES.glob("nvidia*") if path.name == "nvidiactl" or path.name[6:].isdigit()]
    return [str(path) for path in sorted(names) if not os.access(path, os.R_OK | os.W_OK)]


def cards() -> int:
    """How many NVIDIA GPUs the PCI bus shows."""
    found = 0
    for device in _PCI.glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text()
            found += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return found
