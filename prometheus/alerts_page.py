"""Writes docs/alerts.md: every alert and every number it goes by, out of prometheus/rules."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

REPOSITORY: Final = Path(__file__).resolve().parents[1]
RULES: Final = REPOSITORY / "prometheus" / "rules"
PAGE: Final = REPOSITORY / "docs" / "alerts.md"
# In the order in which one would ask.
FILES: Final = (
    "progress", "maths", "memory", "utilisation", "checkpoints", "hardware", "advice", "monitoring",
)  # fmt: skip

# ruff: noqa: E501 (a paragraph is one line of the page)
INTRODUCTION: Final = """\
# Alerts

Generated from [`prometheus/rules`](../prometheus/rules) by `make docs`; edit the rules instead.

The severity says how much time there is. **critical**: work is being lost now, or will be within the hour. **warning**: look at it
today. **info**: advice, shown in Prometheus, Alertmanager and Grafana, and sent to nobody. Every alert names the run, the numbers and
the next thing to do, and links to its page here and to the dashboard at that time. How they reach you: [alerting](alerting.md).
"""
THRESHOLDS: Final = """
## The numbers they go by

All of them stand in [`prometheus/rules/settings.yml`](../prometheus/rules/settings.yml): change a number there and reload Prometheus. Each is recorded
under its name, so that a graph shows what held at the time; its last word is the unit, and ratios are 0 to 1 unless they say how many times. The same file
holds Grafana's address, to which alerts link. How long something has to last stands with its rule.
"""


def page() -> str:
    """The whole page."""
    missing = {path.stem for path in RULES.glob("*.yml")} - {*FILES, "host", "settings"}
    if missing:
        raise SystemExit(f"alerts_page.py does not know where to put {', '.join(sorted(missing))}")
    parts = [INTRODUCTION, *(_alerts(RULES / f"{name}.yml") for name in FILES), THRESHOLDS, _thresholds()]
    return "\n".join(parts)


def _alerts(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    question = text.removeprefix("# ").partition("?")[0] + "?"
    rows = [
        f"| [{rule['alert']}](runbooks/{rule['alert']}.md) | {rule['labels']['severity']} "
        f"| {rule.get('for', 'at once')} | {rule['annotations']['summary']} |"
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    head = ["| alert | severity | for | what it saw |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {question}", "", *head, *rows, ""])


def _thresholds() -> str:
    rows = ["| name | value | meaning |", "| --- | --- | --- |"]
    text = (RULES / "settings.yml").read_text(encoding="utf-8")
    comments: dict[str, str] = {}
    meaning = ""
    for block in re.finditer(r"((?:^      # (?!----).*\n)*)^      - record: (threshold:\S+)", text, re.MULTILINE):
        # One comment may stand above several that belong together.
        meaning = " ".join(re.findall(r"# (.*)", block[1])) or meaning
        comments[block[2]] = meaning
    for rule in _recorded(text):
        if rule["record"] in comments:
            value = re.sub(r"vector\((.*)\)", r"\1", rule["expr"])
            rows.append(f"| `{rule['record']}` | {value} | {comments[rule['record']]} |")
    return "\n".join([*rows, ""])


def _recorded(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(REPOSITORY)}", file=sys.stderr)
