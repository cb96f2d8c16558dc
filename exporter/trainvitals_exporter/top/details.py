"""The view of one run, and the list of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainvitals_exporter.top.model import OptimizerView, RankView, RunView
from trainvitals_exporter.top.overview import panel_title, trends, value
from trainvitals_exporter.top.table import Column, flowed, rule, table
from trainvitals_exporter.top.text import Line, bar, count, crop, fit, number, percent, size

KEYS: Final = (
    ("↑ ↓  j k", "choose a run; in details, scroll", ""),
    ("Enter", "details of the chosen run", "details"),
    ("Esc", "back", "back"),
    ("s", "sort by state, name, speed, loss, memory", "sort"),
    ("p", "pause the picture; values are still collected", "pause"),
    ("?", "this help", "help"),
    ("q", "quit", "quit"),
)
_CHART_LINES: Final = 3
_HELP: Final = (
    "What is blank is not known. Trends begin when this program does; each has a scale of its own. A gap is unknown, "
    "a cross is not finite.",
    "Loss and gradient norm: those of the first rank's first optimizer, unless another's is not finite.",
    "Step: shares of the newest minute; of the whole run, once it has ended.",
    "Memory: tensors on the first rank's GPUs; without any, all processes of the run, in grey.",
    "Slowed: why a GPU's clocks are lower. power: at its limit; HEAT: too hot; BRAKE: power brake; SLOW: hardware.",
    "silent: no sign of life for longer than is usual. anom: anomalies counted since the run began.",
)


def footer(width: int, *, sorting: str) -> Line:
    """The last line: the keys."""
    line: Line = []
    for key, _, word in KEYS:
        if word:
            line += [(f" {key} ", "key"), (f"{word} ({sorting}) " if word == "sort" else f"{word} ", "dim")]
    return crop(line, width)


def help_lines(width: int) -> list[Line]:
    """What the keys do, and what the values mean."""
    lines = [rule([("Keys", "strong")], width)]
    lines += [[(" " + fit(key, 12), "accent"), (about, "")] for key, about, _ in KEYS]
    lines += [[], rule([("What is shown", "strong")], width)]
    for text in _HELP:
        lines += flowed([[(word, "")] for word in text.split()], width - 1, " ")
    return [crop(line, width) for line in lines]


def details(run: RunView, width: int) -> list[Line]:
    """All that is known of the run, in as many lines as it takes."""
    lines = [panel_title(run, width), *_facts(run, width), *trends(run, width, _CHART_LINES)]
    if run.phases:
        title = "Where the step goes" + (", newest minute" if run.phases_are_recent else ", since the start")
        lines += [rule([(title, "strong")], width), *_phases(run, width)]
    if run.anomalies or run.notes:
        lines += [rule([("Anomalies", "strong")], width)]
        lines += flowed([[(f"{kind} ", "warn"), (count(times), "strong")] for kind, times in run.anomalies], width)
        lines += [crop([(f"   {note}", "")], width) for note in run.notes]
    if run.optimizers:
        lines += [rule([("Optimizers", "strong")], width), *_optimizers(run.optimizers, width)]
    if run.ranks:
        lines += [rule([("Ranks", "strong")], width), *_ranks(run.ranks, width)]
    if run.scalars:
        lines += [rule([("Scalars", "strong")], width), *_scalars(run, width)]
    return [crop(line, width) for line in lines]


def _facts(run: RunView, width: int) -> list[Line]:
    numbers = (
        ("epoch", count(run.epoch)), ("iterations", count(run.iterations)), ("samples", count(run.samples)),
        ("ranks", count(run.world_size)), ("checkpoint size", size(run.checkpoint_bytes)),
    )  # fmt: skip
    facts = [*((title, text) for title, text in numbers if text), *run.facts]
    return flowed([[(f"{title} ", "dim"), (text, "")] for title, text in facts], width)


def _phases(run: RunView, width: int) -> list[Line]:
    return [
        [(" " + fit(phase, 13), "dim"), (fit(f"{100 * share:.1f}%", 7, right=True) + " ", ""),
         *bar(share, min(width - 24, 100), f"bar.{phase}")]
        for phase, share in run.phases
    ]  # fmt: skip


def _optimizers(optimizers: Sequence[OptimizerView], width: int) -> list[Line]:
    columns = [
        Column[OptimizerView](" #", 3, lambda each, _: [(f" {each.optimizer}", "strong")]),
        Column[OptimizerView]("class", 0, lambda each, _: [(each.kind, "")], most=24),
        Column[OptimizerView]("parameters", 14, lambda each, _: [(count(each.parameters), "")], right=True, needs=100),
        Column[OptimizerView]("learning rate", 13, lambda each, _: [(_rates(each), "")], right=True),
        Column[OptimizerView]("steps", 9, lambda each, _: [(count(each.steps), "")], right=True),
        Column[OptimizerView]("skipped", 7, lambda each, _: [(count(each.skipped), "")], right=True, needs=100),
        Column[OptimizerView]("loss", 8, lambda each, _: [value(each.loss)], right=True),
        Column[OptimizerView]("g.norm", 8, lambda each, _: [value(each.norm)], right=True),
        Column[OptimizerView]("max 1m", 8, lambda each, _: [value(each.norm_max)], right=True),
        Column[OptimizerView]("usual", 8, lambda each, _: [value(each.norm_baseline)], right=True),
    ]
    head, rows = table(columns, optimizers, width)
    return [head, *rows]


def _rates(optimizer: OptimizerView) -> str:
    different = list(dict.fromkeys(optimizer.learning_rates))
    return number(different[0], 3) + (f" +{len(different) - 1}" if len(different) > 1 else "") if different else ""


def _ranks(ranks: Sequence[RankView], width: int) -> list[Line]:
    columns = [
        Column[RankView](" rank", 5, lambda each, _: [(f" {each.rank}", "strong")]),
        Column[RankView]("pid", 8, lambda each, _: [(each.pid, "")], right=True, needs=90),
        Column[RankView]("GPU", 6, lambda each, _: [(",".join(each.gpus), "accent")]),
        Column[RankView]("iterations", 10, lambda each, _: [(count(each.iterations), "")], right=True),
        Column[RankView]("it/s", 6, lambda each, _: [(number(each.rate, 3), "")], right=True),
        Column[RankView]("loss", 8, lambda each, _: [value(each.loss)], right=True),
        Column[RankView]("g.norm", 8, lambda each, _: [value(each.norm)], right=True),
        Column[RankView]("wait", 5, lambda each, _: [(percent(each.data_wait), "")], right=True),
        Column[RankView]("GPU mem", 7, lambda each, _: [(size(each.gpu_memory), "")], right=True),
        Column[RankView]("reserved", 8, lambda each, _: [(size(each.gpu_memory_reserved), "")], right=True, needs=90),
        Column[RankView]("cores", 5, lambda each, _: [(number(each.cpu, 2), "")], right=True),
        Column[RankView]("RAM", 6, lambda each, _: [(size(each.resident), "")], right=True),
    ]
    head, rows = table(columns, ranks, width)
    return [head, *rows]


def _scalars(run: RunView, width: int) -> list[Line]:
    columns = max(width // 50, 1)
    wide = width // columns
    cells: list[Line] = []
    for tag, measured in run.scalars:
        text, style = value(measured)
        cells.append([(" " + fit(tag, wide - 13) + " ", "dim"), (fit(text, 10, right=True) + " ", style)])
    return [[part for cell in cells[i : i + columns] for part in cell] for i in range(0, len(cells), columns)]


def position(lines: int, offset: int, height: int) -> str:
    """Which lines are seen, where these are not all."""
    return "" if lines <= height else f"lines {offset + 1}-{min(offset + height, lines)} of {lines}"
