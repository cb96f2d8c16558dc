"""The command line: finds the command and hands over. The commands are entry points, listed in pyproject.toml."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from trainvitals import __version__

_GROUP = "trainvitals.commands"


def main(arguments: list[str] | None = None) -> int:
    """Run ``trainvitals COMMAND ...``; returns its exit code, 2 for a usage error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {entry.name: entry for entry in entry_points(group=_GROUP)}
    usage = f"usage: trainvitals {{{','.join(sorted(commands))}}} ...   (trainvitals COMMAND --help tells more)"
    if not arguments:
        sys.stderr.write(usage + "\n")
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "-V", "--version"):
        sys.stdout.write((usage if name in ("-h", "--help") else f"trainvitals {__version__}") + "\n")
        return 0
    if name not in commands:
        sys.stderr.write(f"trainvitals: there is no command {name!r}\n{usage}\n")
        return 2
    try:
        result: int = commands[name].load()(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `trainvitals stack status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 1
    return result


if __name__ == "__main__":
    sys.exit(main())
