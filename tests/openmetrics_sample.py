"""Half an hour of two training runs on a host with two GPUs, as OpenMetrics text with every metric of the catalogue.

voice-s2 trains on two ranks, one on each GPU; voice-s1, with one rank on the first GPU too, has failed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TextIO

from trainvitals.catalogue import (
    EXPORTER,
    GPU,
    GRADIENT_ANOMALIES,
    HOST,
    LOSS_ANOMALIES,
    METRICS,
    PHASES,
    PROCESS,
    RANK,
    RUN,
    RUN_STATES,
    SECONDS_BUCKETS,
    SURROUNDINGS,
    Metric,
)

Labels = dict[str, str]

SCRAPE = {"job": "sample", "instance": "host-a:10288"}
DURATION_SECONDS = 1800
STEP_SECONDS = 15
STATE = {"voice-s2": "running", "voice-s1": "failed"}
RANKS = [{"run": "voice-s2", "rank": "0"}, {"run": "voice-s2", "rank": "1"}, {"run": "voice-s1", "rank": "0"}]
GPUS = [{"uuid": "GPU-aaaa", "gpu": "0"}, {"uuid": "GPU-bbbb", "gpu": "1"}]
ROLES = ("main", "dataloader_worker")
SCOPE_LABELS: dict[str, list[Labels]] = {
    RUN.name: [{"run": run} for run in STATE],
    RANK.name: RANKS,
    # The launcher is a process of the run that is below no rank: it has no label rank.
    PROCESS.name: [*({**rank, "role": role} for rank in RANKS for role in ROLES), {"run": "voice-s2", "role": "other"}],
    SURROUNDINGS.name: RANKS,
    GPU.name: GPUS,
    HOST.name: [{}],
    EXPORTER.name: [{}],
}
# Values of a metric's own labels; those of one metric alone are under (metric, label).
LABEL_VALUES: dict[str | tuple[str, str], tuple[str, ...]] = {
    "optimizer": ("0", "1"),
    "phase": PHASES,
    "group": ("0",),
    "tag": ("loss/g/total", "loss/g/kl", "loss/g/kl_ssl", "grad_norm_g"),
    "state": RUN_STATES,
    "cpu": ("0", "1"),
    "mode": ("user", "system", "iowait", "idle"),
    "resource": ("cpu", "io"),
    "mountpoint": ("/", "/data"),
    "collector": ("cpu", "nvidia", "runs"),
    "reason": ("limit",),
    "hook": ("optimizer",),
    "name": ("NVIDIA H200",),
    "rotational": ("1",),
    "device": ("0",),
    "signal": ("SIGKILL",),
    "exception": ("RuntimeError",),
    "class": ("AdamW",),
    "uuid": ("",),  # filled in by GPU_OF
    "run": ("voice-s2",),  # of a process on a GPU
    "rank": ("0",),
    "clock": ("sm", "memory"),
    "xid": ("79",),
    "part": ("forward_compute", "backward_compute", "backward_communication", "overlap"),
    "type": ("corrected", "uncorrected"),
    ("trainvitals_gradient_anomalies_total", "kind"): GRADIENT_ANOMALIES,
    ("trainvitals_loss_anomalies_total", "kind"): LOSS_ANOMALIES,
    ("trainvitals_host_pressure_seconds_total", "kind"): ("some", "full"),
    ("trainvitals_processes", "state"): ("running", "blocked"),
    **{(f"trainvitals_host_disk_{name}", "device"): ("sda",)
       for name in ("read_bytes_total", "written_bytes_total", "busy_seconds_total", "info")},
    ("trainvitals_host_filesystem_disk_info", "device"): ("sda",),
    "interface": ("enp5s0",),
}  # fmt: skip
GPU_OF = {("voice-s2", "0"): "GPU-aaaa", ("voice-s2", "1"): "GPU-bbbb", ("voice-s1", "0"): "GPU-aaaa"}

ITERATIONS_PER_SECOND = {("voice-s2", "0"): 2.0, ("voice-s2", "1"): 1.5, ("voice-s1", "0"): 5.0}
PHASE_SHARES = dict(zip(PHASES, (0.3, 0.05, 0.2, 0.25, 0.1, 0.05, 0.05), strict=True))
RESIDENT_BYTES = {"main": 3e9, "dataloader_worker": 1e9, "other": 1e7}
GAUGES = {
    "loss": 3.5, "gradient_norm": 2.0, "gradient_norm_max": 9.0, "gradient_norm_baseline": 1.8, "learning_rate": 1e-4,
    "amp_scale": 65536.0, "world_size": 2.0, "cuda_memory_allocated_bytes": 9e9, "cuda_memory_reserved_bytes": 14e9,
    "cuda_memory_inactive_split_bytes": 1e9, "cuda_memory_allocated_floor_bytes": 6e9, "dataloader_workers": 2.0,
    "dataloader_batch_size": 16.0, "dataloader_prefetch_factor": 2.0, "gpu_utilization_ratio": 0.6,
    "gpu_memory_bandwidth_utilization_ratio": 0.3, "gpu_memory_total_bytes": 24e9, "gpu_memory_used_bytes": 16e9,
    "gpu_memory_free_bytes": 8e9, "gpu_power_watts": 290.0, "gpu_power_limit_watts": 350.0,
    "gpu_temperature_celsius": 71.0, "host_load1": 1.7, "host_memory_total_bytes": 64e9,
    "host_memory_available_bytes": 41e9, "host_swap_total_bytes": 8e9, "host_swap_free_bytes": 7.5e9,
    "host_filesystem_size_bytes": 1e12, "host_filesystem_avail_bytes": 2e11, "collector_duration_seconds": 0.004,
    "run_exit_code": 1.0, "processes": 2.0, "exporter_run_files_rejected": 0.0,
}  # fmt: skip
# Growth a second of a counter; counters that are not named grow by one in ten minutes.
RATES = {
    "host_disk_read_bytes_total": 9e7, "host_disk_written_bytes_total": 4e6, "host_disk_busy_seconds_total": 0.85,
    "process_cpu_seconds_total": 0.7, "hook_seconds_total": 0.0004, "gpu_energy_joules_total": 290.0,
    "optimizer_steps_total": 1.9, "host_pressure_seconds_total": 0.1,
}  # fmt: skip
CPU_RATES = {"user": 0.55, "system": 0.1, "iowait": 0.15, "idle": 0.2}
ALERTS = [
    {"alertname": "DataStarved", "alertstate": "firing", "severity": "warning", "run": "voice-s2"},
    {"alertname": "RunFailed", "alertstate": "firing", "severity": "critical", "run": "voice-s1"},
    {"alertname": "MemoryLeak", "alertstate": "pending", "severity": "warning", "run": "voice-s2"},
]


def write(out: TextIO, end: int) -> None:
    """Write the half hour up to the Unix time `end`; the line that ends such a text is left out."""
    for name, labels, metric in _series():
        text = ",".join(f'{label}="{value}"' for label, value in {**SCRAPE, **labels}.items())
        for passed in range(0, DURATION_SECONDS + 1, STEP_SECONDS):
            value = _value(name, metric, labels, passed, end - DURATION_SECONDS)
            out.write(f"{name}{{{text}}} {value!r} {end - DURATION_SECONDS + passed}\n")


def _series() -> Iterator[tuple[str, Labels, Metric | None]]:
    for metric in METRICS:
        for scope_labels, own in itertools.product(SCOPE_LABELS[metric.scope.name], _own_labels(metric)):
            labels = {**scope_labels, **own}
            if "uuid" in metric.labels:
                labels["uuid"] = GPU_OF[labels["run"], labels["rank"]]
            if metric.type != "histogram":
                yield metric.name, labels, metric
                continue
            for bound in (*map(str, SECONDS_BUCKETS), "+Inf"):
                yield f"{metric.name}_bucket", {**labels, "le": bound}, metric
            yield f"{metric.name}_sum", labels, metric
            yield f"{metric.name}_count", labels, metric
    for alert in ALERTS:
        yield "ALERTS", alert, None


def _own_labels(metric: Metric) -> Iterable[Labels]:
    values = [
        LABEL_VALUES.get((metric.name, label), LABEL_VALUES.get(label, (f"some-{label}",))) for label in metric.labels
    ]
    return (dict(zip(metric.labels, combination, strict=True)) for combination in itertools.product(*values))


def _value(name: str, metric: Metric | None, labels: Labels, passed: int, start: int) -> float:
    """Return the value `passed` seconds after `start`."""
    if metric is None or name.endswith("_info"):
        return 1.0
    short = metric.name.removeprefix("trainvitals_")
    if short == "run_state":
        return float(STATE[labels["run"]] == labels["state"])
    if short == "run_start_timestamp_seconds":
        return float(start)
    if short.endswith("_timestamp_seconds"):
        return float(start + passed)
    if short == "iterations_total" or metric.type == "histogram":
        iterations = ITERATIONS_PER_SECOND[labels["run"], labels["rank"]] * passed
        return iterations if float(labels.get("le", "inf")) >= 1 else 0.0
    if short == "phase_seconds_total":
        return PHASE_SHARES[labels["phase"]] * passed
    if short == "host_cpu_seconds_total":
        return CPU_RATES[labels["mode"]] * passed
    if short == "process_resident_bytes":
        return RESIDENT_BYTES[labels["role"]]
    if short == "scalar":
        return 1.5 + math.sin(passed / 60 + len(labels["tag"]))
    if metric.type == "counter":
        return RATES.get(short, 1 / 600) * passed
    return GAUGES.get(short, 1.0)
