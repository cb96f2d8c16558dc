"""DataLoader fetches: the boundary of an iteration, and the time that training waits for data."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler
from torch.utils.data import dataloader as torch_dataloader

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter


class _Fetches:
    """Reports fetches, but none inside another (a dataset may read from a loader), and describes the loader once."""

    def __init__(self, context: Context) -> None:
        self._session = context.session
        self._vitals = context.vitals
        self._under_way = False
        self._iterator: weakref.ref[Any] | None = None
        self._described: weakref.ref[Any] | None = None
        context.vitals.on_training_fetch.append(self._describe)

    def begin(self, now: float, iterator: Any) -> bool:
        """Whether this fetch is one to report the end of."""
        if self._under_way:
            return False
        self._vitals.fetch_begins(now, id(iterator))
        self._under_way = True
        return True

    def end(self, now: float, iterator: Any, *, batch: bool) -> None:
        self._under_way = False  # also when another thread has become the one that trains
        if self._session.on_training_thread():
            self._vitals.fetch_ends(now, batch=batch)
            if self._iterator is None or self._iterator() is not iterator:
                self._iterator = weakref.ref(iterator)

    def _describe(self, writer: RunFileWriter) -> None:
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is None or (self._described is not None and self._described() is iterator):
            return
        self._described = weakref.ref(iterator)
        workers = iterator._num_workers
        writer.set("trainvitals_dataloader_workers", float(workers))
        writer.set("trainvitals_dataloader_pin_memory", float(iterator._pin_memory))
        sampler = iterator._index_sampler
        # another batch sampler may make batches of any size
        if type(sampler) is BatchSampler:
            writer.set("trainvitals_dataloader_batch_size", float(sampler.batch_size))
        if workers:
            writer.set("trainvitals_dataloader_prefetch_factor", float(iterator._prefetch_factor))


def install(context: Context) -> None:
    """Watch every DataLoader's iterator."""
    fetches = _Fetches(context)
    begin = context.session.guarded("dataloader", fetches.begin)
    end = context.session.guarded("dataloader", fetches.end, any_thread=True)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807 (it replaces that method)
            reported = begin(self)
            batch = False
            try:
                result = original(self)
                batch = True
                return result
            finally:
                if reported:
                    end(self, batch=batch)

        return __next__

    context.patches.wrap(torch_dataloader._BaseDataLoaderIter, "__next__", make)
