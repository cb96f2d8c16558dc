"""From the events of a training loop to the values in the run file: what an iteration, a phase, a loss, an anomaly is.

The instruments report events as they see them; nothing here knows torch. An *iteration* is one training batch: a fetch
from a DataLoader that is followed by a backward before the next fetch. A fetch without a backward is evaluation. In a
loop that fetches nothing, an iteration is one step of the optimizer that stepped first.
"""

from __future__ import annotations

import bisect
import math
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from trainvitals import catalogue
from trainvitals.baselines import Baseline, RollingExtreme
from trainvitals.runfile import RunFileWriter
from trainvitals.session import Session

DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER, OTHER = range(len(catalogue.PHASES))

# Several updates on one batch (a critic's) are one iteration; this many without a fetch mean that the loader is not the
# clock of this loop (all batches were fetched beforehand, say).
_STEPS_WITHOUT_FETCH: Final = 64
# A gradient norm of over ten times the usual is what clipping and warm-up are meant to prevent; single ones happen on
# healthy runs, so rules look at how many there are.
_EXPLOSION_FACTOR: Final = 10.0
_VANISHING_FACTOR: Final = 1e-3
_LOSS_SPIKE_FACTOR: Final = 1000.0
# Losses around zero would otherwise turn their noise into spikes.
_LOSS_FLOOR: Final = 1e-3
_MAX_SCALARS: Final = 200


class OptimizerVitals:
    """What is known of one optimizer. `label` is its place in the order of first steps."""

    def __init__(self, writer: RunFileWriter, label: str, class_name: str, parameters: int) -> None:
        self._writer = writer
        self._values = writer.values
        self._label = label
        self._loss_baseline = Baseline()
        self._norm_baseline = Baseline()
        self._norm_max = RollingExtreme()
        self._learning_rates: dict[int, int] = {}
        self._steps = writer.slot("trainvitals_optimizer_steps_total", optimizer=label)
        self._skipped: int | None = None
        self._slots: dict[str, int] = {}
        self._anomalies = {
            (name, kind): writer.slot(f"trainvitals_{name}_anomalies_total", optimizer=label, kind=kind)
            for name, kinds in (("loss", catalogue.LOSS_ANOMALIES), ("gradient", catalogue.GRADIENT_ANOMALIES))
            for kind in kinds
        }
        about = {"optimizer": label, "class": class_name, "parameters": str(parameters)}
        writer.set("trainvitals_optimizer_info", 1.0, **about)

    def stepped(self) -> None:
        """The optimizer made a step."""
        self._values[self._steps] += 1

    def skipped(self) -> None:
        """The GradScaler skipped a step of the optimizer."""
        if self._skipped is None:
            self._skipped = self._writer.slot("trainvitals_amp_skipped_steps_total", optimizer=self._label)
        self._values[self._skipped] += 1

    def learning_rate(self, group: int, value: float) -> None:
        """The learning rate of the parameter group number `group`."""
        slot = self._learning_rates.get(group)
        if slot is None:
            labels = {"optimizer": self._label, "group": str(group)}
            slot = self._learning_rates[group] = self._writer.slot("trainvitals_learning_rate", value, **labels)
        self._values[slot] = value

    def loss(self, value: float) -> None:
        """The loss of a step, also of a skipped one."""
        self._put("trainvitals_loss", value)
        usual = self._loss_baseline.median
        if not math.isfinite(value):
            self._anomaly("loss", "nonfinite")
        elif usual is not None and abs(value) > _LOSS_SPIKE_FACTOR * max(usual, _LOSS_FLOOR):
            self._anomaly("loss", "spike")
        self._loss_baseline.add(abs(value))

    def gradient_norm(self, now: float, value: float) -> None:
        """The gradient norm of a step; `now` in seconds of a monotonic clock."""
        usual = self._norm_baseline.median
        if not math.isfinite(value):
            self._anomaly("gradient", "nonfinite")
        elif usual and value > _EXPLOSION_FACTOR * usual:
            self._anomaly("gradient", "explosion")
        elif usual is not None and value < _VANISHING_FACTOR * usual:
            self._anomaly("gradient", "vanishing")
        self._norm_baseline.add(value)
        largest = self._norm_max.add(now, value)
        self._put("trainvitals_gradient_norm", value)
        self._put("trainvitals_gradient_norm_max", largest)
        if usual is not None:
            self._put("trainvitals_gradient_norm_baseline", usual)

    def _put(self, name: str, value: float) -> None:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = self._writer.slot(name, value, optimizer=self._label)
        self._values[slot] = value

    def _anomaly(self, name: str, kind: str) -> None:
        self._values[self._anomalies[name, kind]] += 1


class Vitals:
    """The state of the loop. Events carry `now`, from perf_counter(), and arrive on the training thread only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writer: RunFileWriter | None = None
        self._values: memoryview[float]
        self._mark: float | None = None
        self._boundary: float | None = None
        self._pending = [0.0] * len(catalogue.PHASES)
        self._trained = False
        self._fetches = False
        self._asked: set[int] = set()
        self._steps_since_fetch = 0
        self._optimizers: dict[int, tuple[weakref.ref[Any], OptimizerVitals]] = {}
        self._labels: list[tuple[weakref.ref[Any], tuple[str, int]]] = []
        self._first_optimizer: weakref.ref[Any] | None = None
        self._scalars: dict[str, int] = {}
        # reads a tensor without a sync; set by the torch instruments
        self.read_tensor: Callable[[Any], Any]
        self.on_training_fetch: list[Callable[[RunFileWriter], None]] = []
        self.on_iteration: list[Callable[[float, RunFileWriter], None]] = []
        session.on_armed.append(self._armed)

    def _armed(self, writer: RunFileWriter) -> None:
        self._writer, self._values = writer, writer.values
        self._phases = [writer.slot("trainvitals_phase_seconds_total", phase=phase) for phase in catalogue.PHASES]
        self._iterations = writer.slot("trainvitals_iterations_total")
        self._heartbeat = writer.slot("trainvitals_heartbeat_timestamp_seconds", time.time())
        self._hook_seconds = writer.slot("trainvitals_hook_seconds_total")
        self._seconds_sum = writer.slot("trainvitals_iteration_seconds_sum")
        bounds = [*map(str, catalogue.ITERATION_SECONDS_BUCKETS), "+Inf"]
        self._buckets = [writer.slot("trainvitals_iteration_seconds_bucket", le=bound) for bound in bounds]
        self._last_iteration: int | None = None

    def fetch_begins(self, now: float, loader: int) -> None:
        """The loop asks a DataLoader, known by this number, for a batch.

        Of another loader than before, it belongs to the same iteration; asked again, the last batch was for evaluation.
        """
        self._to(now, OTHER)
        if self._trained:
            self._iteration_ends(now)
        elif loader in self._asked:
            self._set_aside()
        elif self._asked:
            self._asked.add(loader)
            return
        self._fetches = True
        self._steps_since_fetch = 0
        self._asked = {loader}
        self._boundary = now

    def fetch_ends(self, now: float, *, batch: bool) -> None:
        """The fetch is over: with a batch, or with the end of the data or an error."""
        self._to(now, DATA_WAIT)
        if not batch:
            self._set_aside()
            self._asked.clear()
        if self._writer is not None:
            self._values[self._heartbeat] = time.time()

    def backward_begins(self, now: float) -> None:
        """A backward begins; the time before it was a forward."""
        if self._writer is None and self._session.arm() is None:
            return
        self._to(now, FORWARD)

    def backward_ends(self, now: float) -> None:
        """A backward has ended. The first of an iteration shows that its batch is for training."""
        if self._writer is None:
            return
        self._to(now, BACKWARD)
        self._values[self._heartbeat] = time.time()
        if not self._trained:
            self._trained = True
            if self._fetches:
                for action in self.on_training_fetch:
                    action(self._writer)
        self._commit()

    def step_begins(self, now: float) -> None:
        """An optimizer's step begins."""
        if self._writer is not None or self._session.arm() is not None:
            self._to(now, OTHER)

    def step_ends(self, now: float, optimizer: object) -> None:
        """An optimizer's step has ended, or was skipped."""
        if self._writer is None:
            return
        self._to(now, OPTIMIZER)
        self._commit()
        self._values[self._heartbeat] = time.time()
        if self._first_optimizer is None or self._first_optimizer() is None:
            self._first_optimizer = weakref.ref(optimizer)
        if self._first_optimizer() is not optimizer:
            return
        self._steps_since_fetch += 1
        if not self._fetches or self._steps_since_fetch > _STEPS_WITHOUT_FETCH:
            self._iteration_ends(now)
            self._boundary = now

    def optimizer(self, optimizer: Any, describe: Callable[[Any], tuple[str, int]]) -> OptimizerVitals | None:
        """The vitals of this optimizer, made at its first step; `describe` gives its class's name and its parameters.

        The label of an optimizer that is gone goes to the next new one of its kind: a second training in this process
        continues the series of the first.
        """
        known = self._optimizers.get(id(optimizer))
        if known is not None and known[0]() is optimizer:
            return known[1]
        if self._writer is None:
            return None
        reference = weakref.ref(optimizer)
        about = describe(optimizer)
        free = (place for place, (earlier, like) in enumerate(self._labels) if earlier() is None and like == about)
        place = next(free, len(self._labels))
        self._labels[place : place + 1] = [(reference, about)]
        vitals = OptimizerVitals(self._writer, str(place), *about)
        self._optimizers = {key: value for key, value in self._optimizers.items() if value[0]() is not None}
        self._optimizers[id(optimizer)] = (reference, vitals)
        return vitals

    def scalar(self, tag: str, value: float) -> None:
        """A value that the script logs while it trains; the first 200 tags are kept."""
        if self._writer is None:
            return
        slot = self._scalars.get(tag)
        if slot is None:
            if len(self._scalars) >= _MAX_SCALARS:
                self._values[self._writer.slot("trainvitals_series_dropped_total", reason="too_many_scalars")] += 1
                return
            slot = self._scalars[tag] = self._writer.slot("trainvitals_scalar", value, tag=tag)
        self._values[slot] = value

    def finish(self, now: float) -> None:
        """The loop is over: its last iteration has no next fetch to end it, and ended with its last event."""
        if self._writer is None or self._mark is None:
            return
        if self._trained and self._fetches:
            self._iteration_ends(self._mark, ago=now - self._mark)
        self._to(now, OTHER)
        self._set_aside()
        self._commit()

    def _to(self, now: float, phase: int) -> None:
        if self._mark is not None:
            self._pending[phase] += now - self._mark
        self._mark = now

    def _set_aside(self) -> None:
        self._pending[:] = [0.0, 0.0, 0.0, 0.0, sum(self._pending)]

    def _commit(self) -> None:
        pending, values = self._pending, self._values
        for phase, slot in enumerate(self._phases):
            if pending[phase]:
                values[slot] += pending[phase]
                pending[phase] = 0.0

    def _iteration_ends(self, now: float, ago: float = 0.0) -> None:
        if self._writer is None:
            return
        self._commit()
        values = self._values
        values[self._iterations] += 1
        self._trained = False
        if self._boundary is not None:
            seconds = now - self._boundary
            values[self._buckets[bisect.bisect_left(catalogue.ITERATION_SECONDS_BUCKETS, seconds)]] += 1
            values[self._seconds_sum] += seconds
        if self._last_iteration is None:
            self._last_iteration = self._writer.slot("trainvitals_last_iteration_timestamp_seconds")
        values[self._last_iteration] = time.time() - ago
        values[self._hook_seconds] = self._session.hook_seconds
        for action in self.on_iteration:
            action(now, self._writer)
