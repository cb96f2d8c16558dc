"""Rules for a world in which time passes faster: every duration in them divided by one factor.

Only durations change: those written in expressions (ranges, subqueries with their steps, offsets, how far
`predict_linear` looks, numbers that an age is compared to), `for`, `keep_firing_for`, the groups' intervals, the
recorded thresholds in seconds, and the queries in annotations. Names, ratios, counts of steps and bytes stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import promql_parser
import yaml

SHORTEST_SCRAPE: Final = 0.2  # seconds; below that Prometheus and the exporter have little else to do than to scrape
_SCRAPES_IN_A_RANGE: Final = 2

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_DURATION: Final = r"(?:\d+(?:ms|[smhdwy]))+"
# Strings also as they stand within a string of a template, with a backslash before each quote.
_TOKEN: Final = re.compile(
    rf"""
    (?P<comment>\#[^\n]*)
    | (?P<string>\\".*?\\" | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*`)
    | (?P<duration>{_DURATION})(?![\w.])
    | (?P<number>0x[0-9a-fA-F]+ | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z_][\w:]*)
    | (?P<other>\s+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_TEMPLATE: Final = re.compile(r"{{.*?}}", re.DOTALL)
_QUERY: Final = re.compile(r'(?<=query )(\(\s*printf\s+)?("(?:[^"\\]|\\.)*"|`[^`]*`)', re.DOTALL)


def seconds(duration: str) -> float:
    """A duration as Prometheus writes them (1h30m) in seconds. Raises ValueError."""
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"{duration!r} is not a duration")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def duration(length: float) -> str:
    """So many seconds as Prometheus reads them, to a millisecond and no less than one."""
    return f"{max(1, round(length * 1000))}ms"


@dataclass
class Compression:
    """Divides durations by `factor`; `notes` say where one had to stay longer than that.

    `scrape` is the scrape interval in seconds, as it is in the compressed world.
    """

    factor: float
    scrape: float
    notes: list[str] = field(default_factory=list)

    def expression(self, text: str, where: str = "") -> str:
        """A PromQL expression in compressed time; its line breaks and comments stay as they are."""
        timed = _numbers_of_time(text)
        numbers = sum(token.lastgroup == "number" for token in _TOKEN.finditer(text))
        if numbers != len(timed):
            raise ValueError(f"{where}: {numbers} numbers were read and {len(timed)} parsed in {text!r}")
        return self._rewrite(text, iter(timed), where)

    def template(self, text: str, where: str = "") -> str:
        """An annotation, of which the queries are in compressed time."""

        def query(found: re.Match[str]) -> str:
            return (found[1] or "") + found[2][0] + self._rewrite(found[2][1:-1], None, where) + found[2][-1]

        return _TEMPLATE.sub(lambda action: _QUERY.sub(query, action[0]), text)

    def rules(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content of a file of rules in compressed time."""
        return {**content, "groups": [self._group(group) for group in content["groups"]]}

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        changed = {**group, "rules": [self._rule(rule) for rule in group["rules"]]}
        if "interval" in group:
            changed["interval"] = duration(max(seconds(group["interval"]) / self.factor, self.scrape))
        return changed

    def _rule(self, rule: dict[str, Any]) -> dict[str, Any]:
        name = rule.get("alert") or rule["record"]
        changed = {**rule, "expr": self.expression(str(rule["expr"]), name)}
        if name.startswith("threshold:") and name.endswith(":seconds"):
            changed["expr"] = re.sub(
                r"[\d.]+(?:e\d+)?", lambda number: _shown(float(number[0]) / self.factor), rule["expr"]
            )
        for key in ("for", "keep_firing_for"):
            if key in rule:
                changed[key] = duration(seconds(str(rule[key])) / self.factor)
        if "annotations" in rule:
            annotations = rule["annotations"].items()
            changed["annotations"] = {key: self.template(text, f"{name}, {key}") for key, text in annotations}
        return changed

    def _rewrite(self, text: str, timed: Iterator[bool] | None, where: str) -> str:
        """`timed` tells of each number outside brackets whether it is a time; None leaves them all alone."""
        written, brackets, colon = [], 0, False
        for token in _TOKEN.finditer(text):
            word = token[0]
            if token.lastgroup == "other":
                brackets += (word == "[") - (word == "]")
                colon = brackets > 0 and (colon or word == ":")
            elif token.lastgroup == "duration":
                word = self._duration(word, brackets > 0, step=colon, where=where)
            elif token.lastgroup == "number" and timed is not None and next(timed):
                word = _shown(float(word) / self.factor)
            written.append(word)
        return "".join(written)

    def _duration(self, text: str, in_brackets: bool, *, step: bool, where: str) -> str:
        wanted = seconds(text) / self.factor
        least = 0.0 if not in_brackets else self.scrape * (1 if step else _SCRAPES_IN_A_RANGE)
        if wanted < least - 1e-9:
            self.notes.append(f"{where}: {text} is {duration(least)}, not {duration(wanted)}, to hold enough scrapes")
        return duration(max(wanted, least))


def compress_folder(source: Path, target: Path, factor: float) -> list[str]:
    """Write `prometheus.yml` and `rules/` of the folder `source` into `target`, in compressed time.

    Returns notes on what could not be divided.
    """
    settings = yaml.safe_load((source / "prometheus.yml").read_text())
    times = settings["global"]
    scrape = max(seconds(times["scrape_interval"]) / factor, min(SHORTEST_SCRAPE, seconds(times["scrape_interval"])))
    compression = Compression(factor, scrape)
    if scrape > seconds(times["scrape_interval"]) / factor + 1e-9:
        compression.notes.append(f"scrape interval: {duration(scrape)} is the shortest")
    times["scrape_interval"] = duration(scrape)
    times["evaluation_interval"] = duration(max(seconds(times["evaluation_interval"]) / factor, scrape))
    (target / "rules").mkdir(parents=True, exist_ok=True)
    (target / "prometheus.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for path in sorted((source / "rules").glob("*.yml")):
        changed = compression.rules(yaml.safe_load(path.read_text()))
        (target / "rules" / path.name).write_text(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True))
    return compression.notes


def _shown(number: float) -> str:
    return f"{number:.6g}"


def _numbers_of_time(text: str) -> list[bool]:
    """For each number of an expression, in order, whether it is a time in seconds. Raises ValueError for bad PromQL."""
    found: list[bool] = []
    _visit(promql_parser.parse(text), False, found)
    return found


def _visit(node: Any, timed: bool, found: list[bool]) -> None:
    if isinstance(node, promql_parser.NumberLiteral):
        if str(node.val) not in ("inf", "-inf", "nan"):
            found.append(timed)
    elif isinstance(node, promql_parser.Call):
        for place, argument in enumerate(node.args):
            ahead = node.func.name == "predict_linear" and place == 1
            _visit(argument, timed or ahead, found)
    elif isinstance(node, promql_parser.BinaryExpr):
        compared = str(node.op) in ("<", ">", "<=", ">=", "==", "!=")
        product = str(node.op) in ("*", "/")  # of which one factor is the time
        _visit(node.lhs, (timed and not compared) or (compared and _is_age(node.rhs)), found)
        _visit(node.rhs, (timed and not compared and not product) or (compared and _is_age(node.lhs)), found)
    elif isinstance(node, promql_parser.AggregateExpr):
        if node.param is not None:
            _visit(node.param, False, found)
        _visit(node.expr, timed, found)
    elif hasattr(node, "expr"):
        _visit(node.expr, timed and not isinstance(node, promql_parser.SubqueryExpr), found)


def _is_age(node: Any) -> bool:
    """Whether an expression is a time that has passed: time() less something."""
    if isinstance(node, promql_parser.ParenExpr):
        return _is_age(node.expr)
    if isinstance(node, promql_parser.BinaryExpr) and str(node.op) == "-":
        return isinstance(node.lhs, promql_parser.Call) and node.lhs.func.name == "time"
    return False
