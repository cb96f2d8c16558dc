"""prometheus_client alone: `python benchmarks/bare_exporter.py PORT FILE` serves the series of a scrape in FILE.

All are gauges there, for what is asked is what it costs to render and send so many.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.parser import text_string_to_metric_families


def main(port: int, file: Path) -> None:
    registry = CollectorRegistry()
    samples = [sample for family in text_string_to_metric_families(file.read_text()) for sample in family.samples]
    gauges: dict[str, Gauge] = {}
    for sample in samples:
        names = sorted(sample.labels)
        if sample.name not in gauges:
            gauges[sample.name] = Gauge(
                sample.name, f"{sample.name}, with the labels {names}.", names, registry=registry
            )
        gauge = gauges[sample.name]
        (gauge.labels(**sample.labels) if names else gauge).set(sample.value)
    start_http_server(port, "127.0.0.1", registry)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
