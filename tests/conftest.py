"""What tests of every room need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from trainvitals import rundir, runfile

T = TypeVar("T")
# Begun last, these would leave the other workers with nothing to do for minutes.
LONGEST_FILES = ("test_end_to_end.py", "test_voice_clone.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


def wait_until(condition: Callable[[], T | None], what: str, timeout: float = 60.0) -> T:
    """The first true result of `condition`; fails the test, saying `what` did not come, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.05)


def tool(*names: str) -> str:
    """The path of a program that a test needs, by any of its names.

    Fails the test where it is missing, unless TRAINVITALS_TEST_WITHOUT (names with spaces between) says that it is
    known to be; then the test is named as not run.
    """
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None and names[0] in os.environ.get("TRAINVITALS_TEST_WITHOUT", "").split():
        pytest.skip(f"NOT RUN: {names[0]} is missing")
    if path is None:
        pytest.fail(f"{names[0]} is not on PATH: `make tools` installs it; or see the README on doing without")
    return path


def newer_tool(name: str) -> str:
    """The path of a program that `make newer-tools` fetches, newer than the distribution's; else as `tool` does."""
    folder = Path(__file__).parents[1] / ".venv" / "newer" / "usr" / "bin"
    if "newer-tools" in os.environ.get("TRAINVITALS_TEST_WITHOUT", "").split():
        pytest.skip(f"NOT RUN: {name} of newer-tools is missing")
    path = shutil.which(name, path=str(folder))
    if path is None:
        pytest.fail(f"{name} is not in {folder}: `make newer-tools` fetches it; or see the README on doing without")
    return path


@dataclass
class Launched:
    """A command that ran to its end under ``trainvitals run``, and the run files it left."""

    code: int
    stdout: str
    stderr: str
    files: list[runfile.RunFile]

    @property
    def launcher(self) -> runfile.RunFile:
        (file,) = [f for f in self.files if f.identity.kind == "launcher"]
        return file

    @property
    def ranks(self) -> list[runfile.RunFile]:
        return sorted((f for f in self.files if f.identity.kind == "rank"), key=lambda f: f.rank)

    @property
    def rank(self) -> runfile.RunFile:
        (file,) = self.ranks
        return file

    @property
    def state(self) -> str:
        return state_of(self.launcher)


def state_of(file: runfile.RunFile) -> str:
    """The state that a run file tells."""
    (state,) = [dict(s.labels)["state"] for s in file.samples if s.name == "trainvitals_run_state" and s.value == 1]
    return state


def run_files(directory: Path) -> list[runfile.RunFile]:
    """All readable run files in a folder."""
    return [f for f in rundir.read_all([directory]) if isinstance(f, runfile.RunFile)]


class Launcher:
    """Runs commands under ``trainvitals run``, with a run directory of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "runs"
        # What most tests read is the command's own stderr; test_report.py is about what comes after it.
        self.environment = {**os.environ, rundir.ENVIRONMENT: str(self.run_dir), "TRAINVITALS_QUIET": "1"}

    def script(self, text: str, name: str = "train.py") -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def popen(self, *command: str, options: Sequence[str] = (), **kwargs: object) -> subprocess.Popen[str]:
        """Start a command under ``trainvitals run``."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # the test's own keywords
            [sys.executable, "-m", "trainvitals.cli", "run", *options, "--", *command],
            env=self.environment,
            cwd=self.directory,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **kwargs,
        )

    def run(self, *command: str, options: Sequence[str] = (), stdin: str | None = None) -> Launched:
        """Run a command to its end."""
        with self.popen(*command, options=options, stdin=subprocess.PIPE) as process:
            stdout, stderr = process.communicate(stdin, timeout=240)
        return Launched(process.returncode, stdout, stderr, run_files(self.run_dir))

    def python(self, text: str, *arguments: str) -> Launched:
        """Run a Python script's text to its end, which must be a good one."""
        result = self.run(sys.executable, str(self.script(text)), *arguments)
        assert result.code == 0, result.stderr
        return result


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)
