"""Optimizer steps: counts, learning rates, losses, and the gradient norm of each optimizer's own parameters."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.optim import optimizer as torch_optimizer

from trainvitals.instruments import Context
from trainvitals.instruments.backward import Losses
from trainvitals.instruments.device_values import DeviceValues, Reading, capturing
from trainvitals.vitals import OptimizerVitals

_MAX_GROUPS: Final = 64  # scripts with a group for each parameter have no use for as many curves
_WIDE: Final = (torch.float32, torch.float64)


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """All parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradient_norms(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The 2-norm of each parameter's gradient, as tensors of no dimension on one device; empty without gradients.

    Of a sharded gradient (DTensor) only the local shard counts: the whole would need a collective, which could hang.
    """
    gradients = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if type(gradient) is not torch.Tensor and hasattr(gradient, "to_local"):
            gradient = gradient.to_local()
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        gradients.append(gradient)
    if not gradients:
        return []
    # of several devices not the CPU: a copy to it would have to be waited for
    device = next((g.device for g in gradients if g.device.type != "cpu"), gradients[0].device)
    dtype = gradients[0].dtype
    if dtype in _WIDE and all(g.device == device and g.dtype == dtype for g in gradients):
        return list(torch._foreach_norm(gradients))
    # The squares of half-precision values would overflow.
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32 if g.dtype not in _WIDE else g.dtype) for g in gradients]
    return [norm.to(device, torch.float32, non_blocking=True) for norm in norms]


class Gradients:
    """Follows each optimizer from its gradients to its step."""

    def __init__(self, context: Context, values: DeviceValues, losses: Losses) -> None:
        self._vitals = context.vitals
        self._values = values
        self._losses = losses
        self._stepping: weakref.ref[Any] | None = None
        self._clipped_unknown: set[int] = set()
        self._seen: dict[int, tuple[Any, set[int]]] = {}
        self._before_clipping: dict[int, tuple[int, Reading]] = {}
        self._norms: dict[int, Reading | None] = {}
        self.stepped = False

    def step_begins(self, now: float, optimizer: Any) -> None:
        """An optimizer's step begins. One inside another (ZeroRedundancyOptimizer's) is the same step.

        The same optimizer again means that its last step raised and has had no end.
        """
        outer = None if self._stepping is None else self._stepping()
        if outer is None or outer is optimizer:
            self._stepping = weakref.ref(optimizer)
            self._vitals.step_begins(now)

    def measure(self, now: float, optimizer: Any) -> None:
        """The optimizer's gradients are complete: at the start of its step, or at the end of its closure."""
        if self._stepping is None or self._stepping() is not optimizer:
            return
        key = id(optimizer)
        if key not in self._seen and not self._clipped_unknown.isdisjoint(map(id, parameters_of(optimizer))):
            return  # before its first step nobody knew whose parameters were clipped
        _, reading = self._before_clipping.pop(key, (0, None))
        self._norms[key] = self._read_norm(optimizer) if reading is None else reading

    def step_ends(self, now: float, optimizer: Any) -> None:
        """An optimizer has made its step, or, if it is fused, has been told by the GradScaler to skip it."""
        if self._stepping is None or self._stepping() is not optimizer:
            return
        self._stepping = None
        self.stepped = True
        norm = self._norms.pop(id(optimizer), None)
        vitals = self._report(now, optimizer)
        if vitals is None:
            return
        if getattr(optimizer, "found_inf", None) is not None and norm is not None:
            norm.then(functools.partial(_fused_step, vitals, now))
        else:
            vitals.stepped()
            if norm is not None:
                norm.then(functools.partial(vitals.gradient_norm, now))
        self._report_learning_rates(vitals, optimizer)

    def skipped(self, now: float, optimizer: Any) -> None:
        """The GradScaler left out the optimizer's step."""
        self._vitals.step_begins(now)
        vitals = self._report(now, optimizer)
        self._before_clipping.pop(id(optimizer), None)
        if vitals is not None:
            vitals.skipped()

    def before_clipping(self, now: float, parameters: list[torch.Tensor], total_norm: torch.Tensor | None) -> None:
        """These parameters' gradients are about to be clipped; `total_norm` is their 2-norm where it is known."""
        clipped = {id(parameter) for parameter in parameters}
        owned = False
        for key, (reference, own) in list(self._seen.items()):
            optimizer = reference()
            if optimizer is None:
                del self._seen[key]
                continue
            if own.isdisjoint(clipped):
                continue
            owned = True
            if self._before_clipping.get(key, (0,))[0] != self._losses.count:
                whole = total_norm is not None and own == clipped
                reading = self._values.read(total_norm) if whole else self._read_norm(optimizer)  # type: ignore[arg-type]  # not None when whole
                if reading is not None:
                    self._before_clipping[key] = (self._losses.count, reading)
        if not owned:
            self._clipped_unknown |= clipped

    def _read_norm(self, optimizer: Any) -> Reading | None:
        if capturing():
            return None
        with torch.no_grad():
            norms = gradient_norms(parameters_of(optimizer))
            scale = getattr(optimizer, "grad_scale", None)
            if not norms:
                return None
            if norms[0].device.type == "cpu":  # several times cheaper than two more operators
                return Reading(math.hypot(*[norm.item() for norm in norms]) / (1.0 if scale is None else float(scale)))
            norm = torch.linalg.vector_norm(torch.stack(norms))
            return self._values.read(norm if scale is None else norm / scale)

    def _report(self, now: float, optimizer: Any) -> OptimizerVitals | None:
        self._vitals.step_ends(now, optimizer)
        vitals = self._vitals.optimizer(optimizer, self._describe)
        if vitals is None:
            return None
        if self._losses.newest is not None:
            self._losses.newest.then(vitals.loss)
        return vitals

    def _report_learning_rates(self, vitals: OptimizerVitals, optimizer: Any) -> None:
        for place, group in enumerate(optimizer.param_groups[:_MAX_GROUPS]):
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._values.read(rate).then(functools.partial(vitals.learning_rate, place))
            elif rate is not None:
                vitals.learning_rate(place, float(rate))

    def _describe(self, optimizer: Any) -> tuple[str, int]:
        parameters = parameters_of(optimizer)
        own = {id(parameter) for parameter in parameters}
        self._seen[id(optimizer)] = (weakref.ref(optimizer), own)
        self._clipped_unknown -= own
        return type(optimizer).__name__, sum(parameter.numel() for parameter in parameters)


def _fused_step(vitals: OptimizerVitals, now: float, norm: float) -> None:
    # A fused optimizer is called in any case and skips by itself where the scaler found a value that is not finite.
    if norm - norm == 0:
        vitals.stepped()
        vitals.gradient_norm(now, norm)
    else:
        vitals.skipped()


def install(context: Context, values: DeviceValues, losses: Losses) -> Gradients:
    """Watch every optimizer's step by torch's own global hooks."""
    gradients = Gradients(context, values, losses)
    begin = context.session.guarded("optimizer", gradients.step_begins)
    measure = context.session.guarded("gradient_norm", gradients.measure)
    end = context.session.guarded("optimizer", gradients.step_ends)

    def before(optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        begin(optimizer)
        return _with_closure(optimizer, args, kwargs, measure)

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        end(optimizer)

    for handle in (
        torch_optimizer.register_optimizer_step_pre_hook(before),
        torch_optimizer.register_optimizer_step_post_hook(after),
    ):
        context.patches.on_undo(handle.remove)
    return gradients


def _with_closure(optimizer: Any, args: Any, kwargs: Any, measure: Callable[..., Any]) -> tuple[Any, Any] | None:
    """Measure now, or, where the step is given a closure that makes the gradients (Lightning, LBFGS), after that."""
    closure = kwargs.get("closure") or (args[1] if len(args) > 1 and callable(args[1]) else None)
    if closure is None:
        measure(optimizer)
        return None

    def then_measure(*closure_args: Any, **closure_kwargs: Any) -> Any:
        result = closure(*closure_args, **closure_kwargs)
        measure(optimizer)
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": then_measure}
    return (args[0], then_measure, *args[2:]), kwargs
