"""Every metric trainvitals exposes: its name, type, labels and meaning, in one table.

The hooks write only metrics named here, the exporter serves only metrics named here, and the reference page, the
dashboards' and the rules' lints are checked against it. A new metric is one more entry. A released name is never
changed or reused for another meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MetricType = Literal["gauge", "counter", "histogram"]

PREFIX: Final = "trainvitals_"

RUN_STATES: Final = ("starting", "running", "finished", "failed", "killed", "out_of_memory")
FINAL_STATES: Final = RUN_STATES[2:]
PHASES: Final = ("data_wait", "transfer", "forward", "backward", "optimizer", "checkpoint", "other")
# What the device's clock can tell apart: waiting for data and saving are the host's.
GPU_PHASES: Final = ("transfer", "forward", "backward", "optimizer", "other")
GRADIENT_ANOMALIES: Final = ("explosion", "vanishing", "nonfinite")
LOSS_ANOMALIES: Final = ("spike", "nonfinite")
PROCESS_ROLES: Final = ("main", "dataloader_worker", "other")

# From a tiny model's step on a fast GPU (1 ms) to a large model's accumulated step (1 min); waits for a batch fit, too.
SECONDS_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """What a metric is about: the labels that every metric of this scope carries before its own."""

    name: str
    labels: tuple[str, ...]
    about: str


RUN: Final = Scope("run", ("run",), "Facts about a whole run, whatever its number of ranks.")
RANK: Final = Scope("rank", ("run", "rank"), "Written by the hooks in each training process (rank).")
PROCESS: Final = Scope("process", ("run", "rank", "role"), "The process tree of a run, seen from outside.")
SURROUNDINGS: Final = Scope(
    "surroundings", ("run", "rank"), "Whose each rank is, and what it stands on, seen from outside."
)
GPU: Final = Scope("gpu", ("uuid", "gpu"), "Each NVIDIA GPU, through NVML.")
HOST: Final = Scope("host", (), "The machine.")
EXPORTER: Final = Scope("exporter", (), "The exporter itself.")
SCOPES: Final = (RUN, RANK, PROCESS, SURROUNDINGS, GPU, HOST, EXPORTER)


@dataclass(frozen=True)
class Metric:
    """One metric family. `name` is the full name; `labels` are its own labels, beside those of its scope."""

    scope: Scope
    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The label names of a sample, in the order in which they are rendered."""
        return self.scope.labels + self.labels


def _metric(scope: Scope, name: str, type_: MetricType, help_: str, *labels: str) -> Metric:
    return Metric(scope, PREFIX + name, type_, help_, labels)


METRICS: Final = (
    # A whole run.
    _metric(RUN, "run_start_timestamp_seconds", "gauge", "Unix time at which the run started."),
    _metric(RUN, "run_state", "gauge", "1 for the state that the run is in, 0 for the others.", "state"),
    _metric(RUN, "run_exit_code", "gauge", "Exit code of the run's command; 128 + N when signal N ended it."),
    _metric(
        RUN, "run_end_info", "gauge",
        "How an ended run ended: the signal it was sent and the exception it died of; empty where there was none.",
        "signal", "exception",
    ),
    _metric(
        RUN, "runs_ended_total", "counter",
        "Runs of this name that have ended, by state; with those that ended 15 minutes before the exporter started, or since.",
        "state",
    ),
    _metric(RUN, "run_label_info", "gauge", "1 for each label that the run was given: trainvitals run --label NAME=VALUE.", "label", "value"),
    # A rank: identity.
    _metric(
        RANK, "run_info", "gauge", "1; what this rank is. The process id is as the training process sees it.",
        "run_id", "pid", "script", "framework", "torch_version", "cuda_version",
    ),
    _metric(RANK, "world_size", "gauge", "Number of ranks that train together."),
    _metric(
        RANK, "world_info", "gauge",
        "1; what the ranks that train together, on whatever hosts, have in common: made of MASTER_ADDR and MASTER_PORT, absent without them.",
        "world",
    ),
    _metric(RANK, "run_gpu_info", "gauge", "1 for each GPU that this rank computes on; joins runs to GPU metrics.", "uuid"),
    _metric(RANK, "gradient_checkpointing_enabled", "gauge", "1 once activations were checkpointed (recomputed in the backward), else 0."),
    _metric(
        RANK, "amp_enabled", "gauge", "1 if the newest training iteration computed under autocast to this dtype, else 0.", "dtype",
    ),
    # A rank: progress.
    _metric(
        RANK, "epoch", "gauge",
        "Passes over the training data that are complete, or what the loader's sampler was told (set_epoch) where that is more.",
    ),
    _metric(RANK, "iterations_total", "counter", "Training batches done. Evaluation batches are not counted."),
    _metric(RANK, "samples_total", "counter", "Samples in those batches; absent where the loader does not tell their number."),
    _metric(RANK, "iterations_per_second", "gauge", "Training batches per second over the newest ten seconds, or one iteration where that is longer."),
    _metric(RANK, "iteration_seconds", "histogram", "Wall time of an iteration, from one batch fetch to the next."),
    _metric(RANK, "last_iteration_timestamp_seconds", "gauge", "Unix time at which the newest iteration ended."),
    _metric(
        RANK, "heartbeat_timestamp_seconds", "gauge",
        "Unix time of the newest sign of life: a training or evaluation batch, a backward or an optimizer step.",
    ),
    _metric(
        RANK, "phase_seconds_total", "counter",
        "Wall time (host clock) that training spent in each phase. The phases add up to the wall time since the first "
        "batch; time outside training iterations, such as evaluation, is in 'other'.",
        "phase",
    ),
    _metric(
        RANK, "gpu_phase_seconds_total", "counter",
        "The same by the GPU's clock: time between the points of its stream at which the phases begin and end, what it "
        "waited for the host included. Waiting for data and saving are in 'other'. Absent while iterations take under 10 ms.",
        "phase",
    ),
    _metric(RANK, "optimizer_steps_total", "counter", "Steps that the optimizer made; skipped ones are not counted.", "optimizer"),
    _metric(
        RANK, "optimizer_info", "gauge", "1; the class of an optimizer and the number of parameters (elements) it trains.",
        "optimizer", "class", "parameters",
    ),
    _metric(
        RANK, "gradient_accumulation_iterations", "gauge",
        "Training batches whose gradients the optimizer's newest step used; 1 without accumulation.", "optimizer",
    ),
    # A rank: maths.
    _metric(RANK, "loss", "gauge", "Value of the last backward before the optimizer's step, without the AMP scale.", "optimizer"),
    _metric(
        RANK, "loss_anomalies_total", "counter",
        "Steps whose loss was more than 1000 times the median magnitude of recent ones (spike), or NaN or infinite (nonfinite).",
        "optimizer", "kind",
    ),
    _metric(
        RANK, "gradient_norm", "gauge",
        "Global 2-norm of the gradients of the optimizer's own parameters at its step, before clipping and without the AMP scale.",
        "optimizer",
    ),
    _metric(RANK, "gradient_norm_max", "gauge", "Largest gradient norm of the last 60 seconds of training.", "optimizer"),
    _metric(RANK, "gradient_norm_baseline", "gauge", "Median gradient norm of the last 256 measured steps; absent for the first 50.", "optimizer"),
    _metric(
        RANK, "gradient_anomalies_total", "counter",
        "Measured steps whose gradient norm left its own baseline: over 10 times the median (explosion), under a thousandth of "
        "it (vanishing), each further where norms spread widely, or NaN or infinite (nonfinite).",
        "optimizer", "kind",
    ),
    _metric(
        RANK, "gradient_explosions_total", "counter",
        "Explosions that lasted: ten measured steps on end, counted once until the norm is usual again. Single spikes are none.",
        "optimizer",
    ),
    _metric(
        RANK, "gradient_norm_measured_steps_total", "counter",
        "Steps whose gradient norm was measured: all, unless that would cost more than the hooks' share of an iteration.",
        "optimizer",
    ),
    _metric(RANK, "gradient_norm_interval_steps", "gauge", "The gradient norm is measured at one of so many steps; 1 is each.", "optimizer"),
    _metric(
        RANK, "anomaly_info", "gauge",
        "1 for each of the first two and the newest six anomalies: the iteration, the parameters with the largest (of a vanishing: smallest) "
        "gradients, and the fetched batch's first dataset indices, where known. The run's log file tells more.",
        "optimizer", "kind", "iteration", "parameters", "samples",
    ),
    _metric(RANK, "learning_rate", "gauge", "Learning rate of a parameter group at the last step.", "optimizer", "group"),
    _metric(RANK, "scalar", "gauge", "Last value of a scalar sent to TensorBoard or trainvitals.log().", "tag"),
    _metric(RANK, "amp_scale", "gauge", "Loss scale of the AMP GradScaler; absent while it is off."),
    _metric(
        RANK, "amp_skipped_steps_total", "counter",
        "Steps that the AMP GradScaler skipped because the scaled gradients were not finite.",
        "optimizer",
    ),
    # A rank: memory of its GPU.
    _metric(RANK, "cuda_memory_allocated_bytes", "gauge", "Memory in use by tensors on this device, at an iteration boundary.", "device"),
    _metric(RANK, "cuda_memory_reserved_bytes", "gauge", "Memory that PyTorch's caching allocator took from the driver.", "device"),
    _metric(RANK, "cuda_memory_inactive_split_bytes", "gauge", "Free parts of split blocks that the allocator cannot return.", "device"),
    _metric(
        RANK, "cuda_memory_epoch_peak_bytes", "gauge",
        "Most memory in use by tensors that was seen in the newest complete epoch; during the first, in that so far.",
        "device",
    ),
    _metric(RANK, "cuda_memory_peak_bytes", "gauge", "Most memory in use by tensors that was seen since this rank began to train.", "device"),
    _metric(RANK, "cuda_memory_total_bytes", "gauge", "Memory of this device, as PyTorch tells it.", "device"),
    _metric(RANK, "cuda_alloc_retries_total", "counter", "Times that the allocator had to free its cache and try again.", "device"),
    _metric(RANK, "cuda_ooms_total", "counter", "Allocations that failed for lack of memory, also those that the script survived.", "device"),
    _metric(RANK, "cuda_oom_requested_bytes", "gauge", "Size of the newest allocation that failed.", "device"),
    _metric(
        RANK, "cuda_memory_allocated_floor_bytes", "gauge",
        "Lowest memory in use at a training iteration's boundary within the last 60 seconds; a leak lifts it.",
        "device",
    ),
    _metric(
        RANK, "cuda_memory_floor_growth_bytes", "gauge",
        "How much that lowest memory in use has grown with each training iteration since the first, by the most cautious of "
        "three estimates; 0 unless it grows all the time. Absent until 64 iterations, at most ten a second, were looked at.",
        "device",
    ),
    # A rank: input pipeline.
    _metric(RANK, "dataloader_workers", "gauge", "num_workers of the DataLoader that training reads from."),
    _metric(RANK, "dataloader_batch_size", "gauge", "Batch size of that DataLoader; absent when a batch sampler decides it."),
    _metric(RANK, "dataloader_prefetch_factor", "gauge", "Batches that each worker prepares ahead; absent without workers."),
    _metric(RANK, "dataloader_pin_memory", "gauge", "1 if that DataLoader copies batches into pinned memory, else 0."),
    _metric(RANK, "dataloader_persistent_workers", "gauge", "1 if that DataLoader keeps its workers from epoch to epoch, else 0; absent without workers."),
    _metric(
        RANK, "dataloader_dataset_info", "gauge", "1; where the files of that DataLoader's dataset lie, as far as it tells their paths: mount point and disk, or the type of "
        "the filesystem where no disk is known.",
        "mountpoint", "device",
    ),
    _metric(RANK, "batch_wait_seconds", "histogram", "Time that training waited for a batch."),
    # A rank: checkpoints.
    _metric(RANK, "checkpoint_saves_total", "counter", "Checkpoints that this rank saved. All that is saved with no training batch in between is one."),
    _metric(RANK, "checkpoint_seconds_total", "counter", "Time that the training thread spent saving, small files and failed saves included."),
    _metric(RANK, "checkpoint_last_bytes", "gauge", "Size of the newest checkpoint: all its files that this rank wrote. Absent where it cannot be known."),
    _metric(RANK, "checkpoint_last_timestamp_seconds", "gauge", "Unix time at which the newest checkpoint was complete."),
    _metric(RANK, "checkpoint_last_interval_iterations", "gauge", "Training batches between the newest two checkpoints."),
    _metric(RANK, "checkpoint_filesystem_avail_bytes", "gauge", "Space left where the newest checkpoint was saved, after it. Absent where that is no folder of this machine."),
    _metric(
        RANK, "checkpoint_filesystem_info", "gauge",
        "1; where that is: mount point, as this rank sees it, and disk, or the type of the filesystem where no disk is known.",
        "mountpoint", "device",
    ),
    # A rank: the process around the training.
    _metric(
        RANK, "ddp_seconds", "gauge",
        "DistributedDataParallel's own measurements of the newest iteration that it sampled (the first ten, then one of "
        "a hundred): forward_compute, backward_compute, backward_communication, and the overlap of the latter two.",
        "part",
    ),
    _metric(RANK, "ddp_find_unused_parameters", "gauge", "1 if DistributedDataParallel looks for unused parameters at each iteration, else 0."),
    _metric(
        RANK, "ddp_unused_parameter_bytes", "gauge",
        "Size of the parameters that DistributedDataParallel found unused: the most at any iteration that it sampled and we saw.",
    ),
    _metric(RANK, "gc_pause_seconds_total", "counter", "Time that Python's garbage collector took in this process."),
    _metric(RANK, "compile_graphs_total", "counter", "Graphs that torch.compile compiled, recompilations included; still rising late in a run, it recompiles. Absent without it."),
    _metric(RANK, "compile_graph_breaks_total", "counter", "Times that torch.compile, while compiling, had to leave a part of the code to Python."),
    # A rank: the hooks themselves.
    _metric(RANK, "hook_seconds_total", "counter", "Time that trainvitals' own hooks took in this process."),
    _metric(RANK, "hook_share_limit_ratio", "gauge", "Share of an iteration that the hooks may take: TRAINVITALS_OVERHEAD. Dear measurements are sampled to keep to it."),
    _metric(RANK, "hook_errors_total", "counter", "Errors inside a hook; after repeated errors the hook is switched off.", "hook"),
    _metric(RANK, "series_dropped_total", "counter", "Series not recorded: over the limit, or with an unusable name.", "reason"),
    # The process tree of a run.
    _metric(PROCESS, "process_cpu_seconds_total", "counter", "CPU time used by the live processes of this role and by those that have ended."),
    _metric(PROCESS, "process_resident_bytes", "gauge", "Resident memory of these processes; shared pages are counted in each of them."),
    _metric(
        PROCESS, "process_proportional_bytes", "gauge",
        "Memory of these processes with each shared page divided among those that share it (PSS). Measured once in minutes, for it is dear. "
        "Absent where the exporter is not permitted to read it.",
    ),
    _metric(PROCESS, "processes", "gauge", "Number of these processes by state; blocked is uninterruptible sleep (D).", "state"),
    _metric(PROCESS, "process_threads", "gauge", "Number of threads of these processes."),
    _metric(
        PROCESS, "process_read_bytes_total", "counter",
        "Bytes that these processes, and those that have ended, had fetched from storage; what was in memory already is not counted. "
        "Absent where the exporter is not permitted to read it.",
    ),
    _metric(
        PROCESS, "process_written_bytes_total", "counter",
        "Bytes that these processes, and those that have ended, sent to storage. Absent where the exporter is not permitted to read it.",
    ),
    _metric(
        PROCESS, "process_open_fds", "gauge",
        "Open file descriptors of the one of these processes that is nearest to its limit. Absent where the exporter is not permitted to read them.",
    ),
    _metric(PROCESS, "process_max_fds", "gauge", "The soft limit of open file descriptors of that process."),
    # What is around a rank.
    _metric(
        SURROUNDINGS, "run_owner_info", "gauge",
        "1; who started this rank and in what, as its user, its cgroups and Slurm's and Kubernetes's own environment variables tell. "
        "Empty where that is unknown or there is none.",
        "user", "container_id", "kubernetes_namespace", "kubernetes_pod", "kubernetes_pod_uid", "slurm_job", "slurm_array_task",
    ),
    _metric(
        SURROUNDINGS, "cgroup_cpu_quota_cores", "gauge",
        "CPU time that this rank's container or job may use, in cores: the tightest quota of its cgroup and those around it. Absent without one.",
    ),
    _metric(SURROUNDINGS, "cgroup_cpu_periods_total", "counter", "Periods of that quota in which anything of that cgroup ran."),
    _metric(
        SURROUNDINGS, "cgroup_cpu_throttled_periods_total", "counter",
        "Those of them in which the quota was used up, and the cgroup had to wait for the next.",
    ),
    _metric(SURROUNDINGS, "shm_size_bytes", "gauge", "Size of the /dev/shm that this rank sees; DataLoader workers hand their batches over in it."),
    _metric(SURROUNDINGS, "shm_avail_bytes", "gauge", "Space left there. A worker that finds none dies of a bus error."),
    _metric(
        SURROUNDINGS, "reads_from_info", "gauge",
        "1 for each filesystem on which this rank or its DataLoader workers were seen with a file open for reading within the last five minutes: "
        "its mount point as they see it, and its disk, or its type where no disk is known. At most four.",
        "mountpoint", "device",
    ),
    # GPUs.
    _metric(GPU, "gpu_info", "gauge", "1; what this GPU is.", "name", "driver_version", "cuda_version", "pci_bus_id"),
    _metric(
        GPU, "gpu_mig_info", "gauge", "1; the GPU that this MIG instance is a part of, and its numbers there. Its label gpu is made of all three.",
        "parent_uuid", "gpu_instance", "compute_instance",
    ),
    _metric(
        GPU, "gpu_utilization_ratio", "gauge",
        "Share of the last 15 seconds in which a kernel was running, by the driver's own samples. Absent with MIG on.",
    ),
    _metric(GPU, "gpu_utilization_ratio_max", "gauge", "The largest of those samples."),
    _metric(
        GPU, "gpu_memory_bandwidth_utilization_ratio", "gauge",
        "Share of the driver's last sample period in which device memory was read or written.",
    ),
    _metric(GPU, "gpu_memory_total_bytes", "gauge", "Memory of the GPU."),
    _metric(GPU, "gpu_memory_used_bytes", "gauge", "Memory in use by all processes."),
    _metric(GPU, "gpu_memory_free_bytes", "gauge", "Memory that is free."),
    _metric(GPU, "gpu_memory_reserved_bytes", "gauge", "Memory that driver and firmware keep for themselves."),
    _metric(GPU, "gpu_power_watts", "gauge", "Power draw; on recent GPUs the driver's one-second average."),
    _metric(GPU, "gpu_power_limit_watts", "gauge", "Power limit in force."),
    _metric(GPU, "gpu_energy_joules_total", "counter", "Energy used since the driver was loaded."),
    _metric(GPU, "gpu_temperature_celsius", "gauge", "Temperature of the GPU die."),
    _metric(GPU, "gpu_memory_temperature_celsius", "gauge", "Temperature of the GPU's memory, where it has a sensor that the driver shows."),
    _metric(GPU, "gpu_clock_hertz", "gauge", "Clock now: graphics, sm, memory or video.", "clock"),
    _metric(
        GPU, "gpu_clocks_event_active", "gauge", "1 if the clocks are lower now for this reason, else 0. (NVIDIA's older name is throttle reasons.)",
        "reason",
    ),
    _metric(
        GPU, "gpu_clocks_event_seconds_total", "counter",
        "Time that the clocks were lower for this reason; 'thermal' is both thermal ones, where the driver does not tell them apart.",
        "reason",
    ),
    _metric(GPU, "gpu_fan_speed_ratio", "gauge", "Intended fan speed as a share of full speed; it can be above 1."),
    _metric(GPU, "gpu_performance_state", "gauge", "Performance state: 0 is the fastest, 15 the slowest."),
    _metric(GPU, "gpu_pcie_transmit_bytes_total", "counter", "Bytes that the GPU sent over PCIe. Absent where reading them would block."),
    _metric(GPU, "gpu_pcie_receive_bytes_total", "counter", "Bytes that the GPU received over PCIe. Absent where reading them would block."),
    _metric(GPU, "gpu_pcie_link_generation", "gauge", "PCIe generation that the link runs at now; idle GPUs save power at a lower one."),
    _metric(GPU, "gpu_pcie_link_width", "gauge", "Lanes that the PCIe link uses now."),
    _metric(GPU, "gpu_nvlink_transmit_bytes_total", "counter", "Payload bytes that the GPU sent over all its NVLinks."),
    _metric(GPU, "gpu_nvlink_receive_bytes_total", "counter", "Payload bytes that the GPU received over all its NVLinks."),
    _metric(GPU, "gpu_ecc_errors_total", "counter", "Memory errors since the driver was loaded: corrected or uncorrected.", "type"),
    _metric(GPU, "gpu_remapped_rows", "gauge", "Rows of memory that were replaced by spare ones because of correctable or uncorrectable errors.", "cause"),
    _metric(
        GPU, "gpu_xid_errors_total", "counter",
        "Errors that the driver reported (XIDs) since the exporter started. A code is absent until it occurs.", "xid",
    ),
    _metric(GPU, "gpu_xid_last_timestamp_seconds", "gauge", "Unix time of the newest error with this code.", "xid"),
    _metric(GPU, "gpu_encoder_utilization_ratio", "gauge", "Share of time in which the video encoder was busy."),
    _metric(GPU, "gpu_decoder_utilization_ratio", "gauge", "Share of time in which the video decoder was busy."),
    _metric(
        GPU, "gpu_process_memory_bytes", "gauge", "GPU memory of a process; run and rank are empty for one that belongs to none.",
        "pid", "run", "rank",
    ),
    _metric(
        GPU, "gpu_process_utilization_ratio", "gauge", "Share of time in which a process's kernels ran, by the driver's own samples.",
        "pid", "run", "rank",
    ),
    # The host.
    _metric(HOST, "host_cpu_seconds_total", "counter", "CPU time by core and mode.", "cpu", "mode"),
    _metric(HOST, "host_load1", "gauge", "Load average of the last minute."),
    _metric(HOST, "host_memory_total_bytes", "gauge", "Memory of the host."),
    _metric(HOST, "host_memory_available_bytes", "gauge", "Memory that can be had without swapping."),
    _metric(HOST, "host_swap_total_bytes", "gauge", "Swap space."),
    _metric(HOST, "host_swap_free_bytes", "gauge", "Swap space that is free."),
    _metric(
        HOST, "host_pressure_seconds_total", "counter",
        "Time in which some or all (full) tasks waited for a resource: the kernel's pressure stall information.",
        "resource", "kind",
    ),
    _metric(HOST, "host_disk_read_bytes_total", "counter", "Bytes read from a disk.", "device"),
    _metric(HOST, "host_disk_written_bytes_total", "counter", "Bytes written to a disk.", "device"),
    _metric(HOST, "host_disk_busy_seconds_total", "counter", "Time in which the disk had a request in flight.", "device"),
    _metric(HOST, "host_disk_info", "gauge", "1; whether the disk rotates (1) or is solid state (0).", "device", "rotational"),
    _metric(HOST, "host_filesystem_size_bytes", "gauge", "Size of a filesystem.", "mountpoint"),
    _metric(HOST, "host_filesystem_avail_bytes", "gauge", "Space left for unprivileged users.", "mountpoint"),
    _metric(HOST, "host_filesystem_disk_info", "gauge", "1; a physical disk that the filesystem lies on.", "mountpoint", "device"),
    _metric(HOST, "host_network_receive_bytes_total", "counter", "Bytes received by a network card.", "interface"),
    _metric(HOST, "host_network_transmit_bytes_total", "counter", "Bytes sent by a network card.", "interface"),
    # The exporter.
    _metric(EXPORTER, "exporter_build_info", "gauge", "1; the version of the exporter and of its Python.", "version", "python_version"),
    _metric(EXPORTER, "collector_success", "gauge", "1 if the collector's newest collection succeeded, else 0.", "collector"),
    _metric(EXPORTER, "collector_duration_seconds", "gauge", "How long the collector's newest collection took.", "collector"),
    _metric(
        EXPORTER, "collector_last_success_timestamp_seconds", "gauge",
        "Unix time of the collector's last success; absent until the first.", "collector",
    ),
    _metric(
        EXPORTER, "exporter_gpu_driver_released", "gauge",
        "1 while the exporter has let go of the NVIDIA driver because an operator asked for it, else 0. Absent without a driver.",
    ),
    _metric(EXPORTER, "exporter_http_requests_total", "counter", "Answers of the endpoint, by HTTP status.", "code"),
    _metric(
        EXPORTER, "exporter_connections_dropped_total", "counter",
        "Connections that the exporter ended: handshake (TLS failed), timeout (too slow), room (others wanted its place), refused (no place).",
        "reason",
    ),
    _metric(
        EXPORTER, "exporter_web_config_reloads_total", "counter",
        "Changes of the web configuration file that were taken over (success) or refused, the old one being kept (failure).", "result",
    ),
    _metric(EXPORTER, "exporter_run_files_rejected", "gauge", "Run files that were found but not trusted or not readable.", "reason"),
)  # fmt: skip

BY_NAME: Final = {metric.name: metric for metric in METRICS}
