"""Lines of styled text: numbers as people read them, bars, sparklines. Nothing here knows a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from trainvitals_exporter.messages import printable

Segment = tuple[str, str]
"""Text and the name of its style; `theme` says what that looks like."""
Line = list[Segment]

SPARKS: Final = "▁▂▃▄▅▆▇█"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_CROSS: Final = "\N{MULTIPLICATION SIGN}"
# What stands for these on a terminal without UTF-8.
_ASCII: Final = str.maketrans(f"{SPARKS[:-1]}▏▎▍▌▋▊▉█·─{_CROSS}…°●○", "_..:-=+|..:::##.-x~ *o")


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_cell(each) for each in text)


def _cell(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The text's beginning that fits into so many columns, with an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    taken, room = "", max(width - 1, 0)
    for each in text:
        room -= _cell(each)
        if room < 0:
            break
        taken += each
    return taken + "…" if width > 0 else ""


def fit(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly so many columns."""
    text = cut(text, width)
    space = " " * (width - cells(text))
    return space + text if right else text + space


def name(text: str) -> str:
    """A label's value, safe to show: what would steer the terminal is spelled out."""
    return printable(unicodedata.normalize("NFC", text))


def line_width(line: Line) -> int:
    """How many columns the line takes."""
    return sum(cells(text) for text, _ in line)


def crop(line: Line, width: int) -> Line:
    """The line in at most so many columns."""
    out: Line = []
    for text, style in line:
        if width <= 0:
            break
        text = cut(text, width)
        out.append((text, style))
        width -= cells(text)
    return out


def plain(line: Line) -> str:
    """The line without its styles."""
    return "".join(text for text, _ in line).rstrip()


def spelled(text: str, encoding: str) -> str:
    """The text, in what this encoding of a terminal can show."""
    if encoding.lower().replace("-", "") == "utf8":
        return text
    width, text = cells(text), text.translate(_ASCII)
    shown = text.encode(encoding, "replace").decode(encoding)
    return shown + " " * (width - len(shown))  # a wide character has become one question mark


def number(value: float | None, digits: int = 4) -> str:
    """A value with so many significant digits; empty for None."""
    if value is None:
        return ""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
        decimals = digits - whole if abs(value) >= 1 else digits
        return f"{value:.{max(decimals, 0)}f}"
    return f"{value:.2e}"


def count(value: float | None) -> str:
    """A number of things, such as 1 234 567; empty for None."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", " ")


def size(value: float | None) -> str:
    """Bytes in binary units, such as 61.2G; empty for None."""
    if value is None or not math.isfinite(value):
        return ""
    units = iter("BKMGTPE")
    unit = next(units)
    while abs(value) >= 1000 and unit != "E":
        value, unit = value / 1024, next(units)
    return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"


def percent(value: float | None) -> str:
    """A share as a percentage; empty for None."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.0f}%"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units; empty for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def bar(share: float | None, width: int, style: str) -> Line:
    """A share as a bar of so many columns; empty columns for None."""
    if share is None or not math.isfinite(share):
        return [(" " * width, "")]
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    filled = "█" * full + (_EIGHTHS[part] if part else "")
    return [(filled, style), ("·" * (width - len(filled)), "faint")]


def stacked(shares: Iterable[tuple[str, float]], width: int) -> Line:
    """Shares that add up to 1 as one bar of so many columns: a part for each name, in the style phase.<name>, with its
    name and percentage where they fit.
    """
    line: Line = []
    total, at = 0.0, 0
    for part, share in shares:
        total += share
        until = min(round(total * width), width)
        room = until - at - 1
        labels = (f"{part} {percent(share)}", part, percent(share), "")
        if room >= 0:
            label = next(each for each in labels if cells(each) <= room)
            line.append(("▏" + fit(label, room), f"phase.{part}"))
            at = until
    return line


def chart(values: Sequence[float | None], first: int, width: int, height: int, style: str) -> list[Line]:
    """The values as bars in so many columns and lines, the newest on the right.

    Where there are more values than columns, some neighbours are one column, their mean. `first` is the number of the
    first value since the beginning: so columns keep their values from one picture to the next. A value that is not
    finite is a red cross, a missing one a gap.
    """
    columns = _columns(values, first, max(width, 1))
    known = [mean for mean in columns if mean is not None and math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    steps = 8 * height - 1
    lines: list[Line] = [[(" " * (width - len(columns)), "")] for _ in range(height)]
    for mean in columns:
        if mean is None or not math.isfinite(mean):
            marks = [(" ", "")] * (height - 1) + [(" ", "") if mean is None else (_CROSS, "bad")]
        else:
            eighths = 1 + (round((mean - low) / (high - low) * steps) if high > low else steps // 2)
            filled = [min(max(eighths - 8 * (height - 1 - row), 0), 8) for row in range(height)]
            marks = [(SPARKS[each - 1], style) if each else (" ", "") for each in filled]
        for line, mark in zip(lines, marks, strict=True):
            line.append(mark)
    return [joined(line) for line in lines]


def _columns(values: Sequence[float | None], first: int, width: int) -> list[float | None]:
    """The means of neighbours, NaN where one is not finite."""
    per_column = max(1, math.ceil((len(values) + 1) / width))
    columns: dict[int, list[float]] = {}
    for place, value in enumerate(values, first):
        column = columns.setdefault(place // per_column, [])
        if value is not None:
            column.append(value if math.isfinite(value) else math.nan)
    return [sum(each) / len(each) if each else None for each in columns.values()][-width:]


def joined(line: Line) -> Line:
    """The line with neighbours of one style made one."""
    out: Line = []
    for text, style in line:
        if out and out[-1][1] == style:
            out[-1] = (out[-1][0] + text, style)
        elif text:
            out.append((text, style))
    return out
