"""Other forms of a built dashboard: in another language, and for import through Grafana's own page."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

INPUT: Json = {
    "description": "The Prometheus that scrapes the trainvitals exporters",
    "label": "Prometheus",
    "name": "DS_PROMETHEUS",
    "pluginId": "prometheus",
    "pluginName": "Prometheus",
    "type": "datasource",
}
OLDEST_GRAFANA = "10.4.0"  # the first whose panels have all the options that are set


def translated(dashboard: Json, texts: dict[str, str]) -> Json:
    """Return `dashboard` with its titles, headings, names and states looked up in `texts`.

    Raises ValueError naming all that are not there. Uids stay, so that links of alerts lead to either language.
    """
    missing: set[str] = set()

    def look_up(text: str) -> str:
        if text not in texts:
            missing.add(text)
        return texts.get(text, text)

    result = copy.deepcopy(dashboard)
    result["title"] = look_up(result["title"])
    for variable in result["templating"]["list"]:
        variable["label"] = look_up(variable["label"])
    for annotation in result["annotations"]["list"]:
        if "builtIn" not in annotation:
            annotation["name"] = look_up(annotation["name"])
    for panel in result["panels"]:
        for item in (panel, *panel.get("panels", [])):
            _translate_panel(item, look_up)
    if missing:
        raise ValueError(f"not translated: {sorted(missing)}")
    return result


def _translate_panel(panel: Json, look_up: Callable[[str], str]) -> None:
    panel["title"] = look_up(panel["title"])
    if panel["type"] == "row":
        return
    defaults = panel["fieldConfig"]["defaults"]
    _translate_values(defaults["mappings"], defaults.get("links", []), look_up)
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["id"] == "byName":  # a column, by its heading
            override["matcher"]["options"] = look_up(override["matcher"]["options"])
        values = {item["id"]: item["value"] for item in override["properties"]}
        _translate_values(values.get("mappings", []), values.get("links", []), look_up)
    for transformation in panel.get("transformations", []):
        if transformation["id"] == "organize":
            renamed = transformation["options"]["renameByName"]
            renamed.update({field: look_up(heading) for field, heading in renamed.items()})
    for sort in panel["options"].get("sortBy", []):
        sort["displayName"] = look_up(sort["displayName"])


def _translate_values(mappings: list[Json], links: list[Json], look_up: Callable[[str], str]) -> None:
    for mapping in mappings:
        options = mapping["options"]
        for shown in [options["result"]] if mapping["type"] == "special" else options.values():
            shown["text"] = look_up(shown["text"])
    for link in links:
        link["title"] = look_up(link["title"])


def importable(dashboard: Json) -> Json:
    """Return `dashboard` in the form that Grafana's import page asks the data source for. Its copy may be edited."""
    result = copy.deepcopy(dashboard)
    source = f"${{{INPUT['name']}}}"
    result["templating"]["list"][0]["current"] = {"selected": False, "text": source, "value": source}
    kinds = {item["type"] for panel in result["panels"] for item in (panel, *panel.get("panels", []))} - {"row"}
    return result | {
        "__inputs": [INPUT],
        "__requires": [
            {"id": "grafana", "name": "Grafana", "type": "grafana", "version": OLDEST_GRAFANA},
            {"id": "prometheus", "name": "Prometheus", "type": "datasource", "version": ""},
            *({"id": kind, "name": kind, "type": "panel", "version": ""} for kind in sorted(kinds)),
        ],
        "editable": True,
    }
