"""What DistributedDataParallel tells: computing, communicating, how far they overlap, and unused parameters."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from torch.nn.parallel import DistributedDataParallel

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter

# It samples one of a hundred iterations, and building its report takes longer than most hooks.
_EVERY_SECONDS: Final = 10.0
# In nanoseconds, in its report.
_PARTS: Final = {
    "forward_compute": "forward_compute_time",
    "backward_compute": "backward_compute_time",
    "backward_communication": "backward_comm_time",
    "overlap": "backward_compute_comm_overlap_time",
}


def install(context: Context) -> None:
    """Read the reports of the modules that are wrapped from now on; several together, as a GAN has, are summed."""
    modules: weakref.WeakSet[Any] = weakref.WeakSet()
    due = 0.0
    most_unused = 0

    def tell_unused(reports: list[dict[str, Any]], writer: RunFileWriter) -> None:
        nonlocal most_unused
        # with a static graph it looks at the first iteration alone
        looking = [each for each in reports if each.get("find_unused_parameters") and not each.get("static_graph")]
        writer.set("trainvitals_ddp_find_unused_parameters", float(bool(looking)))
        found = [each["unused_parameter_size"] for each in looking if "unused_parameter_size" in each]
        if found:
            most_unused = max(most_unused, sum(found))
            writer.set("trainvitals_ddp_unused_parameter_bytes", most_unused)

    def read(now: float, writer: RunFileWriter) -> None:
        nonlocal due
        reports = [module._get_ddp_logging_data() for module in modules]
        tell_unused(reports, writer)
        sampled = [report for report in reports if _PARTS["backward_compute"] in report]
        for part, key in _PARTS.items() if sampled else ():
            seconds = sum(report.get(key, 0) for report in sampled) / 1e9
            writer.set("trainvitals_ddp_seconds", seconds, part=part)
        if sampled:
            due = now + _EVERY_SECONDS

    guarded = context.session.guarded("ddp", lambda start, now, writer: read(now, writer))

    def look(now: float, writer: RunFileWriter) -> None:
        if modules and now >= due:
            guarded(now, writer)

    add = context.session.guarded("ddp", lambda now, module: modules.add(module), any_thread=True)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (it replaces that method)
            original(self, *args, **kwargs)
            add(self)

        return __init__

    context.patches.wrap(DistributedDataParallel, "__init__", make)
    context.vitals.on_second.append(look)
