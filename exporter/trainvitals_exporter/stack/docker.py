"""The stack as containers, through `docker compose` and the compose.yaml in the stack's folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainvitals_exporter.messages import printable
from trainvitals_exporter.stack import native
from trainvitals_exporter.stack.choices import Choices
from trainvitals_exporter.stack.errors import StackError
from trainvitals_exporter.stack.interrupts import uninterrupted
from trainvitals_exporter.stack.say import say
from trainvitals_exporter.stack.state import DOCKER, State

_ENGINE_SECONDS: Final = 30
_COMPOSE: Final = ("docker", "compose")
# What compose mounts into the containers, by part; a changed file is to be taken by the running one.
_MOUNTED: Final = {
    "prometheus": "prometheus",
    "alertmanager": "prometheus/alertmanager",
    "grafana": "grafana/provisioning",
}


def missing() -> str | None:
    """Why there is no Docker to start the stack with; None where there is one."""
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    for command in (("docker", "info"), (*_COMPOSE, "version")):
        try:
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ENGINE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"`{' '.join(command)}` does not answer"
        except OSError as error:
            return f"docker cannot be started: {error.strerror}"
        if asked.returncode != 0:
            said = asked.stderr.strip().splitlines() or ["without saying why"]
            return f"`{' '.join(command)}` fails: {printable(said[-1])}"
    return None


def up(folder: Path, chosen: Choices, state: State) -> None:
    """Build, start and wait until all parts are healthy; compose leaves alone what runs as it should.

    Raises StackError or KeyboardInterrupt; what ran in no way before does not run then.
    """
    _refuse_another(folder)
    fresh = state.way is None
    state.way, state.addresses, state.volumes = DOCKER, dict(chosen.addresses), True
    state.save(folder)
    say("docker", "docker compose up --build --detach --wait --remove-orphans")
    try:
        _start(folder)
        _bring_up_to_date(folder, chosen, state)
    except BaseException:
        if fresh:
            with uninterrupted():
                down(folder, state, delete_data=False)
        raise
    for part, address in chosen.addresses.items():
        say(part, f"ready at {address}")


def _refuse_another(folder: Path) -> None:
    """Compose tells stacks apart by the name of their folder alone, and that is the same for all users.

    Raises StackError where a stack of another folder has the name.
    """
    name = re.sub(r"[^a-z0-9_-]", "", (os.environ.get("COMPOSE_PROJECT_NAME") or folder.name).lower())
    command = [*_COMPOSE, "ls", "--all", "--format", "json"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        stacks = [(each["Name"], each["ConfigFiles"].split(",")) for each in json.loads(said.stdout)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # an older compose
    for other, files in stacks:
        if other == name and folder.resolve() not in [Path(file).resolve().parent for file in files]:
            raise StackError(
                f"Docker has another stack of the name {name}, from {printable(', '.join(files))}; give a folder of "
                "another name to trainvitals stack up, or set COMPOSE_PROJECT_NAME"
            )


def _start(folder: Path) -> None:
    # Compose tells its progress itself.
    if _run(folder, ["up", "--build", "--detach", "--wait", "--remove-orphans"]) != 0:
        raise StackError(f"docker compose could not start the stack; what the containers say:\n{_last_words(folder)}")


def down(folder: Path, state: State, *, delete_data: bool) -> None:
    """Remove the containers and, if asked for, the volumes. Raises StackError."""
    if _run(folder, ["down", "--remove-orphans", *(["--volumes"] if delete_data else [])]) != 0:
        raise StackError("docker compose could not stop the stack; see what it says above")
    state.volumes = state.volumes and not delete_data
    State(volumes=state.volumes).save(folder)


def _bring_up_to_date(folder: Path, chosen: Choices, state: State) -> None:
    """Have containers take changed files: compose looks at its own file only."""
    for part, mounted in _MOUNTED.items():
        digest = _digest(chosen.alertmanager_folder if part == "alertmanager" else folder / mounted)
        if state.configurations.get(part, digest) != digest:
            _take_changes(folder, part, chosen.addresses[part])
        state.configurations[part] = digest
        state.save(folder)


def _take_changes(folder: Path, part: str, address: str) -> None:
    if part == "grafana":
        _run(folder, ["restart", part])
    else:
        hang_up = ["kill", "--signal", "SIGHUP", part]
        native.reload(part, address, lambda: _run(folder, hang_up), lambda: _last_words(folder))


def _last_words(folder: Path) -> str:
    said = subprocess.run(
        [*_COMPOSE, "logs", "--no-color", "--tail", "8"], cwd=folder, capture_output=True, text=True, check=False
    )
    return "\n".join(f"    {printable(line)[:400]}" for line in said.stdout.splitlines()) or "    (nothing)"


def _run(folder: Path, arguments: Sequence[str]) -> int:
    try:
        return subprocess.run([*_COMPOSE, *arguments], cwd=folder, check=False).returncode
    except OSError as error:
        raise StackError(f"docker cannot be started: {error.strerror}") from None


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(repr([(str(path), path.read_bytes()) for path in files]).encode()).hexdigest()
