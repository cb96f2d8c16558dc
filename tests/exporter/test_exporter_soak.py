"""Thousands of scrapes while runs, workers and GPUs come and go: nothing piles up, and no series is there twice."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.exporter.conftest import StartExporter
from tests.exporter.gpu_machine import Machine
from tests.exporter.raw_client import address

CHURN = Path(__file__).with_name("run_churn.py")
PAUSE = 0.01  # seconds between scrapes, without which the processes that come and go would have no CPU
ON_ONE_CONNECTION = 25
FORMATS = (
    {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"},
    {"Accept": "text/plain"},
)


class Footprint(NamedTuple):
    """What a process takes of the machine."""

    resident: int
    descriptors: int
    threads: int


@dataclass
class Soak:
    """What was seen. `series` are the numbers of series in a scrape."""

    early: Footprint
    late: Footprint
    series: set[int]
    runs: set[str]
    log: list[str]


def footprint(pid: int) -> Footprint:
    """The least of a second, for a scrape or a look into /proc may be under way."""
    process, seen = psutil.Process(pid), []
    for _ in range(20):
        seen.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        time.sleep(0.05)
    return Footprint(*map(min, zip(*seen, strict=True)))


@contextlib.contextmanager
def churn(folder: Path) -> Iterator[None]:
    """Runs that come and go."""
    process = subprocess.Popen([sys.executable, CHURN, folder], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def trouble(chance: random.Random) -> list[str]:
    """What may be wrong with the driver, and who computes on the GPUs; at times nothing is."""
    gpu = chance.randrange(4)
    kinds: tuple[list[str], ...] = (
        [],
        [f"gpu{gpu}.lost=1"],
        [f"gpu{gpu}.handle=error:15"],
        [f"gpu{gpu}.temperature=error:999"],
        ["gpus=3"],
        ["driver=unloaded"],
        [f"events={chance.randrange(9)}/{gpu}/31"],
    )
    pids = [str(chance.randrange(2, 5_000_000)) for _ in range(3)]
    return [*chance.choice(kinds), f"gpu{gpu}.processes=" + ",".join(f"{pid}:1073741824" for pid in pids)]


def check(body: str, is_openmetrics: bool, thoroughly: bool) -> int:
    """The number of series, each of which is there once."""
    series = [line.rpartition(" ")[0] for line in body.splitlines() if not line.startswith("#")]
    twice = [each for each, count in Counter(series).items() if count > 1]
    assert twice == []
    if thoroughly:
        parse = openmetrics.text_string_to_metric_families if is_openmetrics else text_string_to_metric_families
        assert sum(len(family.samples) for family in parse(body)) == len(series)
    return len(series)


def soak(start_exporter: StartExporter, driver: Path, folder: Path, scrapes: int, warm: int) -> Soak:
    """Scrape that often; the footprint is taken after `warm` scrapes, and at the end."""
    run_dir = folder / "runs"
    run_dir.mkdir(mode=0o700)
    machine = Machine(
        start_exporter, driver, folder, gpus=4, arguments=("--run-dir", str(run_dir), "--keep-ended", "1")
    )
    exporter, chance, early = machine.exporter, random.Random(7), None
    series: set[int] = set()
    runs: set[str] = set()
    with churn(run_dir):
        for number in range(scrapes):
            if number % ON_ONE_CONNECTION == 0:
                connection = http.client.HTTPConnection(*address(exporter), timeout=60)
            if number % 40 == 0:
                machine.say(*trouble(chance))
            if number == warm:
                early = footprint(exporter.process.pid)
            headers = FORMATS[number % 2]
            connection.request("GET", "/metrics", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200
            text = (gzip.decompress(body) if "Accept-Encoding" in headers else body).decode()
            series.add(check(text, headers is FORMATS[0], thoroughly=number % 50 < 2))
            runs.update(line for line in text.splitlines() if line.startswith("trainvitals_run_start_timestamp"))
            time.sleep(PAUSE)
        connection.close()
        late = footprint(exporter.process.pid)
    assert early
    assert exporter.process.poll() is None
    return Soak(early, late, series, runs, exporter.log)


def test_a_few_hundred_scrapes(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    seen = soak(start_exporter, fake_nvml, tmp_path, scrapes=300, warm=100)
    assert seen.late.descriptors <= seen.early.descriptors + 2
    assert seen.late.threads <= seen.early.threads + 1
    assert seen.late.resident < 1.25 * seen.early.resident
    assert len(seen.series) > 5
    assert len(seen.runs) > 3
    assert not any("Traceback" in line for line in seen.log)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_scrapes(start_exporter: StartExporter, fake_nvml: Path, tmp_path: Path) -> None:
    seen = soak(start_exporter, fake_nvml, tmp_path, scrapes=10_000, warm=2000)
    print(f"after 2,000 scrapes {seen.early}, after 10,000 {seen.late}; {len(seen.runs)} runs")
    assert seen.late.descriptors <= seen.early.descriptors + 2
    assert seen.late.threads <= seen.early.threads + 1
    assert seen.late.resident < 1.15 * seen.early.resident
    assert len(seen.runs) > 100
    assert not any("Traceback" in line for line in seen.log)
