"""torch.compile: what it compiled; and it is to leave our hooks alone, not to compile them."""

from __future__ import annotations

import functools
from types import CodeType

from torch._dynamo import trace_rules, utils

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter


def install(context: Context) -> None:
    """Keep Dynamo out of this package; else every hook costs the user's script graphs and recompilations.

    Its own counters are read once a second.
    """
    _keep_out(context.session.guarded("", lambda now: None).__code__)
    read = context.session.guarded("compile", lambda start, now, writer: _tell(writer))
    context.vitals.on_second.append(read)


@functools.cache  # torch would note and compile it anew each time, and forgets nothing
def _keep_out(hooks: CodeType) -> None:
    trace_rules.add("trainvitals")
    try:  # nor is it to compile what hooks call, when compiled code goes back to Python for a backward, say
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # torch < 2.7
        return
    set_code_exec_strategy(hooks, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))


def _tell(writer: RunFileWriter) -> None:
    counters = utils.counters
    if "stats" in counters:  # asking for what is not there would make it
        writer.set("trainvitals_compile_graphs_total", float(counters["stats"]["unique_graphs"]))
        breaks = sum(counters["graph_break"].values()) if "graph_break" in counters else 0
        writer.set("trainvitals_compile_graph_breaks_total", float(breaks))
