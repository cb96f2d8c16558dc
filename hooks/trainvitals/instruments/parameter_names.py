"""The names of parameters. Optimizers are given none, so they are looked up in the models that this process holds."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn

# It takes tens of milliseconds in a large process.
_MAX_SEARCHES: Final = 3
# What stands around a model or a layer, and is no part of its author's names: DDP, torch.compile, FSDP, checkpointing.
_WRAPPERS: Final = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class ParameterNames:
    """The names of all parameters, as their outermost models tell them."""

    def __init__(self) -> None:
        self._searches = 0
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}

    def of(self, parameters: Sequence[torch.Tensor]) -> list[str]:
        """Their names; for one that no model has, its shape."""
        names = [self._name(parameter) for parameter in parameters]
        if None in names and self._searches < _MAX_SEARCHES:
            self._searches += 1
            self._known = {id(parameter): (weakref.ref(parameter), name) for name, parameter in _named_parameters()}
            names = [self._name(parameter) for parameter in parameters]
        return [
            name or f"unnamed {'x'.join(map(str, parameter.shape)) or 'scalar'}"
            for name, parameter in zip(names, parameters, strict=True)
        ]

    def _name(self, parameter: torch.Tensor) -> str | None:
        reference, name = self._known.get(id(parameter), (None, None))
        return name if reference is not None and reference() is parameter else None


def _named_parameters() -> Iterator[tuple[str, torch.Tensor]]:
    modules, optimizers = _instances(nn.Module, torch.optim.Optimizer)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from zip(group.get("param_names", ()), group["params"], strict=False)
    children = {id(child) for module in modules for child in getattr(module, "_modules", {}).values()}
    for root in modules:
        if id(root) not in children:
            with contextlib.suppress(AttributeError, RuntimeError):  # one that is not complete, or is made of others
                for name, parameter in nn.Module.named_parameters(root):
                    yield _without_wrappers(name), parameter


def _instances(*kinds: type) -> list[list[Any]]:
    """All objects of each of these classes. Their own class is asked: a proxy may claim to be of another one."""
    classes = [_with_subclasses(kind) for kind in kinds]
    either = set().union(*classes)
    found = [each for each in gc.get_objects() if type(each) in either]
    return [[each for each in found if type(each) in kind] for kind in classes]


def _with_subclasses(kind: type) -> set[type]:
    found, left = {kind}, [kind]
    while left:
        new = set(type.__subclasses__(left.pop())) - found
        found |= new
        left.extend(new)
    return found


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
