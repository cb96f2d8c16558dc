"""What ``trainvitals run`` says when its command has ended: one screen on stderr, and the same as JSON.

The command has ended by then, and nothing here may change how that looks to the caller: whatever fails is one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainvitals import rundir, session
from trainvitals.endings import End
from trainvitals.report_advice import Advice, advice
from trainvitals.report_facts import Facts, Ranks, gather
from trainvitals.report_text import WIDEST, render
from trainvitals.runfile import RunFile

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

QUIET: Final = "TRAINVITALS_QUIET"
# So much a pipe takes at once or not at all (PIPE_BUF on Linux). A report is smaller.
_AT_ONCE: Final = 4096
_PATIENCE_SECONDS: Final = 2.0
# What launchers that start one process a rank tell each of them: its number on this machine.
_LOCAL_RANKS: Final = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")


@dataclass(frozen=True)
class Output:
    """Where the report goes: to stderr unless `quiet`, and as JSON to `file`, None for one beside the run files."""

    quiet: bool = False
    file: Path | None = None


def usable_file(text: str) -> Path:
    """The file that the JSON report is to be written to. Raises ValueError: when the run has ended it is too late."""
    path = Path(text).absolute()
    try:
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}")
        if not _may_replace(path):
            raise ValueError(f"{path} is no regular file, and would be replaced by one")
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {path.parent}")
    return path


def write(
    output: Output,
    run: session.Run,
    files: Sequence[RunFile],
    end: End,
    *,
    exit_code: int,
    started: float,
    seconds: float,
) -> None:
    """Report a run that has ended after `seconds`, from its run files; never raises.

    Without a process that trained there is nothing to say, and only a file that was asked for is written.
    """
    try:
        ranks = Ranks(files)
        if not ranks.files and output.file is None:
            return
        facts = gather(
            ranks, run_id=run.run_id, run=run.name, labels=run.options.labels, end=end, exit_code=exit_code,
            started=started, seconds=seconds, host_bytes=_largest_process(),
        )  # fmt: skip
        found = advice(facts, ranks)
        written = _write_json(_json_path(output, run, ranks), facts, found)
        if ranks.files and not output.quiet and _first_here():
            say(_text(facts, found, _details(written, ranks)))
    except Exception as error:
        say(f"\ntrainvitals: no report of this run: {error!r}\n")


def _text(facts: Facts, found: Sequence[Advice], details: Sequence[str]) -> str:
    """Begins on a line of its own: a progress bar leaves the cursor in the middle of one."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = WIDEST
    if terminal:
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns or WIDEST
    return "\n" + render(facts, found, details, width=width, colour=colour)


def _details(written: Path | None, ranks: Ranks) -> list[str]:
    """Where to look further. A line of its own for what only this run has."""
    details = ['the dashboard "Training run", or `trainvitals top`' + (f"; as JSON: {written}" if written else "")]
    for what, suffix in (("anomalies", rundir.LOG_SUFFIX), ("out of memory", rundir.OUT_OF_MEMORY_SUFFIXES[0])):
        paths = [path for file in ranks.files if (path := file.path.with_suffix(suffix)).exists()]
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            details.append(f"{what}: {paths[0]}{more}")
    return details


def _first_here() -> bool:
    """Whether this is the only one of its kind on the machine: torchrun may start one of us for each rank."""
    return all(os.environ.get(name, "0") == "0" for name in _LOCAL_RANKS)


def _largest_process() -> int | None:
    """The most memory that any process of the command had resident, in bytes, as the kernel kept count."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) or None


def _json_path(output: Output, run: session.Run, ranks: Ranks) -> Path:
    """The file that was asked for has a name of its own on each machine: their disk may be the same."""
    if output.file is None or not _first_here():
        return run.directory / f"{run.run_id}{rundir.REPORT_SUFFIX}"
    lowest = min(ranks.by_rank, default=0)
    return output.file.with_stem(f"{output.file.stem}.rank{lowest}") if lowest else output.file


def _write_json(path: Path, facts: Facts, found: Sequence[Advice]) -> Path | None:
    """Write the JSON report; a failure is told in one line. Returns its path."""
    document: dict[str, Any] = facts.document()
    document["advice"] = [{"alert": each.alert, "text": each.text} for each in found]
    try:
        _replace(path, json.dumps(document, indent=2, ensure_ascii=False).encode(errors="replace") + b"\n")
    except OSError as error:
        say(f"\ntrainvitals: cannot write {path}: {error.strerror or error}\n")
        return None
    return path


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place, whole or not at all, for its owner alone. A link there is replaced, not followed."""
    if not _may_replace(path):
        raise FileExistsError(0, "no regular file, and would be replaced by one")
    made = path.with_name(f".{path.name}.{os.getpid()}")
    made.unlink(missing_ok=True)
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _may_replace(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def say(text: str) -> None:
    """To stderr, if there is one. Who does not read it (a pager, a stopped terminal) is not waited for."""
    with contextlib.suppress(Exception):
        if sys.stderr is None:  # closed; its number may be that of a run file
            return
        number = sys.stderr.fileno()
        content = text.encode(sys.stderr.encoding or "ascii", "replace")
        for start in range(0, len(content), _AT_ONCE):
            if os.name == "posix" and not select.select([], [number], [], _PATIENCE_SECONDS)[1]:
                return
            os.write(number, content[start : start + _AT_ONCE])
