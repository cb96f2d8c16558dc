"""What /proc and /sys hold on machines that a test can do without: each is one text file in frozen_hosts.

`python -m tests.exporter.frozen_host MACHINE FOLDER` unpacks one, to look at.
"""

from __future__ import annotations

import sys
from pathlib import Path

HOSTS = Path(__file__).with_name("frozen_hosts")


def unpack(machine: str, folder: Path) -> Path:
    """Put the machine's root folder into `folder`, and return that.

    A line is `PATH/`, a folder; `PATH -> TARGET`, a link; `PATH = TEXT`, a file of one line; or `PATH:`, a file of the
    indented lines below. What begins with # is a comment.
    """
    file = folder
    for line in (HOSTS / f"{machine}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            with file.open("a", encoding="utf-8") as text:
                text.write(line[4:] + "\n")
        elif line and not line.startswith("#"):
            file = _make(folder, line)
    return folder


def _make(folder: Path, line: str) -> Path:
    link, arrow, target = line.partition(" -> ")
    name, equals, text = line.partition(" = ")
    path = folder / (link if arrow else name if equals else line.removesuffix(":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrow:
        path.symlink_to(target)
    elif equals:
        path.write_text(text + "\n", encoding="utf-8")
    elif line.endswith("/"):
        path.mkdir(exist_ok=True)
    return path


if __name__ == "__main__":
    unpack(sys.argv[1], Path(sys.argv[2]))
