"""Plays many hosts from the recorded scrapes of one: `python -m benchmarks.scale.player FOLDER PORT`.

Each host is a path of one HTTP server, /metrics/0 and so on. Counters go on at their recorded pace, gauges move through
their recorded values, and what names a host, a run, a rank or a GPU is each host's own. A host has CORES cores, because
the machine that recorded it has fewer. Runs span one, two or four hosts.
"""

from __future__ import annotations

import functools
import gzip
import random
import re
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.scale.training import RANKS

CORES = 128
SPANS = (1, 1, 2, 4)  # hosts of a run, in turn
VARIANTS = 8  # hosts whose values differ; the next eight have the same ones again
AGE = 7200.0  # seconds that all runs have been under way
_SAMPLE = re.compile(r"(\w+)(\{.*\})? (\S+)")
_CPU = re.compile(r'cpu="(\d+)"')
_UUID = re.compile(r"GPU-00000000-")


@dataclass(frozen=True)
class Track:
    """One series of the recording. `values` are those of the scrapes; `counts` says that they only rise."""

    name: str
    labels: str
    values: list[float]
    counts: bool

    def at(self, moment: float, variant: int, recorded: float) -> str:
        """The value after so many seconds of playing, as text; `recorded` is how long the recording lasted."""
        if self.counts:
            pace = (self.values[-1] - self.values[0]) / recorded
            return repr(round(self.values[-1] + pace * (moment + variant), 6))
        if self.name == "trainvitals_run_start_timestamp_seconds":
            return repr(_STARTED - AGE)
        value = self.values[(int(moment / 5) + variant) % len(self.values)]
        if self.name.endswith("_timestamp_seconds"):
            return repr(round(_STARTED + moment - 0.5, 3))
        if value == int(value) or len(set(self.values)) == 1:
            return repr(value)
        return f"{value * random.uniform(0.98, 1.02):.9g}"


_STARTED = time.time()


class Recording:
    """The scrapes of one host, as tracks."""

    def __init__(self, folder: Path) -> None:
        texts = [path.read_text() for path in sorted(folder.glob("scrape-*.prom"))]
        self.seconds = 5.0 * (len(texts) - 1)
        counters = {name for text in texts for name in re.findall(r"# TYPE (\w+) counter", text)}
        scrapes = [{found[1] + (found[2] or ""): found for found in map(_SAMPLE.fullmatch, text.splitlines()) if found}
                   for text in texts]  # fmt: skip
        self.tracks = []
        for series, found in scrapes[-1].items():
            values = [float(scrape[series][3]) for scrape in scrapes if series in scrape]
            counts = found[1] in counters or found[1].endswith(("_bucket", "_count", "_sum"))
            self.tracks += [Track(found[1], labels, values, counts) for labels in _on_more_cores(found[2] or "")]

    @functools.lru_cache(maxsize=4 * VARIANTS)  # noqa: B019 (there is one recording, for good)
    def values(self, second: int, variant: int) -> tuple[str, ...]:
        """All values at a second of the playing."""
        return tuple(track.at(second, variant, self.seconds) for track in self.tracks)

    def template(self, host: int) -> str:
        """The text of a host's scrapes, with %s for each value."""
        run, place, span = run_of(host)
        lines = []
        for track in self.tracks:
            labels = track.labels.replace('run="gan"', f'run="gan-{run:03}"')
            labels = _UUID.sub(f"GPU-{host:08}-", labels)
            labels = re.sub(r'run_id="\w+"', f'run_id="{host:012x}"', labels)
            labels = re.sub(r'world="\w+"', f'world="{run:08x}"', labels)
            labels = re.sub(r'rank="(\d+)"', lambda rank, first=place * RANKS: f'rank="{first + int(rank[1])}"', labels)  # type: ignore[misc]  # mypy knows no lambda's defaults
            # A %.0s takes its value and shows nothing of it.
            value = f"{span * RANKS}%.0s" if track.name == "trainvitals_world_size" else "%s"
            lines.append(f"{track.name}{labels.replace('%', '%%')} {value}\n")
        return "".join(lines)


def run_of(host: int) -> tuple[int, int, int]:
    """Number of the host's run, its place among the hosts of that run, and how many these are."""
    rounds, rest = divmod(host, sum(SPANS))
    for number, span in enumerate(SPANS):
        if rest < span:
            return rounds * len(SPANS) + number, rest, span
        rest -= span
    raise AssertionError


def _on_more_cores(labels: str) -> list[str]:
    found = _CPU.search(labels)
    if found is None:
        return [labels]
    return [_CPU.sub(f'cpu="{core}"', labels) for core in range(int(found[1]), CORES, _recorded_cores())]


@functools.cache
def _recorded_cores() -> int:
    import os

    return os.cpu_count() or 1


def serve(folder: Path, port: int) -> None:
    """Answer scrapes until killed."""
    recording = Recording(folder)
    templates: dict[int, str] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host = int(self.path.rsplit("/", 1)[1])
            if host not in templates:
                templates[host] = recording.template(host)
            values = recording.values(int(time.time() - _STARTED), host % VARIANTS)
            body = gzip.compress((templates[host] % values).encode(), 1)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
