"""A process under ``trainvitals run`` that has imported torch, and forks itself for each script.

What torch imports until its first optimizer step takes three seconds of CPU time; most scripts train for a hundredth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainvitals.runfile import RunFile

from tests.conftest import Launcher, run_files

_SERVER = """
import json, multiprocessing, os, sys
import torch
import torch._dynamo, torch.utils.data

def work(folder):
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [os.path.join(folder, "train.py")]
    exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})

for folder in sys.stdin:
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder.strip(),))
    process.start(); process.join()
    print(json.dumps([process.pid, process.exitcode]), flush=True)
"""


@dataclass
class Result:
    """A script that ran to its end: what it printed, and the run files of its process."""

    code: int
    stdout: str
    stderr: str
    ranks: list[RunFile]

    @property
    def rank(self) -> RunFile:
        (file,) = self.ranks
        return file


class Warm:
    """Runs scripts, each in a fork of its own. Not for what a process does before it imports torch, or as it exits."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._scripts = 0
        self._server = launcher.popen(sys.executable, str(launcher.script(_SERVER, "server.py")), stdin=-1)

    def python(self, text: str) -> Result:
        """Run a script's text to its end, which must be a good one."""
        self._scripts += 1
        folder = self._launcher.directory / f"script-{self._scripts}"
        folder.mkdir()
        (folder / "train.py").write_text(text)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{folder}\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, self._server.communicate()[1]
        pid, code = json.loads(answer)
        ranks = [file for file in run_files(self._launcher.run_dir) if file.pid == pid]
        result = Result(code, (folder / "stdout").read_text(), (folder / "stderr").read_text(), ranks)
        assert code == 0, result.stderr
        return result

    def close(self) -> None:
        """Let the process end."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@contextmanager
def warm(directory: Path, **environment: str) -> Iterator[Warm]:
    """A warm process, with these variables in its environment."""
    launcher = Launcher(directory)
    launcher.environment.update(environment)
    process = Warm(launcher)
    yield process
    process.close()
