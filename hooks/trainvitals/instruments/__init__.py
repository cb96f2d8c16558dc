"""The integration points: one file each. An instrument replaces a few functions of a library and reports events.

An instrument is a module with ``install(context, ...)``, called once the library that it watches is imported.
Everything it adds to the script's calls goes through ``context.session.guarded``;
the script's own call stands outside of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from trainvitals import imports
from trainvitals.patching import Patches
from trainvitals.session import Session
from trainvitals.vitals import Vitals


@dataclass(frozen=True)
class Context:
    """What an instrument works with: where to report, and what undoes its patches."""

    session: Session
    vitals: Vitals
    patches: Patches
    # Names of the instruments that are to be left out.
    off: frozenset[str] = frozenset()


# Instruments that work on their own, by file name.
_ON_THEIR_OWN: Final = (
    "accelerator",
    "activation_checkpointing",
    "anomalies",
    "autocast",
    "checkpoints",
    "ddp",
    "garbage_collection",
)
# Those that "accelerator" installs once one is used.
_OF_ACCELERATORS: Final = ("cuda_memory", "gpu_phases", "out_of_memory", "transfer")
# What a script may import after torch, and the instrument to install then: a file name, and a function where a file has
# several.
AFTER_TORCH: Final = {
    "accelerate.data_loader": "transfer.install_accelerate",
    "lightning.pytorch.loops.fit_loop": "lightning_epochs",
    "pytorch_lightning.loops.fit_loop": "lightning_epochs.install_pytorch_lightning",
    "torch._dynamo.trace_rules": "compile",
    "torch.utils.tensorboard.writer": "tensorboard",
    "wandb.sdk.lib.disabled": "wandb.install_disabled",
    "wandb.sdk.wandb_run": "wandb",
}
# The rest is needed by others, or keeps the hooks from harm.
OPTIONAL: Final = frozenset(
    {*_ON_THEIR_OWN, "amp", "clipping", "lightning_epochs", "tensorboard", "wandb", *_OF_ACCELERATORS}
) - {"accelerator"}


def install_torch(context: Context) -> None:
    """Install what watches torch itself, once torch is imported. Never raises."""
    quietly(context, _install_torch)(None)


def _install_torch(context: Context) -> None:
    from trainvitals.instruments import backward, dataloader, facts, optimizer
    from trainvitals.instruments.device_values import DeviceValues

    values = DeviceValues(context)
    context.vitals.read_tensor = values.read
    facts.install(context)
    dataloader.install(context)
    losses = backward.install(context, values)
    gradients = optimizer.install(context, values, losses)
    others = {
        "clipping": _installer("clipping", gradients),
        "amp": _installer("amp", values, losses, gradients),
        **{name: _installer(name) for name in _ON_THEIR_OWN},
    }
    for name, install in others.items():
        if name not in context.off:
            quietly(context, install)(None)


def install_after_torch(context: Context) -> None:
    """Install what watches the other libraries, each as soon as the script has imported it. Never raises."""
    for library, instrument in AFTER_TORCH.items():
        if instrument.partition(".")[0] not in context.off:
            imports.when_imported(library, quietly(context, _installer(instrument)))


def _installer(instrument: str, *needs: Any) -> Callable[[Context], None]:
    """What installs an instrument: a file name, or ``file.function``. Nothing is imported before it is called."""
    file, _, function = instrument.partition(".")

    def install(context: Context) -> None:
        getattr(importlib.import_module(f"{__name__}.{file}"), function or "install")(context, *needs)

    return install


def quietly(context: Context, install: Callable[[Context], None]) -> Callable[[ModuleType | None], None]:
    """`install` as an action after an import: it never raises, since it runs inside the script's import statement."""

    def attempt(now: float) -> None:
        try:
            install(context)
        except Exception as error:  # said, since nothing may ever be written that could count it
            imports.tell(f"a part of the training is not being watched: {error!r}")
            raise

    guarded = context.session.guarded("install", attempt, any_thread=True)
    return lambda module: guarded()
