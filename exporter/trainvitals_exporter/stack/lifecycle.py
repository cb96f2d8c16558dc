"""`trainvitals stack write`, `up`, `down` and `status`. All raise StackError or packaged.NotPackaged."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from trainvitals_exporter.stack import choices, docker, folder, native, status_page
from trainvitals_exporter.stack.errors import WrongUse
from trainvitals_exporter.stack.interrupts import as_interrupt
from trainvitals_exporter.stack.say import say
from trainvitals_exporter.stack.state import DOCKER, NATIVE, State

_SCRAPED_SECONDS: Final = 60.0
_SEEN_SECONDS: Final = 20.0
_LOOK_EVERY: Final = 0.5


def write(where: Path, *, force: bool) -> int:
    """Write the files; returns the exit code."""
    folder.prepare(where)
    with folder.lock(where):
        _write(where, force=force)
    return 0


def up(where: Path, forced: str | None) -> int:
    """Write the files and start what does not run; returns the exit code."""
    as_interrupt()
    folder.prepare(where)
    with folder.lock(where):
        _write(where, force=False)
        chosen, state = choices.read(where), State.read(where)
        for secret in chosen.missing_secrets:
            say("alertmanager", f"nobody will be told: it needs the secret {secret}, which is missing or empty")
        way = _way(where, state, forced)
        (native if way == NATIVE else docker).up(where, chosen, state)
        found = _wait_until_well(where, state)
    sys.stdout.write("\n")
    status_page.show(found, as_json=False)
    return 0 if found.well else 1


def down(where: Path, *, delete_data: bool) -> int:
    """Stop what runs; returns the exit code."""
    if not folder.holds_stack(where):
        say("nothing", f"to stop: {where} holds no stack")
        return 0
    with folder.lock(where):
        state = State.read(where)
        with_docker = state.way == DOCKER or (delete_data and state.volumes)
        if state.way != DOCKER or delete_data:
            native.down(where, state, delete_data=delete_data)
        if with_docker:
            docker.down(where, state, delete_data=delete_data)
    return 0


def status(where: Path, *, as_json: bool) -> int:
    """Tell what runs; returns 0 where all is well, else 1."""
    found = status_page.look(where, State.read(where))
    status_page.show(found, as_json=as_json)
    return 0 if found.well else 1


def _way(where: Path, state: State, forced: str | None) -> str:
    """How to start it: as it runs already, as it was asked for, or with Docker where that answers."""
    running = DOCKER if state.way == DOCKER else NATIVE if any(map(state.alive, choices.PARTS)) else None
    if running and forced not in (None, running):
        raise WrongUse(f"it runs the other way ({running}); stop that first: trainvitals stack down {where}")
    if running or forced == NATIVE:
        return running or NATIVE
    why_not = docker.missing()
    if why_not is None:
        return DOCKER
    if forced == DOCKER:
        raise WrongUse(f"there is no Docker to start it with: {why_not}")
    say("docker", f"{why_not}; starting programs of this machine")
    return NATIVE


def _write(where: Path, *, force: bool) -> None:
    written = folder.write(where, force=force)
    counts = {"new": written.new, "replaced": written.replaced, "removed": written.removed}
    told = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
    say("files", f"{told or 'up to date'} in {where}")
    for name in written.left_alone:
        say("files", f"left alone, since you changed it: {name}")
    for name in written.backups:
        say("files", f"your version is kept as {name}")
    if written.left_alone:
        say("files", f"to take ours, and keep copies of yours: trainvitals stack write --force {where}")


def _wait_until_well(where: Path, state: State) -> status_page.Status:
    """How the stack is once everything works together, or has had the time to."""
    found = status_page.look(where, state)
    if not found.well:
        say("prometheus", "waiting for its first scrapes")
    started = time.monotonic()
    # What was started again is up at the next scrape. What is down after three is so for reasons of its own.
    while not found.well and time.monotonic() - started < (_SEEN_SECONDS if found.settled else _SCRAPED_SECONDS):
        time.sleep(_LOOK_EVERY)
        found = status_page.look(where, state)
    return found
