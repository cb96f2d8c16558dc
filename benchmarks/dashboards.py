"""What the dashboards ask of Prometheus: `python -m benchmarks.dashboards [--days 30] [--keep DIR]`.

A Prometheus is filled with days of one run of 8 ranks on 8 GPUs (every metric of the catalogue, and every series of the
rules that a dashboard reads, a sample a minute), and each dashboard is asked for as Grafana would, over several time
ranges: the panels that are open, variables and annotations at once, and those of folded rows by themselves. The table
tells the number of queries, the samples that Prometheus had to read for them, the time all of them take one after the
other, and the slowest. Filling takes about a quarter of a minute for each day.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from trainvitals.catalogue import EXPORTER, GPU, HOST, METRICS, PROCESS, RANK, RUN, SECONDS_BUCKETS, SURROUNDINGS

from tests.conftest import tool
from tests.dashboard_lint import labels_of_recorded
from tests.dashboard_prometheus import serve
from tests.dashboard_queries import Json, Query, get, panels, queries, substitute
from tests.dashboard_rules import selected
from tests.openmetrics_sample import LABEL_VALUES

DASHBOARDS = sorted((Path(__file__).parents[1] / "grafana" / "dashboards").glob("*.json"))
SCRAPE_SECONDS = 60
DAY = 86400
RANGES = {"1 h": 3600, "24 h": DAY, "7 d": 7 * DAY, "30 d": 30 * DAY}
PIXELS = 1600
SCRAPED = {"job": "trainvitals", "instance": "gpu01:10288"}
CHOSEN = {
    "job": "trainvitals",
    "instance": ".*",
    "run": ".*",
    "rank": ".*",
    "gpu": ".*",
    "baseline": "llm",
    "loss": "1",
}
RANKS = [{"run": "llm", "rank": str(rank)} for rank in range(8)]
GPUS = [{"uuid": f"GPU-{number}", "gpu": str(number)} for number in range(8)]
SCOPES: Mapping[str, list[dict[str, str]]] = {
    RUN.name: [{"run": "llm"}],
    RANK.name: RANKS,
    PROCESS.name: [{**rank, "role": role} for rank in RANKS for role in ("main", "dataloader_worker")],
    SURROUNDINGS.name: RANKS,
    GPU.name: GPUS,
    HOST.name: [{}],
    EXPORTER.name: [{}],
}
# Labels of recorded series, and their values here.
OF_RECORDED = {"run": ("llm",), "rank": tuple(map(str, range(8))), "run_id": ("1",), "device": ("0",)}


class Cost(NamedTuple):
    """What a set of queries cost: how many, samples read, seconds in all, and of the slowest."""

    queries: int
    samples: int
    seconds: float
    slowest: float


def series() -> Iterator[tuple[str, bool]]:
    """Yield each series as it is written, and whether it counts."""
    for metric in METRICS:
        values = [LABEL_VALUES.get((metric.name, label), LABEL_VALUES.get(label, ("x",))) for label in metric.labels]
        for scope, own in itertools.product(SCOPES[metric.scope.name], itertools.product(*values)):
            labels = {**SCRAPED, **dict(zip(metric.labels, own, strict=True)), **scope}
            if metric.name == "trainvitals_run_gpu_info":
                labels["uuid"] = f"GPU-{scope['rank']}"
            if metric.type != "histogram":
                yield _written(metric.name, labels), metric.type == "counter"
                continue
            for bound in (*map(str, SECONDS_BUCKETS), "+Inf"):
                yield _written(f"{metric.name}_bucket", {**labels, "le": bound}), True
            yield _written(f"{metric.name}_sum", labels), True
            yield _written(f"{metric.name}_count", labels), True
    for name in sorted(recorded_names()):
        known = labels_of_recorded(name) or frozenset()
        values = [OF_RECORDED.get(label, LABEL_VALUES.get(label, ("x",))) for label in sorted(known - set(SCRAPED))]
        for own in itertools.product(*values):
            yield _written(name, {**SCRAPED, **dict(zip(sorted(known - set(SCRAPED)), own, strict=True))}), False
    yield _written("up", SCRAPED), False


def recorded_names() -> set[str]:
    """Return the recorded series that the dashboards read."""
    found: set[str] = set()
    for path in DASHBOARDS:
        for query in queries(json.loads(path.read_text(encoding="utf-8"))):
            if not query.where.startswith("variable"):
                ranges = {"__rate_interval": "5m", "__interval": "1m", "__range": "1h"}
                found |= {
                    name for name in selected(substitute(query.expr, {**CHOSEN, **ranges})) if name and ":" in name
                }
    return found


def _written(name: str, labels: Mapping[str, str]) -> str:
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def fill(folder: Path, days: int, end: int) -> int:
    """Put `days` of samples up to the Unix time `end` into the Prometheus of a folder; return the number of series."""
    (folder / "prometheus.yml").write_text("{}\n", encoding="utf-8")
    names = list(series())
    for day in range(days, 0, -1):
        times = np.arange(end - day * DAY, end - (day - 1) * DAY, SCRAPE_SECONDS)
        with (folder / "day.txt").open("w", encoding="utf-8") as file:
            _write(file, names, times, end - days * DAY)
        command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", "day.txt", "data"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "day.txt").unlink()
    return len(names)


def _write(file: TextIO, names: list[tuple[str, bool]], times: np.ndarray, start: int) -> None:
    random = np.random.default_rng(0)
    for name, counts in names:
        if counts:
            values = (times - start) * 0.5
        elif "_info{" in name or "_state{" in name:
            values = np.ones(times.size)
        else:
            values = (1 + 0.1 * random.standard_normal(times.size)).round(3)
        pairs = zip(values.tolist(), times.tolist(), strict=True)
        file.writelines(f"{name} {value!r} {moment}\n" for value, moment in pairs)
    file.write("# EOF\n")


def widths(dashboard: Json) -> dict[str, int]:
    """Return the width of each panel in pixels, by title."""
    return {panel["title"]: panel["gridPos"]["w"] * PIXELS // 24 for panel in panels(dashboard)}


def cost(url: str, asked: list[Query], width: Mapping[str, int], seconds: int, end: int) -> Cost:
    """Ask for everything as Grafana does, over the last `seconds`."""
    samples, times = 0, []
    for query in asked:
        step = max(SCRAPE_SECONDS, seconds // width.get(query.where, PIXELS))
        intervals = {
            "__interval": f"{step}s",
            "__range": f"{seconds}s",
            "__rate_interval": f"{max(4 * SCRAPE_SECONDS, step + SCRAPE_SECONDS)}s",
        }
        expr = substitute(query.expr, {**CHOSEN, **intervals})
        window = {"start": str(end - seconds), "end": str(end)}
        begun = time.perf_counter()
        if values := re.fullmatch(r"label_values\((.*), (\w+)\)", expr):
            get(url, f"label/{values[2]}/values", {"match[]": values[1], **window})
        elif query.instant:
            answer = get(url, "query", {"query": expr, "time": str(end), "stats": "all"})
            samples += answer["stats"]["samples"]["totalQueryableSamples"]
        else:
            answer = get(url, "query_range", {"query": expr, **window, "step": str(step), "stats": "all"})
            samples += answer["stats"]["samples"]["totalQueryableSamples"]
        times.append(time.perf_counter() - begun)
    return Cost(len(asked), samples, sum(times), max(times))


def opened(dashboard: Json) -> tuple[list[Query], list[Query]]:
    """Return the queries made when a dashboard is opened, and those of its folded rows."""
    folded = {id(panel) for row in dashboard["panels"] for panel in row.get("panels", [])}
    whole = list(queries(dashboard))
    of_panels = [id(panel) for panel in panels(dashboard) for _ in panel["targets"]]
    first = [query for query, panel in itertools.zip_longest(whole, of_panels) if panel not in folded]
    return first, [query for query, panel in zip(whole, of_panels, strict=False) if panel in folded]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What the dashboards ask of Prometheus.")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--keep", type=Path, help="a folder for the filled Prometheus; used again if it is there")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        ends = folder / "end"
        if not ends.exists():
            end = int(time.time()) // SCRAPE_SECONDS * SCRAPE_SECONDS
            print(f"{fill(folder, asked.days, end)} series, {asked.days} days", flush=True)
            ends.write_text(str(end))
        end = int(ends.read_text())
        url = stack.enter_context(serve(folder, lookback="5m", retention_days=2 * asked.days))
        print("| dashboard | range | queries | samples read | all, s | slowest, s |\n|---|---|---|---|---|---|")
        for path in DASHBOARDS:
            dashboard = json.loads(path.read_text(encoding="utf-8"))
            for part, those in zip(("", ", folded rows"), opened(dashboard), strict=True):
                for name, seconds in RANGES.items():
                    if those and seconds <= asked.days * DAY:
                        found = cost(url, those, widths(dashboard), seconds, end)
                        print(
                            f"| {dashboard['title']}{part} | {name} | {found.queries} | {found.samples:,} "
                            f"| {found.seconds:.2f} | {found.slowest:.2f} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
