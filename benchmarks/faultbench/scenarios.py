"""What is played: each fault in the shapes that can have it, with the alert it has to raise; and healthy runs.

Times are of real scale; `factor` says how much faster a scenario is played.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 3600.0
FAST: Final = 20.0

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
    # Nothing else may be played meanwhile: the fault reaches beyond its run.
    alone: bool = False
    # Ends on its own, and is watched for a while afterwards.
    ends: bool = False

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return self.expect is None


def _cnn(fault: str, expect: str, says: str = "", **more: object) -> Scenario:
    return Scenario(f"cnn-{fault}", "cnn", fault, expect, says, **more)  # type: ignore[arg-type]


AFTER_A_HANG: Final = {}

CNN: Final = (
    Scenario("cnn-healthy-1", "cnn"),
    Scenario("cnn-healthy-2", "cnn", seed=2, pace=0.05),
    Scenario("cnn-evaluation", "cnn", "evaluation"),
    Scenario("cnn-single-spikes", "cnn", "single-spikes"),
    Scenario("cnn-amp-overflows", "cnn", "amp-overflows"),
    Scenario("cnn-restarts", "cnn", "restarts"),
    Scenario("cnn-checkpoints", "cnn", "checkpoints"),
    Scenario("cnn-ends", "cnn", length=30 * MINUTE, ends=True),
    _cnn("crash", "TrainingRunFailed", "RuntimeError"),
    _cnn("killed", "TrainingRunFailed", "SIGKILL"),
    _cnn("hang", "TrainingStalled"),
    _cnn("nan", "TrainingNonFinite"),
    _cnn("explosion", "TrainingGradientExplosion"),
    _cnn("gradual-explosion", "TrainingGradientExplosion", patience=60 * MINUTE),
    _cnn("slow-loader", "TrainingDataStarved", "num_workers is 0"),
    _cnn("kl-negative", "TrainingKlNegative"),
    _cnn("kl-too-large", "TrainingKlTooLarge", onset=60 * MINUTE),
)

ALL: Final = CNN
