"""``trainvitals run`` from outside: as if it were not there, and telling how the run ended."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import Launcher, run_files, state_of, wait_until

PYTHON = sys.executable
TRAIN = """
import torch, sys, time
from torch.utils.data import DataLoader, TensorDataset
def train(steps=8, pause=0.0):
    model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(DataLoader(TensorDataset(torch.randn(steps, 4), torch.randn(steps, 1)))):
        optimizer.zero_grad(); ((model(x) - y) ** 2).mean().backward(); optimizer.step(); time.sleep(pause)
"""
FOREVER = TRAIN + "\nprint('begins', flush=True)\ntrain(100_000, 0.01)\n"


def end_info(file: object) -> dict[str, str]:
    (info,) = [dict(s.labels) for s in file.samples if s.name == "trainvitals_run_end_info"]  # type: ignore[attr-defined]
    return info


def test_streams_arguments_and_exit_code_pass_through(launcher: Launcher) -> None:
    script = launcher.script(
        "import sys; print(sys.argv[1:], sys.stdin.read()); print('no', file=sys.stderr); sys.exit(7)"
    )
    result = launcher.run(PYTHON, str(script), "--name", "x", "--", "y", stdin="hello")
    assert result.stdout == "['--name', 'x', '--', 'y'] hello\n"
    assert result.stderr == "no\n"
    assert result.code == 7
    assert result.state == "failed"
    assert result.launcher.value("trainvitals_run_exit_code") == 7


def test_a_terminal_stays_a_terminal(launcher: Launcher) -> None:
    leader, follower = pty.openpty()
    script = launcher.script("import sys; print([f.isatty() for f in (sys.stdin, sys.stdout, sys.stderr)])")
    command = [PYTHON, "-m", "trainvitals.cli", "run", "--", PYTHON, str(script)]
    process = subprocess.Popen(command, env=launcher.environment, stdin=follower, stdout=follower, stderr=follower)
    assert process.wait(60) == 0
    assert b"[True, True, True]" in os.read(leader, 1000)


@pytest.mark.parametrize("flags", [[], ["-s"], ["-u"]])
def test_python_script(launcher: Launcher, flags: list[str]) -> None:
    result = launcher.run(PYTHON, *flags, str(launcher.script(TRAIN + "train()")))
    assert (result.code, result.stderr) == (0, "")
    assert result.state == state_of(result.rank) == "finished"
    assert result.rank.identity.run == "train"
    assert result.rank.value("trainvitals_iterations_total") == 8
    assert result.rank.alive_pid is None


def test_python_module_and_chosen_name(launcher: Launcher) -> None:
    package = launcher.directory / "project"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "fit.py").write_text(TRAIN + "train()")
    assert launcher.run(PYTHON, "-m", "project.fit").rank.identity.run == "project.fit"
    names = {f.identity.run for f in launcher.run(PYTHON, "-m", "project.fit", options=["--name", "night"]).files}
    assert names == {"project.fit", "night"}


def test_ranks_of_mp_spawn(launcher: Launcher) -> None:
    result = launcher.python(
        TRAIN
        + """
import torch.distributed as dist, torch.multiprocessing as mp
def rank(number, world):
    dist.init_process_group("gloo", init_method="file://" + __file__ + ".init", rank=number, world_size=world)
    train()
if __name__ == "__main__": mp.spawn(rank, args=(2,), nprocs=2)
"""
    )
    assert [file.rank for file in result.ranks] == [0, 1]
    assert {file.identity.run_id for file in result.files} == {result.launcher.identity.run_id}
    for file in result.ranks:
        assert file.value("trainvitals_world_size") == 2
        assert file.value("trainvitals_iterations_total") == 8


def test_helpers_and_dataloader_workers_leave_no_trace(launcher: Launcher) -> None:
    result = launcher.python(
        TRAIN
        + """
import multiprocessing, os, subprocess
class Data(torch.utils.data.Dataset):
    def __len__(self): return 16
    def __getitem__(self, i):
        import threading
        for thread in threading.enumerate():
            assert thread.name == "MainThread" or "QueueFeeder" in thread.name or "_serve" in thread.name, thread
        return torch.randn(4), torch.randn(1)
def helper(queue): queue.put(torch.ones(1).item())
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        for _ in DataLoader(Data(), num_workers=2, multiprocessing_context=context): pass
        queue = context.Queue(); p = context.Process(target=helper, args=(queue,)); p.start(); queue.get(); p.join()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    train()
"""
    )
    assert len(result.ranks) == 1
    assert {file.identity.kind for file in result.files} == {"launcher", "rank"}


def test_a_forked_process_that_trains_is_a_rank_of_its_own(launcher: Launcher) -> None:
    result = launcher.python(
        TRAIN
        + """
import multiprocessing
train()
if __name__ == "__main__":
    p = multiprocessing.get_context("fork").Process(target=train, args=(5,)); p.start(); p.join(); assert p.exitcode == 0
"""
    )
    assert sorted(f.value("trainvitals_iterations_total") or 0 for f in result.ranks) == [5, 8]
    assert {state_of(file) for file in result.ranks} == {"finished"}


def test_a_script_without_torch(launcher: Launcher) -> None:
    result = launcher.run(PYTHON, str(launcher.script("print('done')")))
    assert (result.code, result.stdout, result.state) == (0, "done\n", "finished")
    assert "no PyTorch training was seen" in result.stderr
    assert result.ranks == []


def test_a_command_that_is_not_python_and_ends_at_once(launcher: Launcher) -> None:
    assert launcher.run("true").state == "finished"


@pytest.mark.parametrize(
    ("failure", "state", "exception", "code"),
    [
        ("raise ValueError('odd')", "failed", "ValueError", 1),
        ("raise torch.OutOfMemoryError('CUDA out of memory.')", "out_of_memory", "torch.OutOfMemoryError", 1),
        ("sys.exit(3)", "failed", "", 3),
        ("raise RuntimeError('CUDA error: out of memory')", "out_of_memory", "RuntimeError", 1),
        ("raise KeyboardInterrupt", "killed", "", -signal.SIGINT),
    ],
)
def test_ends_by_the_script_itself(launcher: Launcher, failure: str, state: str, exception: str, code: int) -> None:
    result = launcher.run(PYTHON, str(launcher.script(TRAIN + "train()\n" + failure)))
    assert (result.code, result.state) == (code, state), result.stderr
    assert end_info(result.launcher)["exception"] == exception
    assert result.rank.value("trainvitals_iterations_total") == 8  # the last vital signs stay


def test_the_exception_of_a_spawned_rank_is_the_cause(launcher: Launcher) -> None:
    result = launcher.run(
        PYTHON,
        str(
            launcher.script(
                TRAIN
                + """
import torch.multiprocessing as mp
def rank(number):
    train()
    raise torch.OutOfMemoryError("CUDA out of memory.\\nhint: buy more")
if __name__ == "__main__": mp.spawn(rank, nprocs=1)
"""
            )
        ),
    )
    assert (result.code, result.state) == (1, "out_of_memory")
    assert end_info(result.launcher)["exception"] == "torch.OutOfMemoryError"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_launcher_reach_the_command(launcher: Launcher, number: signal.Signals) -> None:
    process = launcher.popen(PYTHON, str(launcher.script(FOREVER)))
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    (own,) = [f for f in run_files(launcher.run_dir) if f.identity.kind == "launcher"]
    assert state_of(own) == "killed"
    assert end_info(own)["signal"] == number.name
    assert own.value("trainvitals_run_exit_code") == 128 + number


def test_a_killed_command(launcher: Launcher) -> None:
    process = launcher.popen(PYTHON, str(launcher.script(FOREVER)))

    def training_rank() -> list[psutil.Process]:
        return [psutil.Process(f.alive_pid) for f in run_files(launcher.run_dir)
                if f.identity.kind == "rank" and f.alive_pid]  # fmt: skip

    wait_until(training_rank, "training")[0].kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    files = run_files(launcher.run_dir)
    states = {f.identity.kind: state_of(f) for f in files}
    assert states == {"launcher": "killed", "rank": "running"}  # the dead write nothing more
    assert all(f.alive_pid is None for f in files)


def test_sigterm_that_the_script_turns_into_exit_code_0(launcher: Launcher) -> None:
    """As Lightning does, and sent to the script itself, so that the launcher does not see the signal."""
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    process = launcher.popen(PYTHON, str(launcher.script(FOREVER.replace("print(", handler + "print(", 1))))

    def rank() -> list[int]:
        return [f.alive_pid for f in run_files(launcher.run_dir) if f.identity.kind == "rank" and f.alive_pid]

    os.kill(wait_until(rank, "training")[0], signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    (own,) = [f for f in run_files(launcher.run_dir) if f.identity.kind == "launcher"]
    assert (state_of(own), end_info(own)["signal"]) == ("killed", "SIGTERM")


def test_a_rank_that_outlives_the_command_is_named(launcher: Launcher) -> None:
    text = (
        TRAIN
        + f"""
import os, subprocess
if len(sys.argv) > 1: train(100_000, 0.01)
child = subprocess.Popen([sys.executable, __file__, "rank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
import glob
while not glob.glob({str(launcher.run_dir)!r} + "/*.rank.*.vitals"): time.sleep(0.05)
"""
    )
    result = launcher.run(PYTHON, str(launcher.script(text)))
    pid = result.rank.alive_pid
    assert pid
    psutil.Process(pid).kill()
    assert result.code == 0
    assert f"rank 0 (pid {pid}) is still running" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no command given"),
        (["--"], 2, "no command given"),
        (["--name"], 2, "expected one argument"),
        (["--nmae", "x", "--", "true"], 2, "unrecognized arguments: --nmae"),
        (["--", "no-such-command"], 127, "cannot start 'no-such-command': no such command"),
        (["--", "/etc/passwd"], 126, "cannot start '/etc/passwd': Permission denied"),
    ],
)
def test_usage_errors(launcher: Launcher, arguments: list[str], code: int, message: str) -> None:
    command = [PYTHON, "-m", "trainvitals.cli", "run", *arguments]
    result = subprocess.run(command, env=launcher.environment, capture_output=True, text=True, check=False)
    assert (result.returncode, message in result.stderr, "Traceback" in result.stderr) == (code, True, False), result
    assert not list(launcher.run_dir.glob("*"))  # a mistyped command is no run that failed


def test_unknown_command() -> None:
    result = subprocess.run([PYTHON, "-m", "trainvitals.cli", "runn"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "there is no command 'runn'" in result.stderr


@pytest.mark.parametrize("place", ["a file", "a link", "others can write"])
def test_an_unusable_run_directory(launcher: Launcher, place: str) -> None:
    if place == "a file":
        launcher.run_dir.touch()
    elif place == "a link":
        launcher.run_dir.symlink_to(launcher.directory)
    else:
        launcher.run_dir.mkdir()
        launcher.run_dir.chmod(0o777)
    result = launcher.run("echo", "trained")
    assert result.code == 2
    assert result.stderr.startswith("trainvitals run: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_read_only_run_directory(launcher: Launcher) -> None:
    launcher.environment["TRAINVITALS_RUN_DIR"] = "/proc/trainvitals"
    result = launcher.run("echo", "trained")
    assert result.code == 2
    assert "cannot write to run directory /proc/trainvitals" in result.stderr
    assert "TRAINVITALS_RUN_DIR" in result.stderr


def test_the_other_sitecustomize_still_runs(launcher: Launcher) -> None:
    other = launcher.directory / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import os\nif 'TRAINVITALS_RUN_ID' in os.environ: print('the other one')")
    launcher.environment["PYTHONPATH"] = str(other)
    result = launcher.run(
        PYTHON, str(launcher.script("import sys, os; print(os.environ['PYTHONPATH'].split(':')[1:])"))
    )
    assert result.stdout == f"the other one\n{[str(other)]}\n"


def test_an_interpreter_without_trainvitals(launcher: Launcher, tmp_path: Path) -> None:
    """The script's environment need not have trainvitals installed."""
    script = launcher.script("import sys; print('trainvitals' in sys.modules, 'site-packages' in str(sys.path))")
    result = launcher.run(PYTHON, "-S", "-c", "print('no site, no trainvitals')")
    assert result.stdout == "no site, no trainvitals\n"
    result = launcher.run(getattr(sys, "_base_executable", PYTHON), str(script))
    assert result.stdout.startswith("True"), result


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_from_the_start_changes_nothing(launcher: Launcher, number: signal.Signals) -> None:
    """As under nohup."""
    process = launcher.popen(
        "sh", "-c", "echo begins; sleep 2; exit 5", preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 5
    (own,) = run_files(launcher.run_dir)
    assert (state_of(own), end_info(own)["signal"]) == ("failed", "")


def test_an_inherited_ignored_sigchld_is_no_reason_to_wait_for_ever(launcher: Launcher) -> None:
    script = "import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN)"
    process = launcher.popen(PYTHON, "-c", script, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "True\n")  # and the command inherits it as ever


def test_impatient_signals_do_not_lose_the_end(launcher: Launcher) -> None:
    trap = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(3)); print('begins', flush=True); time.sleep(60)"
    process = launcher.popen(PYTHON, "-c", trap)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
    (own,) = run_files(launcher.run_dir)
    assert state_of(own) == "killed"
    assert process.stderr is not None
    assert "trainvitals" not in process.stderr.read()


def test_a_command_ended_by_a_real_time_signal(launcher: Launcher) -> None:
    result = launcher.run(PYTHON, "-c", "import os; os.kill(os.getpid(), 36)")
    assert (result.code, result.state) == (-36, "killed")
    assert end_info(result.launcher)["signal"] == "SIG36"


@pytest.mark.slow
def test_torch_compile_is_not_given_our_hooks_to_compile(launcher: Launcher) -> None:
    text = """
import json, sys, torch
from torch._dynamo.utils import counters
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
@torch.compile(backend="eager")
def step(x):
    optimizer.zero_grad(); loss = model(x).square().mean(); loss.backward(); optimizer.step()
torch.manual_seed(0)
for _ in range(20): step(torch.randn(8, 4))
print(json.dumps({"graphs": counters["stats"]["unique_graphs"]}))
"""
    attached = launcher.python(text)
    bare = subprocess.run([PYTHON, str(launcher.directory / "train.py")], capture_output=True, text=True, check=True)
    told, true = json.loads(attached.stdout), json.loads(bare.stdout)
    assert told == true
    assert "recompile_limit" not in attached.stderr  # as Dynamo says when it gives up compiling something
    assert attached.rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 20
