"""Pauses by Python's garbage collector."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any

from trainvitals.instruments import Context
from trainvitals.runfile import RunFileWriter


def install(context: Context) -> None:
    """Time every collection from the first training iteration on, in whichever thread it happens."""
    began = total = 0.0

    # Called in the middle of any allocation: nothing but floats here.
    def collects(phase: str, info: Any) -> None:
        nonlocal began, total
        if phase == "start":
            began = perf_counter()
        elif began:
            total += perf_counter() - began

    def begin(writer: RunFileWriter) -> None:
        slot, values = writer.slot("trainvitals_gc_pause_seconds_total"), writer.values

        def tell(now: float, writer: RunFileWriter) -> None:
            values[slot] = total

        gc.callbacks.append(collects)
        context.vitals.on_second.append(tell)

    def end() -> None:
        if collects in gc.callbacks:
            gc.callbacks.remove(collects)

    context.session.on_armed.append(begin)
    context.patches.on_undo(end)
