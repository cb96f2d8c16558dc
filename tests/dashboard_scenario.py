"""Two hours of training on three hosts, with the usual troubles, as OpenMetrics text.

gpu01 trains a GAN on two GPUs: its data lie on a spinning disk and starve it for a while, a tensor leaks, gradients
explode once. gpu02 tries one model three times: as it is, with AMP and more workers, and with too large a batch. On
gpu03 four ranks fine-tune a language model; the last one's GPU gets too hot and holds the others up.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from trainvitals.catalogue import BY_NAME, GPU_PHASES, GRADIENT_ANOMALIES, LOSS_ANOMALIES, RUN_STATES, SECONDS_BUCKETS

Array = npt.NDArray[np.float64]
Labels = dict[str, str]

JOB = "trainvitals"
DURATION_SECONDS = 7200
STEP_SECONDS = 15
# Seconds of the scenario at which there are samples.
clock: Array = np.arange(0, DURATION_SECONDS + 1, STEP_SECONDS, dtype=np.float64)
ONE: Array = np.ones_like(clock)
SHOWN_AFTER_END_MINUTES = 15
GIB = 2.0**30


class Series(NamedTuple):
    """One series: its name without trainvitals_, its labels, and a value at each time of `clock`, NaN where absent."""

    name: str
    labels: Labels
    values: Array


def between(start: float, end: float) -> Array:
    """Return 1 from one minute of the scenario to another, else 0."""
    return ((start * 60 <= clock) & (end * 60 > clock)).astype(np.float64)


def noise(key: str, size: float) -> Array:
    """Return the same noise around 1 whenever asked with the same key."""
    return 1 + size * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(clock.size)


def total(rate: Array) -> Array:
    """Return the counter that grows by `rate` a second."""
    return np.concatenate([[0.0], np.cumsum(rate[1:]) * STEP_SECONDS])


@dataclass(frozen=True)
class Run:
    """One training run; times are minutes of the scenario."""

    name: str
    host: str
    gpus: tuple[str, ...]  # a rank on each
    start: float
    end: float = 1e6
    state: str = "running"  # or how it ended
    speed: float = 2.0  # iterations per second
    workers: int = 4
    batch: int = 16
    amp: str = ""
    checkpointing: bool = False
    optimizers: tuple[str, ...] = ("AdamW",)
    waits: float = 0.06  # usual share of time spent waiting for data
    starved: tuple[float, float] = (0, 0)
    allocated: float = 9.0  # GiB after a step
    capacity: float = 24.0
    leak: float = 0.0  # GiB an hour, from the 30th minute of its age on
    explodes: float = 1e6
    hot_rank: int = -1
    loss: float = 4.0
    disk: str = "nvme0n1"

    @cached_property
    def age(self) -> Array:
        return clock - self.start * 60

    @cached_property
    def live(self) -> Array:
        return between(self.start, self.end)

    @cached_property
    def shown(self) -> Array:
        """1 while the exporter shows it, else NaN."""
        return np.where(between(self.start, self.end + SHOWN_AFTER_END_MINUTES) == 1, 1.0, np.nan)

    @cached_property
    def evaluates(self) -> Array:
        return ((self.age % 1500 > 1410) & (self.age > 0)).astype(np.float64)

    @cached_property
    def saves(self) -> Array:
        return ((self.age % 600 < STEP_SECONDS) & (self.age >= 600)).astype(np.float64)

    @cached_property
    def slowed(self) -> Array:
        """Share of speed that is left while the hot GPU throttles."""
        return 1 - 0.35 * between(80, 110) if self.hot_rank >= 0 else ONE

    @cached_property
    def phases(self) -> dict[str, Array]:
        """Share of each phase in the wall time of rank 0; the sum is 1."""
        waits = self.waits + (0.6 - self.waits) * between(*self.starved)
        outside = np.maximum(0.85 * self.evaluates, 0.4 * self.saves)
        inside = (1 - outside) * noise(self.name, 0.002)
        works = inside * (1 - waits - 0.04)
        shares = {"transfer": 0.05, "forward": 0.3, "backward": 0.5, "optimizer": 0.15}
        result = {phase: works * share for phase, share in shares.items()}
        result |= {"data_wait": inside * waits, "checkpoint": 0.4 * self.saves}
        return result | {"other": ONE - sum(result.values())}

    @cached_property
    def rate(self) -> Array:
        works = self.phases["forward"] / (0.3 * (0.96 - self.waits))
        return self.speed * works * self.slowed * self.live

    def utilization(self, rank: int) -> Array:
        busy = sum(self.phases[phase] for phase in ("forward", "backward", "optimizer"))
        late = 0.7 if self.hot_rank >= 0 and rank != self.hot_rank else 1.0
        spinning = np.where(self.slowed < 1, np.maximum(late, 0.98), 1)  # a collective keeps the GPU busy
        return np.clip(busy * 1.02 * spinning * noise(f"{self.name}{rank}", 0.02), 0, 1) * self.live

    def memory(self, rank: int) -> Array:
        """Return the allocated GiB after a step."""
        leak = self.leak * np.maximum(self.age / 3600 - 0.5, 0)
        saw = 0.06 * self.allocated * np.abs(np.sin(self.age / 53 + rank))
        return (self.allocated * (1 - 0.3 * np.exp(-np.maximum(self.age, 0) / 60)) + saw + leak) * ONE


def run_series(run: Run) -> Iterator[Series]:
    """Yield what is told of a whole run."""
    of_run, ended = {"run": run.name}, clock >= run.end * 60
    yield Series("run_start_timestamp_seconds", of_run, run.shown * run.start * 60)
    for state in RUN_STATES:
        now = np.where(ended, run.state == state, state == "running").astype(np.float64)
        yield Series("run_state", {**of_run, "state": state}, run.shown * now)
    at_end = np.where(ended, run.shown, np.nan)
    yield Series("run_exit_code", of_run, at_end * (run.state != "finished"))
    exception = {"out_of_memory": "torch.OutOfMemoryError"}.get(run.state, "")
    yield Series("run_end_info", {**of_run, "signal": "", "exception": exception}, at_end)
    for state in ("finished", "out_of_memory"):
        yield Series("runs_ended_total", {**of_run, "state": state}, (ended & (run.state == state)) * ONE)
    yield Series("run_label_info", {**of_run, "label": "team", "value": "speech"}, run.shown)


def rank_series(run: Run, rank: int) -> Iterator[Series]:
    """Yield what the hooks of one rank write."""
    who = {"run": run.name, "rank": str(rank)}
    last = int(min(run.end * 60, DURATION_SECONDS) // STEP_SECONDS)  # what was written then stays
    for name, own, values in (
        *_facts(run, rank),
        *_progress(run, rank),
        *_maths(run, rank),
        *_cuda_memory(run, rank),
        *_input_and_checkpoints(run),
    ):
        yield Series(name, {**who, **own}, np.where(clock > run.end * 60, values[last], values) * run.shown)


def _facts(run: Run, rank: int) -> Iterator[Series]:
    identity = {"run_id": f"{zlib.crc32(run.name.encode()):08x}", "pid": str(4100 + rank), "script": "train.py"}
    versions = {"framework": "", "torch_version": "2.13.0", "cuda_version": "13.0"}
    yield Series("run_info", identity | versions, ONE)
    yield Series("world_size", {}, len(run.gpus) * ONE)
    yield Series("run_gpu_info", {"uuid": run.gpus[rank]}, ONE)
    yield Series("gradient_checkpointing_enabled", {}, run.checkpointing * ONE)
    yield Series("amp_enabled", {"dtype": run.amp or "float16"}, bool(run.amp) * ONE)
    yield Series("hook_seconds_total", {}, total(0.0006 * run.live))
    yield Series("hook_share_limit_ratio", {}, 0.005 * ONE)
    yield Series("gc_pause_seconds_total", {}, total(0.001 * run.live))


def _progress(run: Run, rank: int) -> Iterator[Series]:
    done, last = total(run.rate), np.minimum(clock, run.end * 60)
    yield Series("epoch", {}, np.floor(np.maximum(run.age, 0) / 1500))
    yield Series("iterations_total", {}, np.floor(done))
    yield Series("samples_total", {}, np.floor(done) * run.batch)
    yield Series("iterations_per_second", {}, run.rate)
    yield Series("last_iteration_timestamp_seconds", {}, last - 90 * run.evaluates)
    yield Series("heartbeat_timestamp_seconds", {}, last)
    usual = 1 / np.maximum(run.rate, 1e-3)
    yield from _histogram("iteration_seconds", run.rate, usual)
    yield from _histogram("batch_wait_seconds", run.rate, usual * run.phases["data_wait"])
    waits_for_others = 0.25 if run.hot_rank >= 0 and rank != run.hot_rank else 0.0
    for phase, share in run.phases.items():
        yield Series("phase_seconds_total", {"phase": phase}, total(share * run.live))
    for phase in GPU_PHASES:
        share = run.phases[phase] * (1 + waits_for_others * (phase == "backward"))
        yield Series("gpu_phase_seconds_total", {"phase": phase}, total(share * run.live))
    if len(run.gpus) > 1:
        held = (1 - run.slowed) * (rank != run.hot_rank)
        parts = {"forward_compute": 0.3, "backward_compute": 0.5, "backward_communication": 0.3, "overlap": 0.25}
        for part, seconds in parts.items():
            more = held * usual if part == "backward_communication" else 0
            yield Series("ddp_seconds", {"part": part}, seconds * usual * run.slowed + more)


def _histogram(name: str, rate: Array, seconds: Array) -> Iterator[Series]:
    """Observations around `seconds`, one in fifty of them four times as long."""
    for bound in (*SECONDS_BUCKETS, np.inf):
        low, high = (np.clip((bound / (factor * seconds) - 0.7) / 0.6, 0, 1) for factor in (1, 4))
        label = "+Inf" if bound == np.inf else str(bound)
        yield Series(f"{name}_bucket", {"le": label}, total(rate * (0.98 * low + 0.02 * high)))
    yield Series(f"{name}_sum", {}, total(rate * seconds))
    yield Series(f"{name}_count", {}, total(rate))


def _maths(run: Run, rank: int) -> Iterator[Series]:
    exploding = between(run.explodes, run.explodes + 4)
    progress = np.exp(-np.maximum(run.age, 0) / 4000)
    for number, class_ in enumerate(run.optimizers):
        own = {"optimizer": str(number)}
        key = f"{run.name}{rank}{number}"
        steps = total(run.rate)
        loss = run.loss / (1 + 2 * number) * (0.35 + 0.65 * progress) * noise(key, 0.04) * (1 + 30 * exploding)
        norm = (2.5 - 1.2 * (1 - progress)) * noise(key + "g", 0.12) * (1 + 60 * exploding)
        usual = 2.5 - 1.2 * (1 - progress)
        yield Series("optimizer_steps_total", own, np.floor(steps))
        yield Series("optimizer_info", {**own, "class": class_, "parameters": f"{86 - 40 * number}000000"}, ONE)
        yield Series("gradient_accumulation_iterations", own, ONE)
        yield Series("loss", own, loss)
        yield Series("gradient_norm", own, norm)
        yield Series("gradient_norm_max", own, norm * 1.6)
        yield Series("gradient_norm_baseline", own, np.where(steps > 50, usual, np.nan))
        yield Series("gradient_norm_measured_steps_total", own, np.floor(steps))
        yield Series("gradient_norm_interval_steps", own, ONE)
        yield Series("learning_rate", {**own, "group": "0"}, 1e-4 * np.minimum(run.age / 600, progress))
        for kind in GRADIENT_ANOMALIES:
            counted = exploding * run.rate * 0.8 if kind == "explosion" else 0 * clock
            yield Series("gradient_anomalies_total", {**own, "kind": kind}, np.floor(total(counted)))
        for kind in LOSS_ANOMALIES:
            yield Series("loss_anomalies_total", {**own, "kind": kind}, 0 * clock)
        if run.amp == "float16":
            yield Series("amp_skipped_steps_total", own, np.floor(total(0.0008 * run.live + 0.05 * exploding)))
    if run.explodes < DURATION_SECONDS / 60:
        what = {
            "optimizer": "0",
            "kind": "explosion",
            "iteration": "14211",
            "parameters": "dec.ups.3.weight",
            "samples": "52 7",
        }
        yield Series("anomaly_info", what, np.where(clock > run.explodes * 60, 1, np.nan))
    if run.amp == "float16":
        yield Series("amp_scale", {}, 65536 / 2 ** np.floor(total(exploding) / 60))
    if len(run.optimizers) > 1:
        kl = 1.4 * progress * noise(run.name + "kl", 0.08) * (1 + 12 * exploding)
        for tag, values in {"loss/g/kl": kl, "loss/g/mel": 18 * progress + 9, "loss/g/fm": 3 - progress}.items():
            yield Series("scalar", {"tag": tag}, values)


def _cuda_memory(run: Run, rank: int) -> Iterator[Series]:
    own = {"device": str(rank)}
    allocated = run.memory(rank) * GIB
    peak = np.maximum.accumulate(np.where(run.live == 1, allocated, 0)) * 1.35
    reserved = np.minimum(np.ceil(peak / GIB) + 1.5, run.capacity * 0.98) * GIB
    first = run.age > 1500
    failed = ONE * ((clock >= run.end * 60) & (run.state == "out_of_memory"))
    yield Series("cuda_memory_allocated_bytes", own, allocated)
    yield Series("cuda_memory_reserved_bytes", own, reserved)
    yield Series("cuda_memory_inactive_split_bytes", own, 0.12 * reserved)
    yield Series("cuda_memory_allocated_floor_bytes", own, allocated * 0.93)
    yield Series("cuda_memory_epoch_peak_bytes", own, np.where(first, np.minimum(peak, reserved), np.nan))
    yield Series("cuda_memory_peak_bytes", own, np.minimum(peak, reserved))
    yield Series("cuda_memory_total_bytes", own, run.capacity * GIB * ONE)
    yield Series("cuda_alloc_retries_total", own, 3 * failed)
    yield Series("cuda_ooms_total", own, failed)
    if run.state == "out_of_memory":
        yield Series("cuda_oom_requested_bytes", own, np.where(run.end * 60 <= clock, 2.5 * GIB, np.nan))


def _input_and_checkpoints(run: Run) -> Iterator[Series]:
    yield Series("dataloader_workers", {}, run.workers * ONE)
    yield Series("dataloader_batch_size", {}, run.batch * ONE)
    yield Series("dataloader_pin_memory", {}, (run.workers > 0) * ONE)
    if run.workers:
        yield Series("dataloader_prefetch_factor", {}, 2 * ONE)
        yield Series("dataloader_persistent_workers", {}, ONE)
    mountpoint = "/data" if run.disk == "sda" else "/"
    yield Series("dataloader_dataset_info", {"mountpoint": mountpoint, "device": run.disk}, ONE)
    saved = np.floor(np.maximum(np.minimum(run.age, run.end * 60 - run.start * 60), 0) / 600)
    known = np.where(saved > 0, 1, np.nan)
    yield Series("checkpoint_saves_total", {}, saved)
    yield Series("checkpoint_seconds_total", {}, 6.2 * saved)
    yield Series("checkpoint_last_bytes", {}, 1.1 * GIB * known)
    yield Series("checkpoint_last_timestamp_seconds", {}, (run.start * 60 + 600 * saved) * known)
    yield Series("checkpoint_last_interval_iterations", {}, np.floor(600 * run.speed) * known)
    yield Series("checkpoint_filesystem_avail_bytes", {}, (200 - 1.1 * saved) * GIB * known)


def process_series(run: Run, rank: int) -> Iterator[Series]:
    """Yield what is seen of a rank's processes while it lives."""
    who, live = {"run": run.name, "rank": str(rank)}, np.where(run.live == 1, 1.0, np.nan)
    starved = between(*run.starved)
    roles = {"main": 1, "dataloader_worker": run.workers}
    for role, number in roles.items():
        if not number:
            continue
        of_role = {**who, "role": role}
        worker = role == "dataloader_worker"
        cores = (0.35 * number * (1 + 0.5 * starved)) if worker else 0.95 * (1 - run.phases["data_wait"])
        size = (0.9 * number if worker else 3.4 + 0.2 * np.maximum(run.age, 0) / 3600) * GIB
        blocked = np.round(0.6 * number * starved) if worker else 0 * clock
        read = (4e6 + 5e7 * starved) * number if worker else 1e6 * ONE
        written = 1.1 * GIB / STEP_SECONDS * run.saves if role == "main" and rank == 0 else 0 * clock
        for name, values in {
            "process_cpu_seconds_total": total(cores * run.live),
            "process_resident_bytes": size * ONE,
            "process_proportional_bytes": 0.6 * size * ONE,
            "process_threads": (4 + 40 * (not worker)) * number * ONE,
            "process_read_bytes_total": total(read * run.live),
            "process_written_bytes_total": total(written * run.live),
            "process_open_fds": 90 * ONE,
            "process_max_fds": 1024 * ONE,
        }.items():
            yield Series(name, of_role, values * live)
        for state, count in {"running": number - blocked, "blocked": blocked}.items():
            yield Series("processes", {**of_role, "state": state}, count * live)
    yield Series("shm_size_bytes", who, 16 * GIB * live)
    yield Series("shm_avail_bytes", who, (15 - 0.5 * run.workers) * GIB * live)
    owner = dict.fromkeys(BY_NAME["trainvitals_run_owner_info"].labels, "") | {"user": "ada"}
    yield Series("run_owner_info", {**who, **owner}, live)
    where = {"mountpoint": "/data" if run.disk == "sda" else "/", "device": run.disk}
    yield Series("reads_from_info", {**who, **where}, live)


class Gpu(NamedTuple):
    """One GPU and where it is."""

    uuid: str
    number: int
    host: str
    model: str
    memory: float
    watts: float


def gpu_series(gpu: Gpu) -> Iterator[Series]:
    """Yield what NVML tells of a GPU."""
    who = {"uuid": gpu.uuid, "gpu": str(gpu.number)}
    users = [(run, rank) for run in RUNS for rank, uuid in enumerate(run.gpus) if uuid == gpu.uuid]
    busy, used = 0 * clock, 0.4 * GIB * ONE
    for run, rank in users:
        busy = busy + run.utilization(rank)
        own = run.memory(rank) * 1.5 * GIB
        used = used + np.minimum(own, (gpu.memory - 1) * GIB) * run.live
        pid = {"pid": str(4100 + rank), "run": run.name, "rank": str(rank)}
        live = np.where(run.live == 1, 1.0, np.nan)
        held = np.minimum(own, (gpu.memory - 1) * GIB)
        yield Series("gpu_process_memory_bytes", {**who, **pid}, held * live)
        yield Series("gpu_process_utilization_ratio", {**who, **pid}, run.utilization(rank) * live)
    hot = between(80, 110) if gpu.uuid == HOT_GPU else 0 * clock
    degrees = 38 + 36 * np.convolve(np.pad(busy, (19, 0)), np.ones(20) / 20, "valid") + 14 * hot
    watts = gpu.watts * (0.12 + 0.78 * busy * (1 - 0.3 * hot)) * noise(gpu.uuid, 0.02)
    facts = {"name": gpu.model, "driver_version": "580.65.06", "cuda_version": "13.0"}
    yield Series("gpu_info", {**who, **facts, "pci_bus_id": f"00000000:{16 + gpu.number:02x}:00.0"}, ONE)
    gauges = {
        "utilization_ratio": busy,
        "utilization_ratio_max": np.minimum(busy * 1.15, 1),
        "memory_bandwidth_utilization_ratio": 0.55 * busy,
        "memory_total_bytes": gpu.memory * GIB * ONE,
        "memory_used_bytes": used,
        "memory_free_bytes": gpu.memory * GIB - used,
        "memory_reserved_bytes": 0.3 * GIB * ONE,
        "power_watts": watts,
        "power_limit_watts": gpu.watts * ONE,
        "temperature_celsius": np.round(degrees),
        "memory_temperature_celsius": np.round(degrees + 9),
        "fan_speed_ratio": np.clip((degrees - 30) / 55, 0, 1),
        "performance_state": np.where(busy > 0.02, 0, 8).astype(np.float64),
        "pcie_link_generation": np.where(busy > 0.02, 4, 1).astype(np.float64),
        "pcie_link_width": 16 * ONE,
        "encoder_utilization_ratio": 0 * clock,
        "decoder_utilization_ratio": 0 * clock,
    }
    for name, values in gauges.items():
        yield Series(f"gpu_{name}", who, values)
    counters = {"energy_joules": watts, "pcie_transmit_bytes": 4e8 * busy, "pcie_receive_bytes": 2.1e9 * busy}
    if gpu.host == "gpu03":
        counters |= {"nvlink_transmit_bytes": 2.4e10 * busy, "nvlink_receive_bytes": 2.4e10 * busy}
    for name, values in counters.items():
        yield Series(f"gpu_{name}_total", who, total(values))
    fast = np.where(busy > 0.02, 2.5e9 - 0.9e9 * hot, 2.1e8)
    for part, values in {"sm": fast, "memory": np.where(busy > 0.02, 1.05e10, 4e8)}.items():
        yield Series("gpu_clock_hertz", {**who, "clock": part}, values)
    reasons = {"sw_power_cap": ONE * (busy > 0.85), "sw_thermal_slowdown": hot, "gpu_idle": ONE * (busy < 0.02)}
    for reason, active in reasons.items():
        yield Series("gpu_clocks_event_active", {**who, "reason": reason}, active)
        if reason != "gpu_idle":
            share = 0.08 * active if reason == "sw_power_cap" else 0.7 * active
            yield Series("gpu_clocks_event_seconds_total", {**who, "reason": reason}, total(share))
    for type_ in ("corrected", "uncorrected"):
        yield Series("gpu_ecc_errors_total", {**who, "type": type_}, 0 * clock)
    for cause in ("correctable", "uncorrectable"):
        yield Series("gpu_remapped_rows", {**who, "cause": cause}, 0 * clock)
    if gpu.uuid == HOT_GPU:
        once = np.where(clock > 100 * 60, 1.0, np.nan)
        yield Series("gpu_xid_errors_total", {**who, "xid": "31"}, once)
        yield Series("gpu_xid_last_timestamp_seconds", {**who, "xid": "31"}, once * 100 * 60)


def host_series(host: str, cores: int, memory: float) -> Iterator[Series]:
    """Yield what is seen of a host."""
    here = [run for run in RUNS if run.host == host]
    starved = np.clip(sum((between(*run.starved) * run.live for run in here), 0 * clock), 0, 1)
    single = sum((run.live * (run.workers == 0) for run in here), 0 * clock)  # loads its batches itself, on one core
    active = np.clip(sum((run.live for run in here), 0 * clock), 0, 1)
    for cpu in range(cores):
        user = (0.18 + 0.1 * np.sin(clock / 300 + cpu) + 0.12 * (cpu < 4)) * active + 0.02
        user = user + single * (0.97 - user) * (cpu == 2)
        wait = starved * (0.35 if cpu % 2 else 0.1)
        modes = {"user": user, "system": 0.04 * ONE, "iowait": np.minimum(wait, 0.94 - user)}
        modes["idle"] = np.maximum(1 - sum(modes.values()), 0)
        for mode, share in modes.items():
            yield Series("host_cpu_seconds_total", {"cpu": str(cpu), "mode": mode}, total(share))
    resident = sum((len(run.gpus) * (3.4 + 0.9 * run.workers) * run.live for run in here), 0 * clock)
    for resource, kinds in {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full")}.items():
        for kind in kinds:
            share = 0.01 + (0.5 if kind == "some" else 0.3) * starved * (resource == "io")
            yield Series("host_pressure_seconds_total", {"resource": resource, "kind": kind}, total(share * ONE))
    for name, values in {
        "load1": 0.3 + 5 * active + 6 * starved,
        "memory_total_bytes": memory * GIB * ONE,
        "memory_available_bytes": (memory - 6 - resident) * GIB,
        "swap_total_bytes": 8 * GIB * ONE,
        "swap_free_bytes": 7.9 * GIB * ONE,
    }.items():
        yield Series(f"host_{name}", {}, values)
    from_disk = np.clip(sum((run.live * (run.disk == "sda") for run in here), 0 * clock), 0, 1)
    disks = {"nvme0n1": ("0", 0.08 * active, 9e8), "sda": ("1", 0.25 * from_disk + 0.7 * starved, 1.6e8)}
    for device, (rotational, busy, speed) in disks.items():
        yield Series("host_disk_info", {"device": device, "rotational": rotational}, ONE)
        yield Series("host_disk_busy_seconds_total", {"device": device}, total(busy * noise(device, 0.01)))
        yield Series("host_disk_read_bytes_total", {"device": device}, total(speed * busy))
        saves = sum((run.saves * run.live for run in here), 0 * clock) * (device == "nvme0n1")
        yield Series("host_disk_written_bytes_total", {"device": device}, total(1e6 + 1.1 * GIB / 15 * saves))
    for mountpoint, device, size, free in (("/", "nvme0n1", 1000, 180), ("/data", "sda", 8000, 2600)):
        where = {"mountpoint": mountpoint}
        yield Series("host_filesystem_size_bytes", where, size * GIB * ONE)
        yield Series("host_filesystem_avail_bytes", where, (free - 12 * clock / 7200) * GIB)
        yield Series("host_filesystem_disk_info", {**where, "device": device}, ONE)
    for direction in ("receive", "transmit"):
        rate = 2e5 + 3e7 * active * (host == "gpu03")
        yield Series(f"host_network_{direction}_bytes_total", {"interface": "enp5s0"}, total(rate * ONE))


def exporter_series() -> Iterator[Series]:
    """Yield what an exporter tells of itself."""
    yield Series("exporter_build_info", {"version": "0.1.0", "python_version": "3.12.3"}, ONE)
    yield Series("exporter_gpu_driver_released", {}, 0 * clock)
    yield Series("exporter_http_requests_total", {"code": "200"}, total(ONE / 5))
    for collector in ("cpu", "disks", "memory", "nvidia", "processes", "runs"):
        own = {"collector": collector}
        yield Series("collector_success", own, ONE)
        yield Series("collector_duration_seconds", own, 0.004 * ONE)
        yield Series("collector_last_success_timestamp_seconds", own, clock)


HOSTS = {"gpu01": (8, 64.0), "gpu02": (8, 64.0), "gpu03": (8, 512.0)}
GPUS = (
    *(Gpu(f"GPU-01{i}", i, "gpu01", "NVIDIA GeForce RTX 4090", 24.0, 450.0) for i in range(2)),
    Gpu("GPU-020", 0, "gpu02", "NVIDIA GeForce RTX 4090", 24.0, 450.0),
    *(Gpu(f"GPU-03{i}", i, "gpu03", "NVIDIA H200", 141.0, 700.0) for i in range(4)),
)
HOT_GPU = "GPU-033"
RUNS = (
    Run("voice-s2", "gpu01", ("GPU-010", "GPU-011"), 10, speed=2.8, amp="float16", optimizers=("AdamW", "AdamW"),
        starved=(62, 90), allocated=8.5, leak=4.4, explodes=108, disk="sda"),
    Run("s1-base", "gpu02", ("GPU-020",), 5, 38, "finished", speed=3.1, workers=0, batch=8, waits=0.34, allocated=11.0,
        disk="sda"),
    Run("s1-amp", "gpu02", ("GPU-020",), 42, 74, "finished", speed=5.2, workers=6, batch=8, amp="bfloat16", waits=0.05,
        allocated=6.9),
    Run("s1-batch32", "gpu02", ("GPU-020",), 78, 113, "out_of_memory", speed=1.9, workers=6, batch=32, amp="bfloat16",
        waits=0.04, allocated=15.5, leak=1.0),
    Run("llm-sft", "gpu03", ("GPU-030", "GPU-031", "GPU-032", "GPU-033"), 2, speed=0.9, amp="bfloat16",
        checkpointing=True, waits=0.02, allocated=70.0, capacity=141.0, hot_rank=3, loss=2.2),
)  # fmt: skip


def all_series() -> Iterator[tuple[str, Series]]:
    """Yield every series with its host."""
    for run in RUNS:
        yield from ((run.host, series) for series in run_series(run))
        for rank in range(len(run.gpus)):
            yield from ((run.host, series) for series in rank_series(run, rank))
            yield from ((run.host, series) for series in process_series(run, rank))
    for gpu in GPUS:
        yield from ((gpu.host, series) for series in gpu_series(gpu))
    for host, (cores, memory) in HOSTS.items():
        yield from ((host, series) for series in (*host_series(host, cores, memory), *exporter_series()))


def write(out: TextIO, end: int) -> None:
    """Write the two hours up to the Unix time `end`; the line that ends such a text is left out."""
    start = end - DURATION_SECONDS
    times = [str(int(start + passed)) for passed in clock]
    for host in HOSTS:
        out.writelines(f'up{{job="{JOB}",instance="{host}:10288"}} 1 {time}\n' for time in times)
    for host, series in all_series():
        name = f"trainvitals_{series.name}"
        values = series.values + (start if series.name.endswith("_timestamp_seconds") else 0)
        own = ",".join(f'{label}="{value}"' for label, value in series.labels.items())
        prefix = f'{name}{{job="{JOB}",instance="{host}:10288"{"," if own else ""}{own}}} '
        present = ~np.isnan(values)
        out.writelines(
            f"{prefix}{value!r} {time}\n"
            for value, time, there in zip(values.tolist(), times, present, strict=True)
            if there
        )
