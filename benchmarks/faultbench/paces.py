"""Windows and paces of hooks and exporter, in a world in which time passes faster.

Patched from outside, because nobody else has a use for such a switch. What is in real time in both worlds: how long an
iteration takes, the hooks' own budget, the driver's time-outs.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from trainvitals.imports import when_imported

# Looking through /proc is dear where a dozen runs share two cores.
_SHORTEST: Final = {"processes": 1.0, "data_mounts": 5.0, "pss": 10.0}
_SHORTEST_ELSE: Final = 0.25
_RATE_WINDOW: Final = "_RATE_WINDOW_SECONDS"
_COLLECTORS: Final = (
    "cpu", "data_mounts", "disks", "filesystems", "network", "nvidia", "owners", "pressure", "processes",
    "shm",
)  # fmt: skip


def compress(factor: float) -> None:
    """Divide by `factor` what the modules of this process, imported from now on, do every so many seconds."""
    if factor == 1:
        return
    when_imported("trainvitals.baselines", lambda module: _shorten_window(module, factor))
    when_imported("trainvitals.vitals", lambda module: _shorten_rate(module, factor))
    package = "trainvitals_exporter.collectors"
    for name in _COLLECTORS:
        when_imported(f"{package}.{name}", lambda module: _shorten_intervals(module, factor))
    when_imported(f"{package}.memory", lambda module: _show_memory(module, factor))
    when_imported(f"{package}.nvidia.device", lambda module: _divide(module, "_EARLY_SECONDS", factor))
    when_imported(f"{package}.nvidia.readings", lambda module: _shorten_readings(module, factor))
    when_imported(f"{package}.nvidia.session", lambda module: _divide(module, "_FIRST_REOPEN_SECONDS", factor))


def show_gpu(index: int) -> None:
    """Let torch show the tests' fake CUDA, whose device 0 is GPU `index` of the fake driver."""
    from tests.hooks import fake_cuda

    class Properties(fake_cuda.Properties):
        name = "NVIDIA GeForce RTX 3090"
        total_memory = 24 << 30
        uuid = f"GPU-00000000-0000-0000-0000-{index:012}"

        def __init__(self, device: Any) -> None:
            pass

    fake_cuda.Properties = Properties  # type: ignore[assignment, misc]
    fake_cuda.fake.memory = [fake_cuda.memory()]
    fake_cuda.prepare()


def _divide(module: ModuleType, name: str, factor: float) -> None:
    setattr(module, name, getattr(module, name) / factor)


def _shorten_rate(module: ModuleType, factor: float) -> None:
    # One value a second, so it has to be a whole number.
    setattr(module, _RATE_WINDOW, max(1, round(getattr(module, _RATE_WINDOW) / factor)))


def _shorten_window(module: ModuleType, factor: float) -> None:
    (window,) = module.RollingExtreme.__init__.__defaults__
    module.RollingExtreme.__init__.__defaults__ = (window / factor,)


def _shorten_intervals(module: ModuleType, factor: float) -> None:
    for each in vars(module).values():
        if isinstance(each, type) and each.__module__ == module.__name__ and hasattr(each, "interval"):
            each.interval = max(each.interval / factor, _SHORTEST.get(getattr(each, "name", ""), _SHORTEST_ELSE))


def _show_memory(module: ModuleType, factor: float) -> None:
    _shorten_intervals(module, factor)
    folder = os.environ.get("FAULTBENCH_MEMINFO")
    if folder:  # a smaller machine than this one, whose memory can be used up
        setattr(module, "create", lambda settings: module.Memory(Path(folder)))  # noqa: B010


def _shorten_readings(module: ModuleType, factor: float) -> None:
    _divide(
        module, "WINDOW_SECONDS", factor / 2
    )  # else it could hold no sample of the driver, which takes six a second
    for name in ("GPU_READERS", "MIG_READERS"):
        readers = getattr(module, name)
        setattr(module, name, tuple(reader._replace(seconds=reader.seconds / factor) for reader in readers))
