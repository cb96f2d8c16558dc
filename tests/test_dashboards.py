"""The dashboards: committed as built, sound by their design rules, and answered by a real Prometheus."""

from __future__ import annotations

import copy
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainvitals.catalogue import METRICS, PREFIX, RUN_STATES

from tests import dashboard_scenario as scenario
from tests import openmetrics_sample as sample
from tests.dashboard_lint import UNITS, VARIABLES, lint
from tests.dashboard_prometheus import Backfilled, backfilled
from tests.dashboard_queries import (
    EMPTY_WHEN_HEALTHY,
    EMPTY_WITHOUT_GPU,
    ENDED,
    INTERVALS,
    Json,
    get,
    instant_values,
    panels,
    queries,
    run_all,
    substitute,
    unexplained,
)
from tests.dashboard_rules import rules

GRAFANA = Path(__file__).resolve().parent.parent / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
ALL = dict.fromkeys(("instance", "run", "rank", "gpu"), ".*")
# What is chosen in the variables to see the sample, and to see the scenario.
EVERYTHING = {**ALL, "job": "sample", "baseline": "voice-s2", "loss": "4"}
SCENARIO = {**ALL, "job": scenario.JOB, "baseline": "s1-base", "loss": "2"}


def load(path: Path) -> Json:
    dashboard: Json = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


@pytest.fixture
def dashboard() -> Json:
    return load(GRAFANA / "dashboards" / "training-run.json")


def board(name: str) -> Json:
    return load(GRAFANA / "dashboards" / f"{name}.json")


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def each_dashboard(request: pytest.FixtureRequest) -> Json:
    return load(request.param)


def panel_named(dashboard: Json, title: str) -> Json:
    return next(panel for panel in panels(dashboard) if panel["title"] == title)


# Built from YAML.


def build(*arguments: str, grafana: Path = GRAFANA, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(grafana / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONHASHSEED": hash_seed})


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_committed_dashboards_are_what_the_yaml_builds(hash_seed: str) -> None:
    result = build("--check", hash_seed=hash_seed)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def copy_with_rules(folder: Path) -> Path:
    """Copy what dashboards are built from; their limits are those of the rules."""
    shutil.copytree(GRAFANA.parent / "prometheus" / "rules", folder / "prometheus" / "rules")
    return Path(shutil.copytree(GRAFANA, folder / "grafana", ignore=shutil.ignore_patterns("pictures")))


def test_check_fails_with_a_diff_when_a_committed_dashboard_was_edited(tmp_path: Path) -> None:
    copied = copy_with_rules(tmp_path)
    file = copied / "dashboards" / "training-run.json"
    file.write_text(file.read_text(encoding="utf-8").replace("Run state", "Run condition"), encoding="utf-8")
    result = build("--check", grafana=copied)
    assert result.returncode == 1
    assert '-      "title": "Run condition",' in result.stdout
    build(grafana=copied)
    assert build("--check", grafana=copied).returncode == 0


def test_check_fails_when_a_committed_dashboard_has_no_definition(tmp_path: Path) -> None:
    copied = copy_with_rules(tmp_path)
    (copied / "dashboards" / "stray.json").write_text("{}\n", encoding="utf-8")
    result = build("--check", grafana=copied)
    assert result.returncode == 1
    assert "dashboards/stray.json" in result.stdout


# Sound by the design rules.


def test_there_are_the_dashboards_that_alerts_and_links_name() -> None:
    assert {load(path)["uid"] for path in DASHBOARDS} == set(VARIABLES)


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_links_of_alerts_set_variables_that_their_dashboard_has(rule: Json) -> None:
    [(uid, query)] = re.findall(r"/d/([a-z-]+)(?:\?(\S.*))?$", rule["annotations"]["dashboard_url"], re.DOTALL)
    assert set(re.findall(r"var-(\w+)=", query)) <= set(VARIABLES[uid])


def test_design_rules(each_dashboard: Json) -> None:
    assert lint(each_dashboard) == []


def _drop_unit(board: Json) -> None:
    panel_named(board, "Loss")["fieldConfig"]["defaults"]["unit"] = "seconds"


def _drop_description(board: Json) -> None:
    panel_named(board, "Loss")["description"] = "Loss."


def _drop_no_value(board: Json) -> None:
    panel_named(board, "Loss")["fieldConfig"]["defaults"]["noValue"] = "No data"


def _edit_expr(title: str, old: str, new: str) -> Callable[[Json], None]:
    def edit(board: Json) -> None:
        target = panel_named(board, title)["targets"][0]
        assert old in target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return edit


def _edit_legend(board: Json) -> None:
    panel_named(board, "Loss")["targets"][0]["legendFormat"] = "{{run}}"


def _wrong_legend(board: Json) -> None:
    panel_named(board, "Iterations per second")["targets"][0]["legendFormat"] = "{{run}} {{rank}}"


def _wrong_column(board: Json) -> None:
    organize = panel_named(board, "Optimizers")["transformations"][-1]
    organize["options"]["renameByName"]["klass"] = "Class"


def _overlap(board: Json) -> None:
    panel_named(board, "Gradient norm")["gridPos"]["x"] = 6


def _too_many_open(board: Json) -> None:
    row = next(panel for panel in board["panels"] if panel.get("panels"))
    board["panels"] += row["panels"]


def _unchained(board: Json) -> None:
    board["templating"]["list"][3]["definition"] = "label_values(trainvitals_run_state, run)"


def _fixed_source(board: Json) -> None:
    panel_named(board, "Loss")["targets"][0]["datasource"]["uid"] = "trainvitals-prometheus"


def _falling_thresholds(board: Json) -> None:
    panel_named(board, "KL divergence")["fieldConfig"]["defaults"]["thresholds"]["steps"].reverse()


def _spans_gaps(board: Json) -> None:
    panel_named(board, "Loss")["fieldConfig"]["defaults"]["custom"]["spanNulls"] = True


def _editable(board: Json) -> None:
    board["editable"] = True


def _run_link(board: Json) -> Json:
    [override] = [
        o for o in panel_named(board, "Alerts")["fieldConfig"]["overrides"] if o["matcher"]["options"] == "Run"
    ]
    [links] = [item["value"] for item in override["properties"] if item["id"] == "links"]
    link: Json = links[0]
    return link


def _keep_name(board: Json) -> None:
    panel_named(board, "DataLoader settings")["targets"][0]["expr"] = (
        'trainvitals_dataloader_workers{job=~"$job", instance=~"$instance", run=~"$run"} > 0'
    )


def _link_elsewhere(board: Json) -> None:
    _run_link(board)["url"] += "&var-uuid=x"


def _link_from_nowhere(board: Json) -> None:
    _run_link(board)["url"] = _run_link(board)["url"].replace("fields.run", "fields.lauf")


def _link_without_label(board: Json) -> None:
    panel_named(board, "GPU utilisation")["fieldConfig"]["defaults"]["links"] = [
        {**_run_link(board), "url": _run_link(board)["url"].replace("__data.fields", "__field.labels")}
    ]


def _lose_time(board: Json) -> None:
    _run_link(board)["url"] = _run_link(board)["url"].replace("&${__url_time_range}", "")


def _no_dashboard_links(board: Json) -> None:
    board["links"][0]["keepTime"] = False


def _drop_checkpoints(board: Json) -> None:
    board["annotations"]["list"].pop()


MISTAKES: list[tuple[Callable[[Json], None], str]] = [
    (_drop_unit, "unknown unit"),
    (_drop_description, "description"),
    (_drop_no_value, "no data"),
    (_edit_legend, "legend does not name ['optimizer']"),
    (_wrong_legend, "no labels of the query"),
    (_wrong_column, "columns ['klass']"),
    (_overlap, "overlaps"),
    (_too_many_open, "panels are open"),
    (_unchained, "not chained"),
    (_fixed_source, "${datasource}"),
    (_falling_thresholds, "thresholds"),
    (_spans_gaps, "spans gaps"),
    (_editable, "editable"),
    (_edit_expr("Loss", "trainvitals_loss", "trainvitals_lose"), "not in the catalogue"),
    (_edit_expr("Loss", "rank=~", "rang=~"), "no labels ['rang']"),
    (_edit_expr("Loss", 'job=~"$job", ', ""), "not restricted by ['job']"),
    (_edit_expr("Loss", "$run", "$lauf"), "unknown variables"),
    (_edit_expr("Loss", "{", "{{"), "PromQL"),
    (_edit_expr("Last loss", "optimizer", "optimiser"), "groups by ['optimiser']"),
    (_edit_expr("Iteration time", "$__rate_interval", "1m"), "$__rate_interval"),
    (_edit_expr("Cost of the hooks", "rate(", "avg_over_time("), "a counter without rate()"),
    (
        _edit_expr("GPU memory in use", "on (job, instance, uuid)", "on (job, instance, gpu)"),
        "not labels of both sides",
    ),
    (
        _edit_expr("Steps skipped by AMP", " / (rate(trainvitals_amp", " / (rate(trainvitals_batch_wait_seconds"),
        "labels differ",
    ),
    (_keep_name, "so that lines of several queries are not merged"),
    (_link_elsewhere, "which trainvitals-run does not have"),
    (_link_from_nowhere, "reads a column that is not there"),
    (_link_without_label, "the link needs ['instance', 'run'], which are no labels of the query"),
    (_lose_time, "loses time or variables"),
    (_no_dashboard_links, "no links to the other dashboards"),
    (_drop_checkpoints, "annotations missing: ['Checkpoints']"),
]


@pytest.mark.parametrize(("make", "finding"), MISTAKES, ids=[finding for _, finding in MISTAKES])
def test_the_lint_catches_a_seeded_mistake(dashboard: Json, make: Callable[[Json], None], finding: str) -> None:
    make(dashboard)
    assert any(finding in line for line in lint(dashboard)), lint(dashboard)


def built_limits(folder: Path) -> dict[str, list[float]]:
    """Return the values of the thresholds of each panel of the dashboards in `folder`."""
    boards = [load(path) for path in sorted((folder / "dashboards").glob("*.json"))]
    return {
        f"{board['uid']}: {panel['title']}": [
            step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        ]
        for board in boards
        for panel in panels(board)
    }


def test_limits_are_those_of_the_alerts(tmp_path: Path) -> None:
    copied = copy_with_rules(tmp_path)
    settings = tmp_path / "prometheus" / "rules" / "settings.yml"
    changed = re.sub(
        r"(record: threshold:trainvitals_gpu_underused:ratio\n\s+expr: vector\()[0-9.]+",
        r"\g<1>0.123",
        settings.read_text(),
    )
    settings.write_text(changed)
    assert build(grafana=copied).returncode == 0
    before, after = built_limits(GRAFANA), built_limits(copied)
    assert {panel for panel in before if before[panel] != after[panel]} >= {"trainvitals-run: GPU utilisation"}
    assert all(0.123 in after[panel] for panel in before if before[panel] != after[panel])


def test_a_limit_that_no_threshold_sets_is_an_error(tmp_path: Path) -> None:
    copied = copy_with_rules(tmp_path)
    definition = copied / "definitions" / "training-run.yaml"
    definition.write_text(definition.read_text().replace("{stalled-seconds}", "{stalled-days}"))
    result = build(grafana=copied)
    assert result.returncode != 0
    assert "nothing is called {stalled-days}" in result.stderr


# Numbers among the thresholds that no alert goes by, and what they are.
NO_ALERTS: dict[float, str] = {
    0.7: "GPU use over 70 % is good, says the guide",
    0.8: "filesystems fuller than this deserve a look",
    0.95: "and fuller than this soon refuse to write",
    0.03: "what the hooks may take of a millisecond's step",
    1: "at least one",
    83: "degrees from which GPUs slow down by themselves",
    0.05: "of memory left is next to nothing",
    0.1: "of memory left is little",
    -0.02: "two runs differ as much by chance",
    0: "no change",
    0.02: "two runs differ as much by chance",
}


def test_other_limits_are_known() -> None:
    text = "\n".join(path.read_text() for path in (GRAFANA / "definitions").rglob("*.yaml"))
    steps = [step.strip() for found in re.findall(r"thresholds: \[(.*?)\]", text) for step in found.split(",")[1::2]]
    assert {float(step) for step in steps if "{" not in step} <= set(NO_ALERTS)


def test_every_run_state_has_its_text(dashboard: Json) -> None:
    panel = panel_named(dashboard, "Run state")
    texts = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for number, state in enumerate(RUN_STATES, 1):
        assert texts[str(number)]["text"] == state.replace("_", " ")
        assert f"{number} * (max by (job, instance, run) (trainvitals_run_state{{" in panel["targets"][0]["expr"]
        assert f'state="{state}" }}) == 1)' in panel["targets"][0]["expr"]


# Typed by Grafana's own model.

# Grafana's Prometheus data source reads these from an annotation; the model leaves them open.
ANNOTATION_KEYS = {"tagKeys", "textFormat", "titleFormat", "useValueForTime"}


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield what is in `before` and not, or with another value, in `after`. A null and an absent key are the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if value is not None:
                yield from lost(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif before != after:
        yield path


def through_the_model(board: Json) -> Json:
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason="needs Python 3.11 or newer")
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    decoded: Json = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(board))))
    return decoded


def test_grafanas_model_knows_every_key(each_dashboard: Json) -> None:
    unknown = list(lost(each_dashboard, through_the_model(each_dashboard)))
    assert [path for path in unknown if path.rpartition(".")[2] not in ANNOTATION_KEYS] == []


def test_grafanas_model_catches_an_unknown_key(dashboard: Json) -> None:
    panel_named(dashboard, "Loss")["fieldConfig"]["defaults"]["custom"]["lineThickness"] = 2
    assert any("lineThickness" in path for path in lost(dashboard, through_the_model(dashboard)))


def test_grafanas_model_knows_every_key_of_the_chinese_ones() -> None:
    for path in DASHBOARDS:
        chinese = load(GRAFANA / "dashboards-zh" / path.name)
        unknown = list(lost(chinese, through_the_model(chinese)))
        assert [found for found in unknown if found.rpartition(".")[2] not in ANNOTATION_KEYS] == []


# In other forms.


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_chinese_dashboards_differ_in_their_texts_only(path: Path) -> None:
    english, chinese = load(path), load(GRAFANA / "dashboards-zh" / path.name)
    differing = list(lost(english, chinese))
    texts = r"(\.title|\.label|\.name|\.text|\.displayName|\.matcher\.options|\.renameByName\.[^.]+)$"
    assert [found for found in differing if not re.search(texts, found)] == []
    assert len(differing) > len(list(panels(english)))
    assert re.search("[\u4e00-\u9fff]", next(panels(chinese))["title"])
    for panel in panels(chinese):
        if panel["type"] == "table":
            headings = {*panel["transformations"][-1]["options"]["renameByName"].values()}
            assert {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]} <= headings


def test_a_text_that_is_not_translated_is_an_error(tmp_path: Path) -> None:
    copied = copy_with_rules(tmp_path)
    texts = copied / "translations" / "zh.yaml"
    texts.write_text(texts.read_text().replace("Gradient norm:", "Gradient norms:"))
    result = build(grafana=copied)
    assert result.returncode != 0
    assert "not translated: ['Gradient norm']" in result.stderr


def test_every_translation_is_used() -> None:
    shipped = "".join(path.read_text() for path in DASHBOARDS)
    texts = yaml.safe_load((GRAFANA / "translations" / "zh.yaml").read_text())
    assert [text for text in texts if json.dumps(text, ensure_ascii=False)[1:-1] not in shipped] == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_what_is_imported_is_the_dashboard_with_the_chosen_source(path: Path) -> None:
    """As the import page does it: each name of __inputs is replaced in every string; the rest of __ keys goes."""
    form = load(GRAFANA / "import" / path.name)
    [asked] = form.pop("__inputs")
    needed = {item["id"] for item in form.pop("__requires")}
    assert asked["pluginId"] == "prometheus"
    assert {panel["type"] for panel in panels(form)} <= needed
    imported = json.loads(json.dumps(form).replace(f"${{{asked['name']}}}", "their-prometheus"))
    assert imported["templating"]["list"][0].pop("current")["value"] == "their-prometheus"
    assert imported.pop("editable") is True
    shipped = load(path)
    shipped["templating"]["list"][0].pop("current")
    shipped.pop("editable")
    assert imported == shipped


# Units.


def test_units_are_grafanas() -> None:
    units = pytest.importorskip("grafana_foundation_sdk.models.units", reason="needs Python 3.11 or newer")
    assert {value for value in vars(units).values() if isinstance(value, str)} >= UNITS


# Answered by a real Prometheus.


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backfilled]:
    with backfilled(tmp_path_factory.mktemp("prometheus")) as filled:
        yield filled


def values(prometheus: Backfilled, panel: Json, number: int = 0, **variables: str) -> dict[tuple[str, ...], float]:
    """Return a panel's present values by run, and by phase if they have one."""
    expr = substitute(panel["targets"][number]["expr"], {**INTERVALS, **EVERYTHING, **variables})
    found = instant_values(prometheus.url, expr, prometheus.end)
    return {tuple(labels[name] for name in ("run", "phase") if name in labels): value for labels, value in found}


def test_the_sample_has_every_metric_of_the_catalogue(prometheus: Backfilled) -> None:
    names = set(get(prometheus.url, "label/__name__/values", {}))
    expected = {f"{metric.name}_count" if metric.type == "histogram" else metric.name for metric in METRICS}
    assert expected - names == set()


def test_the_scenario_shows_the_troubles_it_is_about(prometheus: Backfilled) -> None:
    window = f"[{scenario.DURATION_SECONDS}s]"
    fired = f'count_over_time(ALERTS{{job="{scenario.JOB}", alertstate="firing"}}{window})'
    told = {
        (labels["run"], labels["alertname"])
        for labels, _ in instant_values(prometheus.url, fired, prometheus.end)
        if "run" in labels
    }
    for name in ("TrainingDataStarved", "TrainingCudaMemoryLeak", "TrainingGradientExplosion"):
        assert ("voice-s2", name) in told
    assert not {run for run, name in told if name.startswith("TrainingRun")} - {"s1-batch32"}


def test_alerts_fire_after_they_were_pending_for_as_long_as_their_rule_says(prometheus: Backfilled) -> None:
    [rule] = [rule for rule in rules() if rule.get("alert") == "TrainingDataStarved"]
    assert rule["for"] == "5m"
    times = (
        'min_over_time(timestamp(ALERTS{{run="voice-s2", alertname="TrainingDataStarved", alertstate="{}"}})[2h:15s])'
    )
    first = [instant_values(prometheus.url, times.format(state), prometheus.end) for state in ("pending", "firing")]
    [[(_, pending)], [(_, firing)]] = first
    assert firing - pending == 300


# Part of a query -> why it may find nothing in the scenario.
NOT_IN_THE_SCENARIO = {
    "trainvitals_hook_errors_total": "no hook fails",
    "trainvitals_series_dropped_total": "no series is dropped",
    "trainvitals_exporter_run_files_rejected": "no run file is rejected",
    "trainvitals_loss_anomalies_total": "no loss is a thousand times the usual",
    "trainvitals_gpu_ecc_errors_total": "no memory is bad",
    "trainvitals_gpu_remapped_rows": "no memory is bad",
    "run:trainvitals_bottleneck:info": "the disk holds no run up any more when it ends",
}

NOT_IN_THE_SAMPLE = {"_memory_left:seconds": "there is no leak", ":usual6h": "half an hour does not tell what is usual"}


def test_every_query_returns_data(each_dashboard: Json, prometheus: Backfilled) -> None:
    """Over the scenario and the sample together, so that nothing is left out."""
    results = run_all(each_dashboard, prometheus.url, {**SCENARIO, "job": ".*"}, at=prometheus.end)
    assert len(results) == len(list(queries(each_dashboard)))
    assert [result for result in results if result.error or not result.series] == []


def test_every_query_answers_for_the_scenario(each_dashboard: Json, prometheus: Backfilled) -> None:
    results = run_all(
        each_dashboard, prometheus.url, SCENARIO, at=prometheus.end, window_seconds=scenario.DURATION_SECONDS
    )
    assert unexplained(results, NOT_IN_THE_SCENARIO) == []


def test_reasons_why_the_scenario_leaves_queries_empty_hold(prometheus: Backfilled) -> None:
    results = [
        result
        for path in DASHBOARDS
        for result in run_all(load(path), prometheus.url, SCENARIO, at=prometheus.end, window_seconds=7200)
    ]
    for part in NOT_IN_THE_SCENARIO:
        assert any(part in result.expr and not result.series for result in results), part


@pytest.mark.parametrize("run", ["voice-s2", "(voice-s1|voice-s2)"])
def test_only_what_is_about_ends_and_leaks_is_empty_for_a_run_in_progress(prometheus: Backfilled, run: str) -> None:
    results = run_all(board("training-run"), prometheus.url, {**EVERYTHING, "run": run}, at=prometheus.end)
    ended = {ENDED: "the run has not ended"} if run == "voice-s2" else {}
    assert unexplained(results, NOT_IN_THE_SAMPLE, ended) == []


def test_a_query_that_fails_or_finds_nothing_is_reported(dashboard: Json, prometheus: Backfilled) -> None:
    loss = panel_named(dashboard, "Loss")["targets"][0]
    for expr, error in (("trainvitals_loss{", "parse error"), ('trainvitals_loss{run="other"}', None)):
        loss["expr"] = expr
        [found] = unexplained(run_all(dashboard, prometheus.url, EVERYTHING, at=prometheus.end), NOT_IN_THE_SAMPLE)
        assert (found.where, found.series) == ("Loss", 0)
        assert found.error is None if error is None else error in str(found.error)


def test_a_prometheus_that_is_gone_is_reported_for_every_query(dashboard: Json) -> None:
    results = run_all(dashboard, "http://127.0.0.1:9", EVERYTHING)
    assert results
    assert all("refused" in str(result.error) for result in results)


def test_reasons_for_empty_queries_name_metrics_that_exist() -> None:
    names = [*(metric.name for metric in METRICS), *(rule["record"] for rule in rules() if "record" in rule)]
    for part in {*EMPTY_WITHOUT_GPU, *EMPTY_WHEN_HEALTHY} - {"ALERTS", ENDED}:
        assert part not in PREFIX
        assert any(part in name for name in names), part


def test_speed_is_that_of_the_slowest_rank_of_each_run(dashboard: Json, prometheus: Backfilled) -> None:
    found = values(prometheus, panel_named(dashboard, "Iterations per second"))
    assert found == pytest.approx({("voice-s2",): 1.5, ("voice-s1",): 5.0})


def test_phases_of_each_run_are_its_own_shares(dashboard: Json, prometheus: Backfilled) -> None:
    found = values(prometheus, panel_named(dashboard, "Where the step goes · $run"))
    expected = {(run, phase): share for run in sample.STATE for phase, share in sample.PHASE_SHARES.items()}
    assert found == pytest.approx(expected)


def test_host_memory_counts_all_ranks_roles_and_the_launcher(dashboard: Json, prometheus: Backfilled) -> None:
    panel = panel_named(dashboard, "Host memory of the run, by role")
    expr = substitute(panel["targets"][0]["expr"], EVERYTHING)
    found = {
        (labels["run"], labels["role"]): value for labels, value in instant_values(prometheus.url, expr, prometheus.end)
    }
    expected = {("voice-s2", "main"): 6e9, ("voice-s2", "dataloader_worker"): 2e9, ("voice-s2", "other"): 1e7}
    assert found == expected | {("voice-s1", "main"): 3e9, ("voice-s1", "dataloader_worker"): 1e9}


def test_state_is_one_number_for_each_run(dashboard: Json, prometheus: Backfilled) -> None:
    assert values(prometheus, panel_named(dashboard, "Run state")) == {("voice-s2",): 2, ("voice-s1",): 4}


def test_firing_alerts_are_counted_for_the_chosen_runs(dashboard: Json, prometheus: Backfilled) -> None:
    panel = panel_named(dashboard, "Firing alerts")
    assert values(prometheus, panel) == {(): 2}
    assert values(prometheus, panel, run="voice-s2") == {(): 1}
    assert values(prometheus, panel, run="other") == {(): 0}
    assert values(prometheus, panel, job="other") == {(): 0}


def test_an_ended_run_is_not_called_silent(dashboard: Json, prometheus: Backfilled) -> None:
    assert set(values(prometheus, panel_named(dashboard, "Last sign of life"))) == {("voice-s2",)}


def test_a_run_is_shown_only_the_gpus_it_computes_on(dashboard: Json, prometheus: Backfilled) -> None:
    expr = panel_named(dashboard, "Power")["targets"][0]["expr"]
    for variables, gpus in (({}, {"0", "1"}), ({"run": "voice-s1"}, {"0"}), ({"run": "voice-s2", "rank": "1"}, {"1"})):
        found = instant_values(prometheus.url, substitute(expr, {**EVERYTHING, **variables}), prometheus.end)
        assert {labels["gpu"] for labels, _ in found} == gpus


def test_the_run_end_is_marked_at_the_last_sign_of_life(dashboard: Json, prometheus: Backfilled) -> None:
    expr = next(query.expr for query in queries(dashboard) if query.where == "annotation Run end")
    [(labels, value)] = instant_values(prometheus.url, substitute(expr, EVERYTHING), prometheus.end)
    assert (labels["run"], labels["state"], value) == ("voice-s1", "failed", prometheus.end * 1000)


# Provisioned.


def provisioned(name: str) -> Json:
    content: Json = yaml.safe_load((GRAFANA / "provisioning" / name / "trainvitals.yml").read_text(encoding="utf-8"))
    assert content["apiVersion"] == 1
    return content


def test_data_sources_are_fixed_and_take_their_addresses_from_the_environment() -> None:
    sources = {source["type"]: source for source in provisioned("datasources")["datasources"]}
    prometheus, alertmanager = sources["prometheus"], sources["alertmanager"]
    assert (prometheus["uid"], prometheus["url"]) == ("trainvitals-prometheus", "$PROMETHEUS_URL")
    assert prometheus["jsonData"]["alertmanagerUid"] == alertmanager["uid"]
    assert alertmanager["url"] == "$ALERTMANAGER_URL"
    assert not any(source["editable"] for source in sources.values())


def test_dashboards_are_provisioned_read_only() -> None:
    [provider] = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert provider["allowUiUpdates"] is False


# In a Grafana, as far as that can be seen without one: a server that answers like its API, as documented.


class FakeGrafana(http.server.ThreadingHTTPServer):
    """Keeps dashboards by uid; answers what smoke_test.py asks and takes what build.py uploads."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeGrafanaHandler)
        self.dashboards = {load(path)["uid"]: load(path) for path in DASHBOARDS}
        self.source: Json = {"status": "OK", "message": "Successfully queried the Prometheus API."}
        self.tokens: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeGrafanaHandler(http.server.BaseHTTPRequestHandler):
    server: FakeGrafana

    def do_GET(self) -> None:
        uid = self.path.rpartition("/")[2]
        if self.path == "/api/health":
            self.answer({"database": "ok", "version": "13.2.0"})
        elif self.path.startswith("/api/search?type=dash-db"):
            self.answer([{"uid": uid, "type": "dash-db"} for uid in self.server.dashboards])
        elif self.path == f"/api/dashboards/uid/{uid}" and uid in self.server.dashboards:
            self.answer({"dashboard": self.server.dashboards[uid], "meta": {"provisioned": True}})
        elif self.path == "/api/datasources/uid/trainvitals-prometheus/health":
            self.answer(self.server.source)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, body["overwrite"]) == ("/api/dashboards/db", True)
        self.server.tokens.append(self.headers["Authorization"])
        self.server.dashboards[body["dashboard"]["uid"]] = body["dashboard"]
        self.answer({"status": "success", "url": f"/d/{body['dashboard']['uid']}/x"})

    def answer(self, content: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake_grafana() -> Iterator[FakeGrafana]:
    with FakeGrafana() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def smoke_test(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GRAFANA / "smoke_test.py"), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_smoke_test_finds_a_good_grafana_good(fake_grafana: FakeGrafana) -> None:
    result = smoke_test(fake_grafana.url)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_smoke_test_names_what_is_wrong(fake_grafana: FakeGrafana) -> None:
    fake_grafana.dashboards.pop("trainvitals-gpu")
    fake_grafana.dashboards["trainvitals-host"]["panels"].pop()
    fake_grafana.source = {"status": "ERROR", "message": "connection refused"}
    result = smoke_test(fake_grafana.url)
    assert result.returncode == 1
    for finding in ("trainvitals-gpu is not there", "trainvitals-host: its number of panels", "connection refused"):
        assert finding in result.stdout


def test_the_smoke_test_says_when_there_is_no_grafana() -> None:
    result = smoke_test("http://127.0.0.1:9")
    assert (result.returncode, result.stderr) == (1, "")
    assert "refused" in result.stdout


def test_dashboards_are_uploaded_over_those_of_the_same_uid(fake_grafana: FakeGrafana) -> None:
    fake_grafana.dashboards.clear()
    environment = {"GRAFANA_HOST": fake_grafana.url, "GRAFANA_TOKEN": "glsa_x"}
    command = [sys.executable, str(GRAFANA / "build.py"), "--upload"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert fake_grafana.dashboards == {load(path)["uid"]: load(path) for path in DASHBOARDS}
    assert set(fake_grafana.tokens) == {"Bearer glsa_x"}
