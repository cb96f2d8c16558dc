"""What a batch holds, for each stage, and the loaders that bring it.

The batch sampler hands out `Pick`s instead of bare indices: an item knows for which iteration it is made. Random
crops depend on the pick alone, so the number of workers changes nothing, and a fault of the data starts at its exact
iteration.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .faults import Fault
from .mel import FRAMES_PER_UNIT
from .settings import Settings
from .speech import HELD_OUT, SYMBOLS, UNITS, Recording

CROP_UNITS = 24
CROP_FRAMES = CROP_UNITS * FRAMES_PER_UNIT
TEXT_LENGTH = 48
UNIT_LENGTH = 72
END = UNITS  # the token after an utterance's last unit
IGNORED = -100  # cross entropy leaves these targets out
REPEATS = 8  # visits to every utterance in an epoch: each time another crop


class Pick(NamedTuple):
    """One item of one batch. Evaluation is iteration 0: training counts from 1."""

    iteration: int
    position: int
    utterance: int


class SpectrogramBatch(NamedTuple):
    """Stage s2: [batch, mels, frames], [batch, units], [batch]."""

    mel: Tensor
    units: Tensor
    speaker: Tensor


class TokenBatch(NamedTuple):
    """Stage s1: [batch, symbols], [batch, units], [batch, units], [batch, mels]."""

    text: Tensor
    units: Tensor
    targets: Tensor
    voice: Tensor


Batch = TypeVar("Batch", SpectrogramBatch, TokenBatch)


class SpectrogramDataset(Dataset[SpectrogramBatch]):
    """A random crop of an utterance's spectrogram, with the semantic tokens under it."""

    def __init__(self, recordings: list[Recording], seed: int, fault: Fault) -> None:
        self.recordings, self.seed, self.fault = recordings, seed, fault

    def __getitem__(self, pick: Pick) -> SpectrogramBatch:
        recording = self.recordings[pick.utterance]
        mel = self.fault.mel(pick.iteration, pick.position, recording)
        units = self.fault.units(pick.iteration, pick.position, torch.tensor(recording.units))
        room = max(0, len(units) - CROP_UNITS)
        start = int(np.random.default_rng((self.seed, *pick)).integers(room + 1))
        return SpectrogramBatch(
            _fit(mel[:, start * FRAMES_PER_UNIT :], CROP_FRAMES, padding=mel.min()),
            _fit(units[start:], CROP_UNITS, padding=0),
            torch.tensor(recording.speaker),
        )


class TokenDataset(Dataset[TokenBatch]):
    """An utterance's text and semantic tokens, and its voice: the average colour of its spectrogram."""

    def __init__(self, recordings: list[Recording], fault: Fault) -> None:
        self.recordings, self.fault = recordings, fault

    def __getitem__(self, pick: Pick) -> TokenBatch:
        recording = self.recordings[pick.utterance]
        mel = self.fault.mel(pick.iteration, pick.position, recording)
        units = self.fault.units(pick.iteration, pick.position, torch.tensor(recording.units))
        ended = torch.cat([units, torch.tensor([END])])
        return TokenBatch(
            _fit(torch.tensor([SYMBOLS.index(letter) for letter in recording.text]), TEXT_LENGTH, padding=0),
            _fit(torch.cat([torch.tensor([END]), units]), UNIT_LENGTH, padding=END),
            _fit(ended, UNIT_LENGTH, padding=IGNORED),
            mel.mean(dim=1),
        )


class TrainingBatches(Sampler[list[Pick]]):
    """Batches of one epoch in random order; each rank takes its share of every batch."""

    def __init__(self, utterances: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.utterances, self.batch_size, self.seed = utterances, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, self.utterances * REPEATS // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Pick]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = np.concatenate([rng.permutation(self.utterances) for _ in range(REPEATS)])
        size = self.batch_size * self.world_size
        for number in range(len(self)):
            iteration = self.epoch * len(self) + number + 1
            shared = order[np.arange(number * size, (number + 1) * size) % len(order)]
            mine = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            yield [Pick(iteration, position, int(shared[position])) for position in mine]


class EvaluationBatches(Sampler[list[Pick]]):
    def __init__(self, utterances: int, batch_size: int) -> None:
        self.utterances, self.batch_size = utterances, batch_size

    def __len__(self) -> int:
        return -(-self.utterances // self.batch_size)

    def __iter__(self) -> Iterator[list[Pick]]:
        for start in range(0, self.utterances, self.batch_size):
            yield [Pick(0, u, u) for u in range(start, min(start + self.batch_size, self.utterances))]


def training_loader(
    dataset: Dataset[Batch], batches: TrainingBatches, settings: Settings, fault: Fault
) -> DataLoader[Batch]:
    workers = fault.workers(settings.workers)
    # Pinning is for the GPU; without one torch warns that it does nothing.
    warnings.filterwarnings("ignore", message=".*pin_memory")
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=True,
        persistent_workers=workers > 0,
    )


def evaluation_loader(dataset: Dataset[Batch], utterances: int, settings: Settings) -> DataLoader[Batch]:
    return DataLoader(dataset, batch_sampler=EvaluationBatches(utterances, settings.batch_size), collate_fn=_stack)


def split(recordings: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """For training, and held out for evaluation."""
    return recordings[:-HELD_OUT], recordings[-HELD_OUT:]


def _stack(items: list[Batch]) -> Batch:
    return type(items[0])(*(torch.stack(field) for field in zip(*items, strict=True)))


def _fit(values: Tensor, length: int, padding: float | Tensor) -> Tensor:
    """The first `length` along the last axis, padded if there are fewer."""
    fitted = values.new_full((*values.shape[:-1], length), float(padding))
    fitted[..., : values.shape[-1]] = values[..., :length]
    return fitted
