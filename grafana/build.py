"""Build the dashboards: `python grafana/build.py` writes them, `--check` fails when the committed ones differ.

`--upload` sends them to the Grafana $GRAFANA_HOST with the token $GRAFANA_TOKEN (a service account's, role Editor). The
builder's own exporter reads the same names, but needs Kerberos and does not know the thresholds of the rules.

Each is built three times: for provisioning (dashboards), the same with Chinese titles (dashboards-zh), and for the
import page of Grafana (import).

Needs `pip install PyYAML` and `pip install --no-deps -r grafana/requirements.txt`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import plugin  # type: ignore[import-not-found]  # noqa: F401  # beside this script; importing it registers the panels
import variants  # type: ignore[import-not-found]  # the same
from grafana_dashboards.exporter import DashboardExporter, ProjectProcessor
from grafana_dashboards.parser import DefinitionParser
from yaml import safe_load

HERE = Path(__file__).resolve().parent
SETTINGS = HERE.parent / "prometheus" / "rules" / "settings.yml"
THRESHOLD = re.compile(r"threshold:trainvitals_(\w+):(\w+)")


class Collector(DashboardExporter):  # type: ignore[misc]  # the builder ships no types
    """Keeps each dashboard, in all its variants, as the text of its file."""

    def __init__(self) -> None:
        self.files: dict[Path, str] = {}
        self.chinese = safe_load((HERE / "translations" / "zh.yaml").read_text(encoding="utf-8"))

    def process_dashboard(self, project_name: str, dashboard_name: str, dashboard_data: dict[str, Any]) -> None:
        """Take one dashboard from the builder."""
        built = {
            "dashboards": dashboard_data,
            "dashboards-zh": variants.translated(dashboard_data, self.chinese),
            "import": variants.importable(dashboard_data),
        }
        for folder, dashboard in built.items():
            text = json.dumps(dashboard, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            self.files[HERE / folder / f"{dashboard_name}.json"] = text


def limits() -> dict[str, float]:
    """Return what the alerts go by: threshold:trainvitals_gpu_underused:ratio as the placeholder {gpu-underused-ratio}.

    A ratio is there in per cent, too, for texts: {gpu-underused-percent}.
    """
    result: dict[str, float] = {}
    for group in safe_load(SETTINGS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            if match := THRESHOLD.fullmatch(rule["record"]):
                name, unit = match[1].replace("_", "-"), match[2]
                number = float(rule["expr"].removeprefix("vector(").removesuffix(")"))
                result[f"{name}-{unit}"] = number
                if unit == "ratio":
                    result[f"{name}-percent"] = float(f"{100 * number:.6g}")
    return {name: int(number) if number == int(number) else number for name, number in result.items()}


def build() -> dict[Path, str]:
    """Return the dashboards: file name to content."""
    collector = Collector()
    definitions = sorted(map(str, (HERE / "definitions").glob("*.yaml")))
    projects = DefinitionParser().load_projects(definitions)
    for project in projects:
        project.data.update(limits())
    ProjectProcessor([collector]).process_projects(projects)
    return collector.files


def drift(files: dict[Path, str]) -> list[str]:
    """Return the lines of a diff from the committed dashboards to `files`; none if they agree."""
    lines: list[str] = []
    folders = {path.parent for path in files}
    for path in sorted({*files, *(found for folder in folders for found in folder.glob("*.json"))}):
        committed = path.read_text(encoding="utf-8") if path.exists() else ""
        name = str(path.relative_to(HERE))
        lines += difflib.unified_diff(
            committed.splitlines(), files.get(path, "").splitlines(), f"committed/{name}", f"built/{name}", lineterm=""
        )
    return lines


def upload(files: dict[Path, str], host: str, token: str) -> None:
    """Send the first set to Grafana's API, over what has the same uid there; OSError if it refuses."""
    for path, text in files.items():
        if path.parent.name != "dashboards":
            continue
        body = {"dashboard": json.loads(text), "message": "trainvitals", "overwrite": True}
        request = urllib.request.Request(  # noqa: S310  # the operator's own Grafana
            host.rstrip("/") + "/api/dashboards/db",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            print(host.rstrip("/") + json.load(answer)["url"])


def main() -> int:
    """Run the command line; the exit code is 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description="Build the Grafana dashboards from their YAML definitions.")
    parser.add_argument("--check", action="store_true", help="write nothing; print a diff and fail if anything differs")
    parser.add_argument("--upload", action="store_true", help="write nothing; send them to $GRAFANA_HOST")
    asked = parser.parse_args()
    files = build()
    if asked.upload:
        upload(files, os.environ["GRAFANA_HOST"], os.environ["GRAFANA_TOKEN"])
        return 0
    if asked.check:
        differences = drift(files)
        print("\n".join(differences), end="\n" if differences else "")
        return 1 if differences else 0
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(HERE.parent))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
