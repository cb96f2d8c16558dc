"""Mel spectrograms with torch alone."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE = 22050
WINDOW = 1024
HOP = 256
MELS = 80
FRAMES_PER_UNIT = 4  # 46 ms of sound to a semantic token
LOUDEST_INT16 = 32768.0

# Speech-like log mels have about this mean and spread; taking them out leaves the networks values around zero.
_LOG_MEAN, _LOG_SPREAD = 0.4, 1.7


def normalise_peak(samples: NDArray[np.int16], quietest: float = 1e-4) -> Tensor:
    """Waveform with its loudest sample at 1; what is quieter than `quietest` all through stays quiet."""
    waveform = torch.from_numpy(samples.astype(np.float32) / LOUDEST_INT16)
    return waveform / waveform.abs().max().clamp(min=quietest)


def linear_mel(waveform: Tensor) -> Tensor:
    """Magnitudes in mel bands, [MELS, frames]."""
    spectrum = torch.stft(waveform, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    return _mel_filters() @ spectrum.abs()


def log_mel(waveform: Tensor) -> Tensor:
    return (linear_mel(waveform).clamp(min=1e-5).log() - _LOG_MEAN) / _LOG_SPREAD


@cache
def _mel_filters() -> Tensor:
    """Triangles on the mel scale, each with its peak at one."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
