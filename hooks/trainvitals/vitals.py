"""From the events of a training loop to the values in the run file: what an iteration, a phase, a loss, an anomaly is.

The instruments report events as they see them; nothing here knows torch. An *iteration* is one training batch: a fetch
from a DataLoader that is followed by a backward before the next fetch. A fetch without a backward is evaluation. In a
loop that fetches nothing, an iteration is one step of the optimizer that stepped first.
"""

from __future__ import annotations

import bisect
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Final

from trainvitals import catalogue
from trainvitals.optimizer_vitals import Batch, Moment, Optimizers, OptimizerVitals
from trainvitals.phases import BACKWARD, DATA_WAIT, FORWARD, OPTIMIZER, OTHER, Phases
from trainvitals.runfile import RETIRED, RunFileWriter
from trainvitals.session import Session

# Several updates on one batch (a critic's) are one iteration; this many without a fetch mean that the loader is not the
# clock of this loop (all batches were fetched beforehand, say).
_STEPS_WITHOUT_FETCH: Final = 64
# So many fetched batches are remembered until they are trained on.
_MAX_AHEAD: Final = 256
# So many of those that were trained on are remembered: what a step of gradient accumulation can be made of.
_MAX_BATCHES: Final = 64
_MAX_SCALARS: Final = 200
# What an event leaves to be done is done this often, for all of them together: cold caches make single work dear.
_COMMIT_SECONDS: Final = 0.1
# Where an iteration takes longer, what its step and its end leave is done at once.
_SLOW_SECONDS: Final = 0.5
_RATE_WINDOW_SECONDS: Final = 10


def _dataset(iterator: Any) -> int | None:
    """Which dataset an iterator reads from, as long as that lives."""
    dataset = getattr(iterator, "_dataset", None)
    return None if dataset is None else id(dataset)


class _Histogram:
    """A histogram in the run file, with the buckets of the catalogue."""

    def __init__(self, writer: RunFileWriter, name: str) -> None:
        self._values = writer.values
        bounds = [*map(str, catalogue.SECONDS_BUCKETS), "+Inf"]
        self._buckets = [writer.slot(f"{name}_bucket", le=bound) for bound in bounds]
        self._sum = writer.slot(f"{name}_sum")

    def observe(self, durations: Iterable[float]) -> None:
        for seconds in durations:
            self._values[self._buckets[bisect.bisect_left(catalogue.SECONDS_BUCKETS, seconds)]] += 1
            self._values[self._sum] += seconds


class Vitals:
    """The state of the loop. Events carry `now`, from perf_counter(), and arrive on the training thread only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._writer: RunFileWriter | None = None
        self._values: memoryview[float]
        self.phases = Phases()
        self.passed = self.phases.passed
        self.optimizers = Optimizers()
        self._boundary: float | None = None
        self._commit_due = 0.0
        self._slow = True  # until an iteration was seen that is not
        self._last_end = 0.0
        self._trained = False
        self._fetches = False
        self._iterations_due: list[float] = []
        self._waits_due: list[float] = []
        self._samples = 0
        self._asked: set[int] = set()
        self._leader: weakref.ref[Any] | None = None
        self._leader_is_told = False
        self._following = False
        self._passes_trained: weakref.ref[Any] | None = None
        self._trained_dataset: int | None = None
        self._fetched_by: int | None = None
        self._pass_counted = False
        self._steps_since_fetch = 0
        # batches that are not trained on yet, and those of an iterator that waits for an evaluation's end
        self._ahead: deque[Batch] = deque(maxlen=_MAX_AHEAD)
        self._in_hand: tuple[weakref.ref[Any] | None, tuple[Batch, ...]] = None, ()
        # how many were fetched since the last backward; whether training fetches those of a step together
        self._fetched_at_once = 0
        self._in_groups = False
        self._pass_ended = False
        self._on_last_batch = False
        self._backwards = 0
        self._backwards_per_fetch = 0
        self._stepped = False
        self._iterations_without_step = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW_SECONDS + 1)
        self._first_optimizer: weakref.ref[Any] | None = None
        self._scalars: dict[str, int] = {}
        self._early_scalars: dict[str, float] = {}
        # training batches and passes over the data that are done
        self.iterations = 0
        self.epoch = 0
        # whether a loader is at work on this thread right now
        self.fetching = False
        # what the newest fetch for training gave, and what the last ones did, each with the number of its iteration
        self.batch: Batch | None = None
        self.batches: deque[tuple[int, Batch]] = deque(maxlen=_MAX_BATCHES)
        # the epoch by a framework's own count
        self.epoch_told = 0
        # the epoch that the loader's sampler has been told, set by the DataLoader's instrument
        self.epoch_of_sampler: Callable[[], int] = lambda: 0
        # reports what could not be reported when it happened
        self.overdue: Callable[[], None] = lambda: None
        # reads a tensor without a sync; set by the torch instruments
        self.read_tensor: Callable[[Any], Any]
        # when training reads from another iterator than before
        self.on_leader: list[Callable[[RunFileWriter], None]] = []
        self.on_iteration: list[Callable[[float, RunFileWriter], None]] = []
        # once a second or less, at an iteration's end
        self.on_second: list[Callable[[float, RunFileWriter], None]] = []
        self.on_epoch: list[Callable[[float, RunFileWriter], None]] = []
        self.on_finish: list[Callable[[], None]] = []
        session.on_armed.append(self._armed)

    def _armed(self, writer: RunFileWriter) -> None:
        self._writer, self._values = writer, writer.values
        self.phases.armed(writer)
        self._iterations = writer.slot("trainvitals_iterations_total")
        self._epoch = writer.slot("trainvitals_epoch")
        self._heartbeat = writer.slot("trainvitals_heartbeat_timestamp_seconds", time.time())
        self._hook_seconds = writer.slot("trainvitals_hook_seconds_total")
        writer.set("trainvitals_hook_share_limit_ratio", self._session.overhead)
        self._iteration_seconds = _Histogram(writer, "trainvitals_iteration_seconds")
        self._batch_wait = _Histogram(writer, "trainvitals_batch_wait_seconds")
        # room for what comes later: scripts may fill the file with series of their own
        self._last_iteration = writer.slot("trainvitals_last_iteration_timestamp_seconds", RETIRED)
        self._rate = writer.slot("trainvitals_iterations_per_second", RETIRED)
        self._samples_total = writer.slot("trainvitals_samples_total", RETIRED)
        for tag, value in self._early_scalars.items():
            self.scalar(tag, value)
        self._early_scalars.clear()
        if self._fetched_by not in (None, get_ident()):  # another thread fetches ahead: that is not this loop's clock
            self._fetches = False
            self._asked.clear()
            self._ahead.clear()
            self._leader = None

    def alive(self) -> None:
        """A sign of life."""
        if self._writer is not None:
            self._values[self._heartbeat] = time.time()

    def fetch_begins(self, now: float, iterator: Any) -> None:
        """The loop asks a DataLoader's iterator for a batch.

        Of another iterator than before, it belongs to the same iteration; asked again, the last batch was for
        evaluation. The first that is asked leads: its passes are epochs, its batches have samples.
        """
        self.overdue()
        self.passed(now, OTHER)
        self.fetching = True
        if self._writer is None:
            self._fetched_by = get_ident()
        key = id(iterator)
        begins = True
        if self._trained:
            self._backwards_per_fetch = self._backwards
            self._in_groups = self._in_groups and self._fetched_at_once > 1
            self._iteration_ends(now)
            self._fetched_at_once = 0
            if len(self._ahead) > 1:  # one is in hand while another is trained on; more were skipped
                self._ahead.clear()
        elif key in self._asked:
            begins = not self._in_groups
            if begins:
                self.phases.set_aside()
                if self._writer is not None and now >= self._commit_due:  # an evaluation may take hours
                    self._commit(now)
                if self._ahead and self._passes_trained is self._leader:  # the batch in its turn was skipped
                    self._ahead.popleft()
        elif self._asked and not self._is_new_leader(iterator):
            self._asked.add(key)
            self._following = True
            return
        elif self._asked:
            self.phases.set_aside()
        self._fetches = True
        self._following = False
        self._steps_since_fetch = 0
        self._asked = {key}
        self._pass_ended = False
        if self._leader is None or self._leader() is not iterator:
            self._follow(iterator)
        if begins:
            self._boundary = now

    def _follow(self, iterator: Any) -> None:
        """Another iterator leads now. What training has in hand waits for it to be back from an evaluation."""
        if self._passes_trained is not None and self._passes_trained is self._leader:
            self._in_hand = self._leader, tuple(self._ahead)
        self._leader = weakref.ref(iterator)
        self._leader_is_told = False
        of, in_hand = self._in_hand
        self._ahead.clear()
        self._ahead.extend(in_hand if of is self._leader else ())
        self._fetched_at_once = 0

    def _is_new_leader(self, iterator: Any) -> bool:
        """Whether the iterator that is asked now takes over from an evaluation: from one that was asked again and again
        without a backward, but not to the end of its data (Lightning), or back to what was trained from.
        """
        if self._fetched_at_once > 1 or (self._passes_trained is not None and self._passes_trained() is iterator):
            return True
        return _dataset(self.leader) != self._trained_dataset == _dataset(iterator)

    def fetch_ends(self, now: float, batch: Batch | None) -> None:
        """The fetch is over: with a batch, or (None) with the end of the data or an error."""
        self.passed(now, DATA_WAIT)
        self.fetching = False
        if batch is None and self._following:
            pass  # the loop goes on, mostly with a new iterator of the same loader
        elif batch is None:
            self.phases.set_aside()
            self._asked.clear()
            self._pass_ended = True
            if self._passes_trained is not None and self._passes_trained is self._leader:
                self._count_pass(now)
        elif not self._following:
            if batch.number == 0:  # a new pass, maybe after one that was broken off
                self._ahead.clear()
                self._pass_counted = False
                if self._passes_trained is self._leader:
                    self._passes_trained = None
            self._ahead.append(batch)
            self._fetched_at_once += 1

    def backward_begins(self, now: float) -> None:
        """A backward begins; the time before it was a forward."""
        if self._writer is None and self._session.arm() is None:
            return
        self.overdue()
        if self._trained and self.phases.mark is not None and self._on_another_batch():
            self._iteration_ends(self.phases.mark)
            self._boundary = self.phases.mark
        self.passed(now, FORWARD)

    def _on_another_batch(self) -> bool:
        """Whether a backward that begins within an iteration is that of another batch, fetched together with this one.

        So it is where a step's batches are all fetched before its backwards. Once the loader has come to its end, what
        trains on goes over batches that were kept: as many backwards to a batch as there were before.
        """
        if self._pass_ended and self._backwards_per_fetch:
            return self._backwards >= self._backwards_per_fetch
        if self._fetched_at_once < 2 or not self._ahead or self._stepped:
            return False
        self._in_groups = True
        self._backwards_per_fetch = self._backwards
        return True

    def backward_ends(self, now: float) -> None:
        """A backward has ended. The first of an iteration shows that its batch is for training."""
        if self._writer is None:
            return
        self.passed(now, BACKWARD)
        self._backwards += 1
        if not self._trained:
            self._trained = True
            if self._fetches:
                self._fetched_for_training(self._writer)
        # Before that, the step that comes next does it, and is then written as well.
        if now >= self._commit_due + _SLOW_SECONDS:
            self._commit(now)

    def step_begins(self, now: float) -> None:
        """An optimizer's step begins."""
        if self._writer is not None or self._session.arm() is not None:
            self.passed(now, OTHER)

    def step_ends(self, now: float, optimizer: object) -> None:
        """An optimizer's step has ended, or was skipped."""
        if self._writer is None:
            return
        self.passed(now, OPTIMIZER)
        self._stepped = True
        if self._slow or now >= self._commit_due:
            self._commit(now)
        if self._first_optimizer is None or self._first_optimizer() is None:
            self._first_optimizer = weakref.ref(optimizer)
        if self._first_optimizer() is not optimizer:
            return
        self._steps_since_fetch += 1
        without_fetches = not self._fetches or (self._pass_ended and not self._backwards_per_fetch)
        if without_fetches or self._steps_since_fetch > _STEPS_WITHOUT_FETCH:
            self._iteration_ends(now)
            self._boundary = now

    @property
    def leader(self) -> Any:
        """The iterator that the newest batch came from; None once it is gone."""
        return self._leader() if self._leader is not None else None

    @property
    def batches_trained(self) -> int:
        """Training batches so far, with one whose iteration has not ended yet."""
        return self.iterations + self._trained

    def moment(self, now: float) -> Moment:
        """What a value that is measured now belongs to."""
        return Moment(now, self.iterations, self.epoch, self.batch)

    @property
    def iteration_began(self) -> float:
        """When the newest iteration began, or the fetch that may become one; by perf_counter(), 0 before the first."""
        return self._boundary or 0.0

    @property
    def accumulated(self) -> int | None:
        """Iterations whose gradients a step that ends now uses; None where there are no fetches to count."""
        return self._iterations_without_step + 1 if self._fetches else None

    def optimizer(self, optimizer: Any, describe: Callable[[Any], tuple[str, int]]) -> OptimizerVitals | None:
        """The vitals of this optimizer, made at its first step; `describe` gives its class's name and its elements."""
        known = self.optimizers.known(optimizer)
        if known is not None or self._writer is None or self.optimizers.is_refused(optimizer):
            return known
        return self.optimizers.add(self._writer, optimizer, describe(optimizer))

    def scalar(self, tag: str, value: float) -> None:
        """A value that the script logs; the first 200 tags are kept. They are told of once the process trains."""
        if self._writer is None:
            if tag in self._early_scalars or len(self._early_scalars) <= _MAX_SCALARS:
                self._early_scalars[tag] = value
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
        if self._writer is None or self.phases.mark is None:
            return
        self.overdue()
        if self._trained and self._fetches:
            self._iteration_ends(self.phases.mark)
        self.passed(now, OTHER)
        self.phases.set_aside()
        self._commit(now)
        self._tell_epoch()
        for tell in self.on_second:
            tell(now, self._writer)
        for action in self.on_finish:
            action()

    def _fetched_for_training(self, writer: RunFileWriter) -> None:
        self._waits_due.append(self.phases.waited)
        self._passes_trained = self._leader
        if not self._leader_is_told:
            self._leader_is_told = True
            self._trained_dataset = _dataset(self.leader)
            for action in self.on_leader:
                action(writer)
        batch = self.batch = self._ahead.popleft() if self._ahead else None
        self._on_last_batch = batch is not None and batch.last
        if batch is not None:
            self.batches.append((self.iterations, batch))
            self._samples += batch.samples or 0

    def _count_pass(self, now: float) -> None:
        self._passes_trained = None
        if self._pass_counted:
            return
        self._pass_counted = True
        self.epoch += 1
        if self._writer is not None:
            self._tell_epoch()
            for action in self.on_epoch:
                action(now, self._writer)

    def _tell_epoch(self) -> None:
        self._values[self._epoch] = max(self.epoch, self.epoch_told, self.epoch_of_sampler())

    def _commit(self, now: float) -> None:
        """Write down all that is known."""
        values = self._values
        self.phases.write(values)
        self._commit_due = now + _COMMIT_SECONDS
        values[self._heartbeat] = wall = time.time()
        values[self._hook_seconds] = self._session.hook_seconds
        if self.iterations:
            values[self._iterations] = self.iterations
            self._iteration_seconds.observe(self._iterations_due)
            self._iterations_due.clear()
            values[self._last_iteration] = wall - (now - self._last_end)
        if self._waits_due:
            self._batch_wait.observe(self._waits_due)
            self._waits_due.clear()
            if self._samples:
                values[self._samples_total] = self._samples
        self.optimizers.settle(now)

    def _iteration_ends(self, now: float) -> None:
        if self._writer is None:
            return
        self.iterations += 1
        self._trained = False
        self._backwards = 0
        self.phases.keep()
        self._iterations_without_step = 0 if self._stepped else self._iterations_without_step + 1
        self._stepped = False
        self._last_end = now
        if self._boundary is not None:
            self._iterations_due.append(now - self._boundary)
            self._slow = now - self._boundary > _SLOW_SECONDS
        if self._on_last_batch:  # not every loop asks for more, to be told that there is none: Lightning does not
            self._on_last_batch = False
            self._count_pass(now)
        for action in self.on_iteration:
            action(now, self._writer)
        if self._slow or now >= self._commit_due:
            self._commit(now)
        if not self._recent or now - self._recent[-1][0] >= 1:
            self._second_passes(now, self._writer)

    def _second_passes(self, now: float, writer: RunFileWriter) -> None:
        recent = self._recent
        recent.append((now, self.iterations))
        while len(recent) > 2 and now - recent[0][0] > _RATE_WINDOW_SECONDS:
            recent.popleft()
        if len(recent) > 1:
            self._values[self._rate] = (self.iterations - recent[0][1]) / (now - recent[0][0])
        self._tell_epoch()
        for action in self.on_second:
            action(now, writer)
