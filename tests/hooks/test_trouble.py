"""Trouble with files, clocks and signals: the training goes on, and what monitoring is lost is counted or said."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launched, Launcher, run_files, state_of, wait_until

PYTHON = sys.executable
NOT_RECORDED = "trainvitals: this process is not being recorded: "

# Trains as the workout does. `before` comes first, `during` at the fifth of each ten batches.
SCRIPT = (
    f"""
import json, os, shutil, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import workout
"""
    + """
RUN_DIR = Path(os.environ.get("TRAINVITALS_RUN_DIR", "/nowhere"))
class Numbers(workout.Numbers):
    def __getitem__(self, index):
        global count
        count += 1
        if count == 25: during()
        return super().__getitem__(index)
count = 0
workout.Numbers = Numbers
def during(): pass
{before}
print(json.dumps(workout.train(Path(tempfile.mkdtemp()))))
"""
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> object:
    """What the training makes without trainvitals."""
    script = tmp_path_factory.mktemp("bare") / "train.py"
    script.write_text(SCRIPT.replace("{before}", ""))
    return json.loads(subprocess.run([PYTHON, script], capture_output=True, text=True, check=True).stdout)


def trained(launcher: Launcher, before: str, expected: object) -> Launched:
    """The training under ``trainvitals run``, which has made what it makes without."""
    result = launcher.run(PYTHON, str(launcher.script(SCRIPT.replace("{before}", before))))
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == expected
    assert "Traceback" not in result.stderr
    return result


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 64 KB at `folder`; False where this user may mount none."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


FULL = "def full(*_): raise OSError(28, 'No space left on device')\nos.posix_fallocate = full"


def test_a_full_disk(launcher: Launcher, expected: object) -> None:
    with small_disk(launcher.directory / "small") as mounted:
        # The launcher's own file has room elsewhere.
        there = f"os.environ['TRAINVITALS_RUN_DIR'] = {str(launcher.directory / 'small')!r}\n"
        move = "from trainvitals import attachment, rundir\n" + there
        move += "run = attachment._attachment.session.run; object.__setattr__(run, 'directory', rundir.own())"
        result = trained(launcher, move if mounted else FULL, expected)
    assert result.stderr == f"{NOT_RECORDED}[Errno 28] No space left on device\n" + last_line(result)
    assert result.ranks == []
    assert result.state == "finished"


def last_line(result: Launched) -> str:
    """What the launcher says where there was nothing to see."""
    line = result.stderr.splitlines(keepends=True)[-1]
    return line if line.startswith("trainvitals: no PyTorch training was seen") else ""


def test_a_run_directory_that_is_deleted_and_comes_to_be_a_file(launcher: Launcher, expected: object) -> None:
    result = trained(launcher, "shutil.rmtree(RUN_DIR); RUN_DIR.touch()", expected)
    assert result.stderr.startswith(NOT_RECORDED)
    assert result.stderr.count(NOT_RECORDED) == 1


def test_a_run_directory_that_is_deleted_while_it_is_written_to(launcher: Launcher, expected: object) -> None:
    result = trained(launcher, "def during(): shutil.rmtree(RUN_DIR)", expected)
    assert result.files == []


def test_a_read_only_file_system(launcher: Launcher, expected: object) -> None:
    """/proc takes no folders, whoever asks."""
    before = "os.environ['TRAINVITALS_RUN_DIR'] = '/proc/trainvitals'\nimport trainvitals; trainvitals.attach()"
    script = str(launcher.script(SCRIPT.replace("{before}", before)))
    ended = subprocess.run([PYTHON, script], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == expected
    assert ended.stderr.startswith(f"{NOT_RECORDED}cannot write to run directory /proc/trainvitals: ")
    assert ended.stderr.count("\n") == 1


# Trains with all file descriptors taken but some; tells of each training whether it is as ever, and what is recorded.
NO_DESCRIPTORS = (
    f"""
import json, os, resource, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, workout, trainvitals
from trainvitals import rundir, runfile
"""
    + """
def train():
    workout.seed()
    model = workout.network(1); optimizer = torch.optim.AdamW(model.parameters())
    for _, batch in workout.batches(0, 1):
        optimizer.zero_grad(); model(batch).square().mean().backward(); optimizer.step()
    return workout.digest(model.state_dict())
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
def taken_but(left):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    taken = []
    try:
        while True: taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError: pass
    for fd in taken[:left]: os.close(fd)
    return taken[left:]
bare = train()
report = []
for left in range(7):
    trainvitals.attach()
    taken = taken_but(left)
    same = train() == bare
    for fd in taken: os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    trainvitals.detach()
    files = list(rundir.own().glob("*.vitals"))
    values = [runfile.read(file, os.getuid()).value("trainvitals_iterations_total") for file in files]
    for file in files: file.unlink()
    report.append([same, values])
print(json.dumps(report))
"""
)


def test_no_file_descriptors_left(launcher: Launcher) -> None:
    script = str(launcher.script(NO_DESCRIPTORS))
    ended = subprocess.run([PYTHON, script], env=launcher.environment, capture_output=True, text=True, check=True)
    report = json.loads(ended.stdout)
    assert [same for same, _ in report] == [True] * 7
    recorded = [values for _, values in report]
    # None for the file, and two for its mapping; the pipe that tells of signals needs two more, or is done without.
    assert recorded[:2] == [[], []]
    assert recorded[2:] == [[10]] * 5
    assert ended.stderr.count(NOT_RECORDED) == recorded.count([])
    assert ended.stderr.count("\n") == recorded.count([])


def test_all_descriptors_closed_by_the_script(launcher: Launcher, expected: object) -> None:
    """As daemons do. Their numbers are then the script's own files': none is closed, cut or written to."""
    before = """
import atexit
def during():
    os.closerange(3, 256)
    mine = [os.open(f"mine{n}", os.O_RDWR | os.O_CREAT) for n in range(40)]
    for fd in mine: os.write(fd, bytes(200_000))
    def check():
        import trainvitals; trainvitals.detach()
        for fd in mine: assert os.fstat(fd).st_size == 200_000, fd
        for number in range(40): assert os.stat(f"mine{number}").st_size == 200_000
        print("whole", file=sys.stderr)
    atexit.register(check)
class Nothing:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def add_scalar(self, *_): pass
workout.SummaryWriter = lambda folder: Nothing()  # its descriptor is closed, too
"""
    result = trained(launcher, before, expected)
    assert result.stderr == "whole\n"
    assert result.rank.value("trainvitals_iterations_total") == 20


def test_a_clock_that_is_set_back(launcher: Launcher, expected: object) -> None:
    """An hour, at every third question: counters and durations do not see it, and a heartbeat is what the clock says."""
    before = """
clock, asked = time.time, 0
def set_back():
    global asked
    asked += 1
    return clock() - 3600.0 * (asked // 3)
time.time = set_back
"""
    rank = trained(launcher, before, expected).rank
    assert rank.value("trainvitals_iterations_total") == 20
    seconds = {s.name: s.value for s in rank.samples if "seconds" in s.name and "timestamp" not in s.name}
    assert len(seconds) > 3
    assert min(seconds.values()) >= 0
    assert max(seconds.values()) < 3000
    heartbeat = rank.value("trainvitals_heartbeat_timestamp_seconds")
    assert heartbeat is not None
    assert heartbeat < rank.created
    assert not [s for s in rank.samples if s.name == "trainvitals_hook_errors_total"]


def phases(file: RunFile) -> float:
    return math.fsum(s.value for s in file.samples if s.name == "trainvitals_phase_seconds_total")


def test_stopped_and_continued(launcher: Launcher, expected: object) -> None:
    """The rank stands still as long as it is stopped, and the time is on the record."""
    before = """
import signal
def during():
    began = time.monotonic(); os.kill(os.getpid(), signal.SIGSTOP)
    print(time.monotonic() - began, file=sys.stderr)
"""
    script = SCRIPT.replace("{before}", before)
    process = launcher.popen(PYTHON, str(launcher.script(script)))

    def stopped() -> int | None:
        pids = [file.alive_pid for file in run_files(launcher.run_dir) if file.identity.kind == "rank"]
        return next((pid for pid in pids if pid and Path(f"/proc/{pid}/stat").read_text().split()[2] == "T"), None)

    pid = wait_until(stopped, "a rank that has stopped itself")
    (before_it,) = [file for file in run_files(launcher.run_dir) if file.identity.kind == "rank"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.kill(pid, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(stdout) == expected
    (rank,) = [file for file in run_files(launcher.run_dir) if file.identity.kind == "rank"]
    assert phases(rank) >= phases(before_it) + float(stderr)
    assert state_of(rank) == "finished"
