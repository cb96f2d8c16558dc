"""What is played: each fault in the shapes that can have it, with the alert it has to raise; and healthy runs.

Times are of real scale; `factor` says how much faster a scenario is played.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

MINUTE: Final = 60.0
HOUR: Final = 3600.0
FAST: Final = 20.0
# For what takes hours. Windows of seconds are longer than their share then.
FASTEST: Final = 60.0

Allowed = Mapping[str, str]


@dataclass(frozen=True)
class Scenario:
    """One run. `shape` is a module of `shapes`; `arguments` are its own, besides those that every shape has.

    `expect` is the alert that has to fire, None for a healthy run; `says` a regular expression that its description has
    to match, which is how the cause is told. `allowed` are other alerts above info that are true as well, each with the
    reason. The fault begins after `onset` seconds; the alert has to fire within `patience` more. A healthy run lasts
    `length`.
    """

    name: str
    shape: str
    fault: str = "none"
    expect: str | None = None
    says: str = ""
    allowed: Allowed = field(default_factory=dict)
    onset: float = 20 * MINUTE
    patience: float = 40 * MINUTE
    length: float = HOUR
    factor: float = FAST
    arguments: tuple[str, ...] = ()
    pace: float = 0.1
    seed: int = 1
    # What of the machine it takes, in runs of a small loop.
    weight: int = 1
    # A fault that has to be notified at once.
    immediate: bool = False
    # GPU of the fake driver; each scenario its own unless two are meant to share one.
    gpu: int | None = None
    # Filesystems of this run alone: mount point (below its output folder unless absolute) to size in MiB.
    mounts: Mapping[str, int] = field(default_factory=dict)
    # The machine's memory, where it is to be used up. Only of one that is played alone.
    host_gib: float | None = None
    # Nothing else may be played meanwhile: the fault reaches beyond its run.
    alone: bool = False
    # Ends on its own, and is watched for a while afterwards.
    ends: bool = False

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return self.expect is None


# A run that stands still does nothing else either.
STANDS_STILL: Final = {
    "TrainingDataStarved": "it stands still",
    "TrainingGpuUnderused": "it stands still",
    "TrainingSpeedDrop": "it stands still",
    "TrainingRankStraggling": "it stands still",
}
SLOWER: Final = {"TrainingSpeedDrop": "it is slower than it was"}
FREQUENT: Final = {"TrainingCheckpointsTooFrequent": "they are"}
LOSS_TOO: Final = {"TrainingLossDiverging": "the loss grows by the same factor", "TrainingLossSpike": "likewise"}
LEAKS: Final = {
    f"TrainingCuda{name}": "the same leak, seen by another rule"
    for name in ("MemoryLeak", "MemoryLeakSlow", "MemoryLeakShortRun", "OutOfMemoryPredicted")
}
NO_DATA: Final = {"TrainingDataStarved": "the GPU waits because the data does not come"}


def _sick(shape: str, fault: str, expect: str, says: str = "", **more: Any) -> Scenario:
    return Scenario(f"{shape}-{fault}", shape, fault, expect, says, **more)


def _healthy(shape: str, name: str, fault: str = "none", **more: Any) -> Scenario:
    return Scenario(f"{shape}-healthy-{name}", shape, fault, **more)


def _at_once(scenario: Scenario) -> Scenario:
    """The same in real time: it has to be told within seconds, which compressed time cannot show."""
    return replace(scenario, name=f"{scenario.name}-real-time", factor=1, onset=20, patience=90, immediate=True)


CNN: Final = (
    _healthy("cnn", "1"),
    _healthy("cnn", "2", seed=2, pace=0.05),
    _healthy("cnn", "3", seed=3, pace=0.2, length=2 * HOUR),
    _healthy("cnn", "evaluation", "evaluation", seed=4),
    _healthy("cnn", "single-spikes", "single-spikes", seed=5),
    _healthy("cnn", "amp-overflows", "amp-overflows", seed=6),
    _healthy("cnn", "restarts", "restarts", seed=7),
    _healthy("cnn", "checkpoints", "checkpoints", seed=8),
    _healthy("cnn", "resumed", "resumed", seed=9),
    _healthy("cnn", "longer-batches", "longer-batches", seed=11, length=1.5 * HOUR),
    _healthy("cnn", "night", seed=12, length=6 * HOUR, factor=FASTEST),
    _healthy("cnn", "ends", seed=10, length=30 * MINUTE, ends=True),
    _sick("cnn", "crash", "TrainingRunFailed", "RuntimeError"),
    _sick("cnn", "host-out-of-memory", "TrainingRunOutOfMemory", "(?i)memory"),
    _sick("cnn", "killed", "TrainingRunFailed", "SIGKILL"),
    _sick("cnn", "all-killed", "TrainingRunFailed", "killed"),
    _sick("cnn", "vanish", "TrainingRunVanished"),
    _sick("cnn", "hang", "TrainingStalled", allowed=STANDS_STILL),
    _sick("cnn", "nan", "TrainingNonFinite"),
    _sick("cnn", "explosion", "TrainingGradientExplosion", "AdamW", allowed=LOSS_TOO),
    _sick("cnn", "gradual-explosion", "TrainingGradientExplosion", patience=HOUR, allowed=LOSS_TOO,
          pace=0.03, weight=2),
    _sick("cnn", "vanishing", "TrainingGradientVanishing"),
    _sick("cnn", "loss-spikes", "TrainingLossSpike"),
    _sick("cnn", "diverging", "TrainingLossDiverging", onset=HOUR, patience=2 * HOUR),
    _sick("cnn", "kl-negative", "TrainingKlNegative"),
    _sick("cnn", "kl-too-large", "TrainingKlTooLarge", onset=HOUR),
    _sick("cnn", "amp-collapse", "TrainingAmpScaleCollapsed", allowed={"TrainingAmpStepsSkipped": "all are skipped"}),
    _sick("cnn", "amp-skips", "TrainingAmpStepsSkipped", allowed={"TrainingAmpScaleCollapsed": "each skip halves it"}),
    _sick("cnn", "slow-loader", "TrainingDataStarved", "num_workers is 0", allowed=SLOWER),
    _sick("cnn", "checkpoints-too-frequent", "TrainingCheckpointsTooFrequent", patience=HOUR, allowed=SLOWER),
    _sick("cnn", "checkpoints-slow", "TrainingCheckpointsSlow", patience=2 * HOUR, pace=0.05, allowed=SLOWER),
    _sick("cnn", "checkpoints-none", "TrainingCheckpointsTooRare", onset=0, patience=4 * HOUR, factor=FASTEST),
    _sick("cnn", "disk-filling", "TrainingDiskFilling", patience=1.5 * HOUR, mounts={"checkpoints": 128},
          allowed={"TrainingDiskFullSoon": "there is room for one", **FREQUENT}),
    _sick("cnn", "disk-full", "TrainingDiskFullSoon", patience=1.5 * HOUR, mounts={"checkpoints": 128},
          allowed={"TrainingDiskFilling": "it has been", **FREQUENT}),
    _sick("cnn", "shm-full", "TrainingShmNearlyFull", mounts={"/dev/shm": 64}),  # noqa: S108
    _sick("cnn", "open-files", "TrainingOpenFilesNearLimit"),
    _sick("cnn", "host-leak", "TrainingHostMemoryLeak", onset=10 * MINUTE, patience=2 * HOUR),
    _sick("cnn", "host-leak-fast", "TrainingHostOutOfMemoryPredicted", onset=10 * MINUTE, patience=1.5 * HOUR,
          allowed={"TrainingHostMemoryLeak": "it is the same leak"}, host_gib=4, alone=True),
)  # fmt: skip

HUGGING_FACE: Final = (
    _healthy("hugging_face", "1", weight=2),
    _healthy("hugging_face", "2", seed=2, weight=2),
    _sick("hugging_face", "nan", "TrainingNonFinite", weight=2),
    _sick("hugging_face", "explosion", "TrainingGradientExplosion", weight=2, allowed=LOSS_TOO),
    _sick("hugging_face", "crash", "TrainingRunFailed", "KeyError", weight=2),
    _sick("hugging_face", "slow-loader", "TrainingDataStarved", "num_workers is 0", weight=2, allowed=SLOWER),
)

DDP: Final = (
    _healthy("ddp", "1", weight=2),
    _healthy("ddp", "2", seed=2, weight=2, pace=0.15),
    _sick("ddp", "straggler", "TrainingRankStraggling", "Rank 1 ", weight=2, patience=HOUR, allowed=SLOWER),
    _sick("ddp", "rank-hang", "TrainingStalled", weight=2, allowed=STANDS_STILL),
    _sick("ddp", "rank-crash", "TrainingRunFailed", "ValueError", weight=2),
    _sick("ddp", "find-unused", "TrainingAdviceFindUnusedParameters", weight=2, onset=0, patience=HOUR),
)

_GPU: Final = (
    _healthy("gpu", "1"),
    _healthy("gpu", "2", seed=2, pace=0.05),
    _healthy("gpu", "evaluation", "evaluation", length=2 * HOUR),
    _healthy("gpu", "longer-sequences", "longer-sequences", length=2.5 * HOUR),
    _healthy("gpu", "warm-up", "warm-up"),
    _healthy("gpu", "epoch-sawtooth", "epoch-sawtooth", length=2 * HOUR),
    _healthy("gpu", "night", "evaluation", length=6 * HOUR, factor=FASTEST),
    _sick("gpu", "leak", "TrainingCudaMemoryLeak", onset=10 * MINUTE, patience=2 * HOUR, allowed=LEAKS),
    _sick("gpu", "leak-slow", "TrainingCudaMemoryLeakSlow", onset=0, patience=5 * HOUR, allowed=LEAKS,
          factor=FASTEST),
    _sick("gpu", "leak-to-the-end", "TrainingCudaOutOfMemoryPredicted", onset=10 * MINUTE, patience=HOUR,
          allowed=LEAKS),
    _sick("gpu", "leak-short-run", "TrainingCudaMemoryLeakShortRun", onset=4 * MINUTE, patience=30 * MINUTE,
          allowed=LEAKS),
    _sick("gpu", "fragmentation", "TrainingCudaMemoryFragmented", patience=2 * HOUR),
    _sick("gpu", "allocation-failed", "TrainingCudaAllocationFailed"),
    _sick("gpu", "out-of-memory", "TrainingRunOutOfMemory", "(?i)GPU",
          allowed={"TrainingCudaAllocationFailed": "the process takes seconds to end, minutes in compressed time"}),
    _sick("gpu", "underused", "TrainingGpuUnderused"),
    _sick("gpu", "starved", "TrainingGpuUnderused", "num_workers is 0", allowed={**NO_DATA, **SLOWER}),
    _sick("gpu", "slow-down", "TrainingSpeedDrop", onset=HOUR, patience=HOUR),
    _sick("gpu", "spinning", "TrainingGpuSpinning", allowed={**STANDS_STILL, "TrainingStalled": "it stands still"}),
    _sick("gpu", "throttled", "TrainingGpuThrottled"),
    _sick("gpu", "held-idle", "TrainingGpuHeldIdle", patience=2 * HOUR,
          allowed={**STANDS_STILL, "TrainingStalled": "it stands still"}),
    _sick("gpu", "xid", "TrainingGpuXid"),
    _sick("gpu", "xid-fatal", "TrainingGpuXidFatal"),
    _sick("gpu", "ecc-errors", "TrainingGpuEccErrors"),
    _sick("gpu", "rows-remapped", "TrainingGpuRowsRemapped", onset=1.25 * HOUR),
    _sick("gpu", "memory-tight", "TrainingAdviceAmp", onset=0, patience=HOUR),
    _sick("gpu", "not-pinned", "TrainingAdvicePinMemory", onset=0, patience=HOUR),
    _sick("gpu", "small-batch", "TrainingAdviceBatchSize", onset=0, patience=HOUR),
    _sick("gpu", "lost", "TrainingGpuLost", allowed={**STANDS_STILL, "TrainingStalled": "it stands still"}, alone=True),
)  # fmt: skip
# Each has a GPU of its own. GPUs beyond those are used by nobody, and two healthy runs share one.
GPU: Final = (
    *(replace(scenario, gpu=place) for place, scenario in enumerate(_GPU)),
    *(_healthy("gpu", f"shared-{n}", "bystander", seed=n, gpu=len(_GPU)) for n in (1, 2)),
)

_EXAMPLE: Final[tuple[tuple[str, str, str | None, str, Allowed], ...]] = (
    ("s2", "none", None, "", {}),
    ("s1", "none", None, "", {}),
    ("s2", "slow-loader", "TrainingDataStarved", "(?i)cause", SLOWER),
    ("s2", "single-core", "TrainingDataStarved", "num_workers is 0", SLOWER),
    ("s2", "nan", "TrainingNonFinite", "", {}),
    ("s1", "nan", "TrainingNonFinite", "", {}),
    ("s2", "loss-spike", "TrainingLossSpike", "", {}),
    ("s2", "crash", "TrainingRunFailed", "exit code|Error|Exception", {}),
    ("s1", "crash", "TrainingRunFailed", "IndexError", {}),
    ("s2", "grad-explosion", "TrainingGradientExplosion", "", LOSS_TOO),
    ("s1", "grad-explosion", "TrainingGradientExplosion", "", LOSS_TOO),
    ("s2", "vanishing", "TrainingGradientVanishing", "", {}),
    ("s1", "vanishing", "TrainingGradientVanishing", "", {}),
    ("s2", "kl-negative", "TrainingKlNegative", "", {}),
    ("s2", "hang", "TrainingStalled", "", STANDS_STILL),
    ("s1", "hang", "TrainingStalled", "", STANDS_STILL),
)


def _example(stage: str, fault: str, expect: str | None, says: str, allowed: Allowed) -> Scenario:
    name = f"example-{stage}-{'healthy' if expect is None else fault}"
    weight = 3 if stage == "s2" else 2
    scenario = Scenario(
        name, "example", fault, expect, says, allowed, arguments=("--stage", stage), pace=0.5, weight=weight
    )  # fmt: skip
    if fault == "slow-loader":
        # The loader is slow beside a trainer at full speed.
        scenario = replace(scenario, pace=0.05, weight=5, onset=5 * MINUTE)
    if fault == "loss-spike":
        # In compressed time ten minutes would hold too few iterations for several of its spikes.
        scenario = replace(scenario, factor=1, onset=20, patience=3 * MINUTE, pace=0.25)
    return scenario


EXAMPLE: Final = tuple(_example(*row) for row in _EXAMPLE)

REAL_TIME: Final = tuple(
    _at_once(scenario)
    for scenario in (*CNN, *EXAMPLE)
    if scenario.name in ("cnn-crash", "cnn-nan", "cnn-explosion", "cnn-killed", "example-s1-crash")
)

ALL: Final = (*CNN, *HUGGING_FACE, *DDP, *GPU, *EXAMPLE, *REAL_TIME)
