"""Processes that train nothing: no file, no thread, no port, no module more than they would have."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import Launcher, run_files

PYTHON = sys.executable
MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def modules(launcher: Launcher, prelude: str) -> set[str]:
    """What is loaded under ``trainvitals run`` after this, and would not be otherwise. It leaves no file."""
    script = prelude + MODULES
    attached = launcher.run(PYTHON, "-c", script)
    assert attached.code == 0, attached.stderr
    assert attached.ranks == []
    bare = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(bare.stdout)) <= set(json.loads(attached.stdout))
    return set(json.loads(attached.stdout)) - set(json.loads(bare.stdout))


def test_a_process_without_torch_loads_next_to_nothing(launcher: Launcher) -> None:
    assert modules(launcher, "") == {"__future__", "sitecustomize", "trainvitals", "trainvitals.imports"}


def test_torch_alone_brings_our_modules_and_no_library_s(launcher: Launcher) -> None:
    brought = modules(launcher, "import torch\n")
    ours = {name for name in brought if name.partition(".")[0] in ("trainvitals", "sitecustomize")}
    assert {"trainvitals.attachment", "trainvitals.instruments.backward"} <= ours
    assert {name for name in brought - ours if name.partition(".")[0] not in sys.stdlib_module_names} == set()
    # What a script may use later is ours to load then, not now.
    assert not {"trainvitals.instruments.tensorboard", "trainvitals.launcher", "trainvitals.cli"} & ours


# Tells what a helper process is made of, as one JSON line each in the file $REPORT.
HELPERS = """
import json, multiprocessing, os, subprocess, sys, threading
import torch
from torch.utils.data import DataLoader, Dataset
def tell(kind):
    fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    about = {"kind": kind, "pid": os.getpid(), "threads": sorted(t.name for t in threading.enumerate()),
             "ours": [t for t in fds if t.endswith(".vitals")], "listening": sum(f"socket:[{line.split()[9]}]" in fds for line in open("/proc/net/tcp") if line.split()[3] == "0A"),
             "mapped": ".vitals" in open("/proc/self/maps").read()}
    with open(os.environ["REPORT"], "a") as report: report.write(json.dumps(about) + "\\n")
class Data(Dataset):
    def __init__(self, kind): self.kind = kind
    def __len__(self): return 2
    def __getitem__(self, i): tell(self.kind); return torch.randn(4)
def helper(kind): tell(kind); return torch.ones(1).item()
def train():
    model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in DataLoader(torch.randn(8, 4)):
        model(x).sum().backward(); optimizer.step()
if __name__ == "__main__":
    train()  # so that there is a file and a pipe to inherit
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        list(DataLoader(Data(f"worker by {method}"), num_workers=2, multiprocessing_context=context))
        with context.Pool(1) as pool: pool.map(helper, [f"pool by {method}"])
        p = context.Process(target=helper, args=(f"process by {method}",)); p.start(); p.join()
    code = "import sys; sys.path.insert(0, '.'); import train; train.tell('subprocess')"
    subprocess.run([sys.executable, "-c", code], check=True)
    subprocess.run([sys.executable, "-c", code.replace("subprocess", "after a fork")], check=True, preexec_fn=lambda: None)
    if os.fork() == 0: tell("fork"); os._exit(0)
    os.wait()
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=8) if hasattr(multiprocessing, "shared_memory") else None
    if shared: shared.unlink()
"""


def test_helpers_of_every_kind(launcher: Launcher) -> None:
    report = launcher.directory / "report"
    launcher.environment["REPORT"] = str(report)
    attached = launcher.python(HELPERS)
    told = [json.loads(line) for line in report.read_text().splitlines()]
    methods = ("fork", "spawn", "forkserver")
    kinds = {f"{what} by {method}" for what in ("worker", "pool", "process") for method in methods}
    assert {about["kind"] for about in told} == {*kinds, "subprocess", "after a fork", "fork"}
    assert [(about["kind"], about["ours"]) for about in told if about["ours"]] == []
    assert [about["kind"] for about in told if about["mapped"]] == []
    assert [about["kind"] for about in told if about["listening"]] == []
    threads = {thread for about in told for thread in about["threads"]}
    assert all(name == "MainThread" or "QueueFeeder" in name or "_serve" in name for name in threads), threads
    assert attached.rank.value("trainvitals_iterations_total") == 8
    assert [file.identity.kind for file in attached.files].count("rank") == 1


# Starts children from a process that is attached and trains, and tells what that left behind in it.
STARTS = """
import atexit, gc, json, multiprocessing.util, os, sys, threading, time
import torch
from torch.utils.data import DataLoader
model = torch.nn.Linear(4, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train(): model(torch.ones(4)).sum().backward(); optimizer.step()
def fork():
    child = os.fork()
    if child == 0: os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
def with_workers():
    for x in DataLoader(torch.randn(4, 4), num_workers=1, batch_size=2): model(x).sum().backward(); optimizer.step()
def memory():
    gc.collect()
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
def left():
    while threading.active_count() > 1: gc.collect(); time.sleep(0.05)  # a queue's, of the newest loader
    return {"fds": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "atexit": atexit._ncallbacks(),
            "finalizers": len(multiprocessing.util._finalizer_registry), "files": len(os.listdir(os.environ["TRAINVITALS_RUN_DIR"])),
            "finders": len(sys.meta_path)}
def nested(depth):
    "The registrations of a child of a child of ..."
    child = os.fork()
    if child == 0:
        if depth: os._exit(nested(depth - 1))
        os._exit(0 if left()["atexit"] == before["atexit"] else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
train(); [fork() for _ in range(50)]; [with_workers() for _ in range(5)]
before, kilobytes = left(), memory()
for number in range(int(sys.argv[1])):
    fork()
    if number % 100 == 0: train()
for _ in range(int(sys.argv[2])): with_workers()
assert nested(20) == 0
print(json.dumps([before, left(), memory() - kilobytes]))
"""


@pytest.mark.parametrize(
    ("forks", "loaders"), [(300, 20), pytest.param(10_000, 300, marks=(pytest.mark.slow, pytest.mark.timeout(1800)))]
)
def test_starting_children_leaks_nothing(launcher: Launcher, forks: int, loaders: int) -> None:
    process = launcher.popen(PYTHON, str(launcher.script(STARTS)), str(forks), str(loaders))
    stdout, stderr = process.communicate(timeout=1700)
    assert process.returncode == 0, stderr
    before, after, kilobytes = json.loads(stdout)
    assert before == after
    assert kilobytes < 2048, "a leak of 200 bytes a start would be that much in 10,000"
    (rank,) = [file for file in run_files(launcher.run_dir) if file.identity.kind == "rank"]
    assert rank.value("trainvitals_iterations_total") is not None
