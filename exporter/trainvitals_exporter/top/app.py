"""The terminal: keys, and the lines of the views drawn with Textual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widget import Widget

from trainvitals_exporter.top.details import details, footer, help_lines, position
from trainvitals_exporter.top.overview import SORTINGS, Choices, Picture, header, overview
from trainvitals_exporter.top.text import Line, spelled

BACKGROUND: Final = "#11151c"
_PHASE_COLOURS: Final = {
    "data_wait": "#e0af68", "transfer": "#bb9af7", "forward": "#7aa2f7", "backward": "#7dcfff", "optimizer": "#9ece6a",
    "checkpoint": "#ff9e64", "other": "#6b7594",
}  # fmt: skip
THEME: Final = {
    "": "#c6cede", "dim": "#8791a8", "faint": "#3d4558", "strong": "bold #eef2fa", "title": "bold #7dcfff",
    "head": "bold #8791a8", "good": "#9ece6a", "warn": "bold #e0af68", "bad": "bold #f7768e", "accent": "#7aa2f7",
    "key": "bold #7dcfff", "gpu": "#9ece6a", "memory": "#7aa2f7", "loss": "#e0af68", "norm": "#bb9af7",
    "speed": "#9ece6a",
    **{f"phase.{phase}": f"#11151c on {colour}" for phase, colour in _PHASE_COLOURS.items()},
    **{f"bar.{phase}": colour for phase, colour in _PHASE_COLOURS.items()},
}  # fmt: skip
_GROUND: Final = Style.parse(f"on {BACKGROUND}")
_CHOSEN: Final = Style.parse("on #242c3d")


class Canvas(Widget):
    """Shows lines of styled text, as many as there is room for."""

    DEFAULT_CSS = "Canvas { width: 100%; height: 100%; }"

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding
        self._strips: list[Strip] = []
        self._styles = {name: _GROUND + Style.parse(style) for name, style in THEME.items()}

    def show(self, lines: list[Line]) -> None:
        """Show these lines instead."""
        strips = [Strip([self._segment(*each) for each in line]) for line in lines]
        if strips != self._strips:
            self._strips = strips
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line, for Textual."""
        strip = self._strips[y] if y < len(self._strips) else Strip([])
        return strip.adjust_cell_length(self.size.width, _GROUND)

    def _segment(self, text: str, style: str) -> Segment:
        base = style.removesuffix(" chosen").strip()
        look = self._styles.get(base, self._styles["phase.other" if base.startswith("phase.") else ""])
        return Segment(spelled(text, self._encoding), look + _CHOSEN if style.endswith("chosen") else look)


class Top(App[None]):
    """The views and their keys. `picture` gives what to draw; it is asked every `interval` seconds, once if 0."""

    CSS = f"Screen {{ background: {BACKGROUND}; overflow: hidden; }}"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", priority=True),
        Binding("down,j", "move(1)"), Binding("up,k", "move(-1)"),
        Binding("pagedown,space", "page(1)"), Binding("pageup", "page(-1)"),
        Binding("home,g", "edge(-1)"), Binding("end,G", "edge(1)"),
        Binding("enter", "details"), Binding("escape,backspace", "overview"),
        Binding("s", "sort"), Binding("p", "pause"), Binding("question_mark,h", "help"),
    ]  # fmt: skip

    def __init__(self, picture: Callable[[], Picture], interval: float, encoding: str = "utf-8") -> None:
        super().__init__()
        self._take, self._interval = picture, interval
        self._canvas = Canvas(encoding)
        self._picture = Picture()
        self.choices = Choices()
        self.view = "overview"
        self._offset = 0

    def compose(self) -> ComposeResult:
        """The only widget."""
        yield self._canvas

    def on_mount(self) -> None:
        """Begin."""
        self._tick()
        if self._interval:
            self.set_interval(self._interval, self._tick)

    def on_resize(self) -> None:
        """Draw anew."""
        self._draw()

    def action_move(self, by: int) -> None:
        """Choose the next or previous run; scroll, in the other views."""
        runs = self._picture.runs(self.choices.sorting)
        if self.view != "overview":
            self._scroll(by)
        elif runs:
            places = [place for place, run in enumerate(runs) if run.key == self.choices.selected]
            at = min(max((places[0] if places else 0) + by, 0), len(runs) - 1)
            self.choices = replace(self.choices, selected=runs[at].key)
        self._draw()

    def action_page(self, direction: int) -> None:
        """The same by a screen."""
        self.action_move(direction * max(self.size.height // 2, 1))

    def action_edge(self, direction: int) -> None:
        """The same to the end."""
        self.action_move(direction * 1_000_000)

    def action_details(self) -> None:
        """All about the chosen run."""
        runs = self._picture.runs(self.choices.sorting)
        if self.view == "overview" and runs:
            if self.choices.selected not in [run.key for run in runs]:
                self.choices = replace(self.choices, selected=runs[0].key)
            self._go("details")

    def action_overview(self) -> None:
        """The main view."""
        self._go("overview")

    def action_help(self) -> None:
        """The keys; from there, back."""
        self._go("overview" if self.view == "help" else "help")

    def action_sort(self) -> None:
        """The next order of runs."""
        names = list(SORTINGS)
        self.choices = replace(self.choices, sorting=names[(names.index(self.choices.sorting) + 1) % len(names)])
        self._draw()

    def action_pause(self) -> None:
        """Hold the picture, or let it go on."""
        self.choices = replace(self.choices, paused=not self.choices.paused)
        self._tick()

    def _go(self, view: str) -> None:
        self.view, self._offset = view, 0
        self._draw()

    def _scroll(self, by: int) -> None:
        self._offset += by  # _draw keeps it within the lines

    def _tick(self) -> None:
        picture = self._take()  # also while paused, so that no trend has a gap
        if not self.choices.paused:
            self._picture = picture
        self._draw()

    def _draw(self) -> None:
        width, height = self.size
        last = footer(width, sorting=self.choices.sorting)
        if self.view == "overview":
            self._canvas.show([*overview(self._picture, self.choices, width, height - 1), last])
            return
        lines = self._lines(width)
        room = max(height - 2, 1)
        self._offset = min(max(self._offset, 0), max(len(lines) - room, 0))
        seen = lines[self._offset : self._offset + room]
        last = [*last, ("  " + position(len(lines), self._offset, room), "dim")]
        blank: list[Line] = [[]] * (room - len(seen))
        self._canvas.show([header(self._picture, self.choices, width), *seen, *blank, last])

    def _lines(self, width: int) -> list[Line]:
        if self.view == "help":
            return help_lines(width)
        run = next((run for run in self._picture.runs("name") if run.key == self.choices.selected), None)
        return details(run, width) if run else [[(" this run is no longer served; Esc goes back", "warn")]]
