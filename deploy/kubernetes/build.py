"""Writes prometheusrule.yaml (all rules, for the Prometheus operator) and dashboards (for Grafana's sidecar).

Run it after a change of prometheus/rules or grafana/dashboards: ``make kubernetes``. A test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
RULES: Final = HERE.parents[1] / "prometheus" / "rules"
DASHBOARDS: Final = HERE.parents[1] / "grafana" / "dashboards"
TARGET: Final = HERE / "prometheusrule.yaml"
DASHBOARDS_TARGET: Final = HERE / "dashboards" / "dashboards.yaml"
_HEADER: Final = """\
# Written by build.py from prometheus/rules; edit those. Thresholds are in the group trainvitals-settings.
# A Prometheus of kube-prometheus takes it as it is; with the Helm chart, `release` has to be the name of its release.
"""
_DASHBOARDS_HEADER: Final = """\
# Written by build.py from grafana/dashboards. Grafana's sidecar looks for the label grafana_dashboard.
"""
# What the ruleSelector of kube-prometheus, and that of its Helm chart under the usual name, ask for.
_LABELS: Final = {
    "app.kubernetes.io/name": "trainvitals",
    "app.kubernetes.io/part-of": "kube-prometheus",
    "prometheus": "k8s",
    "release": "kube-prometheus-stack",
    "role": "alert-rules",
}


class _Text(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeats what others would write as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Text.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def manifest() -> dict[str, Any]:
    """The PrometheusRule. Settings come first, because the other groups go by them."""
    files = sorted(RULES.glob("*.yml"), key=lambda file: (file.stem != "settings", file.stem))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "trainvitals", "labels": _LABELS},
        "spec": {"groups": groups},
    }


def text() -> str:
    """The file's content."""
    return _HEADER + yaml.dump(manifest(), Dumper=_Text, sort_keys=False, allow_unicode=True, width=120)


def dashboards() -> list[dict[str, Any]]:
    """A ConfigMap for each dashboard, because one takes no more than a mebibyte."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"trainvitals-dashboard-{file.stem}",
                "labels": {"app.kubernetes.io/name": "trainvitals", "grafana_dashboard": "1"},
            },
            "data": {f"trainvitals-{file.name}": _compact(json.loads(file.read_text()))},
        }
        for file in sorted(DASHBOARDS.glob("*.json"))
    ]


def _compact(dashboard: dict[str, Any]) -> str:
    """One line for each of the dashboard's keys, and for each panel: a change is then a change of a few lines."""
    panels = ",\n".join(_json(panel) for panel in dashboard["panels"])
    rest = [f"{_json(key)}:{_json(value)}" for key, value in dashboard.items() if key != "panels"]
    return ",\n".join(["{" + rest[0], *rest[1:], f'"panels":[\n{panels}]}}\n'])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def dashboards_text() -> str:
    """The file's content."""
    return _DASHBOARDS_HEADER + yaml.dump_all(
        dashboards(), Dumper=_Text, sort_keys=False, allow_unicode=True, width=120
    )


if __name__ == "__main__":
    TARGET.write_text(text())
    DASHBOARDS_TARGET.write_text(dashboards_text())
