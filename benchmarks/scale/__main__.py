"""What one Prometheus spends on so many hosts of 8 GPUs: `python -m benchmarks.scale [--hosts 5,20,125]`.

The scrapes of one host are recorded (or read from --recording), many hosts are played from them, and a Prometheus with
the shipped rules scrapes those for --minutes. The rules' windows of ten minutes are full after ten; those of an hour
and six hours cost more from then on. Read at the end, per size: series, samples a second, CPU and
memory of Prometheus, how long each group of rules took (the median and the longest of the last minutes), its dearest
rules, and how long the queries of each dashboard take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.scale.recording import record
from examples.demo.programs import Programs, find, free_ports
from tests.dashboard_queries import get, queries, substitute

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((REPOSITORY / "grafana" / "dashboards").glob("*.json"))
# One run on one host, as a dashboard is mostly looked at; and all there is, as the overview is.
ONE = {
    "job": "trainvitals",
    "instance": "gpu0001:10288",
    "run": "gan-001",
    "rank": ".*",
    "gpu": ".*",
    "baseline": "gan-000",
    "loss": "1",
}
ALL = {**ONE, "instance": ".*", "run": ".*"}
RULES_WATCHED = 120.0  # seconds
WINDOW = 3600


class Scaled:
    """A Prometheus that watches so many played hosts."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.process = url, psutil.Process(pid)

    def metric(self, name: str) -> dict[str, float]:
        """What Prometheus tells of itself: values by labels, as they are spelled."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as response:  # noqa: S310 (our own)
            text = response.read().decode()
        return {labels: float(value) for labels, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)}

    def total(self, name: str) -> float:
        return sum(self.metric(name).values())

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def scaled(work: Path, recording: Path, hosts: int, interval: str, program: str) -> Iterator[Scaled]:
    """Play so many hosts, and let a Prometheus with the shipped rules watch them."""
    player_port, port = free_ports(2)
    folder = work / "prometheus"
    shutil.copytree(REPOSITORY / "prometheus" / "rules", folder / "rules")
    targets = [
        {"targets": [f"gpu{host:04}:10288"], "labels": {"__metrics_path__": f"/metrics/{host}"}}
        for host in range(hosts)
    ]
    (folder / "targets.json").write_text(json.dumps(targets))
    settings = yaml.safe_load((REPOSITORY / "prometheus" / "prometheus.yml").read_text())
    settings["global"]["scrape_interval"] = interval
    settings["scrape_configs"] = [{
        "job_name": "trainvitals",
        "file_sd_configs": [{"files": ["targets.json"]}],
        "relabel_configs": [
            {"source_labels": ["__address__"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": f"127.0.0.1:{player_port}"},
        ],
    }]  # fmt: skip
    del settings["alerting"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with Programs(work) as programs:
        programs.start("player", [sys.executable, "-m", "benchmarks.scale.player", recording, str(player_port)])
        programs.wait_for("player", f"http://127.0.0.1:{player_port}/metrics/0")
        prometheus = programs.start("prometheus", [
            program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={work / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ])  # fmt: skip
        programs.wait_for("prometheus", f"http://127.0.0.1:{port}/-/ready")
        _put_first(prometheus.pid)
        print(f"{hosts} hosts: http://127.0.0.1:{port}", flush=True)
        yield Scaled(f"http://127.0.0.1:{port}", prometheus.pid)


def _put_first(pid: int) -> None:
    """What else the machine has to do must not make the rules look slow. Only root may, only on Linux."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-15")


def watch(scale: Scaled, seconds: float) -> dict[str, Any]:
    """What Prometheus spends in so many seconds."""
    samples, cpu, begun = scale.total("prometheus_tsdb_head_samples_appended_total"), scale.cpu(), time.monotonic()
    groups: dict[str, list[float]] = defaultdict(list)
    rules: dict[str, list[float]] = defaultdict(list)
    resident = 0
    while time.monotonic() < begun + seconds:
        time.sleep(5)
        resident = max(resident, scale.process.memory_info().rss)
        for group in get(scale.url, "rules", {})["groups"]:
            groups[f"{group['name']} ({group['interval']} s)"].append(group["evaluationTime"])
            for number, rule in enumerate(group["rules"]):
                rules[f"{group['name']} {number} {rule['name']}"].append(rule["evaluationTime"])
    lasted = time.monotonic() - begun
    return {
        "series": scale.total("prometheus_tsdb_head_series"),
        "scraped": float(get(scale.url, "query", {"query": "sum(scrape_samples_scraped)"})["result"][0]["value"][1]),
        "samples_per_second": (scale.total("prometheus_tsdb_head_samples_appended_total") - samples) / lasted,
        "cpu_cores": (scale.cpu() - cpu) / lasted,
        "resident_bytes": resident,
        "heap_bytes": scale.total("go_memstats_heap_inuse_bytes"),
        "missed": scale.total("prometheus_rule_group_iterations_missed_total"),
        "failures": scale.total("prometheus_rule_evaluation_failures_total"),
        "load_average": psutil.getloadavg()[0],
        "groups": {name: (statistics.median(times), max(times)) for name, times in groups.items()},
        "rules": {name: statistics.median(times) for name, times in rules.items()},
        "firing": {
            r["metric"]["alertname"]: int(r["value"][1])
            for r in get(scale.url, "query", {"query": 'count by (alertname) (ALERTS{alertstate="firing"})'})["result"]
        },
    }


def dashboards(scale: Scaled) -> dict[str, dict[str, float]]:
    """Seconds that the queries of each dashboard take, one after the other, over the last hour."""
    found = {}
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for what, chosen in (("one", ONE), ("all", ALL)):
            times = [_ask(scale.url, query.expr, query.instant, chosen) for query in queries(dashboard)]
            found[f"{path.stem}, {what}"] = {"queries": len(times), "seconds": sum(times), "slowest": max(times)}
    return found


def _ask(url: str, expr: str, instant: bool, chosen: dict[str, str]) -> float:
    end = time.time()
    expr = substitute(expr, {**chosen, "__rate_interval": "1m", "__interval": "15s", "__range": "1h"})
    begun = time.monotonic()
    if values := re.fullmatch(r"label_values\((.*), (\w+)\)", expr):
        get(url, f"label/{values[2]}/values", {"match[]": values[1], "start": str(end - WINDOW), "end": str(end)})
    elif instant:
        get(url, "query", {"query": expr, "time": str(end)})
    else:
        get(url, "query_range", {"query": expr, "start": str(end - WINDOW), "end": str(end), "step": "15"})
    return time.monotonic() - begun


def families(recording: Path) -> Counter[str]:
    """How many series of each family a host tells, as it was recorded."""
    (*_, newest) = sorted(recording.glob("scrape-*.prom"))
    return Counter(line.split("{")[0].split()[0] for line in newest.read_text().splitlines() if line[:1] != "#")


def show(hosts: int, found: dict[str, Any]) -> None:
    """Print what was measured."""
    gpus = 8 * hosts
    print(f"\n{hosts} hosts, {gpus} GPUs")
    scraped, resident = found["scraped"] / hosts, found["resident_bytes"] / 2**20
    print(f"  {scraped:.0f} series scraped a host, {found['series']:.0f} in all with what rules record")
    print(f"  {found['samples_per_second']:.0f} samples/s, {found['cpu_cores']:.3f} cores, {resident:.0f} MiB resident")
    print(f"  load average {found['load_average']:.1f}, missed {found['missed']:.0f}, failures {found['failures']:.0f}")
    for name, (median, longest) in sorted(found["groups"].items(), key=lambda item: -item[1][0]):
        print(f"  {median:7.3f} s, at most {longest:6.3f}  {name}")
    for name, seconds in sorted(found["rules"].items(), key=lambda item: -item[1])[:12]:
        print(f"  {seconds:7.3f} s  {name}")
    for name, cost in found.get("dashboards", {}).items():
        print(f"  {cost['seconds']:7.2f} s, slowest {cost['slowest']:.2f} s, {cost['queries']:.0f} queries: {name}")
    print(f"  firing: {found['firing']}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="5,20,125", help="sizes, with commas between (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=13.0, help="for each size (default %(default)s)")
    parser.add_argument("--interval", default="5s", help="scrape interval (default %(default)s, as shipped)")
    parser.add_argument("--recording", type=Path, help="a folder of scrapes; recorded into it where it has none")
    parser.add_argument("--prometheus", help="the program (default: the one on PATH)")
    parser.add_argument("--write", type=Path, help="a file for the numbers, as JSON")
    asked = parser.parse_args()
    written = {}
    with tempfile.TemporaryDirectory(prefix="trainvitals-scale-") as scratch:
        recording = asked.recording or Path(scratch) / "recording"
        recording.mkdir(parents=True, exist_ok=True)
        if not list(recording.glob("scrape-*.prom")):
            record(recording)
        for name, count in families(recording).most_common(12):
            print(f"{count:6} {name}")
        for hosts in map(int, asked.hosts.split(",")):
            work = Path(scratch) / str(hosts)
            work.mkdir()
            with scaled(work, recording, hosts, asked.interval, asked.prometheus or find("prometheus")) as scale:
                time.sleep(max(0.0, asked.minutes * 60 - RULES_WATCHED))
                found = watch(scale, RULES_WATCHED)
                show(hosts, {**found, "dashboards": {}})
                found["dashboards"] = dashboards(scale)
                show(hosts, found)
            written[str(hosts)] = found
            if asked.write:
                asked.write.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
