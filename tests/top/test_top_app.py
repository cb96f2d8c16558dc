"""Keys and views on a terminal of Textual's, and what they look like.

`pytest tests/top --snapshot-update` draws the pictures anew, `make top-picture` that of the documentation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from trainvitals_exporter.top.app import Canvas, Top
from trainvitals_exporter.top.overview import Picture, SourceView

from tests.top import scene

Sizes = pytest.mark.parametrize("size", [(80, 24), (200, 60)], ids=lambda size: f"{size[0]}x{size[1]}")


def shown(app: Top) -> list[str]:
    """What stands on the screen."""
    canvas = app.query_one(Canvas)
    return ["".join(segment.text for segment in canvas.render_line(y)).rstrip() for y in range(app.size.height)]


def drive(app: Top, script: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (100, 30)) -> None:
    async def play() -> None:
        async with app.run_test(size=size) as pilot:
            await script(pilot)

    asyncio.run(play())


def chosen(app: Top) -> str:
    (line,) = [line for line in shown(app) if line.startswith(">")]
    return line.split()[1]


def test_arrows_choose_enter_tells_more_escape_goes_back() -> None:
    app = Top(scene.picture, 0)

    async def script(pilot: Pilot[None]) -> None:
        assert chosen(app) == "tts-large"
        await pilot.press("down", "j")
        assert chosen(app) == "vocoder-bf16"
        await pilot.press("up", "k", "k")
        assert chosen(app) == "tts-large"
        await pilot.press("end")
        assert chosen(app) == "tts-small"
        await pilot.press("home", "enter")
        assert any("Slurm job 8812" in line for line in shown(app))
        first = shown(app)
        await pilot.press("down", "down")
        assert shown(app)[1:10] == first[3:12]
        await pilot.press("end")
        assert any("loss/g/mel" in line for line in shown(app))
        await pilot.press("escape")
        assert chosen(app) == "tts-large"

    drive(app, script)


def test_s_sorts_and_the_choice_stays() -> None:
    app = Top(scene.picture, 0)

    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("down", "s", "s")
        assert app.choices.sorting == "speed"
        assert chosen(app) == "vits-finetune"
        rows = [line.split()[0] for line in shown(app) if " running " in line]
        assert rows.index("vocoder-bf16") < rows.index("tts-large")

    drive(app, script)


def test_p_holds_the_picture() -> None:
    times = iter(f"00:00:{second:02}" for second in range(60))
    app = Top(lambda: replace(scene.picture(5), clock=next(times)), 0)

    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("p")
        assert "paused" in shown(app)[0]
        assert "00:00:00" in shown(app)[0]
        await pilot.press("p")
        assert "paused" not in shown(app)[0]
        assert "00:00:02" in shown(app)[0]

    drive(app, script)


def test_help_and_quit() -> None:
    app = Top(scene.picture, 0)

    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert any("choose a run" in line for line in shown(app))
        await pilot.press("escape", "q")

    drive(app, script)
    assert app.return_code == 0


def test_a_run_that_is_gone_is_said_so_in_its_details() -> None:
    gone = Picture(sources=(SourceView("host", None, ""),))
    pictures = iter([scene.picture(5), scene.picture(5), gone])
    app = Top(lambda: next(pictures), 0)

    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("enter", "p", "p")
        assert any("no longer served" in line for line in shown(app))

    drive(app, script)


def test_names_are_no_markup() -> None:
    hostile = "[red]x[/red]"
    parts = scene.machine(2)
    run = replace(parts.runs[0], name=hostile, facts=((hostile, hostile),), scalars=((hostile, 1.0),))
    app = Top(lambda: Picture((replace(parts, runs=(run,)),)), 0)

    async def script(pilot: Pilot[None]) -> None:
        assert chosen(app) == hostile
        await pilot.press("enter")
        assert sum(hostile in line for line in shown(app)) >= 3

    drive(app, script, (120, 60))


@Sizes
@pytest.mark.parametrize("press", ["", "enter", "question_mark"], ids=["overview", "details", "help"])
def test_pictures(snap_compare: Any, size: tuple[int, int], press: str) -> None:
    assert snap_compare(Top(scene.picture, 0), press=[press] if press else [], terminal_size=size)


def test_picture_without_colours(snap_compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(Top(scene.picture, 0), terminal_size=(80, 24))


def test_picture_without_utf_8(snap_compare: Any) -> None:
    assert snap_compare(Top(scene.picture, 0, "ascii"), terminal_size=(80, 24))


def test_picture_of_nothing(snap_compare: Any) -> None:
    silent = Picture(sources=(SourceView("gpu-01:10288", 7.2, "Connection refused"),), clock="03:14:15")
    assert snap_compare(Top(lambda: silent, 0), terminal_size=(80, 24))
