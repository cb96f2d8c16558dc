"""The integration points: one file each. An instrument replaces a few functions of a library and reports events.

An instrument is a module with ``install(context, ...)``, called once the library that it watches is imported.
Everything it adds to the script's calls goes through ``context.session.guarded``;
the script's own call stands outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from trainvitals.patching import Patches
from trainvitals.session import Session
from trainvitals.vitals import Vitals


@dataclass(frozen=True)
class Context:
    """What an instrument works with: where to report, and what undoes its patches."""

    session: Session
    vitals: Vitals
    patches: Patches


def install_torch(context: Context) -> None:
    """Install what watches torch itself, once torch is imported. Never raises."""
    quietly(context, _install_torch)(None)


def _install_torch(context: Context) -> None:
    from trainvitals.instruments import amp, backward, clipping, cuda_memory, dataloader, facts, optimizer
    from trainvitals.instruments.device_values import DeviceValues

    values = DeviceValues(context)
    context.vitals.read_tensor = values.read
    facts.install(context)
    dataloader.install(context)
    losses = backward.install(context, values)
    gradients = optimizer.install(context, values, losses)
    clipping.install(context, gradients)
    amp.install(context, values, losses, gradients)
    cuda_memory.install(context)


def _install_tensorboard(context: Context) -> None:
    from trainvitals.instruments import tensorboard

    tensorboard.install(context)


def _install_compile(context: Context) -> None:
    from trainvitals.instruments import compile as compile_instrument

    compile_instrument.install(context)


# What a script may import after torch, and what to install then.
AFTER_TORCH: Final[dict[str, Callable[[Context], None]]] = {
    "torch._dynamo.trace_rules": _install_compile,
    "torch.utils.tensorboard.writer": _install_tensorboard,
}


def quietly(context: Context, install: Callable[[Context], None]) -> Callable[[ModuleType | None], None]:
    """`install` as an action after an import: it never raises, since it runs inside the script's import statement."""
    guarded = context.session.guarded("install", lambda now: install(context), any_thread=True)
    return lambda module: guarded()
