"""Do run files go where the exporter looks for them?"""

from __future__ import annotations

import os
import pwd
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
from trainvitals import rundir, runfile

from trainvitals_exporter.configuration import VARIABLE_PREFIX
from trainvitals_exporter.doctor.findings import OK, Finding, Where, not_checked, ok, problem, warning

_SCARCE_BYTES: Final = 16 << 20  # room for a hundred ranks
_MANY_FILES: Final = 5000
_NAME: Final = "run directory"
_READS: Final = "exporter reads it"


def check(where: Where) -> Iterator[Finding]:
    """The folder itself, and what is in it."""
    folder = where.run_dir
    files = list(rundir.read_all([folder]))
    bad = [file for file in files if isinstance(file, runfile.InvalidRunFile)]
    untrusted = [str(error).partition(": ")[2] for error in bad if error.reason == "untrusted_folder"]
    if untrusted:
        yield problem(_NAME, untrusted[0], "until that is mended no run starts with it, and no exporter reads it")
        return
    if not folder.exists():
        yield from _missing(folder)
        return
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        yield warning(
            _NAME, f"{folder} belongs to {_user(owner)}, not to {_user(os.geteuid())}",
            f"look as {_user(owner)}, or set {rundir.ENVIRONMENT} to a folder of your own",
        )  # fmt: skip
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield problem(_NAME, f"{folder} cannot be written to by its owner", f"chmod u+rwx {folder}")
        return
    else:
        yield ok(_NAME, f"{folder}: {_contents(files)}")
    yield from _room(folder)
    yield from _rejected(bad)
    yield _seen_by_the_exporter(folder, owner, where.exporter)


def _missing(folder: Path) -> Iterator[Finding]:
    above = next(parent for parent in folder.parents if parent.exists())
    if os.access(above, os.W_OK | os.X_OK):
        yield ok(_NAME, f"{folder} is not there yet; the first run makes it")
    else:
        yield problem(
            _NAME, f"{folder} is not there, and {above} cannot be written to",
            f"set {rundir.ENVIRONMENT} to a folder that you can write to",
        )  # fmt: skip


def _contents(files: list[runfile.RunFile | runfile.InvalidRunFile]) -> str:
    good = [file for file in files if isinstance(file, runfile.RunFile)]
    living = {file.identity.run_id for file in good if file.alive_pid is not None}
    ended = {file.identity.run_id for file in good} - living
    return f"{len(living)} live and {len(ended)} ended runs"


def _room(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    if free < _SCARCE_BYTES:
        yield problem(
            "room", f"{free >> 20} MiB are left in {folder}", "make room there; a rank that finds none goes unrecorded"
        )  # fmt: skip
    inside = sum(1 for _ in folder.iterdir())
    if inside > _MANY_FILES:
        yield warning(
            "room", f"{folder} holds {inside} files",
            "the next run removes those that are a day old; delete what is no run's",
        )  # fmt: skip


def _rejected(bad: list[runfile.InvalidRunFile]) -> Iterator[Finding]:
    if bad:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(Counter(e.reason for e in bad).items()))
        yield warning(
            "run files", f"no exporter takes {len(bad)} of the files there ({reasons}): {bad[0]}",
            "delete them, or update trainvitals if they are of a newer version",
        )  # fmt: skip


def _seen_by_the_exporter(folder: Path, owner: int, url: str) -> Finding:
    """By the exporter's process, where it shows itself on this machine. Of several, one that reads it is enough."""
    judged = [_seen_by(process, folder, owner) for process in _exporters(urlsplit(url).port)]
    none = not_checked(_READS, "no exporter's process is seen from here (another machine, a container, or none at all)")
    return min(judged, key=lambda finding: finding.verdict != OK, default=none)


def _seen_by(process: psutil.Process, folder: Path, owner: int) -> Finding:
    name = f"the exporter (pid {process.pid})"
    try:
        user, arguments, variables = process.uids().effective, process.cmdline(), process.environ()
    except psutil.Error:
        return not_checked(_READS, f"{name} belongs to another user; root would see more")
    if user not in (0, owner):
        return problem(
            _READS, f"{name} runs as {_user(user)}, and the run directory is of {_user(owner)}",
            f"run the exporter as root (it then sees the runs of all users) or as {_user(owner)}",
        )  # fmt: skip
    root = Path(f"/proc/{process.pid}/root") / _rootfs(arguments, variables).relative_to("/")
    if not _same_folder(root / folder.relative_to("/"), folder):
        return problem(
            _READS, f"{name} is in a container that does not see {folder}",
            f"mount it there: docker run --volume {folder}:{folder}:ro, and --pid=host for its processes",
        )  # fmt: skip
    if folder not in _looks_at(arguments, variables):
        return problem(
            _READS, f"{name} does not look at {folder}",
            f"start it with --run-dir {folder}, or with {rundir.ENVIRONMENT} as it is here",
        )  # fmt: skip
    return ok(_READS, f"{name} looks at {folder}")


def _exporters(port: int | None) -> list[psutil.Process]:
    """Those on this machine; only the one that listens on the port, if that can be told."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "trainvitals_exporter" in arguments[:4] or _is_command(arguments[:5]):
            found.append(process)
    return [process for process in found if port in _ports(process)] or found


def _is_command(arguments: list[str]) -> bool:
    """Whether these are the first words of `trainvitals exporter`, by whichever interpreter."""
    names = ("trainvitals", "trainvitals.cli")
    return any(Path(first).name in names and second == "exporter" for first, second in pairwise(arguments))


def _ports(process: psutil.Process) -> set[int]:
    """Where it listens, as far as this user may know."""
    try:
        connections = getattr(process, "net_connections", None) or process.connections  # before psutil 6
        return {each.laddr.port for each in connections("tcp") if each.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


def _rootfs(arguments: list[str], variables: dict[str, str]) -> Path:
    """Where the exporter has the host's root folder."""
    chosen = _given(arguments, "--rootfs") or [variables.get(f"{VARIABLE_PREFIX}ROOTFS", "")]
    path = Path(chosen[-1] or "/")
    return path if path.is_absolute() else Path("/")


def _same_folder(seen: Path, folder: Path) -> bool:
    try:
        return seen.samefile(folder)
    except PermissionError:
        return True  # of its own user or root's to see; the other checks tell more
    except OSError:
        return False


def _looks_at(arguments: list[str], variables: dict[str, str]) -> set[Path]:
    """The folders that an exporter with these arguments and variables reads."""
    chosen = _given(arguments, "--run-dir")
    chosen = chosen or [name for name in variables.get(f"{VARIABLE_PREFIX}RUN_DIR", "").split(os.pathsep) if name]
    if chosen:
        return {Path(name) for name in chosen}
    own = variables.get(rundir.ENVIRONMENT)
    everyone = {path for path in rundir.everyone() if str(path) != os.environ.get(rundir.ENVIRONMENT)}
    return everyone | ({Path(own)} if own else set())


def _given(arguments: list[str], option: str) -> list[str]:
    """What a command line gives for an option, in either spelling."""
    values = [after for flag, after in pairwise(arguments) if flag == option]
    return values + [each.partition("=")[2] for each in arguments if each.startswith(f"{option}=")]


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
