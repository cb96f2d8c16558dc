"""torch.compile: the compiler is to leave our hooks alone, not to compile them."""

from __future__ import annotations

from torch._dynamo import trace_rules

from trainvitals.instruments import Context


def install(context: Context) -> None:
    """Keep Dynamo out of this package; else every hook costs the user's script graphs and recompilations."""
    trace_rules.add("trainvitals")
