"""Optimizer steps: counts, learning rates, losses, and the gradient norm of each optimizer's own parameters."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, NamedTuple

import torch
from torch.optim import optimizer as torch_optimizer

from trainvitals.governor import Governor
from trainvitals.instruments import Context
from trainvitals.instruments.backward import Losses
from trainvitals.instruments.compiled_steps import CompiledSteps
from trainvitals.instruments.device_values import DeviceValues, Reading, capturing
from trainvitals.optimizer_vitals import Moment, OptimizerVitals

_MAX_GROUPS: Final = 64  # scripts with a group for each parameter have no use for as many curves
_WIDE: Final = (torch.float32, torch.float64)


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """All parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class ParameterNorms(NamedTuple):
    """The 2-norms of these parameters' gradients, all on one device; `scale` is what they still are multiplied by."""

    parameters: list[torch.Tensor]
    norms: list[torch.Tensor]
    scale: torch.Tensor | None


def parameter_norms(optimizer: Any) -> ParameterNorms:
    """The norm of each gradient that there is, as tensors of no dimension.

    Of a sharded gradient (DTensor) only the local shard counts: the whole would need a collective, which could hang.
    """
    parameters, gradients = [], []
    for parameter in parameters_of(optimizer):
        gradient = parameter.grad
        if gradient is not None:
            parameters.append(parameter)
            gradients.append(
                gradient if type(gradient) is torch.Tensor and not gradient.is_sparse else _dense(gradient)
            )
    return ParameterNorms(parameters, _norms(gradients), getattr(optimizer, "grad_scale", None))


def _dense(gradient: Any) -> torch.Tensor:
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local.coalesce().values() if local.is_sparse else local  # type: ignore[no-any-return]  # a tensor


def _norms(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    kinds = {(gradient.dtype, gradient.device) for gradient in gradients}
    if len(kinds) == 1 and gradients[0].dtype in _WIDE:
        return list(torch._foreach_norm(gradients))
    # of several devices not the CPU: a copy to it would have to be waited for
    device = next((device for _, device in kinds if device.type != "cpu"), torch.device("cpu"))
    # The squares of half-precision values would overflow.
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32 if g.dtype not in _WIDE else g.dtype) for g in gradients]
    return [norm.to(device, torch.float32, non_blocking=True) for norm in norms]


class NormsOfParameters(NamedTuple):
    """Evidence for an anomaly: the norm of each of these parameters' gradients, as floats or one tensor on a device."""

    parameters: list[torch.Tensor]
    norms: list[float] | torch.Tensor


class _Norm(NamedTuple):
    """A gradient norm on its way, and what it was made of."""

    reading: Reading
    evidence: Callable[[], NormsOfParameters | None]


class Gradients:
    """Follows each optimizer from its gradients to its step."""

    def __init__(self, context: Context, values: DeviceValues, losses: Losses) -> None:
        self._session = context.session
        self._vitals = context.vitals
        self._values = values
        self._losses = losses
        self._governor = Governor(context.session.overhead)
        self._stepping: weakref.ref[Any] | None = None
        self._stepping_since = 0
        self._clipped_unknown: set[int] = set()
        # of each optimizer that has stepped: itself, the ids of its parameters, and of how many groups these are
        self._seen: dict[int, tuple[Any, set[int], int]] = {}
        self._before_clipping: dict[int, tuple[int, _Norm]] = {}
        self._norms: dict[int, _Norm | None] = {}
        self._steps_to_go: dict[int, int] = {}
        self._unmeasured: dict[int, int] = {}
        self._compiled: dict[int, weakref.ref[Any]] = {}
        self.compiled_steps = CompiledSteps()
        self.stepped = False

    def step_begins(self, now: float, optimizer: Any) -> None:
        """An optimizer's step begins. One inside another (ZeroRedundancyOptimizer's) is the same step.

        The same optimizer again, or a backward since, means that the last step raised and has had no end.
        """
        outer = None if self._stepping is None else self._stepping()
        if outer is None or outer is optimizer or self._losses.count != self._stepping_since:
            self._stepping = weakref.ref(optimizer)
            self._stepping_since = self._losses.count
            self._vitals.step_begins(now)

    def measure(self, now: float, optimizer: Any) -> None:
        """The optimizer's gradients are complete: at the start of its step, or at the end of its closure."""
        if self._stepping is None or self._stepping() is not optimizer:
            return
        key = id(optimizer)
        if key not in self._seen and not self._clipped_unknown.isdisjoint(map(id, parameters_of(optimizer))):
            return  # before its first step nobody knew whose parameters were clipped
        _, norm = self._before_clipping.pop(key, (0, None))
        self._norms[key] = self._measure(optimizer) if norm is None and self._is_due(optimizer) else norm

    def step_ends(self, now: float, optimizer: Any) -> None:
        """An optimizer has made its step, or, if it is fused, has been told by the GradScaler to skip it."""
        if self._stepping is None or self._stepping() is not optimizer:
            return
        self._stepping = None
        self.stepped = True
        key = id(optimizer)
        norm = self._norms.pop(key, None)
        vitals = self._vitals.optimizer(optimizer, self._describe)
        if vitals is not None:
            moment = self._vitals.moment(now)
            self._report_loss(vitals, moment)
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is None:
                _report_step(vitals, moment, norm)
            else:  # called in any case, a fused optimizer skips by itself where the scaler found what is not finite
                reading = self._values.read(found_inf)
                reading.then(lambda found: vitals.skipped() if found else _report_step(vitals, moment, norm))
            if key not in self._compiled:
                self._report_learning_rates(vitals, optimizer)
            self._plan(key, vitals, measured=norm is not None)
        self._vitals.step_ends(now, optimizer)
        self._governor.step(now, self._session.hook_seconds - self._session.seconds_once)

    def compiled_step_ends(self, now: float) -> None:
        """An optimizer has made a step in compiled code, at some time since the last event."""
        optimizer, self.compiled_steps.newest = self.compiled_steps.newest, None
        self._losses.on_end = self._backward_ends
        key = id(optimizer)
        self._compiled[key] = self._stepping = weakref.ref(optimizer)
        self._norms[key] = self._before_clipping.pop(key, (0, None))[1]
        self.step_ends(now, optimizer)

    def _backward_ends(self) -> None:
        """The last chance to see the gradients and rates that compiled code will use: a scheduler may come after it."""
        for key, reference in list(self._compiled.items()):
            optimizer = reference()
            if optimizer is None:
                del self._compiled[key]
                continue
            if self._is_due(optimizer) and (norm := self._measure(optimizer)) is not None:
                self._before_clipping[key] = (self._losses.count, norm)
            vitals = self._vitals.optimizer(optimizer, self._describe)
            if vitals is not None:
                self._report_learning_rates(vitals, optimizer)

    def skipped(self, now: float, optimizer: Any) -> None:
        """The GradScaler left out the optimizer's step."""
        self._vitals.step_begins(now)
        self._before_clipping.pop(id(optimizer), None)
        vitals = self._vitals.optimizer(optimizer, self._describe)
        if vitals is not None:
            self._report_loss(vitals, self._vitals.moment(now))
            vitals.skipped()
        self._vitals.step_ends(now, optimizer)

    def before_clipping(self, now: float, parameters: list[torch.Tensor], total_norm: torch.Tensor | None) -> None:
        """These parameters' gradients are about to be clipped; `total_norm` is their 2-norm where it is known."""
        clipped = {id(parameter) for parameter in parameters}
        owned = False
        for key, (reference, own, groups) in list(self._seen.items()):
            optimizer = reference()
            if optimizer is None:
                del self._seen[key]
                continue
            if len(optimizer.param_groups) != groups:
                own = self._see(optimizer)
            if own.isdisjoint(clipped):
                continue
            owned = True
            if self._before_clipping.get(key, (0,))[0] != self._losses.count:
                whole = own == clipped
                norm = self._of_clipping(reference, total_norm) if whole and total_norm is not None else None
                if norm is None and self._is_due(optimizer):
                    norm = self._measure(optimizer)
                if norm is not None:
                    self._before_clipping[key] = (self._losses.count, norm)
        if not owned:
            self._clipped_unknown |= clipped

    def _is_due(self, optimizer: Any) -> bool:
        """Whether to measure at this step: in its turn, and wherever the loss is out of the usual."""
        if self._steps_to_go.get(id(optimizer), 0) <= 0:
            return True
        vitals, loss = self._vitals.optimizers.known(optimizer), self._losses.newest
        return not (vitals is None or loss is None or loss.value is None or vitals.is_usual_loss(loss.value))

    def _plan(self, key: int, vitals: OptimizerVitals, *, measured: bool) -> None:
        """When to measure next."""
        interval = self._governor.interval
        self._steps_to_go[key] = (interval if measured else min(self._steps_to_go.get(key, 0), interval)) - 1
        self._unmeasured[key] = self._unmeasured.get(key, 0) + 1
        if measured:
            vitals.measured_every(self._unmeasured.pop(key))

    def _measure(self, optimizer: Any) -> _Norm | None:
        if capturing():
            return None
        start = perf_counter()
        with torch.no_grad():
            measured = parameter_norms(optimizer)
            if not measured.norms:
                return None
            norm = self._on_cpu(measured) if measured.norms[0].is_cpu else self._on_device(measured)
        self._governor.measured(perf_counter() - start)
        return norm

    def _on_cpu(self, measured: ParameterNorms) -> _Norm:
        # Several times cheaper than two more operators.
        scale = 1.0 if measured.scale is None else float(measured.scale)
        norms = [norm.item() for norm in measured.norms]
        return _Norm(
            Reading(math.hypot(*norms) / scale),
            lambda: NormsOfParameters(measured.parameters, [norm / scale for norm in norms]),
        )

    def _on_device(self, measured: ParameterNorms) -> _Norm:
        norms = torch.stack(measured.norms)
        if measured.scale is not None:
            norms = norms / measured.scale
        reading = self._values.read(torch.linalg.vector_norm(norms))
        return _Norm(reading, lambda: NormsOfParameters(measured.parameters, norms))

    def _of_clipping(self, reference: weakref.ref[Any], total_norm: torch.Tensor) -> _Norm:
        """The norm that torch's clipping function has measured; it clips all gradients by the same factor."""
        reading = self._values.read(total_norm)
        total = reading.value

        def evidence() -> NormsOfParameters | None:
            optimizer = reference()
            if optimizer is None or total is None:  # by now, these are the gradients of another step
                return None
            with torch.no_grad():
                measured = parameter_norms(optimizer)
                return NormsOfParameters(measured.parameters, [float(norm) for norm in measured.norms])

        if total is None or math.isfinite(total):
            return _Norm(reading, evidence)
        found = evidence()  # clipping by NaN makes all of them NaN
        return _Norm(reading, lambda: found)

    def _report_loss(self, vitals: OptimizerVitals, moment: Moment) -> None:
        accumulated = self._vitals.accumulated
        if accumulated is not None:
            vitals.accumulated(accumulated)
        if self._losses.newest is not None:
            self._losses.newest.then(lambda value: vitals.loss(value, moment))

    def _report_learning_rates(self, vitals: OptimizerVitals, optimizer: Any) -> None:
        for place, group in enumerate(optimizer.param_groups[:_MAX_GROUPS]):
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                self._values.read(rate).then(functools.partial(vitals.learning_rate, place))
            elif rate is not None:
                vitals.learning_rate(place, rate)

    def _describe(self, optimizer: Any) -> tuple[str, int]:
        self._steps_to_go.pop(id(optimizer), None)
        self._unmeasured.pop(id(optimizer), None)
        self._clipped_unknown -= self._see(optimizer)
        return type(optimizer).__name__, sum(parameter.numel() for parameter in parameters_of(optimizer))

    def _see(self, optimizer: Any) -> set[int]:
        """Remember whose parameters these are."""
        own = {id(parameter) for parameter in parameters_of(optimizer)}
        self._seen[id(optimizer)] = (weakref.ref(optimizer), own, len(optimizer.param_groups))
        return own


def _report_step(vitals: OptimizerVitals, moment: Moment, norm: _Norm | None) -> None:
    vitals.stepped()
    if norm is not None:
        norm.reading.then(lambda value: vitals.gradient_norm(value, moment, norm.evidence))


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

    steps = gradients.compiled_steps
    report = context.session.guarded("optimizer", gradients.compiled_step_ends)
    context.vitals.overdue = lambda: None if steps.newest is None else report()
    before_step, after_step = steps.hooks(before, after)
    for handle in (
        torch_optimizer.register_optimizer_step_pre_hook(before_step),
        torch_optimizer.register_optimizer_step_post_hook(after_step),
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
