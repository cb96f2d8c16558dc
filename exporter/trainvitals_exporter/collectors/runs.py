"""The training runs of this host, as their own processes tell through run files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from trainvitals import catalogue
from trainvitals.runfile import Layout, RunFile

from trainvitals_exporter.families import Families, Family, series
from trainvitals_exporter.run_table import Run, RunTable
from trainvitals_exporter.settings import Settings

_RANK_METRICS: Final = {m.name: m for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type != "histogram"}
_RANK_HISTOGRAMS: Final = tuple(m for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type == "histogram")
_Place = tuple[str, str, int]


class _Plan(NamedTuple):
    """What of a rank's run file is served: names, series as they are spelled, and where in the file their values are.

    Made anew only when the file has more series, because spelling them is most of the work.
    """

    gauges: list[_Place]
    counters: list[_Place]
    # name, the place of each bucket by its upper bound, and that of the sum
    histograms: list[tuple[str, dict[float, int], int]]


class Runs:
    """Facts of whole runs, and all that the hooks wrote in each rank."""

    name = "runs"
    interval = 0.5  # values may lag the training process by a second, a scrape's own time included

    def __init__(self, table: RunTable) -> None:
        self._table = table
        self._plans: WeakKeyDictionary[Layout, dict[tuple[str, str], _Plan]] = WeakKeyDictionary()

    def collect(self) -> Iterable[Family]:
        """Read the run files."""
        out = Families()
        runs = self._table.runs()
        endings = self._table.endings()
        for name, run in runs.items():
            _add_run(out, name, run)
            for state in catalogue.FINAL_STATES:
                out.add("trainvitals_runs_ended_total", endings.get((name, state), 0), name, state)
            for rank, file in run.ranks.items():
                plans = self._plans.setdefault(file.layout, {})
                plan = plans.get((name, str(rank)))
                if plan is None:
                    plan = plans[name, str(rank)] = _plan(file.layout, name, str(rank))
                _add_rank(out, file, plan, name, str(rank))
        for reason, count in self._table.rejected().items():
            out.add("trainvitals_exporter_run_files_rejected", count, reason)
        return out


def create(settings: Settings) -> Runs:
    """The collector."""
    return Runs(settings.runs)


def _add_run(out: Families, name: str, run: Run) -> None:
    out.add("trainvitals_run_start_timestamp_seconds", run.created, name)
    current = run.state
    for state in catalogue.RUN_STATES:
        out.add("trainvitals_run_state", state == current, name, state)
    if not run.alive and run.exit_code is not None:
        out.add("trainvitals_run_exit_code", run.exit_code, name)
    for label, value in run.labels.items():
        out.add("trainvitals_run_label_info", 1, name, label, value)
    if run.end_info is not None:
        out.add("trainvitals_run_end_info", 1, name, *run.end_info)


def _add_rank(out: Families, file: RunFile, plan: _Plan, run: str, rank: str) -> None:
    values = file.values
    out.add_lines(
        (name, spelled, value)
        for name, spelled, slot in plan.gauges
        if (value := values[slot]) == value or file.at(slot) is not None  # a loss may be NaN
    )
    out.add_lines(
        (name, spelled, value) for name, spelled, slot in plan.counters if 0 <= (value := values[slot]) < math.inf
    )
    for name, buckets, total in plan.histograms:
        counts = {bound: values[slot] for bound, slot in buckets.items() if 0 <= values[slot] < math.inf}
        if 0 <= values[total] < math.inf:
            out.add_histogram(name, counts, values[total], run, rank)


def _plan(layout: Layout, run: str, rank: str) -> _Plan:
    """Pass on what is in the catalogue with exactly its labels; ignore what is not."""
    plan = _Plan([], [], [])
    for (name, pairs), slot in layout.slots.items():
        metric, labels = _RANK_METRICS.get(name), dict(pairs)
        if metric is not None and labels.keys() == set(metric.labels):
            spelled = series(name, (run, rank, *(labels[label] for label in metric.labels)))
            (plan.counters if metric.type == "counter" else plan.gauges).append((name, spelled, slot))
    for metric in _RANK_HISTOGRAMS:
        buckets, total = _buckets(layout, f"{metric.name}_bucket"), layout.slots.get((f"{metric.name}_sum", ()))
        if buckets and total is not None:
            plan.histograms.append((metric.name, buckets, total))
    return plan


def _buckets(layout: Layout, name: str) -> dict[float, int]:
    """The upper bounds of a histogram's buckets, each with the place of its own count."""
    buckets = {}
    for pairs in layout.by_name.get(name, ()):
        if len(pairs) == 1 and pairs[0][0] == "le":
            try:
                bound = float(pairs[0][1])
            except ValueError:
                continue
            if not math.isnan(bound):
                buckets[bound] = layout.slots[name, pairs]
    return buckets
