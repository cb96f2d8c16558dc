"""The stack as programs of this machine, in the background."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from trainvitals_exporter.stack import choices, processes, programs, questions
from trainvitals_exporter.stack.choices import PARTS, Choices
from trainvitals_exporter.stack.errors import StackError
from trainvitals_exporter.stack.interrupts import uninterrupted
from trainvitals_exporter.stack.processes import Process
from trainvitals_exporter.stack.programs import Program
from trainvitals_exporter.stack.say import say
from trainvitals_exporter.stack.state import NATIVE, State
from trainvitals_exporter.web import Unanswered

FOLDER: Final = "native"
_CHECKERS: Final = {"alertmanager": ["amtool", "check-config"], "prometheus": ["promtool", "check", "config"]}
_READY_SECONDS: Final = 120.0
_RELOAD_SECONDS: Final = 30.0
_RELOAD_AGAIN_SECONDS: Final = 10.0
_LOOK_EVERY: Final = 0.1


def up(folder: Path, chosen: Choices, state: State) -> None:
    """Start what does not run, start again what is to run in another way, reload what has new files.

    Raises StackError or KeyboardInterrupt; all that this call started has ended then, unless all of it was ready.
    """
    state.way = NATIVE
    wanted = programs.configure(folder, folder / FOLDER, chosen)
    for part in PARTS[1:]:
        if part not in [program.name for program in wanted]:
            say(part, f"is not on PATH as {programs.names(part)}; going on without it")
            _end(folder, state, part)
    to_start = [program for program in wanted if not _runs_as_wanted(program, state)]
    for program in to_start:
        _check_configuration(program)
    _need_free_ports(folder, to_start, chosen, state)
    started: list[str] = []
    try:
        for program in to_start:
            started.append(program.name)
            _start(folder, program, chosen, state)
        for program in wanted:
            _wait_until_ready(folder, program, state)
            if program.name in started:
                say(program.name, f"ready at {chosen.addresses[program.name]}")
    except BaseException:
        with uninterrupted():
            for part in reversed(started):
                _end(folder, state, part)
            if not state.processes:
                State(volumes=state.volumes).save(folder)
        raise
    for program in wanted:  # what refuses changed files goes on with the old ones: no reason to stop the others
        if program.name not in started:
            _bring_up_to_date(folder, program, chosen, state)


def down(folder: Path, state: State, *, delete_data: bool) -> None:
    """End all that runs, the last started first. Raises StackError."""
    if not any(map(state.alive, PARTS)):
        say("nothing", f"runs from {folder}")
    for part in reversed(PARTS):
        _end(folder, state, part)
    State(volumes=state.volumes).save(folder)
    if delete_data:
        try:
            shutil.rmtree(folder / FOLDER)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StackError(f"cannot remove {error.filename}: {error.strerror}") from None
        say("data", "deleted")


def log_of(folder: Path, part: str) -> Path:
    """Where the output of a part goes."""
    return folder / FOLDER / "logs" / f"{part}.log"


def _runs_as_wanted(program: Program, state: State) -> bool:
    if not state.alive(program.name) or state.commands.get(program.name) != program.command_digest:
        return False
    return program.reloads or state.configurations.get(program.name) == program.configuration_digest


def _check_configuration(program: Program) -> None:
    """Raises StackError where the program would refuse its configuration, while the one before still runs."""
    tool = _CHECKERS.get(program.name, [])
    files = [flag.partition("=")[2] for flag in program.command if flag.startswith("--config.file=")]
    if not tool or not files or not shutil.which(tool[0]):
        return
    done = subprocess.run([*tool, *files], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        hint = "; some channels need a newer Alertmanager: docs/alerting.md" if program.name == "alertmanager" else ""
        said = (done.stdout + done.stderr).strip()
        raise StackError(f"{program.name} would refuse its configuration, so it was not touched{hint}:\n{said}")


def _need_free_ports(folder: Path, to_start: Sequence[Program], chosen: Choices, state: State) -> None:
    """Raises StackError where somebody else has ports that are needed."""
    ours = {state.addresses[part] for part in state.addresses if state.alive(part)}
    # Those in `ours` are about to be started again.
    wanted = {program.name: chosen.ports[program.name] for program in to_start
              if chosen.addresses[program.name] not in ours}  # fmt: skip
    taken = {name: by for name, port in wanted.items() if (by := processes.holder(port))}
    if taken:
        said = "; ".join(f"{name} cannot have port {wanted[name]}: it is held by {by}" for name, by in taken.items())
        others = " ".join(f"{choices.port_variable(name)}={wanted[name] + 1}" for name in taken)
        raise StackError(
            f"{said}. Stop that (a package's service: sudo systemctl disable --now NAME; another stack: trainvitals "
            f"stack down DIR), or choose other ports, as in {others} trainvitals stack up {folder}"
        )


def _start(folder: Path, program: Program, chosen: Choices, state: State) -> None:
    name = program.name
    if state.alive(name):
        say(name, "is to run in another way: stopping it first")
        _end(folder, state, name, quietly=True)
    state.addresses[name] = chosen.addresses[name]
    state.commands[name], state.configurations[name] = program.command_digest, program.configuration_digest
    with uninterrupted():  # or it would run and nobody knew
        try:
            pid = processes.start(
                program.command, programs.environment_of(program), folder / FOLDER, log_of(folder, name)
            )
        except OSError as error:
            raise StackError(f"cannot start {program.command[0]}: {error.strerror}") from None
        if known := Process.of(pid):
            state.processes[name] = known
        state.save(folder)
    say(name, f"starting (pid {pid})")


def _wait_until_ready(folder: Path, program: Program, state: State) -> None:
    def ready() -> bool:
        if not state.alive(program.name):
            raise StackError(f"{program.name} ended; its last words:\n{_last_words(folder, program.name)}")
        return questions.ready(program.ready)

    deadline = time.monotonic() + _READY_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise StackError(
                f"{program.name} did not answer at {program.ready} within {_READY_SECONDS:.0f} s; its last words:\n"
                f"{_last_words(folder, program.name)}"
            )
        time.sleep(_LOOK_EVERY)


def _bring_up_to_date(folder: Path, program: Program, chosen: Choices, state: State) -> None:
    """Have a running program take its changed files. Raises StackError where it refuses them."""
    name, digest = program.name, program.configuration_digest
    if state.configurations.get(name) == digest:
        say(name, f"runs already at {state.addresses[name]}")
        return
    reload(name, chosen.addresses[name], lambda: _hang_up(state, name), lambda: _last_words(folder, name))
    state.configurations[name] = digest
    state.save(folder)


def reload(part: str, address: str, hang_up: Callable[[], object], last_words: Callable[[], str]) -> None:
    """Send SIGHUP and see whether the part took its changed files; it goes on with the old ones if not.

    Raises StackError.
    """
    try:
        was_good, last_good = questions.last_reload(part, address)
        hang_up()
        # A failure after a failure does not show; it is taken for one when no success comes.
        deadline = time.monotonic() + (_RELOAD_SECONDS if was_good else _RELOAD_AGAIN_SECONDS)
        is_good, good = was_good, last_good
        while (is_good, good) == (was_good, last_good) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
            is_good, good = questions.last_reload(part, address)
    except Unanswered as error:
        raise StackError(f"{part} does not answer at {address}: {error}") from None
    if not is_good or (is_good, good) == (was_good, last_good):
        raise StackError(
            f"{part} goes on with its old files, it refuses the changed ones; its last words:\n{last_words()}"
        )
    say(part, "has reloaded what changed")


def _hang_up(state: State, part: str) -> None:
    if process := state.alive(part):
        os.kill(process.pid, signal.SIGHUP)


def _end(folder: Path, state: State, part: str, *, quietly: bool = False) -> None:
    process = state.alive(part)
    if process:
        killed = processes.stop(process)
        if not quietly:
            say(part, "killed, since it did not end by itself" if killed else "stopped")
    if part in state.commands:
        state.forget(part)
        state.save(folder)


def _last_words(folder: Path, part: str) -> str:
    log = log_of(folder, part)
    return f"{processes.last_words(log)}\n    (all of it: {log})"
