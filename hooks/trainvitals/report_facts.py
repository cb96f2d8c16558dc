"""What the run files of a run tell when it has ended: the contents of its report, and of the report's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainvitals import __version__, endings
from trainvitals.catalogue import PHASES
from trainvitals.endings import End
from trainvitals.runfile import Labels, RunFile

SCHEMA: Final = "trainvitals.report"
# Raised when a field changes its meaning or goes; new fields may come without.
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Ending:
    """How the run ended. `silent_ranks` ended without a word, as who is killed does; `running_ranks` live on."""

    state: str
    exit_code: int
    signal: str
    exception: str
    silent_ranks: list[int]
    running_ranks: list[int]


@dataclass(frozen=True)
class Phase:
    """A phase of training: its seconds (the mean of the ranks), and its share of all ranks' time in training."""

    phase: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Progress:
    """How far the run came. Iterations per second: of all its time in training, and of the last ten seconds."""

    ranks: int
    world_size: int | None
    iterations: int
    epochs: int
    iterations_per_second: float | None
    last_iterations_per_second: float | None


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of the lowest rank; `loss` is its last one, None where none was recorded."""

    optimizer: str
    name: str
    parameters: int | None
    steps: int
    loss: float | None


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU as PyTorch in one rank saw it, in bytes. `device` is the rank's own number for it, total its capacity."""

    rank: int
    device: str
    peak_bytes: float
    reserved_bytes: float
    total_bytes: float | None

    @property
    def used(self) -> float | None:
        """The share of its capacity that PyTorch held at most, as far as it was seen."""
        return None if not self.total_bytes else max(self.peak_bytes, self.reserved_bytes) / self.total_bytes


@dataclass(frozen=True)
class Anomaly:
    """Steps of an optimizer that were no usual ones: on the rank that saw most, for DDP shows a gradient to all."""

    of: str
    kind: str
    optimizer: str
    steps: int


@dataclass(frozen=True)
class Trouble:
    """What went wrong beside. Skipped steps are of the rank that saw most, the others of all ranks together."""

    amp_skipped_steps: int
    cuda_ooms: int
    cuda_oom_requested_bytes: float | None
    series_dropped: int
    hook_errors: dict[str, int]


@dataclass(frozen=True)
class Facts:
    """A run that has ended. Times are in seconds; `started` is Unix time; `outside_training_seconds` is the rest."""

    run_id: str
    run: str
    labels: dict[str, str]
    started: float
    seconds: float
    training_seconds: float
    outside_training_seconds: float
    ending: Ending
    progress: Progress
    phases: list[Phase]
    optimizers: list[Optimizer]
    gpus: list[DeviceMemory]
    host_largest_process_bytes: int | None
    anomalies: list[Anomaly]
    trouble: Trouble

    def document(self) -> dict[str, Any]:
        """As the JSON report has it. Numbers that JSON has no word for (a loss of NaN) are text."""
        about = {"schema": SCHEMA, "version": SCHEMA_VERSION, "written_by": f"trainvitals {__version__}"}
        found: dict[str, Any] = _plain({**about, **vars(self)})
        return found


class Ranks:
    """The run files of the processes that trained, by rank. A rank has several where it was started again."""

    def __init__(self, files: Iterable[RunFile]) -> None:
        self.files = sorted((f for f in files if f.identity.kind == "rank"), key=lambda f: (f.rank, f.created))
        self.by_rank: dict[int, list[RunFile]] = {}
        for file in self.files:
            self.by_rank.setdefault(max(file.rank, 0), []).append(file)

    def series(self, name: str) -> Iterator[tuple[int, RunFile, dict[str, str], float]]:
        """Each series of a metric, named without prefix: (rank, file, labels, value)."""
        for rank, files in self.by_rank.items():
            for file in files:
                for labels in file.labels(f"trainvitals_{name}"):
                    value = file.value(f"trainvitals_{name}", **labels)
                    if value is not None:
                        yield rank, file, labels, value

    def of_each(self, name: str, **wanted: str) -> dict[int, float]:
        """The sum of a metric's values for each rank that has any; only series with the labels `wanted`."""
        sums: dict[int, float] = {}
        for rank, _, labels, value in self.series(name):
            if wanted.items() <= labels.items():
                sums[rank] = sums.get(rank, 0.0) + value
        return sums

    def highest(self, name: str, **wanted: str) -> float | None:
        """The largest value of a metric, None where there is none."""
        return max((v for _, _, labels, v in self.series(name) if wanted.items() <= labels.items()), default=None)

    def total(self, name: str, **wanted: str) -> float:
        """The sum of a metric over all ranks."""
        return sum(self.of_each(name, **wanted).values())

    def phase_shares(self, phase: str) -> dict[int, float]:
        """The share of its time that each rank spent in a phase."""
        all_phases, spent = self.of_each("phase_seconds_total"), self.of_each("phase_seconds_total", phase=phase)
        return {rank: spent.get(rank, 0.0) / seconds for rank, seconds in all_phases.items() if seconds > 0}


def gather(
    ranks: Ranks, *, run_id: str, run: str, labels: Labels, end: End, exit_code: int, started: float, seconds: float,
    host_bytes: int | None,
) -> Facts:  # fmt: skip
    """All that the report says but for the advice. `seconds` is how long the command took."""
    training = ranks.of_each("phase_seconds_total")
    return Facts(
        run_id=run_id,
        run=run,
        labels=dict(labels),
        started=started,
        seconds=seconds,
        training_seconds=sum(training.values()) / len(training) if training else 0.0,
        outside_training_seconds=max(0.0, seconds - max(training.values(), default=0.0)),
        ending=_ending(ranks, end, exit_code),
        progress=_progress(ranks, training),
        phases=_phases(ranks, training),
        optimizers=_optimizers(ranks),
        gpus=_gpus(ranks),
        host_largest_process_bytes=host_bytes,
        anomalies=_anomalies(ranks),
        trouble=_trouble(ranks),
    )


def _ending(ranks: Ranks, end: End, exit_code: int) -> Ending:
    newest = {rank: files[-1] for rank, files in ranks.by_rank.items()}
    unsaid = {rank: file for rank, file in newest.items() if endings.final_state(file) is None}
    return Ending(
        end.state, exit_code, end.signal, end.exception,
        silent_ranks=[rank for rank, file in unsaid.items() if file.alive_pid is None],
        running_ranks=[rank for rank, file in unsaid.items() if file.alive_pid is not None],
    )  # fmt: skip


def _progress(ranks: Ranks, training: dict[int, float]) -> Progress:
    """Of the rank that came furthest: the others train in step with it, or died earlier."""
    iterations = ranks.of_each("iterations_total")
    first = max(iterations, key=iterations.__getitem__, default=0)
    seconds = training.get(first, 0.0)
    newest = ranks.by_rank[first][-1] if first in ranks.by_rank else None
    world_size = ranks.highest("world_size")
    return Progress(
        ranks=len(ranks.by_rank),
        world_size=None if world_size is None else int(world_size),
        iterations=int(iterations.get(first, 0)),
        epochs=int(ranks.highest("epoch") or 0),
        iterations_per_second=iterations[first] / seconds if iterations and seconds > 0 else None,
        last_iterations_per_second=newest.value("trainvitals_iterations_per_second") if newest else None,
    )


def _phases(ranks: Ranks, training: dict[int, float]) -> list[Phase]:
    everything = sum(training.values())
    sums = {phase: ranks.total("phase_seconds_total", phase=phase) for phase in PHASES}
    return [Phase(phase, s / len(training), s / everything) for phase, s in sums.items() if s > 0]


def _optimizers(ranks: Ranks) -> list[Optimizer]:
    if not ranks.by_rank:
        return []
    file = ranks.by_rank[min(ranks.by_rank)][-1]
    about = {labels["optimizer"]: labels for labels in file.labels("trainvitals_optimizer_info")}
    found = []
    for label, info in sorted(about.items(), key=lambda item: (len(item[0]), item[0])):
        steps = file.value("trainvitals_optimizer_steps_total", optimizer=label)
        parameters = info.get("parameters", "")
        loss = file.value("trainvitals_loss", optimizer=label)
        found.append(
            Optimizer(
                label, info.get("class", ""), int(parameters) if parameters.isdigit() else None, int(steps or 0), loss
            )
        )
    return found


def _gpus(ranks: Ranks) -> list[DeviceMemory]:
    devices = {}
    for rank, file, labels, reserved in ranks.series("cuda_memory_reserved_bytes"):  # the newest file of a rank is last
        device = labels.get("device", "")
        peak = file.value("trainvitals_cuda_memory_peak_bytes", device=device)
        total = file.value("trainvitals_cuda_memory_total_bytes", device=device)
        devices[rank, device] = DeviceMemory(rank, device, peak or 0.0, reserved, total)
    return list(devices.values())


def _anomalies(ranks: Ranks) -> list[Anomaly]:
    found = []
    for of in ("loss", "gradient"):
        kinds = {(x["kind"], x["optimizer"]) for _, _, x, _ in ranks.series(f"{of}_anomalies_total") if len(x) == 2}
        for kind, optimizer in sorted(kinds):
            steps = max(ranks.of_each(f"{of}_anomalies_total", kind=kind, optimizer=optimizer).values())
            if steps > 0:
                found.append(Anomaly(of, kind, optimizer, int(steps)))
    return found


def _trouble(ranks: Ranks) -> Trouble:
    errors: dict[str, int] = {}
    for _, _, labels, value in ranks.series("hook_errors_total"):
        if value > 0:
            errors[labels.get("hook", "")] = errors.get(labels.get("hook", ""), 0) + int(value)
    return Trouble(
        amp_skipped_steps=int(max(ranks.of_each("amp_skipped_steps_total").values(), default=0)),
        cuda_ooms=int(ranks.total("cuda_ooms_total")),
        cuda_oom_requested_bytes=ranks.highest("cuda_oom_requested_bytes"),
        series_dropped=int(ranks.total("series_dropped_total")),
        hook_errors=errors,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return _plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value
