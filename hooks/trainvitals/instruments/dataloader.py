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
    """Reports the outermost fetch (a dataset may read from a loader of its own), and describes the loader once."""

    def __init__(self, context: Context) -> None:
        self._vitals = context.vitals
        self._depth = 0
        self._iterator: weakref.ref[Any] | None = None
        self._described: weakref.ref[Any] | None = None
        context.vitals.on_training_fetch.append(self._describe)

    def begin(self, now: float) -> None:
        self._depth += 1
        if self._depth == 1:
            self._vitals.fetch_begins(now)

    def end(self, now: float, iterator: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._vitals.fetch_ends(now)
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
    end = context.session.guarded("dataloader", fetches.end)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807 (it replaces that method)
            begin()
            try:
                return original(self)
            finally:
                end(self)

        return __next__

    context.patches.wrap(torch_dataloader._BaseDataLoaderIter, "__next__", make)
