"""The main view: hosts, alerts, GPUs, runs, and the chosen run in short."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainvitals_exporter.top.model import HISTORIES, GpuView, HostView, MachineView, RunView
from trainvitals_exporter.top.sources import Alert
from trainvitals_exporter.top.table import Column, rule, table
from trainvitals_exporter.top.text import (
    Line,
    bar,
    chart,
    count,
    crop,
    duration,
    fit,
    line_width,
    name,
    number,
    percent,
    plain,
    size,
    stacked,
)

SORTINGS: Final[dict[str, Callable[[RunView], Any]]] = {
    "state": lambda run: (run.ended, run.elapsed is None, run.elapsed or 0.0, run.name),
    "name": lambda run: (run.name, run.host),
    "speed": lambda run: -_known(run.rate),
    "loss": lambda run: -_known(run.loss),
    "memory": lambda run: -_known(run.memory),
}
_STATE_STYLES: Final = {"running": "good", "starting": "accent", "finished": "dim"}
_SHORT_STATES: Final = {"out_of_memory": "out of mem"}
_SHORT_REASONS: Final = {
    "sw_power_cap": "power", "sw_thermal_slowdown": "HEAT", "hw_thermal_slowdown": "HEAT",
    "hw_power_brake_slowdown": "BRAKE", "hw_slowdown": "SLOW",
}  # fmt: skip
_FULL: Final = 0.9
_TALLEST: Final = 8
_SPARK_STYLES: Final = dict(zip(HISTORIES, ("loss", "norm", "speed", "memory"), strict=True))


@dataclass(frozen=True)
class SourceView:
    """Whether a source answers. `silence` is for how many seconds it has not; None while it does."""

    name: str
    silence: float | None
    error: str


@dataclass(frozen=True)
class Picture:
    """All there is to draw at one moment; `clock` is the time of day, `remark` says what is unusual."""

    machines: tuple[MachineView, ...] = ()
    sources: tuple[SourceView, ...] = ()
    alerts: tuple[Alert, ...] = ()
    clock: str = ""
    remark: str = ""

    def runs(self, sorting: str) -> list[RunView]:
        """The runs of all hosts in this order."""
        runs = [run for machine in self.machines for run in machine.runs]
        return sorted(runs, key=SORTINGS[sorting])

    @property
    def many_hosts(self) -> bool:
        """Whether rows have to say which host they are of."""
        return len(self.sources) > 1


@dataclass(frozen=True)
class Choices:
    """What the user chose."""

    selected: tuple[str, str] | None = None
    sorting: str = "state"
    paused: bool = False


def overview(picture: Picture, choices: Choices, width: int, height: int) -> list[Line]:
    """The view in at most so many lines."""
    top = [header(picture, choices, width), *_sources(picture, width), *_hosts(picture, width, height)]
    top += _alerts(picture, width, 1 if height < 30 else 4)
    runs = picture.runs(choices.sorting)
    chosen = next((run for run in runs if run.key == choices.selected), runs[0] if runs else None)
    bottom = _panel(chosen, width, 1) if chosen and height >= 18 else []
    gpus = [gpu for machine in picture.machines for gpu in machine.gpus]
    room = height - len(top) - len(bottom)
    for_runs = min(len(runs) + 1, max(4, room // 2))
    gpu_lines = _gpus(picture, gpus, width, max(room - for_runs, 0))
    run_lines = _runs(picture, runs, chosen, width, room - len(gpu_lines))
    spare = room - len(gpu_lines) - len(run_lines)
    gap: list[Line] = [[]] if spare > 3 else []
    middle = [*gap, *gpu_lines, *(gap if gpu_lines else []), *run_lines, *gap]
    if chosen and bottom and spare > 3:
        rows = 2 if width >= 120 else 4
        bottom = _panel(chosen, width, 1 + min((spare - 3) // rows, _TALLEST - 1))
    blank: list[Line] = [[]] * (height - len(top) - len(middle) - len(bottom))
    return [crop(line, width) for line in [*top, *middle, *bottom, *blank][:height]]


def header(picture: Picture, choices: Choices, width: int) -> Line:
    """The first line: what this is, and whether it is current."""
    runs = picture.runs(choices.sorting)
    live = sum(not run.ended for run in runs)
    ended = len(runs) - live
    left: Line = [(" trainvitals ", "title"), (f" {live} {'run' if live == 1 else 'runs'}", "strong")]
    left += [(f", {ended} ended", "dim")] if ended else []
    firing = sum(alert.state == "firing" for alert in picture.alerts)
    left += [(f"  {firing} {'alert' if firing == 1 else 'alerts'}", "bad")] if firing else []
    left += [("  paused", "warn")] if choices.paused else []
    left += [(f"  {picture.remark}", "warn")] if picture.remark else []
    names = ", ".join(name(source.name) for source in picture.sources)
    silent = any(source.silence is not None for source in picture.sources)
    right: Line = [
        ("○ " if silent else "● ", "bad" if silent else "good"),
        (f"{names}  ", "dim"),
        (f"{picture.clock} ", ""),
    ]
    if line_width(left) + line_width(right) >= width:
        right = [right[0], right[2]]
    space = width - line_width(left) - line_width(right)
    return crop([*left, (" " * max(space, 1), ""), *right], width)


def _sources(picture: Picture, width: int) -> list[Line]:
    lines: list[Line] = []
    for source in picture.sources:
        if source.silence is not None:
            why = f": {name(source.error)}" if source.error else ""
            lines.append(crop([(f" {name(source.name)}: no answer for {duration(source.silence)}{why}", "bad")], width))
    return lines


def _hosts(picture: Picture, width: int, height: int) -> list[Line]:
    lines = [crop(_host(machine.host, width, named=picture.many_hosts), width) for machine in picture.machines]
    most = max(height // 6, 1)
    if len(lines) > most:
        lines = [*lines[: most - 1], [(f" and {len(lines) - most + 1} more hosts", "dim")]]
    return lines


def _host(host: HostView, width: int, *, named: bool) -> Line:
    bars = 10 if width >= 120 else 5
    line: Line = [(" " + fit(host.name, 22) + " ", "strong")] if named else [(" ", "")]
    if host.cpu is not None:
        line += [("CPU ", "dim"), *bar(host.cpu, bars, _level(host.cpu)), (f" {percent(host.cpu)}", "")]
        line += [(f" of {host.cores}  ", "dim")]
    if host.load is not None and width >= 120:
        line += [("load ", "dim"), (f"{number(host.load, 3)}  ", "")]
    if host.memory_total and host.memory_available is not None:
        used = host.memory_total - host.memory_available
        line += [("RAM ", "dim"), *bar(used / host.memory_total, bars, _level(used / host.memory_total))]
        line += [(f" {size(used)}/{size(host.memory_total)}  ", "")]
    if host.swap_used:
        line += [("swap ", "dim"), (f"{size(host.swap_used)}  ", "warn")]
    for each in host.filesystems[: 1 if width < 120 else 3]:
        full = 1 - each.available / each.size
        style = "bad" if full > 0.95 else "warn" if full > _FULL else ""
        line += [(f"{each.mountpoint} ", "dim"), (f"{size(each.available)} left  ", style)]
    for disk, busy in host.disks[: 0 if width < 80 else 2 if width < 120 else 4]:
        line += [(f"{disk} ", "dim"), (f"{percent(busy)} busy  ", "warn" if busy > _FULL else "")]
    return line


def _alerts(picture: Picture, width: int, most: int) -> list[Line]:
    lines = []
    for alert in picture.alerts[:most]:
        style = "warn" if alert.state != "firing" else "bad"
        line: Line = [(f" {name(alert.state)} ", style), (name(alert.name), style)]
        line += [(f"  {name(alert.run)}", "strong")] if alert.run else []
        lines.append(crop([*line, (f"  {name(alert.summary)}", "")], width))
    if len(picture.alerts) > most:
        more = f"  +{len(picture.alerts) - most} "
        lines[-1] = [*crop(lines[-1], width - len(more)), (more, "dim")]
    return lines


def _gpus(picture: Picture, gpus: Sequence[GpuView], width: int, most: int) -> list[Line]:
    if not gpus or most < 2:
        return [[(f" {len(gpus)} GPUs", "dim")]] if gpus and most else []
    bars = 5 if width < 100 else 10 if width < 150 else 16
    columns = [
        Column[GpuView](" GPU", 6, lambda gpu, _: [(f" {gpu.gpu}", "strong")]),
        Column[GpuView]("name", 12 if width < 100 else 26, lambda gpu, _: [(gpu.name.removeprefix("NVIDIA "), "")]),
        Column[GpuView]("busy", bars + 5, lambda gpu, _: _busy(gpu, bars)),
        Column[GpuView]("memory", bars + 12, lambda gpu, _: _gpu_memory(gpu, bars)),
        Column[GpuView]("power", 8, lambda gpu, _: [(_power(gpu), "")], right=True),
        Column[GpuView]("temp", 5, lambda gpu, _: _temperature(gpu), right=True),
        Column[GpuView]("slowed", 6 if width < 100 else 12, lambda gpu, _: _throttled(gpu)),
        Column[GpuView]("used by", 0, lambda gpu, _: [(", ".join(gpu.used_by), "accent")]),
    ]  # fmt: skip
    if picture.many_hosts:
        columns.insert(0, Column[GpuView](" host", 18, lambda gpu, _: [(f" {gpu.host}", "")], needs=100))
    head, rows = table(columns, gpus, width)
    if len(rows) + 1 > most:
        rows = [*rows[: most - 2], [(f"  and {len(rows) - most + 2} more GPUs", "dim")]]
    return [head, *rows]


def _busy(gpu: GpuView, bars: int) -> Line:
    return _gauge(gpu.utilization, percent(gpu.utilization), bars, 4, "gpu")


def _gauge(share: float | None, text: str, bars: int, digits: int, style: str) -> Line:
    return [*bar(share, bars, style), (" " + fit(text, digits, right=True), "")]


def _gpu_memory(gpu: GpuView, bars: int) -> Line:
    if gpu.memory_used is None or not gpu.memory_total:
        return [(" " * bars + " " + size(gpu.memory_total), "")]
    share = gpu.memory_used / gpu.memory_total
    style = "warn" if share > 0.95 else "memory"
    used, whole = size(gpu.memory_used), size(gpu.memory_total)
    text = f"{used.removesuffix(whole[-1])}/{whole}"
    return _gauge(share, text, bars, 11, style)


def _power(gpu: GpuView) -> str:
    if gpu.power is None:
        return ""
    return f"{gpu.power:.0f}/{gpu.power_limit:.0f}W" if gpu.power_limit else f"{gpu.power:.0f}W"


def _temperature(gpu: GpuView) -> Line:
    if gpu.temperature is None:
        return []
    style = "bad" if gpu.temperature >= 90 else "warn" if gpu.temperature >= 83 else ""
    return [(f"{gpu.temperature:.0f}°C", style)]


def _throttled(gpu: GpuView) -> Line:
    short = list(dict.fromkeys(_SHORT_REASONS.get(reason, reason) for reason in gpu.throttled_by))
    return [(",".join(short), "warn" if short == ["power"] else "bad")]


def _runs(picture: Picture, runs: Sequence[RunView], chosen: RunView | None, width: int, most: int) -> list[Line]:
    if not runs:
        return (
            [[(" no runs here; start one with: trainvitals run -- python train.py", "dim")]] if picture.machines else []
        )
    if most < 2 or chosen is None:
        return []
    columns = [
        Column[RunView]("", 1, lambda run, _: [(">" if run is chosen else " ", "accent")]),
        Column[RunView]("run", 0, lambda run, _: [(run.name, "dim" if run.ended else "strong")], most=48),
        Column[RunView]("state", 10, lambda run, _: [state(run)]),
        Column[RunView]("time", 6, lambda run, _: [(duration(run.elapsed), "")], right=True, needs=92),
        Column[RunView]("ranks", 5, lambda run, _: [(count(run.world_size), "")], right=True, needs=110),
        Column[RunView]("epoch", 5, lambda run, _: [(count(run.epoch), "")], right=True),
        Column[RunView]("iterations", 10, lambda run, _: [(count(run.iterations), "")], right=True),
        Column[RunView]("it/s", 6, lambda run, _: [(number(run.rate, 3), "")], right=True),
        Column[RunView]("loss", 7, lambda run, _: [value(run.loss)], right=True),
        Column[RunView]("g.norm", 7, lambda run, _: [value(run.norm)], right=True),
        Column[RunView]("memory", 6, lambda run, _: [(size(run.memory), _memory_style(run))], right=True),
        Column[RunView]("anom", 4, lambda run, _: _anomaly_count(run), right=True),
        Column[RunView](" loss", 16, lambda run, wide: trend(run, "loss", wide), needs=130),
        Column[RunView](" gradient norm", 16, lambda run, wide: trend(run, "gradient norm", wide), needs=148),
        Column[RunView](" it/s", 16, lambda run, wide: trend(run, "it/s", wide), needs=166),
        Column[RunView](" memory", 16, lambda run, wide: trend(run, "memory", wide), needs=184),
    ]  # fmt: skip
    if picture.many_hosts:
        columns.insert(1, Column[RunView]("host", 18, lambda run, _: [(run.host, "")], needs=100))
    rows_fit = most - 1
    at = next((place for place, run in enumerate(runs) if run is chosen), 0)
    first = min(max(at - rows_fit // 2, 0), max(len(runs) - rows_fit, 0))
    head, rows = table(columns, runs[first : first + rows_fit], width)
    if len(runs) > len(rows):
        place = f"{first + 1}-{first + len(rows)} of {len(runs)}"
        head = [(plain(head).replace("  run" + " " * (len(place) + 1), f"  run {place}", 1), "head")]
    rows = [[(text, style + " chosen") for text, style in row] if run is chosen else row
            for row, run in zip(rows, runs[first:], strict=False)]  # fmt: skip
    return [head, *rows]


def state(run: RunView) -> tuple[str, str]:
    """A run's state in a word, and its style."""
    if run.silent is not None:
        return f"silent {duration(run.silent)[:3]}".strip(), "warn"
    return _SHORT_STATES.get(run.state, run.state), _STATE_STYLES.get(run.state, "bad")


def value(measured: float | None) -> tuple[str, str]:
    """A loss or norm, and its style: what is not finite is red."""
    return number(measured), "bad" if measured is not None and not math.isfinite(measured) else ""


def trend(run: RunView, what: str, width: int) -> Line:
    """The run's sparkline of that, with a space before it."""
    first, values = run.trends[what]
    return [(" ", ""), *chart(values, first, width - 1, 1, "dim" if run.ended else _SPARK_STYLES[what])[0]]


def _memory_style(run: RunView) -> str:
    return "dim" if run.memory_is_resident else ""


def _anomaly_count(run: RunView) -> Line:
    times = sum(each for _, each in run.anomalies)
    return [(count(times), "warn")] if times else []


def _level(share: float) -> str:
    return "bad" if share > 0.95 else "warn" if share > _FULL else "good"


def _known(measured: float | None) -> float:
    if measured is None:
        return -math.inf
    return math.inf if math.isnan(measured) else measured


def newest(run: RunView, what: str) -> tuple[str, str]:
    """The value that the sparkline of this ends with, and its style."""
    if what == "memory":
        return size(run.memory), ""
    return value({"loss": run.loss, "gradient norm": run.norm, "it/s": run.rate}[what])


def panel_title(run: RunView, width: int) -> Line:
    """A line with the run's name and state."""
    word, style = state(run)
    right: Line = [(word, style)]
    if run.elapsed is not None:
        right.append((f" for {duration(run.elapsed)}", ""))
    if run.checkpoint_age is not None:
        right.append((f", checkpoint {duration(run.checkpoint_age)} ago", ""))
    return rule([(run.name, "strong")], width, right)


def trends(run: RunView, width: int, height: int) -> list[Line]:
    """The run's charts of so many lines each, with their newest values: two abreast where the screen is wide."""
    abreast = 2 if width >= 120 else 1
    charts = [_trend_chart(run, what, width // abreast, height) for what in HISTORIES]
    lines: list[Line] = []
    for place in range(0, len(charts), abreast):
        rows = zip(*charts[place : place + abreast], strict=True)
        lines += [[segment for part in row for segment in part] for row in rows]
    return lines


def _trend_chart(run: RunView, what: str, width: int, height: int) -> list[Line]:
    title = "memory (RAM)" if what == "memory" and run.memory_is_resident else what
    text, style = newest(run, what)
    heads: list[Line] = [[(" " + fit(title, 13) + " ", "dim"), (fit(text, 9, right=True), style)]]
    first, values = run.trends[what]
    known = [each for each in values if each is not None and math.isfinite(each)]
    ends = ("high", max(known), "low", min(known)) if known and height >= 3 else None
    shown = size if what == "memory" else number
    for row in range(1, height):
        title, end = ends[:2] if ends and row == 1 else ends[2:] if ends and row == height - 1 else ("", None)
        heads.append([(" " + fit(title, 13) + " " + fit(shown(end), 9, right=True), "dim")])
    bars = chart(values, first, width - 26, height, "dim" if run.ended else _SPARK_STYLES[what])
    return [[*head, (" ", ""), *bar, (" ", "")] for head, bar in zip(heads, bars, strict=True)]


def _panel(run: RunView, width: int, height: int) -> list[Line]:
    step: Line = [(" " + fit("step", 14), "dim"), *stacked(run.phases, width - 16)]
    found: Line = [(" " + fit("anomalies", 14), "dim")]
    found += [(f"{kind} {count(times)}   ", "warn") for kind, times in run.anomalies] or [("none counted", "dim")]
    return [panel_title(run, width), *trends(run, width, height), crop(step, width), crop(found, width)]
