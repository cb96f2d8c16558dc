"""Draws docs/images/top.svg: `python -m tests.top.draw_picture`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from trainvitals_exporter.top.app import Top

from tests.top import scene

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "top.svg"


async def main() -> None:
    app = Top(scene.picture, 0)
    async with app.run_test(size=(120, 36)):
        PICTURE.write_text(app.export_screenshot(title="trainvitals top"), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
