"""Bugs one can switch on. Each is a real one: nothing here writes a log line or a metric.

A `Fault` has one method for each seam where training lets a bug in; the base class does what a healthy training does.
The first line of a fault's docstring says what really goes wrong; `FAULTS`, at the end, gives them their names.

This module does not import torch, so that `--help` and usage errors come at once.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from .settings import Settings
    from .speech import Recording

Distribution = TypeVar("Distribution")


class Fault:
    """Nothing: a healthy training."""

    stages: ClassVar[tuple[str, ...]] = ("s2", "s1")
    needs_cuda: ClassVar[bool] = False

    def __init__(self, after: int, leak_limit_mb: int) -> None:
        self.after, self.leak_limit_mb = after, leak_limit_mb

    def active(self, iteration: int) -> bool:
        return iteration > self.after

    def workers(self, asked: int) -> int:
        """How many processes load data."""
        return asked

    def mel(self, iteration: int, position: int, recording: Recording) -> Tensor:
        """The spectrogram of the item at `position` of the iteration's batch. Called where data is loaded."""
        return recording.log_mel()

    def units(self, iteration: int, position: int, units: Tensor) -> Tensor:
        """The semantic tokens of that item. Called where data is loaded."""
        return units

    def distributions(
        self, iteration: int, posterior: Distribution, prior: Distribution
    ) -> tuple[Distribution, Distribution]:
        """What the KL term takes as posterior and as prior. Stage s2 only."""
        return posterior, prior

    def loss(self, iteration: int, loss: Tensor) -> Tensor:
        """The generator's loss (s1: the only one), just before its backward."""
        return loss

    def after_iteration(self, iteration: int, activations: Sequence[Tensor]) -> None:
        """The end of an iteration, with some of the networks' activations."""


# ---- faults of the data


class SlowLoader(Fault):
    """A single worker reads every recording again and again from a slow disk: training waits for data."""

    _READS, _SEEK_SECONDS = 8, 0.015

    def workers(self, asked: int) -> int:
        return min(asked, 1)

    def mel(self, iteration: int, position: int, recording: Recording) -> Tensor:
        if self.active(iteration):
            for _ in range(self._READS):
                # A disk head's way to the file, eight times for want of a cache.
                time.sleep(self._SEEK_SECONDS)
                recording.log_mel()
        return recording.log_mel()


class SingleCore(Fault):
    """No workers, and a de-click filter in pure Python: one core is busy in the main process while the model waits."""

    def workers(self, asked: int) -> int:
        return 0

    def mel(self, iteration: int, position: int, recording: Recording) -> Tensor:
        if not self.active(iteration):
            return recording.log_mel()
        samples = recording.samples()
        heard = samples.tolist()
        for i in range(12, len(heard) - 12):
            samples[i] = sorted(heard[i - 12 : i + 13])[12]
        return recording.log_mel(samples)


class NotANumber(Fault):
    """A silent recording is in every batch and is normalised by its own peak: 0 / 0."""

    def mel(self, iteration: int, position: int, recording: Recording) -> Tensor:
        if self.active(iteration) and position == 0:
            return recording.log_mel(recording.samples() * 0, quietest=0.0)
        return recording.log_mel()


class LossSpike(Fault):
    """One sample in 40 batches comes from a stale cache: 16-bit magnitudes where log mels should be."""

    _EVERY = 40

    def mel(self, iteration: int, position: int, recording: Recording) -> Tensor:
        stale = self.active(iteration) and (iteration - self.after) % self._EVERY == 1 and position == 0
        return recording.unscaled_mel() if stale else recording.log_mel()


class Crash(Fault):
    """A padding mark of -1 is left among the tokens: the embedding raises IndexError in the rank."""

    def units(self, iteration: int, position: int, units: Tensor) -> Tensor:
        if self.active(iteration) and position == 0:
            return units * 0 - 1
        return units


# ---- faults of the training maths


class GradientExplosion(Fault):
    """A warm-up of the loss weight multiplies where it should add: x1.12 an iteration, up to x10000."""

    # AdamW does not care for the scale of gradients, so the weights stay sane and the norm stays finite and large.
    _GROWTH, _BOUND = 1.12, 1e4

    def loss(self, iteration: int, loss: Tensor) -> Tensor:
        return loss * min(self._GROWTH ** max(0, iteration - self.after), self._BOUND)


class Vanishing(Fault):
    """A soft limit on the loss tightens until every loss is far beyond it: flat, with no gradient left."""

    _TIGHTER, _TIGHTEST = 0.9, 28.0

    def __init__(self, after: int, leak_limit_mb: int) -> None:
        super().__init__(after, leak_limit_mb)
        self._limit = 0.0

    def loss(self, iteration: int, loss: Tensor) -> Tensor:
        if not self.active(iteration):
            return loss
        usual = loss.item()
        self._limit = max(self._TIGHTER * (self._limit or 4 * usual), usual / self._TIGHTEST)
        return self._limit * (1 - (-loss / self._limit).exp())


class NegativeKL(Fault):
    """The KL term gets prior and posterior the wrong way round, though its sample comes from the posterior."""

    stages = ("s2",)

    def distributions(
        self, iteration: int, posterior: Distribution, prior: Distribution
    ) -> tuple[Distribution, Distribution]:
        return (prior, posterior) if self.active(iteration) else (posterior, prior)


# ---- faults of the process


class Leak(Fault, ABC):
    """What both leaks share: a history of activations for a plot that nobody draws."""

    def __init__(self, after: int, leak_limit_mb: int) -> None:
        super().__init__(after, leak_limit_mb)
        self._history: list[Tensor] = []
        self._kept_bytes = 0

    @abstractmethod
    def keep(self, activation: Tensor) -> Tensor:
        """What is kept of an activation."""

    def after_iteration(self, iteration: int, activations: Sequence[Tensor]) -> None:
        # The limit spares the machine that shows the fault; 0 is none.
        full = self.leak_limit_mb and self._kept_bytes >= self.leak_limit_mb * 2**20
        if self.active(iteration) and not full:
            self._history += [self.keep(activation) for activation in activations]
            self._kept_bytes += sum(activation.nbytes for activation in activations)


class HostLeak(Leak):
    """A history list keeps a host copy of every iteration's activations, graph and all."""

    def keep(self, activation: Tensor) -> Tensor:
        return activation.to("cpu", copy=True)


class CudaLeak(Leak):
    """A history list keeps every iteration's activations on the GPU, graph and all."""

    needs_cuda = True

    def keep(self, activation: Tensor) -> Tensor:
        return activation


class Hang(Fault):
    """A lock that is not re-entrant is taken twice by the same thread: the rank waits for itself."""

    def after_iteration(self, iteration: int, activations: Sequence[Tensor]) -> None:
        if self.active(iteration):
            lock = threading.Lock()
            with lock, lock:
                pass


FAULTS: dict[str, type[Fault]] = {
    "none": Fault,
    "slow-loader": SlowLoader,
    "single-core": SingleCore,
    "nan": NotANumber,
    "loss-spike": LossSpike,
    "crash": Crash,
    "grad-explosion": GradientExplosion,
    "vanishing": Vanishing,
    "kl-negative": NegativeKL,
    "host-leak": HostLeak,
    "cuda-leak": CudaLeak,
    "hang": Hang,
}


def make_fault(settings: Settings) -> Fault:
    return FAULTS[settings.fault](settings.fault_after, settings.leak_limit_mb)
