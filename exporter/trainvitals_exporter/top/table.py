"""Tables of styled text that leave out columns where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trainvitals_exporter.top.text import Line, cells, crop, fit, joined, line_width

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of so many cells. It is there from a screen's width of `needs` on; one of width 0 takes what is left,
    up to `most`.
    """

    title: str
    width: int
    cell: Callable[[T, int], Line]
    right: bool = False
    needs: int = 0
    most: int = 200


def table(columns: Sequence[Column[T]], rows: Sequence[T], width: int) -> tuple[Line, list[Line]]:
    """The line of titles, and a line for each row."""
    shown = [column for column in columns if column.needs <= width]
    left = width - sum(column.width + 1 for column in shown)
    widths = [column.width or max(min(left, column.most), 1) for column in shown]
    head = [(" ".join(fit(c.title, w, right=c.right) for c, w in zip(shown, widths, strict=True)), "head")]
    lines = [_row([(column, each) for column, each in zip(shown, widths, strict=True)], row) for row in rows]
    return crop(head, width), [crop(line, width) for line in lines]


def _row(columns: list[tuple[Column[T], int]], row: T) -> Line:
    line: Line = []
    for column, width in columns:
        cell = crop(column.cell(row, width), width)
        space = (" " * (width - line_width(cell)), "")
        line += [space, *cell, (" ", "")] if column.right else [*cell, space, (" ", "")]
    return joined(line)


def rule(title: Line, width: int, right: Line | None = None) -> Line:
    """A line across the screen with a title in it, and something at its right end."""
    right = right or []
    room = width - line_width(right) - (4 if right else 0)
    title = crop(title, max(room - 4, 0))
    dashes = max(room - line_width(title) - 4, 0)
    line = [("── ", "faint"), *title, (" " + "─" * dashes, "faint")]
    return crop([*line, (" ", ""), *right, (" ──", "faint")] if right else [*line, ("─", "faint")], width)


def flowed(items: Sequence[Line], width: int, gap: str = "   ") -> list[Line]:
    """The items one after the other, in as many lines as they take."""
    lines: list[Line] = []
    for item in items:
        if lines and line_width(lines[-1]) + cells(gap) + line_width(item) <= width:
            lines[-1] = [*lines[-1], (gap, ""), *item]
        else:
            lines.append(crop([(" ", ""), *item], width))
    return lines
