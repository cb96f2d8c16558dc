"""See whether a running Grafana has the dashboards and reaches its data: `python3 grafana/smoke_test.py`.

For the stack of compose.yaml, after `docker compose up --detach --wait`, or any other Grafana (--url; a token in
$GRAFANA_TOKEN where anonymous visitors may not look). Needs nothing but Python; exit code 1 names what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

HERE = Path(__file__).resolve().parent
DATA_SOURCE = "trainvitals-prometheus"
TIMEOUT_SECONDS = 30


def ask(url: str, path: str) -> Any:
    """Return the decoded answer of a GET; OSError or ValueError if there is none."""
    request = urllib.request.Request(url.rstrip("/") + path)  # noqa: S310  # the operator's own Grafana
    if token := os.environ.get("GRAFANA_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        return json.load(answer)


def findings(url: str, folder: Path) -> Iterator[str]:
    """Yield what is wrong with the Grafana at `url`, compared with the dashboards in `folder`."""
    health = ask(url, "/api/health")
    if health.get("database") != "ok":
        yield f"/api/health: {health}"
    found = {item["uid"] for item in ask(url, "/api/search?type=dash-db&limit=5000")}
    for path in sorted(folder.glob("*.json")):
        shipped = json.loads(path.read_text(encoding="utf-8"))
        if shipped["uid"] not in found:
            yield f"dashboard {shipped['uid']} is not there: see Grafana's log for {path.name}"
            continue
        yield from _differences(shipped, ask(url, f"/api/dashboards/uid/{shipped['uid']}")["dashboard"])
    source = ask(url, f"/api/datasources/uid/{DATA_SOURCE}/health")
    if source.get("status") != "OK":
        yield f"data source {DATA_SOURCE}: {source.get('message', source)}"


def _differences(shipped: Json, loaded: Json) -> Iterator[str]:
    """Yield whether Grafana has another dashboard than the shipped one: by its title and the number of its panels."""
    for what, one, other in (
        ("title", shipped["title"], loaded.get("title")),
        ("number of panels", _count(shipped), _count(loaded)),
        ("schemaVersion, at least", shipped["schemaVersion"], min(shipped["schemaVersion"], loaded["schemaVersion"])),
    ):
        if one != other:
            yield f"dashboard {shipped['uid']}: its {what} is {other}, not {one}"


def _count(dashboard: Json) -> int:
    return sum(1 + len(panel.get("panels") or []) for panel in dashboard.get("panels", []))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="See whether a running Grafana has the dashboards and reaches its data."
    )
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="the Grafana (default: %(default)s)")
    parser.add_argument("--folder", default="dashboards", help="the set it was given: dashboards or dashboards-zh")
    asked = parser.parse_args()
    try:
        wrong = list(findings(asked.url, HERE / asked.folder))
    except urllib.error.HTTPError as error:
        wrong = [f"{error.url}: {error.code} {error.reason}"]
    except (OSError, ValueError) as error:
        wrong = [f"{asked.url}: {error}"]
    print("\n".join(wrong) or f"{asked.url} has all dashboards and reaches Prometheus")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
