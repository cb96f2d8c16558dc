"""A machine with the fake NVIDIA driver of tests/fake_nvml, and an exporter on it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from trainvitals import catalogue

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import ExporterProcess, Scrape

PROFILES = Path(__file__).parents[1] / "fake_nvml" / "profiles"
UUIDS = [f"GPU-00000000-0000-0000-0000-{index:012}" for index in range(64)]
PREFIX = catalogue.PREFIX + "gpu_"


class Machine:
    """The machine of a profile, without its XIDs, and with what `lines` say."""

    def __init__(
        self,
        start_exporter: StartExporter,
        driver: Path,
        folder: Path,
        *lines: str,
        profile: str = "everything",
        gpus: int | None = None,
        arguments: tuple[str, ...] = ("--collectors", "nvidia"),
    ) -> None:
        self._state = folder / "state"
        self._counters = folder / "counters"
        self.release_file = folder / "release"
        self._lines = ("events=", *lines)
        self.say()
        env = {
            "LD_LIBRARY_PATH": str(driver),
            "FAKE_NVML_PROFILE": str(PROFILES / profile),
            "FAKE_NVML_STATE": str(self._state),
            "FAKE_NVML_COUNTERS": str(self._counters),
            "TRAINVITALS_EXPORTER_GPU_RELEASE_FILE": str(self.release_file),
        }
        if gpus is not None:
            env["FAKE_NVML_GPUS"] = str(gpus)
        self.exporter: ExporterProcess = start_exporter(*arguments, env=env)

    def say(self, *lines: str) -> None:
        """What the fake driver reports from now on, besides what it did at first."""
        new = self._state.with_suffix(".new")
        new.write_bytes(os.fsencode("".join(f"{line}\n" for line in (*self._lines, *lines))))
        new.rename(self._state)

    def scrape(self) -> Scrape:
        return self.exporter.scrape()

    @property
    def calls(self) -> int:
        """How many calls the driver got."""
        return self._counter(0)

    @property
    def blocking_calls(self) -> int:
        """How many of them were of the kind that blocks."""
        return self._counter(1)

    @property
    def overlapping_calls(self) -> int:
        """How many began while another one was under way."""
        return self._counter(2)

    @property
    def is_open(self) -> bool:
        """Whether the exporter has the driver open."""
        return self._counter(3) > 0

    def _counter(self, place: int) -> int:
        return int(struct.unpack_from("=Q", self._counters.read_bytes(), 8 * place)[0])


def readings(scrape: Scrape, gpu: str) -> dict[str, float]:
    """All that is told of a GPU: values by the metric's name without the prefix, and its own labels' values."""
    found = {}
    for sample in scrape.samples:
        if sample.name.startswith(PREFIX) and sample.labels["gpu"] == gpu and not sample.name.endswith("_info"):
            own = [value for label, value in sorted(sample.labels.items()) if label not in ("gpu", "uuid") and value]
            found[" ".join([sample.name.removeprefix(PREFIX), *own])] = sample.value
    return found


def success(scrape: Scrape) -> float | None:
    """Whether the newest collection succeeded."""
    return scrape.value("trainvitals_collector_success", collector="nvidia")


def of_gpus(scrape: Scrape) -> list[str]:
    """The names of all samples about GPUs."""
    return [sample.name for sample in scrape.samples if sample.name.startswith(PREFIX)]
