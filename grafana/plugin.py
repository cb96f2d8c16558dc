"""Modern Grafana panels for grafana-dashboard-builder, whose own stop at the panels of Grafana 6.

Importing this module is enough: the builder registers every subclass of its item classes under the class name in kebab
case, and the last class of a name wins. The output is the classic dashboard model, schemaVersion 42, which file
provisioning takes in Grafana 10 to 13.
"""

# mypy: allow-subclassing-any
# (grafana-dashboard-builder ships no types, so each of its classes is Any to mypy.)

import re
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

from grafana_dashboards import components
from grafana_dashboards.components import annotations, dashboards, panels, projects, rows, templates

Json = dict[str, Any]

SCHEMA_VERSION = 42
GRID_COLUMNS = 24
PROMETHEUS: Json = {"type": "prometheus", "uid": "${datasource}"}

# {kebab-name}, but not the brace of {{legend}}, ${variable} or {label="matcher"}.
PLACEHOLDER = re.compile(r"(?<![{$])\{([a-z][a-z0-9-]*)\}(?!\})")

# Above each dashboard: the others, with time and variables kept.
OTHER_DASHBOARDS: Json = {
    "asDropdown": False,
    "icon": "dashboard",
    "includeVars": True,
    "keepTime": True,
    "tags": ["trainvitals"],
    "targetBlank": False,
    "title": "trainvitals",
    "tooltip": "Keeps time and variables",
    "type": "dashboards",
    "url": "",
}


class Destination(NamedTuple):
    """Where a click leads: its text, a dashboard's uid (or an address), and the labels that become variables there."""

    title: str
    address: str
    labels: tuple[str, ...]


LINKS = {
    "run": Destination("Open this run", "trainvitals-run", ("instance", "run")),
    "gpu": Destination("Open this GPU", "trainvitals-gpu", ("instance", "gpu")),
    "host": Destination("Open this host", "trainvitals-host", ("instance",)),
    "runbook": Destination(
        "What to do", "https://github.com/trainvitals/trainvitals/blob/main/docs/runbooks/", ("alertname",)
    ),
}

# How a target with `line:` is drawn in a time series.
LINE_STYLES: dict[str, list[Json]] = {
    "limit": [
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
    ],
    "reference": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [4, 6]}}],
}


def expand(tree: Any, context: Any) -> Any:
    """Replace the project's {placeholders} in every string of `tree`, and nothing else; ValueError for an unknown one.

    The builder's own expansion is str.format over the whole dashboard, which fails on PromQL's braces.
    """
    if isinstance(tree, str):
        if PLACEHOLDER.fullmatch(tree):
            return placeholder(tree, context)  # keeps numbers
        return PLACEHOLDER.sub(lambda match: str(placeholder(match.group(0), context)), tree)
    if isinstance(tree, list):
        return [expand(value, context) for value in tree]
    if isinstance(tree, dict):
        return {key: expand(value, context) for key, value in tree.items()}
    return tree


def placeholder(name: str, context: Any) -> Any:
    """Return the value of one {placeholder}."""
    value = context.expand_placeholders(name)
    if value == name:
        raise ValueError(f"nothing is called {name}: neither project.yaml nor a threshold in settings.yml")
    return value


class SafeExpand:
    """Mixin for the components that the builder would expand with str.format."""

    def gen_json(self: Any, context: Any = None) -> Any:
        """Expand this component's data with `expand` and render it."""
        data = self.data if context is None else expand(self.data, context)
        return self.gen_json_from_data(data, context)


class Panels(SafeExpand, panels.Panels):
    """The panels of a row. One with `like` is as that says, except for what it says itself."""

    def gen_json_from_data(self, data: list[Json], context: Any) -> Any:
        """Return the panels in order."""
        whole = [{kind: panel.get("like", {}) | panel for kind, panel in item.items()} for item in data]
        return super().gen_json_from_data(whole, context)


class Rows(SafeExpand, rows.Rows):
    """The rows of a dashboard."""


class Templates(SafeExpand, templates.Templates):
    """The variables of a dashboard; a list among them, such as an included file's, counts as its items."""

    def gen_json_from_data(self, data: list[Any], context: Any) -> Any:
        """Return the variables in order."""
        flat = [entry for item in data for entry in (item if isinstance(item, list) else [item])]
        return super().gen_json_from_data(flat, context)


class Annotations(SafeExpand, annotations.Annotations):
    """The annotations of a dashboard."""


class Row(rows.Row):
    """`title`, `collapse`, `height` of its panels in grid units, `panels`."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return a row with all its panels inside; `layout` takes those of an open row out."""
        children = self.registry.create_component(Panels, {"panels": data["panels"]}).gen_json()
        for panel in children:
            panel["gridPos"].setdefault("h", data.get("height", 8))
        return {"type": "row", "title": data["title"], "collapsed": data.get("collapse", False), "panels": children}


class Dashboard(SafeExpand, dashboards.Dashboard):
    """A dashboard of the classic model: `uid`, `title`, `description`, `tags`, `templates`, `annotations`, `rows`."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return the whole dashboard, with panel positions and ids in reading order."""

        def part(cls: type, key: str) -> Any:
            return self.registry.create_component(cls, {key: data[key]}).gen_json()

        return {
            "annotations": {"list": part(Annotations, "annotations")},
            "description": text(data["description"]),
            "editable": False,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "id": None,
            "links": [OTHER_DASHBOARDS],
            "panels": layout(part(Rows, "rows")),
            "refresh": data.get("refresh", "10s"),
            "schemaVersion": SCHEMA_VERSION,
            "tags": sorted(data["tags"]),
            "templating": {"list": part(Templates, "templates")},
            "time": data.get("time", {"from": "now-1h", "to": "now"}),
            "timepicker": {},
            "timezone": "browser",
            "title": data["title"],
            "uid": data["uid"],
            "version": 1,
        }


def layout(row_panels: Iterable[Json]) -> list[Json]:
    """Let the panels of each row flow from left to right, row under row, and number everything in reading order."""
    result: list[Json] = []
    next_id, y = 1, 0
    for row in row_panels:
        children = row["panels"]
        row |= {"id": next_id, "gridPos": {"h": 1, "w": GRID_COLUMNS, "x": 0, "y": y}}
        x, y, line_height = 0, y + 1, 0
        for number, panel in enumerate(children, next_id + 1):
            position = panel["gridPos"]
            if x + position["w"] > GRID_COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            panel["id"] = number
            position |= {"x": x, "y": y}
            x, line_height = x + position["w"], max(line_height, position["h"])
        y += line_height
        next_id += len(children) + 1
        if row["collapsed"]:
            result.append(row)
            y = row["gridPos"]["y"] + 1
        else:
            result += [row | {"panels": []}, *children]
    return result


def text(value: str) -> str:
    """Undo the line breaks that the YAML was wrapped with."""
    return " ".join(value.split())


class Panel(panels.PanelsItemBase):
    """What all panels share: `title`, `description`, `no-data`, `targets`, size, unit, limits, colours."""

    type: ClassVar[str]
    instant: ClassVar[bool] = True  # a panel that shows only the present must not show a vanished series
    custom: ClassVar[Json] = {}
    options: ClassVar[Json] = {}

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return the panel; `layout` adds its id and position."""
        targets = [self.target(number, target) for number, target in enumerate(data["targets"])]
        panel = {
            "datasource": PROMETHEUS,
            "description": text(data["description"]),
            "fieldConfig": {"defaults": self.field_defaults(data), "overrides": self.overrides(data)},
            "gridPos": {"w": data.get("width", 12)} | ({"h": data["height"]} if "height" in data else {}),
            "options": self.options | data.get("options", {}),
            "targets": targets,
            "title": data["title"],
            "type": self.type,
        }
        if "repeat" in data:
            panel |= {"repeat": data["repeat"], "repeatDirection": "h", "maxPerRow": 3}
        return panel

    def target(self, number: int, data: Json) -> Json:
        """Return one query; A is the first. With `change: true` it is the change against the run $baseline."""
        expr = text(data["expr"])
        if data.get("change"):
            expr = f"({expr}) / scalar(max({expr.replace('$run', '$baseline')})) - 1"
        return {
            "datasource": PROMETHEUS,
            "editorMode": "code",
            "expr": expr,
            "format": "table" if self.type == "table" else "time_series",
            "instant": self.instant,
            "legendFormat": data.get("legend", ""),
            "range": not self.instant,
            "refId": chr(ord("A") + number),
        }

    def field_defaults(self, data: Json) -> Json:
        """Return unit, bounds, thresholds, value mappings and the text that stands where there are no data."""
        defaults = {
            "color": {"mode": "thresholds" if self.instant else "palette-classic"},
            "custom": self.custom | data.get("custom", {}),
            "mappings": mappings(data.get("mappings", [])),
            "noValue": text(data["no-data"]),
            "thresholds": thresholds(data.get("thresholds", ["text" if self.instant else "green"])),
            "unit": data["unit"],
        }
        if "link" in data:
            labels = LINKS[data["link"]].labels
            defaults["links"] = [
                link(data["link"], {name: f"${{__field.labels.{name}:percentencode}}" for name in labels})
            ]
        return defaults | {key: data[key] for key in ("min", "max", "decimals") if key in data}

    def overrides(self, data: Json) -> list[Json]:
        """Return the overrides for targets that have a unit or a line style of their own."""
        result = []
        for number, target in enumerate(data["targets"]):
            properties = list(LINE_STYLES[target["line"]]) if "line" in target else []
            if "unit" in target:
                properties.append({"id": "unit", "value": target["unit"]})
            if properties:
                matcher = {"id": "byFrameRefID", "options": chr(ord("A") + number)}
                result.append({"matcher": matcher, "properties": properties})
        return result


def link(kind: str, values: dict[str, str]) -> Json:
    """Return a data link of LINKS; `values` gives what stands for the values of labels, as far as they are known."""
    title, address, labels = LINKS[kind]
    if kind == "runbook":
        return {"targetBlank": True, "title": title, "url": address + values["alertname"] + ".md"}
    carried = "".join(f"&var-{label}={values[label]}" for label in labels if label in values)
    url = f"/d/{address}?${{datasource:queryparam}}&${{job:queryparam}}{carried}&${{__url_time_range}}"
    return {"targetBlank": False, "title": title, "url": url}


def thresholds(steps: list[Any]) -> Json:
    """[green, 0.3, red] is green below 0.3 and red from there on."""
    values = [None, *steps[1::2]]
    return {
        "mode": "absolute",
        "steps": [{"color": color, "value": value} for color, value in zip(steps[::2], values, strict=True)],
    }


SPECIAL = {"nan": "nan", "empty": "null"}


def mappings(items: list[list[Any]]) -> list[Json]:
    """[[1, starting, blue], [nan, NaN, red], [empty, -, text]]: a value, the text shown for it, and its colour."""
    values: Json = {}
    special: list[Json] = []
    for index, (value, shown, color) in enumerate(items):
        result = {"text": shown, "color": color, "index": index}
        if value in SPECIAL:
            special.append({"type": "special", "options": {"match": SPECIAL[value], "result": result}})
        else:
            values[str(value)] = result
    return [*([{"type": "value", "options": values}] if values else []), *special]


class Timeseries(Panel):
    """Lines over time: `log: true|symlog`, `stack: true`, `style: bars`; a target may have `line: limit|reference`.

    `colors` gives the series whose names end in a word always the same colour.
    """

    type = "timeseries"
    instant = False
    custom: ClassVar[Json] = {
        "axisPlacement": "auto",
        "drawStyle": "line",
        "fillOpacity": 0,
        "gradientMode": "none",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "pointSize": 4,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "never",
        "spanNulls": False,  # a gap is a fact: the run, or the exporter, was not there
        "stacking": {"group": "A", "mode": "none"},
        "thresholdsStyle": {"mode": "off"},
    }
    options: ClassVar[Json] = {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"},
    }

    def field_defaults(self, data: Json) -> Json:
        """Add how the lines are drawn."""
        custom: Json = {}
        if data.get("log") == "symlog":
            custom["scaleDistribution"] = {"type": "symlog", "log": 10, "linearThreshold": 0.001}
        elif data.get("log"):
            custom["scaleDistribution"] = {"type": "log", "log": 10}
        if data.get("stack"):
            custom |= {"stacking": {"group": "A", "mode": "normal"}, "fillOpacity": 60, "lineWidth": 0}
        if data.get("style") == "bars":
            custom |= {"drawStyle": "bars", "fillOpacity": 80}
        if "thresholds" in data:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        return super().field_defaults(data | {"custom": custom})

    def overrides(self, data: Json) -> list[Json]:
        """Add the fixed colours."""
        return super().overrides(data) + [
            {
                "matcher": {"id": "byRegexp", "options": f"/{word}$/"},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
            }
            for word, color in data.get("colors", {}).items()
        ]


class Stat(Panel):
    """One large present value for each series."""

    type = "stat"
    options: ClassVar[Json] = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "value_and_name",
        "wideLayout": True,
    }


class Bargauge(Panel):
    """One horizontal bar for each series, with its present value."""

    type = "bargauge"
    options: ClassVar[Json] = {
        "displayMode": "basic",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "maxVizHeight": 300,
        "minVizHeight": 12,
        "minVizWidth": 8,
        "namePlacement": "top",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "sizing": "auto",
        "text": {"titleSize": 13, "valueSize": 16},
        "valueMode": "color",
    }


class StateTimeline(Panel):
    """A bar for each series whose colour and text, by `mappings`, say in which state it was."""

    type = "state-timeline"
    instant = False
    custom: ClassVar[Json] = {"fillOpacity": 75, "lineWidth": 0}
    options: ClassVar[Json] = {
        "alignValue": "left",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "mergeValues": True,
        "rowHeight": 0.85,
        "showValue": "auto",
        "tooltip": {"hideZeros": False, "mode": "single", "sort": "none"},
    }

    def field_defaults(self, data: Json) -> Json:
        """Colour by value."""
        return super().field_defaults(data) | {"color": {"mode": "thresholds"}}


class Heatmap(Panel):
    """A row of cells for each series, coloured by value from 0 to 1: for more series than lines can show."""

    type = "heatmap"
    instant = False
    custom: ClassVar[Json] = {"scaleDistribution": {"type": "linear"}}
    options: ClassVar[Json] = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "percentunit"},
        "color": {
            "exponent": 0.5,
            "fill": "dark-orange",
            "max": 1,
            "min": 0,
            "mode": "scheme",
            "reverse": False,
            "scale": "linear",
            "scheme": "Turbo",
            "steps": 64,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": -1},  # an idle core is a cell, too
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "string"},
    }


class Table(Panel):
    """Present facts. `columns` maps each field to its heading, in order; several targets are joined by their labels.

    `cells` says, by heading, how a column's values are shown: `unit`, `decimals`, `thresholds`, `mappings`, `min`,
    `max`, `width` (pixels), `show: color|bar|text`, and `link` where a click leads.
    """

    type = "table"
    custom: ClassVar[Json] = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    options: ClassVar[Json] = {"cellHeight": "sm", "showHeader": True}

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Add the transformations that leave only the named columns."""
        columns = {str(field): heading for field, heading in data["columns"].items()}
        organize = {
            "excludeByName": {},
            "includeByName": {},
            "indexByName": {field: index for index, field in enumerate(columns)},
            "renameByName": columns,
        }
        chosen = {"include": {"names": list(columns)}}
        panel = super().gen_json_from_data(data, context) | {
            "transformations": [
                *([{"id": "merge", "options": {}}] if len(data["targets"]) > 1 else []),
                {"id": "filterFieldsByName", "options": chosen},
                {"id": "organize", "options": organize},
            ]
        }
        if "sort" in data:
            panel["options"] |= {"sortBy": [{"desc": data.get("descending", False), "displayName": data["sort"]}]}
        return panel

    def field_defaults(self, data: Json) -> Json:
        """Show labels as they are: as numbers, version 3.10 would be 3.1."""
        return super().field_defaults(data | {"unit": "string"})

    def overrides(self, data: Json) -> list[Json]:
        """Return how the columns are shown, by heading."""
        # By name: a label that no line has is no column, so that places shift.
        cells = {str(field): f"${{__data.fields.{field}:percentencode}}" for field in data["columns"]}
        result = []
        for field, heading in data["columns"].items():
            cell = data.get("cells", {}).get(heading, {})
            if str(field).startswith("Value"):
                cell = {"unit": "none"} | cell
            # The text for an empty panel would stand in every empty cell, too.
            properties = [{"id": "noValue", "value": "-"}, *cell_properties(cell, cells)]
            result.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
        return result


CELLS: dict[str, Json] = {
    "color": {"mode": "basic", "type": "color-background"},
    "bar": {"mode": "basic", "type": "gauge", "valueDisplayMode": "text"},
    "text": {"type": "color-text"},
}


def cell_properties(cell: Json, cells: dict[str, str]) -> Iterable[Json]:
    """Yield the override properties of a column of a table; `cells` gives what stands for a label of its line."""
    for key in ("unit", "decimals", "min", "max"):
        if key in cell:
            yield {"id": key, "value": cell[key]}
    if "width" in cell:
        yield {"id": "custom.width", "value": cell["width"]}
    if "show" in cell:
        yield {"id": "custom.cellOptions", "value": CELLS[cell["show"]]}
    if "thresholds" in cell:
        yield {"id": "color", "value": {"mode": "thresholds"}}
        yield {"id": "thresholds", "value": thresholds(cell["thresholds"])}
    if "mappings" in cell:
        yield {"id": "mappings", "value": mappings(cell["mappings"])}
    if "link" in cell:
        yield {"id": "links", "value": [link(cell["link"], cells)]}


class Datasource(templates.TemplatesItemBase):
    """The variable `datasource`: which Prometheus."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return a data source variable."""
        return variable("datasource", data) | {"query": "prometheus", "refresh": 1}


class Textbox(templates.TemplatesItemBase):
    """A variable that people type in; `value` is what it is at first."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return a text box variable."""
        value = {"selected": True, "text": str(data["value"]), "value": str(data["value"])}
        return variable("textbox", data) | {"current": value, "options": [value], "query": str(data["value"])}


class LabelValues(templates.TemplatesItemBase):
    """A variable over the values of the label `label-name` (else `name`) of `metric`.

    Several can be chosen, except with `single: true`; `all: true` adds All.
    """

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return a query variable that is asked again whenever the time range changes."""
        query = f"label_values({text(data['metric'])}, {data.get('label-name', data['name'])})"
        result = variable("query", data) | {
            "datasource": PROMETHEUS,
            "definition": query,
            "multi": not data.get("single", False),
            "query": {"qryType": 1, "query": query, "refId": f"{data['name']}-values"},
            "refresh": 2,
            "sort": 1,
        }
        if data.get("all"):
            # .* also matches where the label is absent: processes of a run that are below no rank have no rank.
            everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
            result |= {"allValue": ".*", "current": everything, "includeAll": True}
        return result


def variable(type_: str, data: Json) -> Json:
    """Return what variables of every type have."""
    return {
        "current": {},
        "description": text(data["description"]),
        "hide": 0,
        "includeAll": False,
        "label": data["label"],
        "multi": False,
        "name": data["name"],
        "options": [],
        "regex": "",
        "skipUrlSync": False,
        "type": type_,
    }


class Manual(annotations.AnnotationsItemBase):
    """Annotations that people make in Grafana itself; every dashboard has this entry."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return Grafana's built-in annotation query."""
        return {
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": data["color"],
            "name": data["name"],
            "type": "dashboard",
        }


class Event(annotations.AnnotationsItemBase):
    """Annotations from a query. With `at-value: true` its value is the time of the event, in milliseconds."""

    def gen_json_from_data(self, data: Json, context: Any) -> Json:
        """Return a Prometheus annotation query."""
        return {
            "datasource": PROMETHEUS,
            "enable": True,
            "expr": text(data["expr"]),
            "hide": False,
            "iconColor": data["color"],
            "name": data["name"],
            "tagKeys": data.get("tags", ""),
            "textFormat": data["text"],
            "titleFormat": data["title"],
            "useValueForTime": data.get("at-value", False),
        }


# Project looks dashboards up by the stock class itself, not by its type name: the one patch there is no way round.
projects.Dashboard = Dashboard
# The registry finds subclasses through weak references: loaded by the builder's command line, this module would be
# freed, and they with it.
components._trainvitals_plugin = globals()
