"""Writes prometheusrule.yaml: all rules as one PrometheusRule for the Prometheus operator.

Run it after a change of prometheus/rules: ``make kubernetes``. A test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
RULES: Final = HERE.parents[1] / "prometheus" / "rules"
TARGET: Final = HERE / "prometheusrule.yaml"
_HEADER: Final = """\
# Written by build.py from prometheus/rules; edit those. Thresholds are in the group trainvitals-settings.
# A Prometheus of kube-prometheus takes it as it is; with the Helm chart, `release` has to be the name of its release.
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


if __name__ == "__main__":
    TARGET.write_text(text())
