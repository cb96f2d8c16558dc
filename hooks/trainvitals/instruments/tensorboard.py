"""Scalars that the script sends to TensorBoard, through torch's SummaryWriter or whatever logger uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.tensorboard import writer as torch_writer

from trainvitals.instruments import Context


def install(context: Context) -> None:
    """Watch the writer's summaries. Their values are plain floats already, so that nothing is read from a device."""

    def mirror(now: float, summary: Any) -> None:
        for value in summary.value:
            if value.HasField("simple_value"):
                context.vitals.scalar(value.tag, value.simple_value)
            elif value.HasField("tensor") and value.metadata.plugin_data.plugin_name == "scalars":
                context.vitals.scalar(value.tag, (value.tensor.float_val or value.tensor.double_val)[0])

    mirrored = context.session.guarded("tensorboard", mirror, any_thread=True)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def add_summary(self: Any, summary: Any, *args: Any, **kwargs: Any) -> Any:
            mirrored(summary)
            return original(self, summary, *args, **kwargs)

        return add_summary

    context.patches.wrap(torch_writer.FileWriter, "add_summary", make)
