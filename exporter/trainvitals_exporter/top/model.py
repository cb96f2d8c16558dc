"""What there is to see, made of scrapes. None stands for what is not known, everywhere."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from trainvitals_exporter.top.rates import History, Rates, total
from trainvitals_exporter.top.samples import Labels, Samples
from trainvitals_exporter.top.sources import Scrape
from trainvitals_exporter.top.text import name as shown_name

PHASES: Final = ("data_wait", "transfer", "forward", "backward", "optimizer", "checkpoint", "other")
ENDED_STATES: Final = ("finished", "failed", "killed", "out_of_memory")
HISTORIES: Final = ("loss", "gradient norm", "it/s", "memory")
# Of these, an idle GPU and a cap that was asked for are no news.
_USUAL_CLOCK_REASONS: Final = ("gpu_idle", "applications_clocks_setting", "display_clock_setting", "sync_boost")
# An iteration may take long; then it is silent only after several of its length.
_SILENT_SECONDS: Final = 15.0
_SILENT_ITERATIONS: Final = 5.0
# Any of these tells that a training process writes this rank.
_OF_HOOKS: Final = ("run_info", "iterations_total", "loss")
_PHASE_SECONDS: Final = 60.0

Trend = tuple[int, tuple[float | None, ...]]
"""Values over time, one a scrape, and the number of the first since the beginning."""


@dataclass(frozen=True)
class GpuView:
    """A GPU, or a part of one (MIG). Shares are 0 to 1, memory bytes, power watts, temperature degrees Celsius."""

    host: str
    gpu: str
    name: str
    utilization: float | None
    memory_used: float | None
    memory_total: float | None
    power: float | None
    power_limit: float | None
    temperature: float | None
    throttled_by: tuple[str, ...]
    used_by: tuple[str, ...]


@dataclass(frozen=True)
class FilesystemView:
    """A filesystem: bytes."""

    mountpoint: str
    size: float
    available: float


@dataclass(frozen=True)
class HostView:
    """A machine. `cpu` and the busy times of `disks` are shares, memory and swap bytes."""

    name: str
    cpu: float | None
    cores: int
    load: float | None
    memory_total: float | None
    memory_available: float | None
    swap_used: float | None
    filesystems: tuple[FilesystemView, ...]
    disks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class OptimizerView:
    """An optimizer of the leading rank."""

    optimizer: str
    kind: str
    parameters: float | None
    learning_rates: tuple[float, ...]
    steps: float | None
    skipped: float | None
    loss: float | None
    norm: float | None
    norm_max: float | None
    norm_baseline: float | None


@dataclass(frozen=True)
class RankView:
    """A training process. `data_wait` is a share of its newest minute, `cpu` cores, memory bytes."""

    rank: str
    pid: str
    gpus: tuple[str, ...]
    iterations: float | None
    rate: float | None
    loss: float | None
    norm: float | None
    data_wait: float | None
    gpu_memory: float | None
    gpu_memory_reserved: float | None
    cpu: float | None
    resident: float | None


@dataclass(frozen=True)
class RunView:
    """A run on one host. Times are seconds; `memory` is bytes of tensors on the GPUs of the leading rank or, where
    `memory_is_resident`, of all its processes on the host.
    """

    host: str
    name: str
    state: str
    elapsed: float | None
    silent: float | None
    world_size: float | None
    epoch: float | None
    iterations: float | None
    samples: float | None
    rate: float | None
    loss: float | None
    norm: float | None
    memory: float | None
    memory_is_resident: bool
    phases: tuple[tuple[str, float], ...]
    phases_are_recent: bool
    anomalies: tuple[tuple[str, float], ...]
    checkpoint_age: float | None
    checkpoint_bytes: float | None
    trends: dict[str, Trend]
    facts: tuple[tuple[str, str], ...]
    ranks: tuple[RankView, ...]
    optimizers: tuple[OptimizerView, ...]
    scalars: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others."""
        return self.host, self.name

    @property
    def ended(self) -> bool:
        """Whether it has ended, so that its values are its last ones."""
        return self.state in ENDED_STATES


@dataclass(frozen=True)
class MachineView:
    """All that a scrape tells."""

    host: HostView
    gpus: tuple[GpuView, ...]
    runs: tuple[RunView, ...]


@dataclass
class _RunMemory:
    started: float | None
    trends: dict[str, History] = field(default_factory=lambda: {each: History() for each in HISTORIES})


class Machine:
    """One host as its scrapes tell, and what has to be remembered between them."""

    def __init__(self, name: str) -> None:
        self._name = shown_name(name)
        self._rates = Rates()
        self._phases = Rates(_PHASE_SECONDS)
        self._runs: dict[str, _RunMemory] = {}

    def update(self, scrape: Scrape, time: float) -> MachineView:
        """Take note of a scrape that was had at that (monotonic) time."""
        samples = scrape.samples
        by_run = samples.by("run")
        by_run.pop("", None)  # processes of no run
        owners = _gpu_owners(samples, by_run)
        gpus = [self._gpu(each, owners) for each in samples.by("uuid").items() if each[1].of("gpu_memory_total_bytes")
                or each[1].of("gpu_info")]  # fmt: skip
        names = {labels["uuid"]: labels["gpu"] for labels, _ in samples.of("gpu_info")}
        processes = _collected(samples, "processes", time)
        runs = [
            self._run(run, each, scrape.clock, time, processes, names)
            for run, each in by_run.items()
            if each.of("run_state")
        ]
        host = self._host(samples, time)
        self._rates.forget_unseen()
        self._phases.forget_unseen()
        self._runs = {run: memory for run, memory in self._runs.items() if run in by_run}
        return MachineView(host, tuple(sorted(gpus, key=lambda gpu: _natural(gpu.gpu))), tuple(runs))

    def _host(self, samples: Samples, time: float) -> HostView:
        cpu_time, disk_time = _collected(samples, "cpu", time), _collected(samples, "disks", time)
        modes: dict[str, float] = defaultdict(float)
        cores = set()
        for labels, value in samples.of("host_cpu_seconds_total"):
            cores.add(labels["cpu"])
            modes["idle" if labels["mode"] in ("idle", "iowait") else "busy"] += value
        for mode in ("idle", "busy"):
            self._rates.add(("cpu", mode), cpu_time, modes.get(mode))
        idle, busy = (self._rates.increase(("cpu", mode)) for mode in ("idle", "busy"))
        cpu = busy / (busy + idle) if busy is not None and idle is not None and busy + idle > 0 else None
        disks = []
        for labels, value in samples.of("host_disk_busy_seconds_total"):
            self._rates.add(("disk", labels["device"]), disk_time, value)
            rate = self._rates.rate(("disk", labels["device"]))
            if rate is not None:
                disks.append((shown_name(labels["device"]), min(rate, 1.0)))
        swap, swap_free = samples.value("host_swap_total_bytes"), samples.value("host_swap_free_bytes")
        return HostView(
            self._name, cpu, len(cores), samples.value("host_load1"),
            samples.value("host_memory_total_bytes"), samples.value("host_memory_available_bytes"),
            swap - swap_free if swap and swap_free is not None else None,
            _filesystems(samples), tuple(disks),
        )  # fmt: skip

    def _gpu(self, gpu: tuple[str, Samples], owners: dict[str, tuple[str, ...]]) -> GpuView:
        uuid, samples = gpu
        number = samples.label("gpu_info", "gpu") or samples.label("gpu_memory_total_bytes", "gpu")
        throttled = [
            shown_name(labels["reason"])
            for labels, value in samples.of("gpu_clocks_event_active")
            if value and labels["reason"] not in _USUAL_CLOCK_REASONS
        ]
        return GpuView(
            self._name, shown_name(number), shown_name(samples.label("gpu_info", "name")),
            samples.value("gpu_utilization_ratio"),
            samples.value("gpu_memory_used_bytes"), samples.value("gpu_memory_total_bytes"),
            samples.value("gpu_power_watts"), samples.value("gpu_power_limit_watts"),
            samples.value("gpu_temperature_celsius"), tuple(throttled), owners.get(uuid, ()),
        )  # fmt: skip

    def _run(
        self, run: str, samples: Samples, clock: float, time: float, processes: float, gpus: dict[str, str]
    ) -> RunView:
        state = next((labels["state"] for labels, value in samples.of("run_state") if value == 1), "")
        ended = state in ENDED_STATES
        by_rank = samples.by("rank")
        by_rank.pop("", None)
        ordered = sorted((rank for rank in by_rank if any(by_rank[rank].of(each) for each in _OF_HOOKS)), key=_natural)
        lead = by_rank[ordered[0]] if ordered else Samples()
        started = samples.value("run_start_timestamp_seconds")
        silent = None if ended else _silent(lead, clock)
        rate = None if ended or silent is not None else lead.value("iterations_per_second")
        loss, norm = _worst(samples, lead, "loss"), _worst(samples, lead, "gradient_norm")
        memory = total(value for _, value in lead.of("cuda_memory_allocated_bytes"))
        is_resident = memory is None
        if memory is None:
            memory = samples.total("process_proportional_bytes") or samples.total("process_resident_bytes")
        phases, recent = self._shares((run,), samples, time, ended)
        checkpoint = lead.value("checkpoint_last_timestamp_seconds")
        return RunView(
            self._name, shown_name(run), state,
            None if ended else _since(started, clock),
            silent, lead.value("world_size"), lead.value("epoch"), lead.value("iterations_total"),
            lead.value("samples_total"), rate, loss, norm, memory, is_resident, phases, recent, _anomalies(samples),
            _since(checkpoint, clock), lead.value("checkpoint_last_bytes"),
            self._trends(run, started, (loss, norm, rate, memory), ended),
            _facts(samples, lead, ended),
            tuple(self._rank(run, rank, by_rank[rank], time, processes, ended, gpus) for rank in ordered),
            tuple(_optimizers(lead)),
            tuple(sorted((shown_name(labels["tag"]), value) for labels, value in lead.of("scalar"))),
            tuple(_note(labels) for labels, _ in samples.of("anomaly_info")),
        )  # fmt: skip

    def _rank(
        self, run: str, rank: str, samples: Samples, time: float, processes: float, ended: bool, gpus: dict[str, str]
    ) -> RankView:
        phases, _ = self._shares((run, rank), samples, time, ended)
        self._rates.add((run, rank, "cpu"), processes, samples.total("process_cpu_seconds_total"))
        uuids = [labels["uuid"] for labels, _ in samples.of("run_gpu_info")]
        return RankView(
            shown_name(rank), shown_name(samples.label("run_info", "pid")),
            tuple(shown_name(gpus.get(uuid, uuid)) for uuid in uuids), samples.value("iterations_total"),
            None if ended else samples.value("iterations_per_second"),
            _worst(samples, samples, "loss"), _worst(samples, samples, "gradient_norm"),
            dict(phases).get("data_wait"), samples.total("cuda_memory_allocated_bytes"),
            samples.total("cuda_memory_reserved_bytes"),
            None if ended else self._rates.rate((run, rank, "cpu")), samples.total("process_resident_bytes"),
        )  # fmt: skip

    def _shares(
        self, key: tuple[str, ...], samples: Samples, time: float, ended: bool
    ) -> tuple[tuple[tuple[str, float], ...], bool]:
        """The phases' shares, and whether they are those of the newest minute, not of the time since the start."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in samples.of("phase_seconds_total"):
            sums[labels["phase"]] += value
        for phase, value in sums.items():
            self._phases.add((*key, phase), time, value)
        grown = {phase: self._phases.increase((*key, phase)) or 0.0 for phase in sums}
        recent = not ended and sum(grown.values()) > 0
        values = grown if recent else sums
        whole = sum(values.values())
        if whole <= 0 or not math.isfinite(whole):
            return (), recent
        others = [phase for phase in values if phase not in PHASES]
        return tuple((phase, values[phase] / whole) for phase in (*PHASES, *others) if phase in values), recent

    def _trends(
        self, run: str, started: float | None, values: tuple[float | None, ...], ended: bool
    ) -> dict[str, Trend]:
        memory = self._runs.get(run)
        if memory is None or memory.started != started:  # another run of this name
            memory = self._runs[run] = _RunMemory(started)
        for trend, value in zip(memory.trends.values(), values, strict=True):
            if not ended:
                trend.add(value)
        return {each: trend.shown() for each, trend in memory.trends.items()}


def _collected(samples: Samples, collector: str, time: float) -> float:
    """When the collector read what it tells, for some read more rarely than they are scraped; else that time."""
    read = samples.value("collector_last_success_timestamp_seconds", collector=collector)
    return time if read is None else read


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sorts 2 before 10, and 0.1 before 0.10."""
    return tuple((int(part), "") if part.isdecimal() else (1 << 62, part) for part in text.split("."))


def _since(moment: float | None, clock: float) -> float | None:
    """The seconds since then; None where the clocks do not agree on which came first."""
    return clock - moment if moment is not None and moment <= clock + 1 else None


def _silent(lead: Samples, clock: float) -> float | None:
    """For how long the run has been showing no sign of life, if that is long for it."""
    heartbeat = lead.value("heartbeat_timestamp_seconds")
    if heartbeat is None:
        return None
    rate = lead.value("iterations_per_second")
    patience = max(_SILENT_SECONDS, _SILENT_ITERATIONS / rate if rate else 0.0)
    return clock - heartbeat if clock - heartbeat > patience else None


def _worst(samples: Samples, lead: Samples, metric: str) -> float | None:
    """A value that is not finite, of any rank and optimizer; else that of the leading rank's first optimizer."""
    for _, value in samples.of(metric):
        if not math.isfinite(value):
            return value
    ordered = sorted(lead.of(metric), key=lambda each: _natural(each[0].get("optimizer", "")))
    return ordered[0][1] if ordered else None


def _anomalies(samples: Samples) -> tuple[tuple[str, float], ...]:
    """How often each kind of anomaly was counted, by all ranks."""
    counted: dict[str, float] = {}
    for metric, what in (("loss_anomalies_total", "loss"), ("gradient_anomalies_total", "gradient")):
        for labels, value in samples.of(metric):
            kind = f"{what} {shown_name(labels['kind'])}"
            counted[kind] = counted.get(kind, 0.0) + value
    for metric, kind in (("amp_skipped_steps_total", "skipped AMP step"), ("cuda_ooms_total", "out of GPU memory")):
        times = samples.total(metric)
        if times is not None:
            counted[kind] = times
    return tuple((kind, times) for kind, times in counted.items() if times)


def _note(labels: Labels) -> str:
    where = ", ".join(f"{each} {shown_name(labels[each])}" for each in ("iteration", "parameters", "samples")
                      if labels.get(each))  # fmt: skip
    return f"{shown_name(labels.get('kind', ''))} of optimizer {shown_name(labels.get('optimizer', ''))}: {where}"


def _facts(samples: Samples, lead: Samples, ended: bool) -> tuple[tuple[str, str], ...]:
    """What is known of the run in words."""
    info = (("script", "script"), ("framework", "framework"), ("torch_version", "torch"), ("cuda_version", "CUDA"),
            ("run_id", "run id"))  # fmt: skip
    owner = (("user", "user"), ("slurm_job", "Slurm job"), ("kubernetes_pod", "pod"), ("container_id", "container"))
    facts = [(title, lead.label("run_info", label)) for label, title in info]
    facts += [(title, lead.label("run_owner_info", label)) for label, title in owner]
    facts += [(labels["label"], labels["value"]) for labels, _ in samples.of("run_label_info")]
    if ended:
        code = samples.value("run_exit_code")
        facts.append(("exit code", "" if code is None else f"{code:.0f}"))
        facts += [(each, samples.label("run_end_info", each)) for each in ("signal", "exception")]
    amp = [labels["dtype"] for labels, value in lead.of("amp_enabled") if value]
    facts.append(("autocast", ", ".join(amp)))
    for metric, title in (("dataloader_workers", "workers"), ("dataloader_batch_size", "batch size")):
        value = lead.value(metric)
        facts.append((title, "" if value is None else f"{value:.0f}"))
    return tuple((shown_name(title), shown_name(value)) for title, value in facts if value)


def _optimizers(lead: Samples) -> list[OptimizerView]:
    views = []
    by_optimizer = lead.by("optimizer")
    for optimizer in sorted(by_optimizer, key=_natural):
        each = by_optimizer[optimizer]
        parameters = each.label("optimizer_info", "parameters")
        views.append(OptimizerView(
            shown_name(optimizer), shown_name(each.label("optimizer_info", "class")),
            float(parameters) if parameters.isdecimal() else None,
            tuple(value for _, value in each.of("learning_rate")), each.value("optimizer_steps_total"),
            each.value("amp_skipped_steps_total"), each.value("loss"), each.value("gradient_norm"),
            each.value("gradient_norm_max"), each.value("gradient_norm_baseline"),
        ))  # fmt: skip
    return views


def _gpu_owners(samples: Samples, by_run: dict[str, Samples]) -> dict[str, tuple[str, ...]]:
    """Who uses each GPU, by UUID: live runs with their ranks, then processes of none with their memory."""
    owners: dict[str, list[str]] = defaultdict(list)
    for run, each in by_run.items():
        many = (each.value("world_size") or 1) > 1
        live = not any(value == 1 and labels["state"] in ENDED_STATES for labels, value in each.of("run_state"))
        for labels, _ in each.of("run_gpu_info") if live else ():
            ranks = f" r{labels['rank']}" if many else ""
            owners[labels["uuid"]].append(shown_name(run + ranks))
    for labels, _ in sorted(samples.of("gpu_process_memory_bytes", run=""), key=lambda each: -each[1]):
        owners[labels["uuid"]].append(f"pid {shown_name(labels['pid'])}")
    return {uuid: tuple(dict.fromkeys(each)) for uuid, each in owners.items()}


def _filesystems(samples: Samples) -> tuple[FilesystemView, ...]:
    """The fullest first."""
    available = {labels["mountpoint"]: value for labels, value in samples.of("host_filesystem_avail_bytes")}
    views = [
        FilesystemView(shown_name(labels["mountpoint"]), size, available[labels["mountpoint"]])
        for labels, size in samples.of("host_filesystem_size_bytes")
        if labels["mountpoint"] in available and size > 0
    ]
    return tuple(sorted(views, key=lambda each: each.available / each.size))
