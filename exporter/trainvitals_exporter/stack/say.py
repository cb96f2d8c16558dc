"""Progress, a line each, the same with and without a terminal."""

from __future__ import annotations

import sys

from trainvitals_exporter.messages import printable


def say(part: str, what: str) -> None:
    """Tell what happens to a part."""
    sys.stdout.write(f"{part:13} {printable(what)}\n")
    sys.stdout.flush()
