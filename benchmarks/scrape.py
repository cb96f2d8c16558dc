"""What the exporter costs, beside others: `python -m benchmarks.scrape [--seconds N] [--rivals DIR] [--only NAMES]`.

A machine with 8 GPUs (the fake driver of the tests) runs one training of 8 ranks, four of which compute on each GPU.
The same machine is shown to

- trainvitals and nvitop-exporter, with a driver that answers at once and one that takes 300 us a call;
- node_exporter, which asks no driver, with the collectors it comes with;
- bare: prometheus_client alone, with the series that trainvitals had, which collects nothing.

Each collects something else, so the table tells the number of series. All are scraped as Prometheus does it
(OpenMetrics, gzip), and far enough apart that values are new each time: an exporter that only repeats itself would look
cheaper than it is. The CPU time of a scrape is, for trainvitals, that of the thread which serves the connection. The
others serve one with several threads; theirs is what the process takes while scraped, beyond what it takes while idle,
which is coarser. Collecting goes on whether scraped or not, and is the CPU time while idle.

DIR is where nvitop-exporter lies (`make bench` puts it into .venv/rivals). What is missing is said, and left out.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import psutil
from trainvitals import catalogue
from trainvitals.runfile import Identity, RunFileWriter

GPUS = RANKS = 8
SLOW_CALL_US = 300
FRESH_AFTER = 0.6  # seconds; values on the endpoint are at most half a second old
WARM_UP = 6.0  # seconds, until each collector has had its say
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
# Two optimizers, as a GAN has; one value for each label of the other metrics.
LABEL_VALUES = {"optimizer": ("0", "1"), "phase": catalogue.PHASES, "kind": ("spike", "nonfinite")}
FAKE_DRIVER = Path(__file__).parents[1] / "tests" / "fake_nvml" / "build.py"
NODE_EXPORTER = ("prometheus-node-exporter", "node_exporter")


class Missing(Exception):
    """A rival is not installed. The message says where it would come from."""


class Costs(NamedTuple):
    """What an exporter costs. Times are seconds, `idle` is a part of one core, `resident` bytes."""

    series: int
    per_scrape: float
    one_client: list[float]
    eight_clients: list[float]
    idle: float
    resident: int


# The machine


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
def machine(scratch: Path) -> Iterator[dict[str, str]]:
    """Such a machine, while its training runs: the environment that shows it to an exporter."""
    library, runs, profile = scratch / "nvml", scratch / "runs", scratch / "profile"
    subprocess.run([sys.executable, FAKE_DRIVER, library], check=True)
    runs.mkdir(mode=0o700)
    launcher = RunFileWriter(runs, Identity("bench", "bench", "launcher"))  # this process stands for `trainvitals run`
    ranks = []
    for rank in range(RANKS):
        ready = multiprocessing.Event()
        ranks.append(multiprocessing.Process(target=rank_process, args=(runs, rank, ready), daemon=True))
        ranks[-1].start()
        ready.wait()
    processes = ",".join(f"{training.pid}:1073741824" for training in ranks[:4])
    everything = FAKE_DRIVER.with_name("profiles").joinpath("everything").read_text()
    profile.write_text(f"gpu*.processes={processes}\n{everything}")
    try:
        yield {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_PROFILE": str(profile),
            "FAKE_NVML_GPUS": str(GPUS),
            "TRAINVITALS_EXPORTER_RUN_DIR": str(runs),
        }
    finally:
        for training in ranks:
            training.kill()
        launcher.close()


# The exporters


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, environment: Mapping[str, str]) -> Iterator[int]:
    """The pid of an exporter that answers on this port."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not answers(process, port):
            sys.exit(f"{' '.join(command)}: does not answer")
        time.sleep(WARM_UP)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it does, soon."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            scrape(http.client.HTTPConnection("127.0.0.1", port, timeout=60), {})
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def trainvitals(port: int, _rivals: Path, _scratch: Path) -> list[str]:
    return [sys.executable, "-m", "trainvitals_exporter", "--listen", f"127.0.0.1:{port}"]


def nvitop(port: int, rivals: Path, _scratch: Path) -> list[str]:
    if not (rivals / "nvitop_exporter").is_dir():
        raise Missing(f"not in {rivals}: `make bench` installs it")
    add_folder = f"import sys; sys.path.insert(0, {str(rivals.absolute())!r})"
    code = f"{add_folder}; from nvitop_exporter import cli; sys.exit(cli.main())"
    return [sys.executable, "-c", code, "--port", str(port)]


def node_exporter(port: int, _rivals: Path, _scratch: Path) -> list[str]:
    program = next(filter(None, map(shutil.which, NODE_EXPORTER)), None)
    if program is None:
        raise Missing("not on PATH; Debian and Ubuntu have it as prometheus-node-exporter")
    return [program, f"--web.listen-address=127.0.0.1:{port}"]


def bare(port: int, _rivals: Path, scratch: Path) -> list[str]:
    if not (scratch / "series").exists():
        raise Missing("it takes the series of trainvitals, which was not measured")
    return [sys.executable, str(Path(__file__).with_name("bare_exporter.py")), str(port), str(scratch / "series")]


EXPORTERS = {
    f"trainvitals, {SLOW_CALL_US} us": (trainvitals, SLOW_CALL_US),
    "trainvitals, 0 us": (trainvitals, 0),
    f"nvitop, {SLOW_CALL_US} us": (nvitop, SLOW_CALL_US),
    "nvitop, 0 us": (nvitop, 0),
    "node_exporter": (node_exporter, 0),
    "bare": (bare, 0),
}


# Measuring


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, threads that have ended included."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux's way to name another process's CPU clock


def scrape(connection: http.client.HTTPConnection, headers: dict[str, str]) -> tuple[float, bytes]:
    """Seconds and body of one scrape."""
    start = time.perf_counter()
    connection.request("GET", "/metrics", headers=headers)
    body = connection.getresponse().read()
    return time.perf_counter() - start, body


def threads(pid: int) -> set[str]:
    """The thread ids of a process."""
    return {path.name for path in Path(f"/proc/{pid}/task").iterdir()}


def thread_seconds(pid: int, thread: str) -> float:
    """CPU time that a thread has used."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) / 1e9


def fresh_scrapes(pid: int, port: int, count: int, idle: float, by_thread: bool) -> tuple[float, list[float]]:
    """CPU time of one scrape, and the seconds that each took, of scrapes that find new values."""
    others = threads(pid)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    scrape(connection, HEADERS)
    serving = ""
    if by_thread:
        time.sleep(5)  # in which short-lived threads end
        [serving] = threads(pid) - others
    begun = time.monotonic()
    before = thread_seconds(pid, serving) if by_thread else cpu_seconds(pid)
    times = []
    for _ in range(count):
        time.sleep(FRESH_AFTER)
        times.append(scrape(connection, HEADERS)[0])
    if by_thread:
        return (thread_seconds(pid, serving) - before) / count, times
    return (cpu_seconds(pid) - before - idle * (time.monotonic() - begun)) / count, times


def latencies(port: int, count: int, pause: float) -> list[float]:
    """Seconds of each of a client's scrapes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(count):
        time.sleep(pause)
        times.append(scrape(connection, HEADERS)[0])
    return times


def measure(pid: int, port: int, seconds: float, by_thread: bool) -> tuple[Costs, str]:
    """What an exporter costs, and a scrape of it as text."""
    plain = scrape(http.client.HTTPConnection("127.0.0.1", port, timeout=60), {})[1].decode()
    before = cpu_seconds(pid)
    time.sleep(seconds)
    idle = (cpu_seconds(pid) - before) / seconds
    per_scrape, one_client = fresh_scrapes(pid, port, max(int(2 * seconds / FRESH_AFTER), 2), idle, by_thread)
    one_client += latencies(port, 10 * len(one_client), 0.01)
    with ProcessPoolExecutor(8) as pool:
        eight = [pool.submit(latencies, port, 80, 0.0) for _ in range(8)]
        eight_clients = [latency for client in eight for latency in client.result()]
    resident = psutil.Process(pid).memory_info().rss
    series = sum(not line.startswith("#") for line in plain.splitlines())
    return Costs(series, per_scrape, one_client, eight_clients, idle, resident), plain


def percentile(times: list[float], percent: int) -> float:
    """That percentile, in milliseconds."""
    return statistics.quantiles(times, n=100)[percent - 1] * 1000


ROWS: dict[str, tuple[Callable[[Costs], str], str]] = {
    "series": (lambda c: f"{c.series}", ""),
    "CPU per scrape": (lambda c: f"{c.per_scrape * 1e3:.2f} ms", ""),
    "CPU per scrape, per 1,000 series": (lambda c: f"{c.per_scrape / c.series * 1e6:.2f} ms", "<= 1.5 ms"),
    "scrape p50, one client": (lambda c: f"{percentile(c.one_client, 50):.1f} ms", "<= 3 ms"),
    "scrape p99, one client": (lambda c: f"{percentile(c.one_client, 99):.1f} ms", "<= 10 ms"),
    "scrape p99, eight clients": (lambda c: f"{percentile(c.eight_clients, 99):.1f} ms", "<= 30 ms"),
    "CPU while idle": (lambda c: f"{c.idle * 100:.2f} %", "<= 1 %"),
    "memory": (lambda c: f"{c.resident / 2**20:.1f} MiB", "<= 45 MB"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the exporter costs, beside others.")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a measurement of CPU time")
    parser.add_argument("--rivals", type=Path, default=Path(".venv/rivals"), metavar="DIR")
    parser.add_argument("--only", help="exporters to measure, with ; between them")
    options = parser.parse_args()
    chosen = options.only.split(";") if options.only else list(EXPORTERS)
    found: dict[str, Costs] = {}
    with tempfile.TemporaryDirectory() as name, machine(Path(name)) as environment:
        for exporter in chosen:
            make, call_us = EXPORTERS[exporter]
            port = free_port()
            try:
                command = make(port, options.rivals, Path(name))
            except Missing as missing:
                print(f"{exporter}: left out: {missing}")
                continue
            with running(command, port, {**environment, "FAKE_NVML_CALL_US": str(call_us)}) as pid:
                found[exporter], plain = measure(pid, port, options.seconds, by_thread=make is trainvitals)
            if make is trainvitals:
                Path(name, "series").write_text(plain)
    print(f"{'':34}" + "".join(f"{exporter:>20}" for exporter in found) + "  budget")
    for row, (show, budget) in ROWS.items():
        print(f"{row:34}" + "".join(f"{show(costs):>20}" for costs in found.values()) + f"  {budget}".rstrip())


if __name__ == "__main__":
    main()
