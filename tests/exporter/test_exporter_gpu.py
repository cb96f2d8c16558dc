"""What is read of a GPU, on a fake driver whose readings and faults are switched while the exporter runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from trainvitals_exporter.collectors.nvidia.counters import Counters
from trainvitals_exporter.collectors.nvidia.device import Reading

from tests.conftest import tool, wait_until
from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.exporter_process import Scrape
from tests.exporter.gpu_machine import UUIDS, Machine, readings, success

HEALTHY = {
    "utilization_ratio": 0.9,
    "utilization_ratio_max": 0.9,
    "memory_bandwidth_utilization_ratio": 0.4,
    "memory_total_bytes": 150754820096,
    "memory_used_bytes": 8 * 2**30,
    "memory_free_bytes": 150754820096 - 8.5 * 2**30,
    "memory_reserved_bytes": 2**29,
    "power_watts": 285,
    "power_limit_watts": 350,
    "energy_joules_total": 123456.789,
    "temperature_celsius": 66,
    "memory_temperature_celsius": 61,
    "clock_hertz graphics": 1695e6,
    "clock_hertz sm": 1695e6,
    "clock_hertz memory": 9501e6,
    "clock_hertz video": 1545e6,
    "fan_speed_ratio": 0.55,
    "performance_state": 2,
    "pcie_transmit_bytes_total": 123456789012,
    "pcie_receive_bytes_total": 234567890123,
    "pcie_link_generation": 4,
    "pcie_link_width": 16,
    "nvlink_transmit_bytes_total": 2**30,
    "nvlink_receive_bytes_total": 2**31,
    "ecc_errors_total corrected": 7,
    "ecc_errors_total uncorrected": 0,
    "remapped_rows correctable": 1,
    "remapped_rows uncorrectable": 0,
    "encoder_utilization_ratio": 0,
    "decoder_utilization_ratio": 0,
    "clocks_event_seconds_total sw_power_cap": 90,
    "clocks_event_seconds_total sync_boost": 0,
    "clocks_event_seconds_total sw_thermal_slowdown": 2.5,
    "clocks_event_seconds_total hw_thermal_slowdown": 0,
    "clocks_event_seconds_total hw_power_brake_slowdown": 0,
    "clocks_event_active gpu_idle": 0,
    "clocks_event_active applications_clocks_setting": 0,
    "clocks_event_active sw_power_cap": 1,
    "clocks_event_active hw_slowdown": 0,
    "clocks_event_active sync_boost": 0,
    "clocks_event_active sw_thermal_slowdown": 0,
    "clocks_event_active hw_thermal_slowdown": 0,
    "clocks_event_active hw_power_brake_slowdown": 0,
    "clocks_event_active display_clock_setting": 0,
    **{f"process_memory_bytes {pid}": 2**30 for pid in range(5000001, 5000005)},
    **{f"process_utilization_ratio {pid}": 0.2 for pid in range(5000001, 5000005)},
}
MEMORY = [f"memory_{kind}_bytes" for kind in ("total", "used", "free", "reserved")]
UTILIZATION = ["utilization_ratio", "utilization_ratio_max"]
EVENTS = [name for name in HEALTHY if name.startswith("clocks_event_active")]
PROCESS_MEMORY = [name for name in HEALTHY if name.startswith("process_memory")]
PROCESS_UTILIZATION = [name for name in HEALTHY if name.startswith("process_utilization")]
ABSENT = float("nan")

# What the driver answers for a GPU (I stands for its number), and how that changes what is told of it.
ANSWERS: list[tuple[list[str], dict[str, float]]] = [
    # The card does not offer it, the driver does not know it, or the user may not.
    (["memory=unsupported"], dict.fromkeys(MEMORY, ABSENT)),
    (["utilization=unsupported", "samples=unsupported", "memory_utilization=unsupported"],
     dict.fromkeys([*UTILIZATION, "memory_bandwidth_utilization_ratio"], ABSENT)),
    (["temperature=error:4"], {"temperature_celsius": ABSENT}),
    (["event_reasons=unsupported"], dict.fromkeys(EVENTS, ABSENT)),
    (["supported_event_reasons=0x4"], {n: ABSENT for n in EVENTS if not n.endswith("sw_power_cap")}),
    (["processes=error:4"], dict.fromkeys(PROCESS_MEMORY, ABSENT)),
    (["process_utilization=unsupported"], dict.fromkeys(PROCESS_UTILIZATION, ABSENT)),
    (["fan=unsupported", "performance_state=error:13", "encoder=unsupported", "pcie_width=unsupported"],
     dict.fromkeys(["fan_speed_ratio", "performance_state", "encoder_utilization_ratio", "pcie_link_width"], ABSENT)),
    (["field.82=unsupported", "field.197=error:2"],
     {"memory_temperature_celsius": ABSENT, "pcie_transmit_bytes_total": ABSENT}),
    # There is another way to it.
    (["samples=unsupported", "utilization=33"], dict.fromkeys(UTILIZATION, 0.33)),
    (["field.83=unsupported", "energy_millijoules=5000"], {"energy_joules_total": 5}),
    (["field.3=unsupported", "field.4=unsupported", "ecc_corrected=12", "ecc_uncorrected=3"],
     {"ecc_errors_total corrected": 12, "ecc_errors_total uncorrected": 3}),
    (["field.142=unsupported", "field.143=unsupported", "remapped_correctable=2", "remapped_uncorrectable=9"],
     {"remapped_rows correctable": 2, "remapped_rows uncorrectable": 9}),
    (["field.138=unsupported", "field.202=777"], {"nvlink_transmit_bytes_total": 777}),
    (["field.269=error:2", "field.270=error:2", "field.75=4000000000"],
     {"clocks_event_seconds_total sw_thermal_slowdown": ABSENT,
      "clocks_event_seconds_total hw_thermal_slowdown": ABSENT, "clocks_event_seconds_total thermal": 4}),
    # Garbage.
    (["samples=101,4294967295", "memory_utilization=101"],
     dict.fromkeys([*UTILIZATION, "memory_bandwidth_utilization_ratio"], ABSENT)),
    (["power_milliwatts=0", "name=\udcff"], {"power_watts": ABSENT}),
    (["power_milliwatts=4294967295", "power_limit_milliwatts=0"],
     {"power_watts": ABSENT, "power_limit_watts": ABSENT}),
    (["temperature=4294967295", "field.82=0"], {"temperature_celsius": ABSENT, "memory_temperature_celsius": ABSENT}),
    (["memory_total=18446744073709551615"], dict.fromkeys(MEMORY, ABSENT)),
    (["memory_used=1099511627776"], {"memory_used_bytes": ABSENT, "memory_free_bytes": ABSENT}),
    (["clock_memory=0", "fan=201", "performance_state=32", "pcie_generation=4294967295", "decoder=101"],
     dict.fromkeys(["clock_hertz memory", "fan_speed_ratio", "performance_state", "pcie_link_generation",
                    "decoder_utilization_ratio"], ABSENT)),
    (["field.198=u32:4000000000"], {"pcie_receive_bytes_total": ABSENT}),  # it would wrap between two readings
    (["processes=0:5,5000001:na,5000002:1073741824", "process_utilization=5000001:101,5000002:20,0:3"],
     {n: ABSENT for n in [*PROCESS_MEMORY, *PROCESS_UTILIZATION] if not n.endswith("5000002")}),
    # Unusual, but true.
    (["fan=110", "utilization=0", "graphics_processes=5000001:2147483648,5000009:1"],
     {"fan_speed_ratio": 1.1, "utilization_ratio": 0, "utilization_ratio_max": 0,
      "process_memory_bytes 5000001": 2**31, "process_memory_bytes 5000009": 1}),
]  # fmt: skip


def with_changes(changes: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in {**HEALTHY, **changes}.items() if value == value}


def test_what_cannot_be_read_is_absent(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    lines = [f"gpu{gpu}.{line}" for gpu, (answers, _) in enumerate(ANSWERS) for line in answers]
    healthy = len(ANSWERS)
    machine = Machine(start_exporter, fake_nvml, tmp_path, "gpu7.mig_mode=0", *lines, gpus=healthy + 2)
    scrape = machine.scrape()
    for gpu, (answers, changes) in enumerate(ANSWERS):
        assert readings(scrape, str(gpu)) == with_changes(changes), answers
    assert readings(scrape, str(healthy)) == HEALTHY
    assert success(scrape) == 1, "that a card does not offer something is no failure"

    machine.say(f"gpu{healthy}.temperature=error:999", f"gpu{healthy + 1}.field.83=error:999")
    without = HEALTHY.keys() - {"temperature_celsius"}
    scrape = machine.exporter.scrape_until(
        lambda s: readings(s, str(healthy)).keys() == without, "the reading that failed, and no other, disappears"
    )
    assert success(scrape) == 0, "an unexpected error is a failure"
    wait_until(
        lambda: any(f"GPU {healthy}: " in line and f"GPU {healthy + 1}: " in line for line in machine.exporter.log),
        "the log says which GPUs are in trouble",
    )
    machine.say()
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 1, "it is over")
    assert readings(scrape, str(healthy)) == HEALTHY


def test_peak_between_scrapes(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    """Six samples a second: the GPU is busy for a sixth of a second, once every ten."""
    rare_peak = "gpu0.samples=" + ",".join(["10"] * 59 + ["70"])
    machine = Machine(start_exporter, fake_nvml, tmp_path, rare_peak, "gpu1.samples=0,100", gpus=2)
    for _ in range(6):
        scrape = machine.scrape()
        assert readings(scrape, "0")["utilization_ratio_max"] == 0.7
        assert 0.1 < readings(scrape, "0")["utilization_ratio"] < 0.13
        assert readings(scrape, "1")["utilization_ratio_max"] == 1
        assert 0.4 < readings(scrape, "1")["utilization_ratio"] < 0.6
        time.sleep(1)
    machine.say("gpu0.samples=20")
    machine.exporter.scrape_until(lambda s: readings(s, "0")["utilization_ratio_max"] == 0.2, "the peak is past")


def test_counters_that_fall() -> None:
    def served(*values: float) -> list[float]:
        counters = Counters()
        return [value for value in values if counters.believed("key", Reading("name", value))]

    assert served(5, 6, 6, 7) == [5, 6, 6, 7]
    assert served(1000, 3, 1001, 1002) == [1000, 1001, 1002], "one value was garbage"
    assert served(1000, 3, 4, 5) == [1000, 4, 5], "it started anew"
    assert served(1000, 900, 800, 801) == [1000, 801]
    wrapping = [(3 * step) % 10 for step in range(200)]
    assert len(served(*map(float, wrapping))) < 20, "a register that wraps all the time is no counter"
    kept = Reading("name", 3)
    counters = Counters()
    assert counters.believed("key", Reading("name", 1000))
    assert not any(counters.believed("key", kept) for _ in range(3)), "a value that is not read anew confirms nothing"
    assert counters.believed("another key", kept)


def test_a_gpu_that_was_reset_counts_anew(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path, gpus=1)
    name = "trainvitals_gpu_energy_joules_total"
    assert machine.scrape().value(name) == 123456.789
    machine.say("gpu0.energy_millijoules=2000")
    machine.exporter.scrape_until(lambda s: s.value(name) is None, "a lower value is not believed")
    machine.say("gpu0.energy_millijoules=3000")
    scrape = machine.exporter.scrape_until(lambda s: s.value(name) is not None, "it is confirmed")
    assert scrape.value(name) == 3
    assert success(scrape) == 1


def xids(scrape: Scrape) -> dict[tuple[str, str], float]:
    found = scrape.series("trainvitals_gpu_xid_errors_total")
    return {(labels["uuid"], labels["xid"]): count for labels, count in found}


def test_xids(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    before = time.time()
    machine = Machine(start_exporter, fake_nvml, tmp_path, gpus=3)
    assert xids(machine.scrape()) == {}
    machine.say("events=1/0/31;2/2/94;3/0/31")
    scrape = machine.exporter.scrape_until(xids, "the XIDs show")
    assert xids(scrape) == {(UUIDS[0], "31"): 2, (UUIDS[2], "94"): 1}
    first = scrape.value("trainvitals_gpu_xid_last_timestamp_seconds", uuid=UUIDS[0], xid="31")
    assert first is not None
    assert before <= first <= time.time()
    machine.say("events=4/1/79;5/0/31", "gpu1.lost=1")
    scrape = machine.exporter.scrape_until(lambda s: len(xids(s)) == 3, "an XID of a GPU that fell off the bus shows")
    assert xids(scrape) == {(UUIDS[0], "31"): 3, (UUIDS[1], "79"): 1, (UUIDS[2], "94"): 1}
    assert scrape.series("trainvitals_gpu_info", uuid=UUIDS[1]) == []
    last = scrape.value("trainvitals_gpu_xid_last_timestamp_seconds", uuid=UUIDS[0], xid="31")
    assert last is not None
    assert last > first
    scrape = machine.exporter.scrape_until(lambda s: success(s) == 0, "the loss shows")
    assert xids(scrape)[UUIDS[0], "31"] == 3, "each is told once"


def test_processes_of_runs(
    start_exporter: StartExporter, start_run_file: StartRunFile, fake_nvml: Path, tmp_path: Path, run_dir: Path
) -> None:
    ranks = [start_run_file("training", "rank", rank=rank) for rank in (0, 1)]
    launcher = start_run_file("training", "launcher")
    # A stranger, whose parent is this test.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        machine = Machine(
            start_exporter, fake_nvml, tmp_path,
            f"gpu*.processes={ranks[0].pid}:1000,{launcher.pid}:10,{stranger.pid}:1",
            f"gpu1.processes={ranks[1].pid}:2000",
            f"gpu*.process_utilization={ranks[0].pid}:80,{stranger.pid}:5",
            "gpu1.process_utilization=",
            gpus=2, arguments=("--collectors", "nvidia", "--run-dir", str(run_dir)),
        )  # fmt: skip
        scrape = machine.scrape()
        stranger.kill()
    memory = scrape.series("trainvitals_gpu_process_memory_bytes")
    assert {(s["gpu"], s["pid"], s.get("run", ""), s.get("rank", "")): value for s, value in memory} == {
        ("0", str(ranks[0].pid), "training", "0"): 1000,
        ("0", str(launcher.pid), "training", ""): 10,
        ("0", str(stranger.pid), "", ""): 1,
        ("1", str(ranks[1].pid), "training", "1"): 2000,
    }
    utilization = scrape.series("trainvitals_gpu_process_utilization_ratio", gpu="0")
    assert {(s["pid"], s.get("rank", "")): value for s, value in utilization} == {
        (str(ranks[0].pid), "0"): 0.8,
        (str(stranger.pid), ""): 0.05,
    }


IN_A_CONTAINER = """
import subprocess, sys
from pathlib import Path
from trainvitals.runfile import Identity, RunFileWriter
writer = RunFileWriter(Path(sys.argv[1]), Identity("boxed", "boxed", "rank", "train.py"), 3)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(writer.path, flush=True)
input()
"""


def test_processes_of_a_run_in_a_pid_namespace_of_its_own(
    start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path, run_dir: Path
) -> None:
    unprivileged = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = [tool("unshare"), *unprivileged, "--pid", "--fork", "--kill-child", sys.executable, "-c", IN_A_CONTAINER]
    with subprocess.Popen([*command, run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as outside:
        assert outside.stdout is not None
        assert ".rank.1." in outside.stdout.readline(), "in there, the rank is process 1"
        [rank] = children(outside.pid)
        [child] = children(rank)
        machine = Machine(
            start_exporter, fake_nvml, tmp_path, f"gpu0.processes={rank}:1000,{child}:10,{outside.pid}:1",
            gpus=1, arguments=("--collectors", "nvidia", "--run-dir", str(run_dir)),
        )  # fmt: skip
        memory = machine.scrape().series("trainvitals_gpu_process_memory_bytes")
        outside.kill()
    assert {(s["pid"], s.get("run", ""), s.get("rank", "")) for s, _ in memory} == {
        (str(rank), "boxed", "3"),
        (str(child), "boxed", "3"),
        (str(outside.pid), "", ""),
    }


def children(pid: int) -> list[int]:
    """The processes that a process has started, as this PID namespace names them."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_mig_instances_come_and_go(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    machine = Machine(start_exporter, fake_nvml, tmp_path, profile="h100_mig")

    def instances(scrape: Scrape) -> set[str]:
        assert not scrape.series("trainvitals_gpu_mig_info", parent_uuid=UUIDS[1])
        return {labels["gpu"] for labels, _ in scrape.series("trainvitals_gpu_memory_used_bytes")} - {"0", "1"}

    assert instances(machine.scrape()) == {"0.1.0", "0.2.0", "0.9.0"}
    machine.say("gpu0.mig_instances=1.0,-,4.0,9.0")
    scrape = machine.exporter.scrape_until(
        lambda s: instances(s) == {"0.1.0", "0.4.0", "0.9.0"} and success(s) == 1, "one was destroyed, another made"
    )
    assert set(readings(scrape, "0.4.0")) >= set(MEMORY)
    machine.say("gpu0.mig_mode=0", "gpu0.samples=12")
    scrape = machine.exporter.scrape_until(lambda s: instances(s) == set() and success(s) == 1, "MIG is off")
    assert readings(scrape, "0")["memory_total_bytes"] == 85520809984
