"""A Prometheus that already holds hours of data, with all that the rules make of them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from tests import dashboard_scenario as scenario
from tests import openmetrics_sample as sample
from tests.conftest import tool
from tests.dashboard_queries import get
from tests.dashboard_rules import in_stages, raise_alerts, record


class Backfilled(NamedTuple):
    """A Prometheus' address, and the Unix time at which its data end."""

    url: str
    end: int


@contextmanager
def backfilled(folder: Path) -> Iterator[Backfilled]:
    """Run a Prometheus that holds the sample and the scenario up to now, and what the rules record and raise."""
    (folder / "prometheus.yml").write_text("{}\n", encoding="utf-8")
    end = int(time.time())
    start = end - scenario.DURATION_SECONDS

    def raw(out: TextIO) -> None:
        sample.write(out, end)
        scenario.write(out, end)

    _add(folder, raw)
    for stage in in_stages():
        with serve(folder) as url:
            _add(folder, lambda out, url=url, stage=stage: record(url, stage, start, end, out))  # type: ignore[misc]  # mypy knows no lambda's defaults
    with serve(folder) as url:
        _add(folder, lambda out: raise_alerts(url, start, end, out, {scenario.JOB}))
    with serve(folder) as url:
        yield Backfilled(url, end)


def _add(folder: Path, write: Callable[[TextIO], None]) -> None:
    """Put what `write` writes, OpenMetrics text without its end, into the data in a folder."""
    path = folder / "openmetrics.txt"
    with path.open("w", encoding="utf-8") as file:
        write(file)
        file.write("# EOF\n")
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", path.name, "data"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@contextmanager
def serve(folder: Path, *, lookback: str = "1m", retention_days: int = 15) -> Iterator[str]:
    """Run a Prometheus on the data in a folder, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        tool("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
        f"--web.listen-address={address}", "--log.level=warn", f"--query.lookback-delta={lookback}",
        f"--storage.tsdb.retention.time={retention_days}d",
    ]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            _wait_until_answering(f"http://{address}", process, folder / "log")
            yield f"http://{address}"
        finally:
            process.terminate()


def _wait_until_answering(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            get(url, "query", {"query": "1"})
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"Prometheus did not start: {log.read_text()}")
