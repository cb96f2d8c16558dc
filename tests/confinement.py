"""Runs a command as systemd would run a unit's, as far as that can be had without systemd:

    python -m tests.confinement UNIT[:DROP-IN...] USER-ID COMMAND...

That is its user, capabilities, NoNewPrivileges=, SystemCallFilter= and MemoryDenyWriteExecute=. A system call outside
the filter ends the command, where systemd would answer that it is not permitted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

_KILL_PROCESS: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
# linux/prctl.h
_PR_SET_MDWE: Final = 65
_PR_MDWE_REFUSE_EXEC_GAIN: Final = 1


class Unit:
    """The [Service] section of a unit and its drop-ins; a setting may stand there several times."""

    def __init__(self, *files: Path) -> None:
        self._lines = [line for file in files for line in _service_section(file)]

    def all(self, name: str) -> list[str]:
        """Each value of the setting, in order."""
        return [value for key, value in self._lines if key == name]

    def capabilities(self) -> list[str]:
        """The ambient ones, in lower case and without CAP_."""
        return [
            each.lower().removeprefix("cap_") for value in self.all("AmbientCapabilities") for each in value.split()
        ]

    def system_calls(self) -> set[str]:
        """The names of those that may be made."""
        allowed: set[str] = set()
        for value in self.all("SystemCallFilter"):
            names = {name for each in value.lstrip("~").split() for name in _calls(each)}
            allowed = allowed - names if value.startswith("~") else allowed | names
        return allowed | set(_calls("@default"))


def _service_section(file: Path) -> list[tuple[str, str]]:
    section = re.search(r"^\[Service\]\n(.*?)(?=^\[|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    assert section, file
    lines = [line for line in section[1].splitlines() if line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def _calls(group: str) -> list[str]:
    """The system calls of a group such as @system-service, and of those in it."""
    if not group.startswith("@"):
        return [group]
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    entries = [line.strip() for line in listed.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return [name for entry in entries for name in _calls(entry)]


def _filter(allowed: set[str]) -> None:
    """Let this process, and what it becomes, make these system calls only."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_KILL_PROCESS)))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else this machine has no such call
            assert library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), number, 0) == 0, name
    assert library.seccomp_load(context) == 0


def _confine(unit: Unit) -> None:
    if unit.all("MemoryDenyWriteExecute") == ["yes"]:
        done = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
        assert done == 0 or ctypes.get_errno() == errno.EINVAL  # before Linux 6.3
    _filter(unit.system_calls())


def main(files: str, user: str, *command: str) -> None:
    """Become that user with the unit's capabilities, then the command."""
    unit = Unit(*map(Path, files.split(":")))
    if os.geteuid() == int(user):
        _confine(unit)
        _become(list(command))
    held = ",".join(["-all", *(f"+{name}" for name in unit.capabilities())])
    sets = [f"--{kind}={held}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    again = [sys.executable, "-m", "tests.confinement", files, user, *command]
    _become(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *sets, "--no-new-privs", *again])


def _become(command: list[str]) -> NoReturn:
    os.execvp(command[0], command)  # noqa: S606  # what the test wants to run


if __name__ == "__main__":
    main(*sys.argv[1:])
