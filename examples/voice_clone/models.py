"""The networks: s2 is a conditional VAE with a discriminator, s1 a small GPT over semantic tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from .mel import FRAMES_PER_UNIT, MELS
from .speech import SPEAKERS, SYMBOLS, UNITS

# ---- s2


class Gaussian(NamedTuple):
    mean: Tensor
    log_std: Tensor


class Generated(NamedTuple):
    mel: Tensor
    latent: Tensor
    posterior: Gaussian
    prior: Gaussian


class GatedConv(nn.Module):
    """Residual dilated convolution with WaveNet's gate, conditioned on the speaker."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, 5, padding=2 * dilation, dilation=dilation)
        self.speaker = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        filtered, gate = (self.conv(x) + self.speaker(speaker)[:, :, None]).chunk(2, dim=1)
        return x + torch.tanh(filtered) * torch.sigmoid(gate)


class GatedStack(nn.Module):
    def __init__(self, inputs: int, channels: int, outputs: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(inputs, channels, 1)
        self.layers = nn.ModuleList(GatedConv(channels, 2 ** (i % 3)) for i in range(layers))
        self.leave = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, speaker)
        left: Tensor = self.leave(x)
        return left


class Generator(nn.Module):
    """Posterior from the sound, prior from its semantic tokens; the decoder makes a spectrogram of a latent sample."""

    def __init__(self, channels: int = 128, latent: int = 32) -> None:
        super().__init__()
        self.speaker = nn.Embedding(SPEAKERS, channels)
        self.units = nn.Embedding(UNITS, channels)
        self.prior = GatedStack(channels, channels, 2 * latent, layers=3)
        self.posterior = GatedStack(MELS, channels, 2 * latent, layers=4)
        self.decoder = GatedStack(latent, channels, MELS, layers=6)

    def forward(self, mel: Tensor, units: Tensor, speaker: Tensor) -> Generated:
        voice = self.speaker(speaker)
        posterior = _gaussian(self.posterior(mel, voice))
        prior = self._prior(units, voice)
        latent = posterior.mean + torch.randn_like(posterior.mean) * posterior.log_std.exp()
        return Generated(self.decoder(latent, voice), latent, posterior, prior)

    def speak(self, units: Tensor, speaker: Tensor) -> Tensor:
        """Spectrogram of semantic tokens in a speaker's voice, as it is used after training."""
        voice = self.speaker(speaker)
        spectrogram: Tensor = self.decoder(self._prior(units, voice).mean, voice)
        return spectrogram

    def _prior(self, units: Tensor, voice: Tensor) -> Gaussian:
        frames = self.units(units).repeat_interleave(FRAMES_PER_UNIT, dim=1)
        return _gaussian(self.prior(frames.transpose(1, 2), voice))


def _gaussian(statistics: Tensor) -> Gaussian:
    mean, log_std = statistics.float().chunk(2, dim=1)
    # Bounds keep the exponentials of an odd batch finite.
    return Gaussian(mean, log_std.clamp(-6, 3))


class Judgement(NamedTuple):
    """What the discriminator says of one spectrogram, scale by scale, and the feature maps it got there by."""

    scores: list[Tensor]
    features: list[Tensor]


class Discriminator(nn.Module):
    """The same small 2-D network at three scales, each with its own weights."""

    def __init__(self, channels: int = 24, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_scale(channels) for _ in range(scales))

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Judgement, Judgement]:
        # One call for both, because DistributedDataParallel wants one forward for each backward.
        return self._judge(real), self._judge(fake)

    def _judge(self, mel: Tensor) -> Judgement:
        scores, features = [], []
        x = mel[:, None]
        for scale in self.scales:
            h = x
            assert isinstance(scale, nn.ModuleList)
            for layer in scale:
                h = F.leaky_relu(layer(h), 0.1)
                features.append(h)
            scores.append(h.mean(dim=1))
            x = F.avg_pool2d(x, 2)
        return Judgement(scores, features)


def _scale(channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Conv2d(1, channels, (5, 3), stride=(2, 1), padding=(2, 1)),
            nn.Conv2d(channels, 2 * channels, (5, 3), stride=(2, 2), padding=(2, 1)),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        ]
    )


# ---- s1


class Predicted(NamedTuple):
    logits: Tensor
    hidden: list[Tensor]


class Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.join(attended.transpose(1, 2).reshape(batch, length, width)))
        fed: Tensor = x + self.dropout(self.feed(self.feed_norm(x)))
        return fed


class TokenModel(nn.Module):
    """Text, then semantic tokens one after the other; the voice colours every prediction."""

    def __init__(self, text_length: int, unit_length: int, width: int = 192, layers: int = 4) -> None:
        super().__init__()
        self.text = nn.Embedding(len(SYMBOLS), width)
        self.units = nn.Embedding(UNITS + 1, width)
        self.places = nn.Parameter(torch.randn(text_length + unit_length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads=4, dropout=0.2) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.voice = nn.Linear(MELS, width)
        self.head = nn.Linear(width, UNITS + 1)

    def forward(self, text: Tensor, units: Tensor, voice: Tensor) -> Predicted:
        x = torch.cat([self.text(text), self.units(units)], dim=1) + self.places
        hidden = []
        for block in self.blocks:
            x = block(x)
            hidden.append(x)
        spoken = self.norm(x[:, text.shape[1] :]) + self.voice(voice)[:, None]
        return Predicted(self.head(spoken), hidden)
