"""The training runs of this host, as their own processes tell through run files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from prometheus_client.core import Metric
from trainvitals import catalogue

from trainvitals_exporter.families import Families
from trainvitals_exporter.run_table import Run, RunTable
from trainvitals_exporter.settings import Settings

_RANK_METRICS: Final = {m.name: m for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type != "histogram"}
_RANK_HISTOGRAMS: Final = tuple(m for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type == "histogram")

_Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Runs:
    """Facts of whole runs, and all that the hooks wrote in each rank."""

    name = "runs"
    interval = 0.5  # values may lag the training process by a second, a scrape's own time included

    def __init__(self, table: RunTable) -> None:
        self._table = table

    def collect(self) -> Iterable[Metric]:
        """Read the run files."""
        out = Families()
        for name, run in self._table.runs().items():
            _add_run(out, name, run)
            for rank, file in run.ranks.items():
                # A file that another program wrote may hold a series twice; a scrape must not.
                series = {(sample.name, sample.labels): sample.value for sample in file.samples}
                _add_rank(out, series, name, str(rank))
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
    if run.end_info is not None:
        out.add("trainvitals_run_end_info", 1, name, *run.end_info)


def _add_rank(out: Families, series: _Series, run: str, rank: str) -> None:
    """Pass on what is in the catalogue with exactly its labels; ignore what is not."""
    for (name, pairs), value in series.items():
        labels = _labels(name, pairs)
        # A loss may be NaN, a count may not.
        if labels is not None and (0 <= value < math.inf or _RANK_METRICS[name].type != "counter"):
            out.add(name, value, run, rank, *labels)
    for metric in _RANK_HISTOGRAMS:
        buckets = _buckets(series, f"{metric.name}_bucket")
        total = series.get((f"{metric.name}_sum", ()))
        if buckets and total is not None:
            out.add_histogram(metric.name, buckets, total, run, rank)


@lru_cache(maxsize=16384)
def _labels(name: str, pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...] | None:
    """The label values in the catalogue's order; None for a series that is not in the catalogue."""
    metric, labels = _RANK_METRICS.get(name), dict(pairs)
    if metric is None or labels.keys() != set(metric.labels):
        return None
    return tuple(labels[label] for label in metric.labels)


def _buckets(series: _Series, name: str) -> dict[float, float]:
    """The upper bounds of a histogram's buckets, each with its own count."""
    buckets = {}
    for (sample, pairs), value in series.items():
        if sample == name and len(pairs) == 1 and pairs[0][0] == "le" and 0 <= value < math.inf:
            try:
                bound = float(pairs[0][1])
            except ValueError:
                continue
            if not math.isnan(bound):
                buckets[bound] = value
    return buckets
