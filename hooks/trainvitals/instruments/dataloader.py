"""DataLoader fetches: the boundary of an iteration, the batch that it trains on, and what the loader is like."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedRandomSampler
from torch.utils.data import dataloader as torch_dataloader

from trainvitals.dataset_files import places_of
from trainvitals.instruments import Context
from trainvitals.optimizer_vitals import Batch
from trainvitals.runfile import RunFileWriter

_PLAIN_SAMPLERS = (DistributedSampler, RandomSampler, SequentialSampler, WeightedRandomSampler)
_DATASET_INFO = "trainvitals_dataloader_dataset_info"


class _Source:
    """One iterator, and the newest index lists that it has asked for: as many as can be on their way.

    There are none where they do not tell what is in which batch.
    """

    def __init__(self, iterator: Any, forget: Callable[[Any], Any]) -> None:
        self.reference = weakref.ref(iterator, forget)
        self.asked: deque[Any] = deque(maxlen=_most_on_their_way(iterator))
        self._batched = iterator._auto_collation
        self._has_workers = iterator._num_workers > 0
        self._length: int | None = None

    def fetched(self, iterator: Any) -> Batch:
        """The batch that has just been fetched."""
        number = iterator._num_yielded - 1
        if number == 0:
            self._length = _length_of(iterator._index_sampler)
        last = number + 1 == self._length
        later = iterator._send_idx - iterator._rcvd_idx if self._has_workers else 0
        contents = self._contents(self.asked[-1 - later]) if later < len(self.asked) else (None, None)
        return Batch(number, *contents, last)

    def _contents(self, index: Any) -> tuple[Sequence[Any] | None, int | None]:
        """The dataset's indices in a batch, and how many samples these are."""
        if type(index) is list:
            return index, len(index)
        if not self._batched:
            return (index,), None  # the dataset makes the batch, of any number of samples
        return (index, len(index)) if hasattr(index, "__len__") else (None, None)


class _Fetches:
    """Reports fetches, but none inside another (a dataset may read from a loader), and describes the loader once."""

    def __init__(self, context: Context) -> None:
        self._session = context.session
        self._vitals = context.vitals
        self._under_way = False
        self.sources: dict[int, _Source] = {}
        self._described: _Source | None = None
        self._describe = context.session.guarded("dataloader", self._describe_loader)
        self._look_for_files = context.session.guarded("dataset_files", self._tell_places)
        self._dataset: int | None = None
        self._places: set[tuple[str, str]] = set()
        self._index_sampler: Callable[[], Any] = lambda: None
        self._epoch = 0
        context.vitals.on_leader.append(self.describe)
        context.vitals.epoch_of_sampler = self._epoch_of_sampler

    def source_of(self, now: float, iterator: Any) -> _Source:
        """What is known of an iterator, from now on."""
        key = id(iterator)
        if key not in self.sources:
            self.sources[key] = _Source(iterator, lambda reference: self.sources.pop(key, None))
        return self.sources[key]

    def begin(self, now: float, iterator: Any) -> bool:
        """Whether this fetch is one to report the end of."""
        if self._under_way:
            return False
        self._vitals.fetch_begins(now, iterator)
        self._under_way = True
        return True

    def end(self, now: float, iterator: Any, arrived: bool) -> None:
        """That fetch is over."""
        self._under_way = False  # also when another thread has become the one that trains
        if not self._session.on_training_thread():
            self._vitals.fetching = False  # it began before anybody knew which thread trains
            return
        source = self.sources.get(id(iterator)) or self.source_of(now, iterator)
        self._vitals.fetch_ends(now, source.fetched(iterator) if arrived else None)

    def describe(self, writer: RunFileWriter) -> None:
        """Describe the loader that training reads from, when it has a new iterator."""
        iterator = self._vitals.leader
        source = self.sources.get(id(iterator))
        if source is not None and source is not self._described:
            self._described = source
            self._describe(writer, iterator)
            self._look_for_files(writer, iterator._dataset)

    def _describe_loader(self, now: float, writer: RunFileWriter, iterator: Any) -> None:
        workers = iterator._num_workers
        writer.set("trainvitals_dataloader_workers", float(workers))
        writer.set("trainvitals_dataloader_pin_memory", float(iterator._pin_memory))
        sampler = iterator._index_sampler
        # another batch sampler may make batches of any size
        size = float(sampler.batch_size) if type(sampler) is BatchSampler else None
        writer.set_or_retire("trainvitals_dataloader_batch_size", size)
        prefetched, persistent = (iterator._prefetch_factor, iterator._persistent_workers) if workers else (None, None)
        writer.set_or_retire("trainvitals_dataloader_prefetch_factor", prefetched)
        writer.set_or_retire("trainvitals_dataloader_persistent_workers", persistent)
        if hasattr(sampler, "__weakref__"):  # not a list, say, which has no epoch either
            self._index_sampler = weakref.ref(sampler)

    def _tell_places(self, now: float, writer: RunFileWriter, dataset: Any) -> None:
        if self._dataset == id(dataset):
            return
        self._dataset = id(dataset)
        try:
            places = places_of(dataset)
        except OSError:  # not Linux
            return
        for mountpoint, device in self._places - places:
            writer.retire(_DATASET_INFO, mountpoint=mountpoint, device=device)
        for mountpoint, device in places:
            writer.set(_DATASET_INFO, 1.0, mountpoint=mountpoint, device=device)
        self._places = places

    def _epoch_of_sampler(self) -> int:
        """What the newest described loader's sampler was told; the last known where the loader is gone."""
        sampler = self._index_sampler()
        if sampler is not None:
            told = [getattr(each, "epoch", None) for each in _samplers_in(sampler)]
            self._epoch = max((epoch for epoch in told if type(epoch) is int), default=0)
        return self._epoch


def _length_of(sampler: Any) -> int | None:
    """How many batches there are in a pass; None where to ask could do more than tell (a script's own sampler)."""
    plain = type(sampler) is BatchSampler and type(sampler.sampler) in _PLAIN_SAMPLERS
    return len(sampler) if plain else None


def _samplers_in(sampler: Any) -> list[Any]:
    """A sampler and those that it takes its indices from; Accelerate wraps a batch sampler around another one."""
    found = [sampler]
    for wrapped in ("batch_sampler", "sampler"):
        inner = getattr(found[-1], wrapped, None)
        if inner is not None:
            found.append(inner)
    return found


def _most_on_their_way(iterator: Any) -> int:
    """How many index lists have to be kept: the one of the batch being fetched, and those sent to workers after it."""
    is_iterable = iterator._dataset_kind == torch_dataloader._DatasetKind.Iterable
    if is_iterable or not getattr(iterator, "_in_order", True):
        return 0
    return int(iterator._num_workers and iterator._num_workers * iterator._prefetch_factor) + 1


def install(context: Context) -> None:
    """Watch every DataLoader's iterator."""
    fetches = _Fetches(context)
    begin = context.session.guarded("dataloader", fetches.begin)
    end = context.session.guarded("dataloader", fetches.end, any_thread=True)
    known = fetches.sources
    source_of = context.session.guarded("dataloader", fetches.source_of, any_thread=True)

    def counts_fetches(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807 (it replaces that method)
            reported = begin(self)
            try:
                result = original(self)
            except BaseException:
                if reported:
                    end(self, False)
                raise
            if reported:
                end(self, True)
            return result

        return __next__

    def keeps_indices(original: Callable[..., Any]) -> Callable[..., Any]:
        def _next_index(self: Any) -> Any:
            index = original(self)
            source = known.get(id(self)) or source_of(self)
            if source is not None:
                source.asked.append(index)  # too quick and too harmless for a guard
            return index

        return _next_index

    context.patches.wrap(torch_dataloader._BaseDataLoaderIter, "__next__", counts_fetches)
    context.patches.wrap(torch_dataloader._BaseDataLoaderIter, "_next_index", keeps_indices)
