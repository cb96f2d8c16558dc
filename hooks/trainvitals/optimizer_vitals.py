"""From the losses and gradient norms of each optimizer to its values in the run file: what is normal, what is not."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple

from trainvitals import catalogue
from trainvitals.baselines import Baseline, RollingExtreme
from trainvitals.runfile import RunFileWriter

# A gradient norm of over ten times the usual is what clipping and warm-up are meant to prevent; single ones happen on
# healthy runs, so rules look at how many there are. Where norms by nature vary as widely as that, they also have to be
# as far out as six standard deviations, of their logarithms.
_EXPLOSION_FACTOR: Final = 10.0
_VANISHING_FACTOR: Final = 1000.0
_DEVIATIONS: Final = 6
_WIDEST: Final = 1e6
# What has left the usual is back only when it is this much nearer, so that one episode is not seen as many.
_HYSTERESIS: Final = 2.0
# Norms over the limit at so many measured steps on end are no spike any more.
_LASTS_AFTER: Final = 10
_LOSS_SPIKE_FACTOR: Final = 1000.0
# Losses around zero would otherwise turn their noise into spikes.
_LOSS_FLOOR: Final = 1e-3
# What a value leaves to be done is done for so many together, since cold caches make single work dear; at first for as
# many as a baseline needs to begin.
_SETTLE_AT: Final = 50
_ANY: Final = sys.float_info.max
_MAX_OPTIMIZERS: Final = 32


class Batch(NamedTuple):
    """A fetched batch: its `number` in this pass over the data, from 0; where known, the dataset's `indices` in it, and
    how many `samples` it has; whether it is known to be the `last` of the pass.
    """

    number: int
    indices: Sequence[Any] | None = None
    samples: int | None = None
    last: bool = False


class Moment(NamedTuple):
    """When a step was made: seconds of perf_counter(), iterations and epochs before it, and its batch."""

    now: float
    iteration: int
    epoch: int
    batch: Batch | None


class Anomaly(NamedTuple):
    """A loss or gradient norm (`name`) that is not normal for its optimizer; `usual` is the median.

    `evidence` returns what the instrument that measured the value knows about it; it has to be asked at once.
    """

    optimizer: str
    name: str
    kind: str
    value: float
    usual: float | None
    moment: Moment
    evidence: Callable[[], Any] | None


class OptimizerVitals:
    """What is known of one optimizer. `label` is its place in the order of first steps.

    Each value is judged at once against limits; the rest of the work on it waits for `settle()`, because it is several
    times cheaper for many values at a time.
    """

    def __init__(
        self, writer: RunFileWriter, label: str, class_name: str, parameters: int, on_anomaly: Callable[[Anomaly], None]
    ) -> None:
        self._writer = writer
        self._values = writer.values
        self._label = label
        self._on_anomaly = on_anomaly
        self._steps_due = 0
        self._losses: list[float] = []
        self._most_losses = _SETTLE_AT
        self._loss_baseline = Baseline()
        self._loss_limit = _ANY
        self._norms: list[float] = []
        self._most_norms = _SETTLE_AT
        self._norm_baseline = Baseline()
        self._norm_limits = (-_ANY, _ANY)
        self._usual_norm: float | None = None
        self._norm_max = RollingExtreme()
        self._norm_state = ""
        self._explosive_on_end = 0
        self._gauges: dict[str, tuple[int, float]] = {}
        self._learning_rates: dict[int, int] = {}
        self._steps = writer.slot("trainvitals_optimizer_steps_total", optimizer=label)
        self._measured = writer.slot("trainvitals_gradient_norm_measured_steps_total", optimizer=label)
        self._skipped: int | None = None
        self._explosions = writer.slot("trainvitals_gradient_explosions_total", optimizer=label)
        self._anomalies = {
            (name, kind): writer.slot(f"trainvitals_{name}_anomalies_total", optimizer=label, kind=kind)
            for name, kinds in (("loss", catalogue.LOSS_ANOMALIES), ("gradient", catalogue.GRADIENT_ANOMALIES))
            for kind in kinds
        }
        about = {"optimizer": label, "class": class_name, "parameters": str(parameters)}
        writer.set("trainvitals_optimizer_info", 1.0, **about)

    def stepped(self) -> None:
        """The optimizer made a step."""
        self._steps_due += 1

    def skipped(self) -> None:
        """The GradScaler skipped a step of the optimizer."""
        if self._skipped is None:
            self._skipped = self._writer.slot("trainvitals_amp_skipped_steps_total", optimizer=self._label)
        self._values[self._skipped] += 1

    def accumulated(self, iterations: int) -> None:
        """So many training batches made the gradients of the step."""
        self._put("trainvitals_gradient_accumulation_iterations", iterations)

    def measured_every(self, steps: int) -> None:
        """The gradient norm is measured at one of so many steps."""
        self._put("trainvitals_gradient_norm_interval_steps", steps)

    def learning_rate(self, group: int, value: float) -> None:
        """The learning rate of the parameter group number `group`."""
        slot = self._learning_rates.get(group)
        if slot is None:
            labels = {"optimizer": self._label, "group": str(group)}
            slot = self._learning_rates[group] = self._writer.slot("trainvitals_learning_rate", value, **labels)
        self._values[slot] = value

    def is_usual_loss(self, value: float) -> bool:
        """Whether a loss is neither a spike nor NaN or infinite."""
        return -self._loss_limit <= value <= self._loss_limit

    def loss(self, value: float, moment: Moment) -> None:
        """The loss of a step, also of a skipped one."""
        self._losses.append(value)
        if not self.is_usual_loss(value):
            kind = "spike" if math.isfinite(value) else "nonfinite"
            self._anomaly("loss", kind, value, self._loss_baseline.median, moment)
        if len(self._losses) >= self._most_losses:
            self.settle(moment.now)

    def gradient_norm(self, value: float, moment: Moment, evidence: Callable[[], Any]) -> None:
        """The gradient norm of a step; what `evidence` returns goes to whoever looks into an anomaly."""
        self._norms.append(value)
        low, high = self._norm_limits
        if self._norm_state or not low <= value <= high:
            self._norm_state = self._judge(value)
            self._explosive_on_end = self._explosive_on_end + 1 if self._norm_state == "explosion" else 0
            if self._explosive_on_end == _LASTS_AFTER:
                self._values[self._explosions] += 1
            if self._norm_state:
                usual = self._norm_baseline.median
                self._anomaly("gradient", self._norm_state, value, usual, moment, evidence)
        if len(self._norms) >= self._most_norms:
            self.settle(moment.now)

    def settle(self, now: float) -> None:
        """Do what is left to do on the values since the last time."""
        self._values[self._steps] += self._steps_due
        self._steps_due = 0
        if self._losses:
            self._put("trainvitals_loss", self._losses[-1])
            self._loss_baseline.add(map(abs, self._losses))
            if self._loss_baseline.median is not None:
                self._loss_limit = _LOSS_SPIKE_FACTOR * max(self._loss_baseline.median, _LOSS_FLOOR)
            self._losses.clear()
            self._most_losses = self._loss_baseline.missing or _SETTLE_AT
        if self._norms:
            self._values[self._measured] += len(self._norms)
            self._put("trainvitals_gradient_norm", self._norms[-1])
            self._put("trainvitals_gradient_norm_max", self._norm_max.add(now, _largest(self._norms)))
            self._norm_baseline.add(self._norms)
            self._norms.clear()
            self._most_norms = self._norm_baseline.missing or _SETTLE_AT
            self._limit_norms()

    def _limit_norms(self) -> None:
        usual = self._norm_baseline.median
        if usual is None or usual == self._usual_norm:
            return
        self._usual_norm = usual
        self._put("trainvitals_gradient_norm_baseline", usual)
        far = min(self._norm_baseline.spread(usual), _WIDEST) ** _DEVIATIONS
        # Where all is 0 so far, whatever comes is no explosion.
        high = usual * max(_EXPLOSION_FACTOR, far) if usual else _ANY
        self._norm_limits = (usual / max(_VANISHING_FACTOR, far), high)

    def _judge(self, norm: float) -> str:
        """The kind of anomaly that a gradient norm is, or "" when it is normal."""
        low, high = self._norm_limits
        if not math.isfinite(norm):
            return "nonfinite"
        if norm > (high / _HYSTERESIS if self._norm_state == "explosion" else high):
            return "explosion"
        if norm < (low * _HYSTERESIS if self._norm_state == "vanishing" else low):
            return "vanishing"
        return ""

    def _put(self, name: str, value: float) -> None:
        slot, last = self._gauges.get(name, (None, None))
        if slot is None:
            slot = self._writer.slot(name, value, optimizer=self._label)
        if value != last:
            self._gauges[name] = (slot, value)
            self._values[slot] = value

    def _anomaly(
        self,
        name: str,
        kind: str,
        value: float,
        usual: float | None,
        moment: Moment,
        evidence: Callable[[], Any] | None = None,
    ) -> None:
        self._values[self._anomalies[name, kind]] += 1
        self._on_anomaly(Anomaly(self._label, name, kind, value, usual, moment, evidence))


def _largest(values: list[float]) -> float:
    """The largest value, NaN only where there is nothing else: max() of a list with NaN depends on the order."""
    return max((value for value in values if value == value), default=math.nan)


class Optimizers:
    """The optimizers of this process, labelled in the order of their first steps."""

    def __init__(self) -> None:
        self.on_anomaly: list[Callable[[Anomaly], None]] = []
        self._vitals: dict[int, tuple[weakref.ref[Any], OptimizerVitals]] = {}
        self._labels: list[tuple[weakref.ref[Any], tuple[str, int]]] = []
        self._refused: dict[int, weakref.ref[Any]] = {}

    def known(self, optimizer: Any) -> OptimizerVitals | None:
        """The vitals of this optimizer, None before its first step."""
        reference, vitals = self._vitals.get(id(optimizer), (None, None))
        return vitals if reference is not None and reference() is optimizer else None

    def is_refused(self, optimizer: Any) -> bool:
        """Whether there was no room for this one: some scripts have an optimizer for each parameter."""
        reference = self._refused.get(id(optimizer))
        return reference is not None and reference() is optimizer

    def add(self, writer: RunFileWriter, optimizer: Any, about: tuple[str, int]) -> OptimizerVitals | None:
        """The vitals of a new optimizer; `about` is its class's name and the number of its parameters' elements.

        The label of an optimizer that is gone goes to the next new one of its kind: a second training in this process
        continues the series of the first.
        """
        reference = weakref.ref(optimizer)
        free = (place for place, (earlier, like) in enumerate(self._labels) if earlier() is None and like == about)
        place = next(free, len(self._labels))
        if place >= _MAX_OPTIMIZERS:
            self._refused = {key: value for key, value in self._refused.items() if value() is not None}
            self._refused[id(optimizer)] = reference
            writer.values[writer.slot("trainvitals_series_dropped_total", reason="too_many_optimizers")] += 1
            return None
        vitals = OptimizerVitals(writer, str(place), *about, self._report)
        self._labels[place : place + 1] = [(reference, about)]
        for key, (gone, settled) in list(self._vitals.items()):
            if gone() is None:
                settled.settle(perf_counter())
                del self._vitals[key]
        self._vitals[id(optimizer)] = (reference, vitals)
        return vitals

    def settle(self, now: float) -> None:
        """Write down what is left to write of all of them."""
        for _, vitals in self._vitals.values():
            vitals.settle(now)

    def _report(self, anomaly: Anomaly) -> None:
        for action in self.on_anomaly:
            action(anomaly)
