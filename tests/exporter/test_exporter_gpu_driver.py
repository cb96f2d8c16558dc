"""The NVIDIA driver in all its states: old, new, gone, reloaded; and GPUs that come and go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import Scrape
from tests.exporter.gpu_machine import UUIDS, Machine, of_gpus, readings, success


@pytest.fixture
def machine(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> Machine:
    return Machine(start_exporter, fake_nvml, tmp_path, gpus=2)


def last_success(scrape: Scrape) -> float:
    value = scrape.value("trainvitals_collector_last_success_timestamp_seconds", collector="nvidia")
    assert value is not None
    return value


def test_gpus_that_disappear_and_return(machine: Machine) -> None:
    healthy = {gpu: readings(machine.scrape(), gpu) for gpu in ("0", "1")}
    machine.say("gpu1.lost=1", "gpu0.power_milliwatts=71000", "gpu0.handle=error:15")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the loss shows")
    assert readings(scrape, "1") == {}
    assert scrape.series("trainvitals_gpu_info", gpu="1") == []
    assert readings(scrape, "0") == {**healthy["0"], "power_watts": 71}, "the other one goes on"
    machine.exporter.scrape_until(lambda s: readings(s, "0") == {}, "the driver, opened anew, lacks it as well")
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "they return")
    assert {gpu: readings(scrape, gpu) for gpu in ("0", "1")} == healthy


def test_gpu_that_may_not_be_used(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    scrape = Machine(start_exporter, fake_nvml, tmp_path, "gpu0.handle=error:4", gpus=2).scrape()
    assert readings(scrape, "0") == {}
    assert readings(scrape, "1")
    assert success(scrape) == 1


@pytest.mark.parametrize("how", ["unloaded", "mismatch"])
def test_driver_reloaded(machine: Machine, how: str) -> None:
    before = machine.scrape()
    machine.say(f"driver={how}")
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the driver is gone")
    assert of_gpus(scrape) == []
    assert last_success(scrape) >= last_success(before), "the time of the last success stays"
    assert last_success(machine.scrape()) == last_success(scrape)
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "the driver is back")
    assert readings(scrape, "0") == readings(before, "0")
    told = [line for line in machine.exporter.log if "collector nvidia" in line]
    assert len(told) == 2, "only changes are logged"


def test_calls(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    """Eight GPUs that offer everything: few calls, one at a time, and none that blocks."""
    machine = Machine(start_exporter, fake_nvml, tmp_path)
    calls, start = machine.calls, time.monotonic()
    time.sleep(10)
    per_gpu_and_second = (machine.calls - calls) / (time.monotonic() - start) / 8
    assert 1 < per_gpu_and_second < 7  # a slow machine makes fewer
    assert machine.overlapping_calls == 0
    assert machine.blocking_calls == 0


def test_old_driver(start_exporter: StartExporter, fake_old_nvml: Path, tmp_path: Path) -> None:
    scrape = Machine(start_exporter, fake_old_nvml, tmp_path, "gpu0.ecc_corrected=5", gpus=1).scrape()
    told = readings(scrape, "0")
    assert told["memory_used_bytes"] == 8.5 * 2**30, "the driver's own memory is not told apart"
    assert "memory_reserved_bytes" not in told
    assert "pcie_transmit_bytes_total" not in told
    assert told["energy_joules_total"] == 123456.789
    assert told["ecc_errors_total corrected"] == 5
    assert told["remapped_rows correctable"] == 0
    assert told["clocks_event_active sw_power_cap"] == 1
    assert told["process_memory_bytes 5000001"] == 2**30
    assert success(scrape) == 1


def test_new_driver(start_exporter: StartExporter, fake_new_nvml: Path, tmp_path: Path) -> None:
    told = readings(Machine(start_exporter, fake_new_nvml, tmp_path, gpus=1).scrape(), "0")
    assert told["temperature_celsius"] == 66
    assert told["clocks_event_active sw_power_cap"] == 1


def test_driver_whose_process_lists_are_not_to_be_read(
    start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path
) -> None:
    """Its entries are longer than pynvml knows: process ids would be garbage."""
    told = readings(Machine(start_exporter, fake_nvml, tmp_path, "driver_version=535.54.03", gpus=1).scrape(), "0")
    assert not [name for name in told if name.startswith("process_memory")]
    assert told["temperature_celsius"] == 66


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
    assert of_gpus(scrape) == []
    assert any("nvidia has nothing to report" in line for line in exporter.log)


def test_gpu_appears(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path, "gpus=1")
    assert readings(machine.scrape(), "1") == {}
    machine.say("gpus=2")
    scrape = machine.exporter.scrape_until(lambda s: readings(s, "1"), "the second GPU shows")
    assert {labels["uuid"] for labels, _ in scrape.series("trainvitals_gpu_info")} == set(UUIDS[:2])
