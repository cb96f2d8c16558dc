"""GPU metrics, on a fake driver whose readings and faults are switched while the exporter runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import ExporterProcess, Scrape

UUIDS = [f"GPU-00000000-0000-0000-0000-{index:012}" for index in range(8)]
READINGS = {
    "trainvitals_gpu_utilization_ratio": 0.9,
    "trainvitals_gpu_memory_bandwidth_utilization_ratio": 0.4,
    "trainvitals_gpu_memory_total_bytes": 24 * 2**30,
    "trainvitals_gpu_memory_used_bytes": 8 * 2**30,
    "trainvitals_gpu_memory_free_bytes": 15.5 * 2**30,
    "trainvitals_gpu_memory_reserved_bytes": 2**29,
    "trainvitals_gpu_power_watts": 285,
    "trainvitals_gpu_power_limit_watts": 350,
    "trainvitals_gpu_energy_joules_total": 123456.789,
    "trainvitals_gpu_temperature_celsius": 66,
}
MEMORY = [name for name in READINGS if name.startswith("trainvitals_gpu_memory_") and name.endswith("_bytes")]
UTILIZATION = ["trainvitals_gpu_utilization_ratio", "trainvitals_gpu_memory_bandwidth_utilization_ratio"]


class Machine:
    """A machine with GPUs, and an exporter on it."""

    def __init__(
        self, start_exporter: StartExporter, driver: Path, state: Path, gpus: int = 2, collectors: str = "nvidia"
    ) -> None:
        self._state = state
        self.say()
        env = {"LD_LIBRARY_PATH": str(driver), "FAKE_NVML_STATE": str(state), "FAKE_NVML_GPUS": str(gpus)}
        self.exporter: ExporterProcess = start_exporter("--collectors", collectors, env=env)

    def say(self, *lines: str) -> None:
        """What the fake driver reports from now on."""
        new = self._state.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self._state)


@pytest.fixture
def machine(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> Machine:
    return Machine(start_exporter, fake_nvml, tmp_path / "state")


def readings(scrape: Scrape, gpu: str) -> dict[str, float]:
    return {name: value for name in READINGS for _, value in scrape.series(name, gpu=gpu, uuid=UUIDS[int(gpu)])}


def success(scrape: Scrape) -> float | None:
    return scrape.value("trainvitals_collector_success", collector="nvidia")


def test_healthy_gpus(machine: Machine) -> None:
    scrape = machine.exporter.scrape()
    assert readings(scrape, "0") == readings(scrape, "1") == READINGS
    assert success(scrape) == 1
    [(info, _)] = scrape.series("trainvitals_gpu_info", uuid=UUIDS[1])
    assert info == {
        "uuid": UUIDS[1],
        "gpu": "1",
        "name": "NVIDIA GeForce RTX 3090",
        "driver_version": "550.54.15",
        "cuda_version": "12.4",
        "pci_bus_id": "00000000:02:00.0",
    }


# What each GPU's driver answers for one reading, and what is absent then.
NOT_TO_BE_HAD = [
    ("memory=unsupported", MEMORY),
    ("utilization=101", UTILIZATION[:1]),
    ("utilization=unsupported", UTILIZATION),
    ("power_milliwatts=4294967295", ["trainvitals_gpu_power_watts"]),
    ("energy_millijoules=unsupported", ["trainvitals_gpu_energy_joules_total"]),
    ("temperature=error:4", ["trainvitals_gpu_temperature_celsius"]),
    ("memory_total=18446744073709551615", ["trainvitals_gpu_memory_total_bytes", "trainvitals_gpu_memory_free_bytes"]),
]


def test_what_cannot_be_read_is_absent(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path / "state", gpus=8)
    faults = [f"gpu{index}.{fault}" for index, (fault, _) in enumerate(NOT_TO_BE_HAD)]
    machine.say(*faults)
    scrape = machine.exporter.scrape_until(lambda s: not s.series(MEMORY[0], gpu="0"), "the readings disappear")
    for index, (_, absent) in enumerate(NOT_TO_BE_HAD):
        assert readings(scrape, str(index)) == {name: READINGS[name] for name in READINGS if name not in absent}
    assert readings(scrape, "7") == READINGS
    assert success(scrape) == 1, "that a card does not offer something is no failure"
    machine.say(*faults, "gpu7.temperature=error:999")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "an unexpected error is one")
    assert readings(scrape, "7").keys() == READINGS.keys() - {"trainvitals_gpu_temperature_celsius"}


def test_lost_gpu_and_its_return(machine: Machine) -> None:
    machine.say("gpu1.lost=1", "gpu0.utilization=12")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the loss shows")
    assert readings(scrape, "1") == {}
    assert scrape.series("trainvitals_gpu_info", gpu="1") == []
    assert readings(scrape, "0") == {**READINGS, "trainvitals_gpu_utilization_ratio": 0.12}, "the other one goes on"
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the GPU returns")
    assert readings(scrape, "1") == READINGS


def test_gpu_that_may_not_be_used(machine: Machine) -> None:
    machine.say("driver=unloaded")
    machine.exporter.scrape_until(lambda s: success(s) == 0, "the driver is gone")
    machine.say("gpu0.handle=error:4")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the driver is back")
    assert readings(scrape, "0") == {}
    assert readings(scrape, "1") == READINGS


def test_driver_reloaded(machine: Machine) -> None:
    before = machine.exporter.scrape().value("trainvitals_collector_last_success_timestamp_seconds", collector="nvidia")
    machine.say("driver=unloaded")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the driver is gone")
    assert readings(scrape, "0") == readings(scrape, "1") == {}
    last = scrape.value("trainvitals_collector_last_success_timestamp_seconds", collector="nvidia")
    assert before is not None
    assert last is not None
    assert last >= before, "the time of the last success stays"
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the driver is back")
    assert readings(scrape, "0") == readings(scrape, "1") == READINGS
    told = [line for line in machine.exporter.log if "collector nvidia" in line]
    assert len(told) == 2, "only changes are logged"


def test_hung_driver(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path / "state", collectors="nvidia,memory")
    machine.say("hang_seconds=600")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the hang shows")
    assert readings(scrape, "0") == readings(scrape, "1") == {}
    assert scrape.value("trainvitals_collector_success", collector="memory") == 1
    assert scrape.value("trainvitals_host_memory_total_bytes")
    assert machine.exporter.stop() == 0, "a hung driver does not keep the exporter from ending"


def test_old_driver(start_exporter: StartExporter, fake_old_nvml: Path, tmp_path: Path) -> None:
    scrape = Machine(start_exporter, fake_old_nvml, tmp_path / "state").exporter.scrape()
    expected = {**READINGS, "trainvitals_gpu_memory_used_bytes": 8.5 * 2**30}
    del expected["trainvitals_gpu_memory_reserved_bytes"]
    assert readings(scrape, "0") == expected
    assert success(scrape) == 1


@pytest.mark.parametrize("why", ["no driver library", "no GPU"])
def test_host_without_gpu(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path, why: str) -> None:
    library = tmp_path / "empty"
    library.mkdir()
    if why == "no driver library":
        (library / "libnvidia-ml.so.1").write_text("not a library")  # hides that of a machine that has one
    env = {"LD_LIBRARY_PATH": str(library if why == "no driver library" else fake_nvml), "FAKE_NVML_GPUS": "0"}
    exporter = start_exporter("--collectors", "nvidia,memory", env=env)
    scrape = exporter.scrape()
    assert success(scrape) == 0
    assert scrape.value("trainvitals_collector_success", collector="memory") == 1
    assert not [sample for sample in scrape.samples if sample.name.startswith("trainvitals_gpu_")]
    assert any("nvidia has nothing to report" in line for line in exporter.log)
