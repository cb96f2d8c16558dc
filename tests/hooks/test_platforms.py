"""macOS and Windows, simulated: see tests/hooks/platforms.py on what is, and what is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher, run_files, state_of, wait_until

# A minute in all, for code that changes rarely and systems that few train on.
pytestmark = pytest.mark.slow

PYTHON = sys.executable
SYSTEMS = ["darwin", "win32"]
PRELUDE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
TRAIN = (
    PRELUDE
    + """
import json, os, tempfile, time
from pathlib import Path
import workout
if "forever" in sys.argv:
    print("begins", flush=True)
    while True: workout.train(Path(tempfile.mkdtemp()))
print(json.dumps([sys.platform, workout.train(Path(tempfile.mkdtemp()))]))
"""
)


def python(launcher: Launcher, script: str) -> list[object]:
    command = [PYTHON, str(launcher.script(PRELUDE + script))]
    ended = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "trainvitals" not in ended.stderr
    result: list[object] = json.loads(ended.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("system", SYSTEMS)
def test_attach_trains_and_records_as_ever(launcher: Launcher, system: str) -> None:
    same, alive, dead, nowhere, later = python(launcher, f"system = {system!r}" + """
import json, os, signal, tempfile
from pathlib import Path
import platforms, workout
folder = Path(tempfile.mkdtemp())
bare = workout.train(folder)
user = os.stat(folder).st_uid
platforms.become(system)
import trainvitals
trainvitals.attach("elsewhere")
same = workout.train(folder) == bare
from trainvitals import rundir, runfile
(path,) = rundir.own().glob("*.vitals")
trainvitals.detach()
dead = runfile.read(path, user)
try: open("/proc/self/maps"); nowhere = False
except FileNotFoundError: nowhere = True
trainvitals.attach("elsewhere"); trainvitals.detach()
del os.environ["TRAINVITALS_RUN_DIR"]
print(json.dumps([same, dead.value("trainvitals_iterations_total"), dead.alive_pid, nowhere, str(rundir.own())]))
""")  # fmt: skip
    assert (same, alive, nowhere) == (True, 20, True)
    # A reader on Windows sees no locks, and so does not know.
    assert dead == (0 if system == "win32" else None)
    assert Path(str(later)).parent in (Path("/tmp"), Path("/var/tmp"))  # noqa: S108
    assert str(later).partition("trainvitals")[1]
    (file,) = run_files(launcher.run_dir)
    assert (file.identity.run, state_of(file)) == ("elsewhere", "finished")
    assert file.value("trainvitals_gradient_norm", optimizer="0") is not None
    assert not [s for s in file.samples if s.name == "trainvitals_hook_errors_total"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> object:
    """What the training makes without trainvitals, on the system that this is."""
    script = tmp_path_factory.mktemp("bare") / "train.py"
    script.write_text(TRAIN)
    ended = subprocess.run([PYTHON, script], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)[1]


def simulated(launcher: Launcher, system: str, *command: str) -> subprocess.Popen[str]:
    """A command under ``trainvitals run``, both of them on that system."""
    other = launcher.directory / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(
        PRELUDE + f"import os\nif 'TRAINVITALS_RUN_ID' in os.environ:\n"
        f"    import platforms; platforms.become_after_torch({system!r})\n"
    )
    launcher.environment["PYTHONPATH"] = str(other)
    code = f"{PRELUDE}import platforms; platforms.become({system!r})\nfrom trainvitals import launcher"
    code += "\nsys.exit(launcher.command(sys.argv[1:]))"
    return subprocess.Popen(
        [PYTHON, "-c", code, "--", *command],
        env=launcher.environment, cwd=launcher.directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_run_starts_a_training_and_tells_how_it_ended(launcher: Launcher, system: str, bare: object) -> None:
    process = simulated(launcher, system, PYTHON, str(launcher.script(TRAIN)))
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(stdout) == [system, bare]
    states = {file.identity.kind: state_of(file) for file in run_files(launcher.run_dir)}
    assert states == {"launcher": "finished", "rank": "finished"}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (7, "failed")])
def test_exit_codes(launcher: Launcher, system: str, code: int, state: str) -> None:
    process = simulated(launcher, system, PYTHON, "-c", f"import sys; sys.exit({code})")
    process.communicate(timeout=60)
    assert process.returncode == code
    (file,) = run_files(launcher.run_dir)
    assert (state_of(file), file.value("trainvitals_run_exit_code")) == (state, code)


def test_signals_reach_the_command_on_macos(launcher: Launcher) -> None:
    process = simulated(launcher, "darwin", PYTHON, str(launcher.script(TRAIN)), "forever")
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    wait_until(lambda: [f for f in run_files(launcher.run_dir) if f.identity.kind == "rank"], "training")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert {f.identity.kind: state_of(f) for f in run_files(launcher.run_dir)} == {
        "launcher": "killed",
        "rank": "running",
    }


def test_locks_tell_on_macos_who_lives(launcher: Launcher) -> None:
    """The reader asks for the lock itself, where the system's own structures are not known."""
    process = launcher.popen(PYTHON, str(launcher.script(TRAIN)), "forever")

    def seen() -> list[int | None]:
        if not any(file.identity.kind == "rank" for file in run_files(launcher.run_dir)):
            return []
        result = python(launcher, "import platforms; platforms.become('darwin')\n"
            "import json; from trainvitals import rundir\n"
            "print(json.dumps([f.alive_pid for f in rundir.read_all([rundir.own()])]))")  # fmt: skip
        return result  # type: ignore[return-value]

    alive = wait_until(seen, "training")
    by_locks = [file.alive_pid for file in run_files(launcher.run_dir)]
    process.terminate()
    process.communicate(timeout=60)
    assert alive == by_locks
    assert None not in alive
    assert seen() == [None, None]


def test_ctrl_c_on_windows(launcher: Launcher) -> None:
    """A console sends it to the command, too, which ends by a status that no exit() there takes as it is."""
    status = 0xC000013A  # STATUS_CONTROL_C_EXIT
    code = f"""
{PRELUDE}
import os, signal, subprocess, platforms; platforms.become("win32")
def wait(self, timeout=None):
    if self.returncode is None: signal.raise_signal(signal.SIGINT); os.waitpid(self.pid, 0); self.returncode = {status}
    return self.returncode
subprocess.Popen.wait = wait
from trainvitals import launcher
print(launcher.command(["--", "true"]))
"""
    command = [PYTHON, "-c", code]
    ended = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{status - 2**32}\n"
    (file,) = run_files(launcher.run_dir)
    assert state_of(file) == "killed"
    assert file.value("trainvitals_run_end_info", signal="SIGINT", exception="") == 1
    assert file.value("trainvitals_run_exit_code") == status
