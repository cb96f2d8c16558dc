"""Draw the dashboards over the scenario into docs/images: what `make pictures` runs.

Needs Chromium on PATH and grafana/pictures/dist.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import tool
from tests.dashboard_prometheus import Backfilled, backfilled
from tests.dashboard_scenario import JOB

ROOT = Path(__file__).resolve().parent.parent
GRAFANA = ROOT / "grafana"
WIDTH, HEADER, UNIT = 1600, 72, 38  # pixels, as in main.jsx
ALL = dict.fromkeys(("instance", "run", "rank", "gpu"), ".*")
WAIT_MILLISECONDS = 20000  # of the browser's virtual time, which passes as fast as it can


class Picture(NamedTuple):
    """One picture: its name, the dashboard, what is chosen there, how long before the scenario's end, and the theme.

    With `pixels`, only so much of the dashboard, from above.
    """

    name: str
    dashboard: str
    chosen: dict[str, str]
    minutes_before_end: int = 0
    theme: str = "dark"
    pixels: int = 0


PICTURES = (
    Picture("training-runs", "training-runs", {}),
    Picture("training-run", "training-run", {"instance": "gpu01.*", "run": "voice-s2"}),
    Picture("training-run-top", "training-run", {"instance": "gpu01.*", "run": "voice-s2"}, pixels=1145),
    Picture("training-run-light", "training-run", {"instance": "gpu01.*", "run": "voice-s2"}, theme="light"),
    Picture("gpu", "gpu", {"instance": "gpu03.*"}),
    Picture("host", "host", {"instance": "gpu01.*"}, minutes_before_end=33),
    Picture("compare-runs", "compare-runs", {"instance": "gpu02.*", "baseline": "s1-base", "loss": "3.05"}),
)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP and yield its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def height(dashboard: Path, opened: bool) -> int:
    """Return the height of a dashboard in pixels, with or without its folded rows."""
    bottom = opened_rows = 0
    for panel in json.loads(dashboard.read_text())["panels"]:
        bottom = max(bottom, panel["gridPos"]["y"] + panel["gridPos"]["h"])
        children = panel.get("panels", [])
        if children:
            top = panel["gridPos"]["y"] + 1
            opened_rows += max(child["gridPos"]["y"] + child["gridPos"]["h"] for child in children) - top
    return HEADER + UNIT * (bottom + (opened_rows if opened else 0)) + 8


def draw(picture: Picture, site: str, filled: Backfilled, out: Path, *, opened: bool = False) -> None:
    """Draw one picture as PNG."""
    end = filled.end - 60 * picture.minutes_before_end
    chosen = {**ALL, "job": JOB, **picture.chosen}
    address = urllib.parse.urlencode(
        {
            "dashboard": f"{site}/dashboards/{picture.dashboard}.json",
            "prometheus": filled.url,
            "from": 1000 * (end - 7200 + 60 * picture.minutes_before_end),
            "to": 1000 * end,
            "theme": picture.theme,
            **({"open": "yes"} if opened else {}),
            **{f"var-{name}": value for name, value in chosen.items()},
        }
    )
    pixels = picture.pixels or height(GRAFANA / "dashboards" / f"{picture.dashboard}.json", opened)
    path = out / f"{picture.name}.png"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            tool("chromium", "chromium-browser", "google-chrome"), "--headless", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={profile}", f"--virtual-time-budget={WAIT_MILLISECONDS}", "--hide-scrollbars",
            f"--window-size={WIDTH},{pixels}", f"--screenshot={path}", f"{site}/pictures/dist/index.html?{address}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw the dashboards over the scenario.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--open", action="store_true", help="with all folded rows open")
    parser.add_argument("names", nargs="*", help="only these pictures")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served(GRAFANA) as site, backfilled(Path(folder)) as filled:
        for picture in PICTURES:
            if not asked.names or picture.name in asked.names:
                draw(picture, site, filled, asked.out, opened=asked.open)


if __name__ == "__main__":
    main()
