"""What the recorder of anomalies needs of torch: the names of parameters, and norms that lie on a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from trainvitals.anomalies import Recorder
from trainvitals.instruments import Context
from trainvitals.instruments.device_values import capturing
from trainvitals.instruments.parameter_names import ParameterNames

Action = Callable[[list[float] | None], None]


class _Norms:
    """Reads tensors of norms. They are needed rarely, hence nothing is kept for the next time."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, torch.Tensor, Action]] = deque()

    def read(self, norms: torch.Tensor, then: Action) -> None:
        """Begin to read a tensor of one dimension from a device, if that is a CUDA one."""
        if norms.device.type != "cuda" or capturing():
            then(None)
            return
        with torch.inference_mode(mode=False):
            host = torch.zeros(norms.shape, dtype=norms.dtype, device="cpu", pin_memory=True)
        with torch.no_grad():
            host.copy_(norms.detach(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # of torch
        event.record(torch.cuda.current_stream(norms.device))
        self._waiting.append((event, host, then))

    def deliver(self) -> None:
        """Hand on what has arrived."""
        while self._waiting and not capturing() and self._waiting[0][0].query():
            _, host, then = self._waiting.popleft()
            then(host.tolist())

    def leave(self) -> None:
        """The training is over: do without what has not arrived."""
        try:
            self.deliver()
        finally:
            while self._waiting:
                self._waiting.popleft()[-1](None)


def install(context: Context) -> None:
    """Record anomalies."""
    norms = _Norms()
    Recorder(context.session, context.vitals, ParameterNames().of, norms.read)
    context.vitals.on_second.append(lambda now, writer: norms.deliver())
    context.vitals.on_finish.append(norms.leave)
