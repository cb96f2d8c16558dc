"""What the exporter costs: `python benchmarks/scrape.py [--seconds N]`.

A machine with 8 GPUs (the fake driver of the tests, 300 us a call) runs one training of 8 ranks. Each scrape is made
as Prometheus makes it (OpenMetrics, gzip, one connection kept open) and finds values that are new since the last one,
for an exporter that only repeats itself would look cheaper than it is. A scrape's CPU time is that of the thread which
serves the connection; collecting goes on whether scraped or not, and is the CPU time while idle.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
from trainvitals import catalogue
from trainvitals.runfile import Identity, RunFileWriter

GPUS = RANKS = 8
CALL_US = "300"
FRESH_AFTER = 0.6  # seconds; values on the endpoint are at most half a second old
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
# Two optimizers, as a GAN has; one value for each label of the other metrics.
LABEL_VALUES = {"optimizer": ("0", "1"), "phase": catalogue.PHASES, "kind": ("spike", "nonfinite")}


def rank_process(directory: Path, rank: int, ready: Event) -> None:
    """A training process, as far as the exporter can tell: a run file whose values change."""
    writer = RunFileWriter(directory, Identity("bench", "bench", "rank", "train.py"), rank)
    gauges = [m for m in catalogue.METRICS if m.scope is catalogue.RANK and m.type != "histogram"]
    slots = [
        writer.slot(metric.name, 1.0, **dict(zip(metric.labels, values, strict=True)))
        for metric in gauges
        for values in itertools.product(*(LABEL_VALUES.get(label, ("x",)) for label in metric.labels))
    ]
    writer.set("trainvitals_iteration_seconds_sum", 1.0)
    bounds = catalogue.SECONDS_BUCKETS
    slots += [writer.slot("trainvitals_iteration_seconds_bucket", le=str(bound)) for bound in bounds]
    ready.set()
    while True:
        time.sleep(0.25)
        for slot in slots:
            writer.values[slot] += 0.123456789


@contextmanager
def exporter(scratch: Path) -> Iterator[tuple[int, str]]:
    """A running exporter on such a machine: its pid, and the address it serves on."""
    library, runs = scratch / "nvml", scratch / "runs"
    fake = Path(__file__).parents[1] / "tests" / "fake_nvml" / "build.py"
    subprocess.run([sys.executable, fake, library], check=True)
    runs.mkdir(mode=0o700)
    launcher = RunFileWriter(runs, Identity("bench", "bench", "launcher"))  # this process stands for `trainvitals run`
    ranks = []
    for rank in range(RANKS):
        ready = multiprocessing.Event()
        ranks.append(multiprocessing.Process(target=rank_process, args=(runs, rank, ready), daemon=True))
        ranks[-1].start()
        ready.wait()
    process = subprocess.Popen(
        [sys.executable, "-m", "trainvitals_exporter", "--listen", "127.0.0.1:0", "--run-dir", runs],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_PROFILE": str(fake.with_name("profiles") / "everything"),  # each GPU with four processes
            "FAKE_NVML_GPUS": str(GPUS),
            "FAKE_NVML_CALL_US": CALL_US,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        address = next(match[1] for line in process.stderr if (match := re.search(r"http://(\S+)/metrics", line)))
        yield process.pid, address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        for training in ranks:
            training.kill()
        launcher.close()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, threads that have ended included."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux's way to name another process's CPU clock


def scrape(connection: http.client.HTTPConnection, headers: dict[str, str]) -> tuple[float, bytes]:
    """Seconds and body of one scrape."""
    start = time.perf_counter()
    connection.request("GET", "/metrics", headers=headers)
    body = connection.getresponse().read()
    return time.perf_counter() - start, body


def scrape_cpu_seconds(pid: int, address: str, count: int) -> float:
    """CPU time of one scrape."""
    others = threads(pid)
    connection = http.client.HTTPConnection(address, timeout=60)
    scrape(connection, HEADERS)
    time.sleep(5)  # in which short-lived threads end
    [serving] = threads(pid) - others
    schedstat = Path(f"/proc/{pid}/task/{serving}/schedstat")
    before = int(schedstat.read_text().split()[0])
    for _ in range(count):
        time.sleep(FRESH_AFTER)
        scrape(connection, HEADERS)
    return (int(schedstat.read_text().split()[0]) - before) / 1e9 / count


def threads(pid: int) -> set[str]:
    """The thread ids of a process."""
    return {path.name for path in Path(f"/proc/{pid}/task").iterdir()}


def latencies(address: str, count: int, pause: float) -> list[float]:
    """Seconds of each of a client's scrapes."""
    connection = http.client.HTTPConnection(address, timeout=60)
    times = []
    for _ in range(count):
        time.sleep(pause)
        times.append(scrape(connection, HEADERS)[0])
    return times


def percentile(times: list[float], percent: int) -> float:
    """That percentile, in milliseconds."""
    return statistics.quantiles(times, n=100)[percent - 1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the exporter costs.")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement of CPU time")
    seconds: float = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as scratch, exporter(Path(scratch)) as (pid, address):
        time.sleep(6)  # until each collector has had its say
        plain = scrape(http.client.HTTPConnection(address, timeout=60), {})[1].decode()
        series = sum(not line.startswith("#") for line in plain.splitlines())
        before = cpu_seconds(pid)
        time.sleep(seconds)
        idle = (cpu_seconds(pid) - before) / seconds

        per_scrape = scrape_cpu_seconds(pid, address, int(seconds / FRESH_AFTER)) * 1000
        one_client = latencies(address, 50, FRESH_AFTER) + latencies(address, 450, 0.01)
        with ProcessPoolExecutor(8) as pool:
            eight = [pool.submit(latencies, address, 250, 0.0) for _ in range(8)]
            eight_clients = [latency for client in eight for latency in client.result()]
        resident = psutil.Process(pid).memory_info().rss / 2**20

    rows = [
        ("series (8 GPUs, 8 ranks)", f"{series}", ""),
        ("CPU per scrape", f"{per_scrape:.2f} ms", ""),
        ("CPU per scrape, per 1,000 series", f"{per_scrape / series * 1000:.2f} ms", "<= 1.5 ms"),
        ("scrape p50, one client", f"{percentile(one_client, 50):.1f} ms", "<= 3 ms"),
        ("scrape p99, one client", f"{percentile(one_client, 99):.1f} ms", "<= 10 ms"),
        ("scrape p99, eight clients", f"{percentile(eight_clients, 99):.1f} ms", "<= 30 ms"),
        ("CPU while idle", f"{idle * 100:.2f} %", "<= 1 %"),
        ("memory", f"{resident:.1f} MiB", "<= 45 MB"),
    ]
    for name, value, budget in (("", "measured", "budget"), *rows):
        print(f"{name:34}{value:>12}  {budget}")


if __name__ == "__main__":
    main()
