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
# So many clippings of parameters that no optimizer owns so far are measured.
_MAX_EARLY: Final = 8
_WIDE: Final = (torch.float32, torch.float64)


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """All parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class ParameterNorms(NamedTuple):
    """The 2-norms of these parameters' gradients, all on one device; `scale` is what they still are multiplied by."""

    parameters: list[torch.Tensor]
    norms: list[torch.Tensor]
    scale: torch.Tensor | None


def parameter_norms(some: list[torch.Tensor], scale: torch.Tensor | None = None) -> ParameterNorms:
    """The norm of each gradient that these parameters have, as tensors of no dimension.

    Of a sharded gradient (DTensor) only the local shard counts: the whole would need a collective, which could hang.
    """
    parameters, gradients = [], []
    for parameter in some:
        gradient = parameter.grad
        if gradient is not None:
            parameters.append(parameter)
            gradients.append(
                gradient if type(gradient) is torch.Tensor and not gradient.is_sparse else _dense(gradient)
            )
    return ParameterNorms(parameters, _norms(gradients), scale)


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


class _Followed:
    """What is known of one optimizer between its steps."""

    __slots__ = (
        "before_clipping",
        "clipped_at",
        "in_compiled_code",
        "norm",
        "own",
        "parameter_groups",
        "reference",
        "steps_to_go",
        "unmeasured",
        "vitals",
    )

    def __init__(self, reference: weakref.ref[Any]) -> None:
        self.reference = reference
        # the ids of its parameters, and of how many groups these are; None before its first step
        self.own: set[int] | None = None
        self.parameter_groups = 0
        # the norm of the step to come, as it is at that step and as it was before clipping, after which backward
        self.norm: _Norm | None = None
        self.before_clipping: _Norm | None = None
        self.clipped_at = 0
        # until the next step to measure, and since the last one
        self.steps_to_go = 0
        self.unmeasured = 0
        self.in_compiled_code = False
        # None before its first step, and where there was no room for it
        self.vitals: OptimizerVitals | None = None

    def clipped(self, count: int, norm: _Norm) -> None:
        """The gradients of the backward number `count` have this norm, and are about to be clipped."""
        self.clipped_at, self.before_clipping = count, norm

    def is_usual(self, loss: Reading | None) -> bool:
        """Whether there is nothing odd about this loss, as far as is known."""
        return self.vitals is None or loss is None or loss.value is None or self.vitals.is_usual_loss(loss.value)

    def plan(self, interval: int) -> None:
        """A step is over: one of `interval` is to be measured."""
        measured = self.norm is not None
        self.steps_to_go = (interval if measured else min(self.steps_to_go, interval)) - 1
        self.unmeasured += 1
        if measured:
            if self.vitals is not None:
                self.vitals.measured_every(self.unmeasured)
            self.unmeasured = 0


class Gradients:
    """Follows each optimizer from its gradients to its step."""

    def __init__(self, context: Context, values: DeviceValues, losses: Losses) -> None:
        self._session = context.session
        self._vitals = context.vitals
        self._values = values
        self._losses = losses
        self._governor = Governor(context.session.overhead)
        self._followed: dict[int, _Followed] = {}
        self._stepping: _Followed | None = None
        self._stepping_since = 0
        # by a parameter's id, the norm of its gradient that was clipped when nobody knew yet whose it is; None where
        # that was not measured
        self._clipped_early: dict[int, torch.Tensor | None] = {}
        self._clipped_early_at = 0
        self._early_measurements = 0
        self.compiled_steps = CompiledSteps()
        self.stepped = False

    def step_begins(self, now: float, optimizer: Any) -> bool:
        """An optimizer's step begins. Whether its gradients are to be measured.

        One inside another (ZeroRedundancyOptimizer's) is the same step. The same optimizer again, or a backward since,
        means that the last step raised and has had no end.
        """
        followed, outer = self._follow(optimizer), self._stepping
        if (
            outer is None
            or outer is followed
            or self._losses.count != self._stepping_since
            or outer.reference() is None
        ):
            self._stepping = followed
            self._stepping_since = self._losses.count
            self._vitals.step_begins(now)
        return followed is self._stepping and self._is_due(followed)

    def measure(self, now: float, optimizer: Any) -> None:
        """The optimizer's gradients are complete: at the start of its step, or at the end of its closure."""
        followed = self._stepping
        if followed is None or followed.reference() is not optimizer:
            return
        if followed.own is None and not self._clipped_early.keys().isdisjoint(map(id, parameters_of(optimizer))):
            followed.norm = self._measure_early(optimizer)
            return
        norm, followed.before_clipping = followed.before_clipping, None
        followed.norm = self._measure(optimizer) if norm is None and self._is_due(followed) else norm

    def step_ends(self, now: float, optimizer: Any) -> None:
        """An optimizer has made its step, or, if it is fused, has been told by the GradScaler to skip it."""
        followed = self._stepping
        if followed is None or followed.reference() is not optimizer:
            return
        self._stepping = None
        self.stepped = True
        norm = followed.norm = followed.norm or followed.before_clipping
        vitals = followed.vitals or self._known(followed, optimizer)
        if vitals is not None:
            moment = self._vitals.moment(now)
            self._report_loss(vitals, moment)
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is None:
                _report_step(vitals, moment, norm)
            else:  # called in any case, a fused optimizer skips by itself where the scaler found what is not finite
                reading = self._values.read(found_inf)
                reading.then(lambda found: vitals.skipped() if found else _report_step(vitals, moment, norm))
            if not followed.in_compiled_code:
                self._report_learning_rates(vitals, optimizer)
            followed.plan(self._governor.interval)
        followed.norm = followed.before_clipping = None
        self._vitals.step_ends(now, optimizer)
        self._governor.step(now, self._session.hook_seconds - self._session.seconds_once)

    def compiled_step_ends(self, now: float) -> None:
        """An optimizer has made a step in compiled code, at some time since the last event."""
        optimizer, self.compiled_steps.newest = self.compiled_steps.newest, None
        self._losses.on_end = self._backward_ends
        self._stepping = self._follow(optimizer)
        self._stepping.in_compiled_code = True
        self.step_ends(now, optimizer)

    def _backward_ends(self) -> None:
        """The last chance to see the gradients and rates that compiled code will use: a scheduler may come after it."""
        for followed in list(self._followed.values()):
            optimizer = followed.reference()
            if optimizer is None or not followed.in_compiled_code:
                continue
            if self._is_due(followed) and (norm := self._measure(optimizer)) is not None:
                followed.clipped(self._losses.count, norm)
            vitals = followed.vitals or self._known(followed, optimizer)
            if vitals is not None:
                self._report_learning_rates(vitals, optimizer)

    def skipped(self, now: float, optimizer: Any) -> None:
        """The GradScaler left out the optimizer's step."""
        self._vitals.step_begins(now)
        followed = self._follow(optimizer)
        followed.before_clipping = None
        vitals = followed.vitals or self._known(followed, optimizer)
        if vitals is not None:
            self._report_loss(vitals, self._vitals.moment(now))
            vitals.skipped()
        self._vitals.step_ends(now, optimizer)

    def before_clipping(self, now: float, parameters: list[torch.Tensor], total_norm: torch.Tensor | None) -> None:
        """These parameters' gradients are about to be clipped; `total_norm` is their 2-norm where it is known."""
        clipped = {id(parameter) for parameter in parameters}
        owned = False
        for followed in list(self._followed.values()):
            optimizer = followed.reference()
            if optimizer is None or followed.own is None:
                continue
            if len(optimizer.param_groups) != followed.parameter_groups:
                self._see(followed, optimizer)
            if followed.own.isdisjoint(clipped):
                continue
            owned = True
            if followed.before_clipping is None or followed.clipped_at != self._losses.count:
                whole = followed.own == clipped
                norm = self._of_clipping(followed.reference, total_norm) if whole and total_norm is not None else None
                if norm is None and self._is_due(followed):
                    norm = self._measure(optimizer)
                if norm is not None:
                    followed.clipped(self._losses.count, norm)
        if not owned:
            self._clip_early(parameters)

    def _clip_early(self, parameters: list[torch.Tensor]) -> None:
        """Parameters of no optimizer that has stepped are about to be clipped: keep their norms for its first step."""
        if self._clipped_early_at == self._losses.count:  # clipped twice, it is the first norm that counts
            parameters = [parameter for parameter in parameters if id(parameter) not in self._clipped_early]
        self._clipped_early_at = self._losses.count
        self._clipped_early.update((id(parameter), None) for parameter in parameters)
        if self._early_measurements < _MAX_EARLY and not capturing():  # some scripts never have an optimizer
            self._early_measurements += 1
            with torch.no_grad():
                measured = parameter_norms(parameters)
            self._clipped_early.update(zip(map(id, measured.parameters), measured.norms, strict=True))

    def _measure_early(self, optimizer: Any) -> _Norm | None:
        """The norm at an optimizer's first step, before some of its gradients were clipped."""
        parameters = [parameter for parameter in parameters_of(optimizer) if parameter.grad is not None]
        clipped = {id(each): self._clipped_early[id(each)] for each in parameters if id(each) in self._clipped_early}
        if not clipped:
            return self._measure(optimizer)
        norms = [norm for norm in clipped.values() if norm is not None]
        if len(norms) < len(clipped) or self._clipped_early_at != self._losses.count or capturing():
            return None
        with torch.no_grad():
            rest = parameter_norms([parameter for parameter in parameters if id(parameter) not in clipped])
            first = [parameter for parameter in parameters if id(parameter) in clipped]
            return self._norm_of(ParameterNorms(first + rest.parameters, norms + rest.norms, None))

    def _is_due(self, followed: _Followed) -> bool:
        """Whether to measure at this step: in its turn, and wherever the loss is out of the usual."""
        return followed.steps_to_go <= 0 or not followed.is_usual(self._losses.newest)

    def _measure(self, optimizer: Any) -> _Norm | None:
        if capturing():
            return None
        start = perf_counter()
        with torch.no_grad():
            measured = parameter_norms(parameters_of(optimizer), getattr(optimizer, "grad_scale", None))
            if not measured.norms:
                return None
            norm = self._norm_of(measured)
        self._governor.measured(perf_counter() - start)
        return norm

    def _norm_of(self, measured: ParameterNorms) -> _Norm:
        return self._on_cpu(measured) if measured.norms[0].is_cpu else self._on_device(measured)

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
                measured = parameter_norms(parameters_of(optimizer))
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
            if type(rate) is float:
                vitals.learning_rate(place, rate)
            elif isinstance(rate, torch.Tensor):
                self._values.read(rate).then(functools.partial(vitals.learning_rate, place))
            elif rate is not None:
                vitals.learning_rate(place, float(rate))

    def _follow(self, optimizer: Any) -> _Followed:
        """What is known of this optimizer."""
        key = id(optimizer)
        followed = self._followed.get(key)
        if followed is None or followed.reference() is not optimizer:
            reference = weakref.ref(optimizer, lambda reference: self._forget(key, reference))
            followed = self._followed[key] = _Followed(reference)
        return followed

    def _forget(self, key: int, reference: weakref.ref[Any]) -> None:
        if key in self._followed and self._followed[key].reference is reference:
            del self._followed[key]

    def _known(self, followed: _Followed, optimizer: Any) -> OptimizerVitals | None:
        """The optimizer's vitals, made at its first step."""
        if followed.own is None:
            for parameter in self._see(followed, optimizer):
                self._clipped_early.pop(parameter, None)
        followed.vitals = self._vitals.optimizer(optimizer, _describe)
        return followed.vitals

    def _see(self, followed: _Followed, optimizer: Any) -> set[int]:
        """Remember whose parameters these are."""
        own = followed.own = {id(parameter) for parameter in parameters_of(optimizer)}
        followed.parameter_groups = len(optimizer.param_groups)
        return own


def _describe(optimizer: Any) -> tuple[str, int]:
    return type(optimizer).__name__, sum(parameter.numel() for parameter in parameters_of(optimizer))


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
        due = begin(optimizer)
        closure: Any = kwargs.get("closure") or (args[1] if len(args) > 1 and callable(args[1]) else None)
        if closure is not None:
            return _measuring_after(closure, args, kwargs, lambda: measure(optimizer))
        if due:
            measure(optimizer)
        return None

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


def _measuring_after(
    closure: Callable[..., Any], args: Any, kwargs: Any, measure: Callable[[], Any]
) -> tuple[Any, Any]:
    """The arguments of a step that is given a closure, which makes the gradients (Lightning, LBFGS)."""

    def then_measure(*closure_args: Any, **closure_kwargs: Any) -> Any:
        result = closure(*closure_args, **closure_kwargs)
        measure()
        return result

    if "closure" in kwargs:
        return args, {**kwargs, "closure": then_measure}
    return (args[0], then_measure, *args[2:]), kwargs
