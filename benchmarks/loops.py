"""Training loops as small as they get, where hooks show most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Loop:
    """A loop that is ready to go: `step` does one iteration and returns its loss."""

    model: nn.Module
    step: Callable[[], torch.Tensor]


class Noise(Dataset[torch.Tensor]):
    def __init__(self, *shape: int) -> None:
        self.items = torch.randn(256, *shape)

    def __len__(self) -> int:
        return 10**9  # of which the loops need no end

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.items[index % 256]


def batches(device: str, workers: int, *shape: int) -> Iterator[torch.Tensor]:
    loader = DataLoader(Noise(*shape), batch_size=32, num_workers=workers, pin_memory=device != "cpu")
    return iter(loader) if device == "cpu" else (batch.to(device, non_blocking=True) for batch in loader)


def plain(model: nn.Module, data: Iterator[torch.Tensor]) -> Loop:
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(next(data)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimizer.step()
        return loss

    return Loop(model, step)


def mlp(device: str) -> Loop:
    """7k parameters, a third of a millisecond a step or more."""
    layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    return plain(nn.Sequential(*layers).to(device), batches(device, 0, 64))


def transformer(device: str) -> Loop:
    """1.2M parameters, tens of milliseconds a step."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, dropout=0.0)
    return plain(nn.TransformerEncoder(layer, 6).to(device), batches(device, 0, 32, 128))


def gan(device: str) -> Loop:
    """Two optimizers and two worker processes, about ten milliseconds a step."""
    generator = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256))
    critic = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1))
    generator, critic = generator.to(device), critic.to(device)
    optimizers = [torch.optim.AdamW(m.parameters()) for m in (critic, generator)]
    data = batches(device, 2, 256)

    def step() -> torch.Tensor:
        real = next(data)
        fake = generator(torch.randn_like(real))
        optimizers[0].zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        loss: torch.Tensor = -critic(fake).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimizers[1].step()
        return loss

    return Loop(generator, step)


# With the number of steps in a block: a machine that others use too changes its speed within a second.
LOOPS: Final[dict[str, tuple[Callable[[str], Loop], int]]] = {
    "mlp": (mlp, 50),
    "transformer": (transformer, 3),
    "gan": (gan, 6),
}
