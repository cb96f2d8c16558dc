"""Checks a dashboard against the design rules that can be checked without Grafana; each finding is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser as promql
from trainvitals.catalogue import BY_NAME

from tests.dashboard_queries import INTERVALS, Json, panels, queries, substitute
from tests.dashboard_rules import rules, selected

MAX_OPEN_PANELS = 20
# The variables of each dashboard, in order.
VARIABLES = {
    "trainvitals-runs": ["datasource", "job", "instance", "run"],
    "trainvitals-run": ["datasource", "job", "instance", "run", "rank"],
    "trainvitals-gpu": ["datasource", "job", "instance", "gpu", "run"],
    "trainvitals-host": ["datasource", "job", "instance", "run"],
    "trainvitals-compare": ["datasource", "job", "instance", "baseline", "run", "loss"],
}
# What each variable is narrowed down by.
CHAINED = {"instance": "job", "run": "instance", "gpu": "instance", "baseline": "instance", "rank": "run"}
# Stand-ins for what is chosen, of the type that it has.
CHOSEN = {**dict.fromkeys(("job", "instance", "run", "rank", "gpu", "baseline"), "x"), "loss": "1"}
SCRAPE_LABELS = {"job", "instance"}
UNITS = {
    "Bps", "bool_yes_no", "bytes", "celsius", "dateTimeFromNow", "hertz", "joule", "none", "percentunit", "s", "sci",
    "short", "string", "watt",
}  # fmt: skip
# A GPU is named by its index; job is chosen above the dashboard.
NOT_FOR_LEGENDS = {"job", "uuid", "le"}


def lint(dashboard: Json) -> list[str]:
    """Return what is wrong with `dashboard`; nothing if it is fine."""
    return [
        *_whole(dashboard),
        *_variables(dashboard),
        *_positions(dashboard),
        *_panels(dashboard),
        *_queries(dashboard),
    ]


def _whole(dashboard: Json) -> Iterator[str]:
    expected = {"schemaVersion": 42, "editable": False, "id": None, "graphTooltip": 1}
    for key, value in expected.items():
        if dashboard.get(key) != value:
            yield f"{key} is not {value}"
    if not dashboard.get("uid", "").startswith("trainvitals-"):
        yield "uid does not start with trainvitals-"
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    first = [panel for panel in panels(dashboard) if panel["gridPos"]["y"] < rows[1]["gridPos"]["y"]]
    asked = str([panel["targets"] for panel in first])
    if rows[0]["title"] != "Verdict" or (dashboard["uid"] != "trainvitals-compare" and "ALERTS" not in asked):
        yield "the first row is not the verdict, with the alerts"
    if dashboard["uid"] in ("trainvitals-run", "trainvitals-runs") and "trainvitals_run_state" not in asked:
        yield "the first row does not tell the state of the runs"
    [links] = dashboard["links"]
    if not (
        links["type"] == "dashboards"
        and links["keepTime"]
        and links["includeVars"]
        and links["tags"] == dashboard["tags"]
    ):
        yield "no links to the other dashboards with time and variables kept"
    open_panels = sum(panel["type"] != "row" for panel in dashboard["panels"])
    if open_panels > MAX_OPEN_PANELS:
        yield f"{open_panels} panels are open, over {MAX_OPEN_PANELS}"
    events = {annotation["name"] for annotation in dashboard["annotations"]["list"]}
    if missing := {"Firing alerts", "Run start", "Run end", "Checkpoints"} - events:
        yield f"annotations missing: {sorted(missing)}"


def _variables(dashboard: Json) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    expected = VARIABLES[dashboard["uid"]]
    if list(variables) != expected:
        yield f"the variables are not {expected}"
    for name, before in CHAINED.items():
        if name not in variables:
            continue
        variable = variables[name]
        if f'{before}=~"${before}"' not in variable.get("definition", ""):
            yield f"variable {name}: not chained to {before}"
        everything = variable.get("allValue") == ".*" and variable["multi"] and variable["includeAll"]
        if everything == (name == "baseline"):
            yield f"variable {name}: not multi with All = .*"
        if variable.get("refresh") != 2:
            yield f"variable {name}: not refreshed when the time range changes"
    for query in queries(dashboard):
        if unknown := set(re.findall(r"\$\{?(\w+)", query.expr)) - {*expected, *INTERVALS}:
            yield f"{query.where}: unknown variables {sorted(unknown)}"


def _positions(dashboard: Json) -> Iterator[str]:
    ids = [p["id"] for panel in dashboard["panels"] for p in (panel, *panel.get("panels", []))]
    if ids != list(range(1, len(ids) + 1)):
        yield "ids are not 1, 2, 3… in reading order"
    for group in (dashboard["panels"], *(panel["panels"] for panel in dashboard["panels"] if panel.get("panels"))):
        taken: dict[tuple[int, int], str] = {}
        for panel in group:
            position = panel["gridPos"]
            if position["x"] + position["w"] > 24:
                yield f"{panel['title']}: wider than the grid"
            if "repeat" in panel and position["w"] != 24:
                yield f"{panel['title']}: repeated panels need the whole width"
            cells = [
                (x, y)
                for x in range(position["x"], position["x"] + position["w"])
                for y in range(position["y"], position["y"] + position["h"])
            ]
            if other := next((taken[cell] for cell in cells if cell in taken), None):
                yield f"{panel['title']}: overlaps {other}"
            taken |= dict.fromkeys(cells, panel["title"])


def _panels(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        yield from (f"{panel['title'] or 'panel without title'}: {finding}" for finding in _panel(panel))


def _panel(panel: Json) -> Iterator[str]:
    if not panel["title"]:
        yield "no title"
    if len(panel.get("description", "").split(". ")) < 2:
        yield "the description does not say what it is and what is normal or to do"
    defaults = panel["fieldConfig"]["defaults"]
    if len(defaults.get("noValue", "")) < len("No alert fires") or defaults["noValue"].lower() == "no data":
        yield "the text for no data does not say what would fill the panel"
    properties = [item for override in panel["fieldConfig"]["overrides"] for item in override["properties"]]
    yield from _links(panel, [*defaults.get("links", []), *_values(properties, "links")])
    for unit in [defaults.get("unit"), *(item["value"] for item in properties if item["id"] == "unit")]:
        if unit not in UNITS and not str(unit).startswith("suffix:"):
            yield f"unknown unit {unit}"
    for limits in (defaults["thresholds"], *_values(properties, "thresholds", flat=False)):
        values = [step["value"] for step in limits["steps"]]
        if values[0] is not None or values[1:] != sorted(values[1:]):
            yield "thresholds do not start at null and rise"
    if panel["type"] == "timeseries":
        if defaults["unit"] == "percentunit" and defaults.get("min") != 0:
            yield "a ratio that does not start at 0"
        if defaults["custom"]["spanNulls"]:
            yield "spans gaps"
        if "gradient_norm" in str(panel["targets"]) and defaults["custom"]["scaleDistribution"]["type"] != "log":
            yield "gradient norm without a logarithmic axis"
    refs = [target["refId"] for target in panel["targets"]]
    if not refs or len(set(refs)) != len(refs):
        yield "no targets, or two with one refId"
    if any(source["datasource"].get("uid") != "${datasource}" for source in (panel, *panel["targets"])):
        yield "does not use the variable ${datasource}"


def _values(properties: list[Json], id_: str, *, flat: bool = True) -> Iterator[Any]:
    """Yield the values of the override properties with an id; those that are lists item by item."""
    for item in properties:
        if item["id"] == id_:
            yield from item["value"] if flat else [item["value"]]


def _links(panel: Json, links: list[Json]) -> Iterator[str]:
    """A link inside trainvitals keeps data source, job and time, and leads to a dashboard that has what it sets."""
    for link in links:
        if not link["url"].startswith("/d/"):
            continue
        uid, _, query = link["url"].removeprefix("/d/").partition("?")
        parts = query.split("&")
        if uid not in VARIABLES or not {"${datasource:queryparam}", "${job:queryparam}", "${__url_time_range}"} <= {
            *parts
        }:
            yield f"the link {link['title']} leads nowhere, or loses time or variables"
        set_there = {part.removeprefix("var-").partition("=")[0] for part in parts if part.startswith("var-")}
        if unknown := set_there - set(VARIABLES.get(uid, ())):
            yield f"the link {link['title']} sets {sorted(unknown)}, which {uid} does not have"
        if panel["type"] == "table":
            columns = set(panel["transformations"][-1]["options"]["renameByName"])
            if not set(re.findall(r"__data\.fields\.(\w+)", link["url"])) <= columns:
                yield f"the link {link['title']} reads a column that is not there"


def _queries(dashboard: Json) -> Iterator[str]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            where = f"{panel['title']} {target['refId']}"
            analysis = Analysis(target["expr"], totals_allowed=panel["type"] == "table")
            yield from (f"{where}: {finding}" for finding in analysis.findings)
            if panel["type"] == "table" and len(panel["targets"]) > 1 and analysis.keeps_name:
                yield f"{where}: the metric's name is a column, too, so that lines of several queries are not merged"
            linked = set(re.findall(r"__field\.labels\.(\w+)", str(panel["fieldConfig"]["defaults"].get("links"))))
            if unknown := linked - analysis.labels:
                yield f"{where}: the link needs {sorted(unknown)}, which are no labels of the query"
            shown = target["legendFormat"] if panel["type"] != "table" else _columns(panel)
            yield from (f"{where}: {finding}" for finding in _names(panel, shown, analysis))
    for query in queries(dashboard):
        if query.where.startswith("annotation"):
            yield from (f"{query.where}: {finding}" for finding in Analysis(query.expr).findings)
        elif query.where.startswith("variable"):
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query.expr).groups()  # type: ignore[union-attr]  # a mismatch is a failed test
            analysis = Analysis(metric, selects=False)
            yield from (f"{query.where}: {finding}" for finding in analysis.findings)
            if label not in analysis.labels:
                yield f"{query.where}: the metric has no label {label}"


def _columns(panel: Json) -> str:
    """Return a table's columns as a legend would name them."""
    names = next(item for item in panel["transformations"] if item["id"] == "organize")["options"]["renameByName"]
    return " ".join(f"{{{{{name}}}}}" for name in names if not name.startswith("Value"))


def _names(panel: Json, shown: str, analysis: Analysis) -> Iterator[str]:
    """A legend may name only labels that are there, and has to name all that tell two series apart."""
    named = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", shown))
    if panel["type"] == "table":
        other = set().union(*(Analysis(target["expr"]).labels for target in panel["targets"]))
        if unknown := named - other:
            yield f"columns {sorted(unknown)} are no labels of the query"
        return
    labels = analysis.labels
    if unknown := named - labels:
        yield f"the legend names {sorted(unknown)}, which are no labels of the query"
    told_apart = labels - analysis.pinned - NOT_FOR_LEGENDS - ({"instance"} if "run" in labels else set())
    if missing := told_apart - named:
        yield f"the legend does not name {sorted(missing)}"
    if not shown:
        yield "no legend"


class Analysis:
    """What can be known of a query from the catalogue: the labels of its result, and what is wrong with it."""

    def __init__(self, expr: str, *, totals_allowed: bool = False, selects: bool = True) -> None:
        self.findings: list[str] = []
        self.labels: set[str] = set()
        self.keeps_name = False
        self.pinned: set[str] = set()  # those that can have one value only
        self._totals_allowed = totals_allowed
        self._selects = selects
        if re.search(r"\brate\([^][]*\[(?!\$__rate_interval\])", expr):
            self.findings.append("rate() over something else than $__rate_interval")
        try:
            tree = promql.parse(substitute(expr, {**CHOSEN, **INTERVALS}))
        except ValueError as error:
            self.findings.append(f"PromQL: {error}")
        else:
            self.labels = self._labels(tree) or set()
            self.keeps_name = _keeps_name(tree)

    def _labels(self, node: Any, in_rate: bool = False) -> set[str] | None:
        """Return the label names of the result; None for a scalar."""
        if isinstance(node, promql.VectorSelector):
            return self._selector(node, in_rate)
        if isinstance(node, promql.MatrixSelector):
            return self._selector(node.vector_selector, in_rate)
        if isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
            return self._labels(node.expr, in_rate)
        if isinstance(node, promql.AggregateExpr):
            return self._aggregate(node)
        if isinstance(node, promql.BinaryExpr):
            return self._binary(node)
        if isinstance(node, promql.Call):
            of_counter = node.func.name in ("rate", "increase", "irate")
            before = self._totals_allowed
            self._totals_allowed |= node.func.name == "last_over_time"  # what a run had done at its end
            arguments = [self._labels(argument, of_counter) for argument in node.args]
            self._totals_allowed = before
            labels = set().union(*(argument for argument in arguments if argument))
            if node.func.name == "histogram_quantile":
                labels -= {"le"}
            elif node.func.name == "label_replace":
                labels |= {node.args[1].val}
            return None if node.func.name in ("time", "scalar", "vector") else labels
        return None

    def _selector(self, node: Any, in_rate: bool) -> set[str]:
        name = node.name or ""
        recorded = labels_of_recorded(name)
        if recorded is not None:
            labels, counter = {*recorded}, False
        elif name == "up":
            labels, counter = {*SCRAPE_LABELS}, False
        else:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            metric = BY_NAME.get(base if base in BY_NAME and BY_NAME[base].type == "histogram" else name)
            if metric is None:
                self.findings.append(f"{name} is not in the catalogue")
                return set()
            labels = {*metric.all_labels, *SCRAPE_LABELS} | ({"le"} if name.endswith("_bucket") else set())
            counter = metric.type != "gauge"
        if counter != in_rate and not (counter and self._totals_allowed):
            self.findings.append(f"{name}: a counter without rate()" if counter else f"{name}: rate() of a gauge")
        matched = {matcher.name for matcher in node.matchers.matchers}
        self.pinned |= {matcher.name for matcher in node.matchers.matchers if matcher.op == promql.MatchOp.Equal}
        if unknown := matched - labels:
            self.findings.append(f"{name} has no labels {sorted(unknown)}")
        if self._selects and (missing := (SCRAPE_LABELS | ({"run"} & labels)) - matched):
            self.findings.append(f"{name} is not restricted by {sorted(missing)}")
        return labels

    def _aggregate(self, node: Any) -> set[str]:
        inner = self._labels(node.expr) or set()
        grouping = set(node.modifier.labels) if node.modifier else set()
        if unknown := grouping - inner:
            self.findings.append(f"groups by {sorted(unknown)}, which are no labels of what it groups")
        if node.modifier and node.modifier.type == promql.AggModifierType.Without:
            return inner - grouping
        return grouping

    def _binary(self, node: Any) -> set[str] | None:
        left, right = self._labels(node.lhs), self._labels(node.rhs)
        if left is None or right is None:
            return right if left is None else left
        operator, modifier = str(node.op), node.modifier
        matching = modifier.matching if modifier else None
        if matching is None:
            if left != right and operator != "or":
                self.findings.append(f"{operator} between series whose labels differ: {sorted(left ^ right)}")
            return left | right if operator == "or" else left
        on = set(matching.labels)
        if unknown := on - (left & right):
            self.findings.append(f"matches on {sorted(unknown)}, which are not labels of both sides")
        if operator in ("and", "unless"):
            return left
        if operator == "or":
            return left | right
        many, one = (right, left) if modifier.card == promql.VectorMatchCardinality.OneToMany else (left, right)
        if modifier.card == promql.VectorMatchCardinality.OneToOne:
            return on
        copied = set(modifier.group_labels)
        if unknown := copied - one:
            self.findings.append(f"copies {sorted(unknown)}, which are no labels of the one side")
        return many | copied


def _keeps_name(node: Any) -> bool:
    """Tell whether the series of a result carry the name of a metric."""
    if isinstance(node, promql.ParenExpr):
        return _keeps_name(node.expr)
    if isinstance(node, promql.BinaryExpr):
        if str(node.op) == "or":
            return _keeps_name(node.lhs) or _keeps_name(node.rhs)
        return str(node.op) in ("and", "unless", ">", "<", ">=", "<=", "==", "!=") and _keeps_name(node.lhs)
    return isinstance(node, promql.VectorSelector) or (
        isinstance(node, promql.Call) and node.func.name == "last_over_time"
    )


@cache
def labels_of_recorded(name: str) -> frozenset[str] | None:
    """Return the labels that the rules give a series; None for one that no rule makes. ALERTS is made by all alerts."""
    if name == "ALERTS":
        made = [(rule["expr"], {*rule["labels"], "alertname", "alertstate"}) for rule in rules() if "alert" in rule]
    else:
        made = [(rule["expr"], {*rule.get("labels", {})}) for rule in rules() if rule.get("record") == name]
    made = [(expr, own) for expr, own in made if name not in selected(expr)]  # what reads its own adds no label to it
    if not made:
        return None
    return frozenset().union(*(Analysis(expr, selects=False, totals_allowed=True).labels | own for expr, own in made))
