"""Runs every query of a Grafana dashboard against a Prometheus, as Grafana would."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Json = dict[str, Any]

# The part of a query that looks for runs that have ended.
ENDED = 'state=~"finished|failed|killed|out_of_memory"'
# Metric prefix -> why a query that uses it may return nothing where training runs without a GPU.
EMPTY_WITHOUT_GPU: Mapping[str, str] = {
    "trainvitals_gpu_": "no NVIDIA GPU on this host",
    "trainvitals_run_gpu_info": "the run computes on no GPU",
    "trainvitals_cuda_": "the run computes on no GPU",
    "trainvitals_amp_": "GradScaler is off without CUDA",
    ":trainvitals_gpu_": "no NVIDIA GPU on this host",
}
# The same, for a run that is well, still in progress, or on a kernel or disk that lacks the facility.
EMPTY_WHEN_HEALTHY: Mapping[str, str] = {
    "ALERTS": "no alert fires",
    "trainvitals_run_exit_code": "the run has not ended",
    "trainvitals_run_end_info": "the run has not ended",
    ENDED: "the run has not ended",
    "trainvitals_hook_errors_total": "no hook failed",
    "trainvitals_series_dropped_total": "no series was dropped",
    "trainvitals_exporter_run_files_rejected": "no run file was rejected",
    "trainvitals_dataloader_batch_size": "a batch sampler of the script's own decides the size of each batch",
    "trainvitals_dataloader_prefetch_factor": "a DataLoader without workers prefetches nothing",
    "_anomalies_total": "no step was anomalous",
    "trainvitals_anomaly_info": "no step was anomalous",
    "_memory_left:seconds": "there is no leak",
    "run:trainvitals_bottleneck:info": "nothing holds the run up",
    "run:trainvitals_iterations_per_second:": "the run is too young to have a usual speed",
    "own_work": "the run has one rank",
    "trainvitals_ddp_seconds": "the run has one rank",
    "trainvitals_run_label_info": "the run was given no label",
    "trainvitals_dataloader_dataset_info": "the dataset lies in memory and no file of it is open",
    "trainvitals_host_filesystem_disk_info": "the filesystems lie on no disk that can be seen",
    "trainvitals_host_pressure_seconds_total": "the kernel has no pressure stall information",
}
# Intervals that Grafana works out from the scrape interval and the width of the panel.
INTERVALS: Mapping[str, str] = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}
TIMEOUT_SECONDS = 30


class Query(NamedTuple):
    """One query of a dashboard; `where` is the panel's title, or "annotation NAME", or "variable NAME"."""

    where: str
    expr: str
    instant: bool


class QueryResult(NamedTuple):
    """What a query returned: the number of series (or label values), or the error."""

    where: str
    expr: str
    series: int
    error: str | None


def panels(dashboard: Json) -> Iterator[Json]:
    """Yield every panel that is not a row, in reading order, those of folded rows too."""
    for panel in dashboard["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def queries(dashboard: Json) -> Iterator[Query]:
    """Yield every query of the panels, annotations and variables."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"], target["instant"])
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield Query(f"annotation {annotation['name']}", annotation["expr"], instant=False)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield Query(f"variable {variable['name']}", variable["definition"], instant=True)


def substitute(expr: str, variables: Mapping[str, str]) -> str:
    """Replace $name and ${name}; an unknown name stays, so that the query fails."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), expr)


def run_all(
    dashboard: Json,
    prometheus_url: str,
    variables: Mapping[str, str],
    *,
    at: float | None = None,
    window_seconds: float = 1800,
) -> list[QueryResult]:
    """Run every query of `dashboard` with `variables` (name to value, `.*` for All) and count what it returns.

    Panels over time are asked for the `window_seconds` up to `at` (Unix time; now by default). Nothing is raised for a
    failed query: its `error` says what Prometheus, or the connection, said.
    """
    at = time.time() if at is None else at
    values = {**INTERVALS, **variables}
    results = []
    for query in queries(dashboard):
        expr = substitute(query.expr, values)
        try:
            series = _count(prometheus_url, expr, query.instant, at, window_seconds)
        except (OSError, ValueError) as error:
            results.append(QueryResult(query.where, expr, 0, _reason(error)))
        else:
            results.append(QueryResult(query.where, expr, series, None))
    return results


def unexplained(results: list[QueryResult], *reasons: Mapping[str, str]) -> list[QueryResult]:
    """Return the results that failed, and the empty ones whose expression contains no key of `reasons`."""
    allowed = [prefix for mapping in reasons for prefix in mapping]
    return [
        result
        for result in results
        if result.error or (not result.series and not any(prefix in result.expr for prefix in allowed))
    ]


def instant_values(prometheus_url: str, expr: str, at: float) -> list[tuple[dict[str, str], float]]:
    """Return the labels and the value of each series of an instant query."""
    data = get(prometheus_url, "query", {"query": expr, "time": str(at)})["result"]
    return [(series["metric"], float(series["value"][1])) for series in data]


def get(prometheus_url: str, endpoint: str, parameters: Mapping[str, str]) -> Any:
    """Return the `data` of a call of Prometheus' HTTP API; ValueError or OSError if it fails."""
    url = f"{prometheus_url.rstrip('/')}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # the test's own Prometheus
        return json.load(response)["data"]


def _count(url: str, expr: str, instant: bool, at: float, window_seconds: float) -> int:
    start, end = str(at - window_seconds), str(at)
    label_values = re.fullmatch(r"label_values\((.*), (\w+)\)", expr)
    if label_values:
        metric, label = label_values.groups()
        return len(get(url, f"label/{label}/values", {"match[]": metric, "start": start, "end": end}))
    if instant:
        return len(instant_values(url, expr, at))
    return len(get(url, "query_range", {"query": expr, "start": start, "end": end, "step": "15"})["result"])


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return error.read().decode(errors="replace")
    return str(error)
