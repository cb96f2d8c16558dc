"""Training comes first: with trainvitals attached, nothing about a training is different."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

from tests.conftest import Launched, Launcher, state_of

PYTHON = sys.executable

# Prints digests of everything that training makes, and of every random generator's state.
SCRIPT = """
import hashlib, io, json, random, sys
import numpy as np, torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(1); np.random.seed(1); random.seed(1); torch.set_num_threads(1)
class Data(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return torch.tensor([i, random.random(), np.random.rand(), torch.rand(()).item()])
class Net(nn.Sequential): pass
def net(i, o): return Net(nn.Linear(i, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, o))
def digest(x): b = io.BytesIO(); torch.save(x, b); return hashlib.sha256(b.getvalue()).hexdigest()
kind = sys.argv[1]
g, d = net(4, 4), net(4, 1)
opts = [torch.optim.AdamW(d.parameters()), torch.optim.SGD(g.parameters(), lr=0.01)]
scaler = torch.amp.GradScaler("cpu", enabled=kind == "amp", init_scale=2.0**14)
losses, batches = [], []
for epoch in range(2):
    for n, batch in enumerate(DataLoader(Data(), batch_size=4, shuffle=True, num_workers=2 if kind == "gan" else 0)):
        batches.append(batch.tolist())
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "amp"):
            fake = g(batch)
            ld = (d(fake.detach()) - d(batch)).mean()
        scaler.scale(ld / 2).backward()
        if kind != "accumulate" or n % 2:
            scaler.step(opts[0]); opts[0].zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "amp"): lg = (-d(fake)).mean() + fake.square().mean()
        scaler.scale(lg).backward()
        if kind != "accumulate" or n % 2:
            scaler.unscale_(opts[1]); clip_grad_norm_(g.parameters(), 0.1)
            scaler.step(opts[1]); opts[1].zero_grad()
        scaler.update()
        losses += [ld.item(), lg.item()]
print(json.dumps({
    "weights": digest([g.state_dict(), d.state_dict()]), "optimizers": digest([o.state_dict() for o in opts]),
    "models": digest([g, d]) , "losses": losses, "batches": batches, "torch": digest(torch.get_rng_state()),
    "numpy": hashlib.sha256(str(np.random.get_state()).encode()).hexdigest(), "random": repr(random.getstate()),
}))
"""


@functools.cache
def bare(kind: str) -> str:
    return subprocess.run([PYTHON, "-c", SCRIPT, kind], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", ["gan", "amp", "accumulate"])
def test_bit_identical(launcher: Launcher, kind: str) -> None:
    attached = launcher.python(SCRIPT, kind)
    assert json.loads(attached.stdout) == json.loads(bare(kind))
    assert attached.rank.value("trainvitals_iterations_total") == 20
    assert attached.rank.value("trainvitals_gradient_norm", optimizer="1") is not None


# Makes one of our hooks raise from its n-th call on, before the script's first line.
SABOTAGE = """
import itertools, trainvitals.session as session
guarded = session.Session.guarded
def sabotaged(self, name, function, **kw):
    calls = itertools.count(1)
    def function_(*args):
        if name in {hooks!r} and next(calls) >= {first}: raise RuntimeError("sabotage")
        return function(*args)
    return guarded(self, name, function_, **kw)
session.Session.guarded = sabotaged
"""


HOOKS = ["install", "facts", "dataloader", "backward", "optimizer", "gradient_norm", "clipping", "amp", "cuda_memory"]


@pytest.mark.parametrize(("hooks", "first"), [*(([hook], 1) for hook in HOOKS), (HOOKS[1:], 15)])
def test_a_failing_hook_never_reaches_the_script(launcher: Launcher, hooks: list[str], first: int) -> None:
    # sitecustomize runs the next one found on the path, after ours has attached and before torch is imported
    other = launcher.directory / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(SABOTAGE.format(hooks=hooks, first=first))
    launcher.environment["PYTHONPATH"] = str(other)
    result: Launched = launcher.run(PYTHON, str(launcher.script(SCRIPT)), "amp")
    assert result.code == 0
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout) == json.loads(bare("amp"))
    if hooks != ["install"]:
        counted = {
            dict(s.labels)["hook"]: s.value for s in result.rank.samples if s.name == "trainvitals_hook_errors_total"
        }
        # once or a few times called: all counted; often called: switched off after ten
        assert set(counted) == set(hooks) - ({"facts", "cuda_memory"} if first > 1 else set())
        assert max(counted.values()) <= 10


def test_attach_and_detach_put_everything_back(launcher: Launcher) -> None:
    result = launcher.run(PYTHON, str(launcher.script("""
import gc, inspect, os, pickle, signal, sys, threading, torch, trainvitals
from torch.nn.utils import clip_grad
from torch.optim import optimizer
from torch.utils.data import dataloader
from torch.utils.tensorboard.writer import FileWriter
def patched():
    owners = [torch.Tensor, torch.autograd, torch.amp.GradScaler, clip_grad, torch.nn.utils, dataloader._BaseDataLoaderIter, FileWriter]
    return ([dict(vars(o)) for o in owners], dict(optimizer._global_optimizer_pre_hooks), dict(optimizer._global_optimizer_post_hooks),
            sys.excepthook, [type(f).__name__ for f in sys.meta_path], threading.active_count(), sorted(os.listdir("/proc/self/fd")))
def facts(f): return (f.__name__, f.__qualname__, f.__module__, f.__doc__, str(inspect.signature(f)))
trainvitals.detach()
names = [(torch.Tensor, "backward"), (torch.autograd, "backward"), (torch.amp.GradScaler, "step"), (clip_grad, "clip_grad_value_"),
         (torch.nn.utils, "clip_grad_value_"), (dataloader._BaseDataLoaderIter, "__next__"), (FileWriter, "add_summary")]
model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2)).backward(); o.step()  # torch loads some of itself at the first step
before, described = patched(), [facts(getattr(o, n)) for o, n in names]
for _ in range(50):
    trainvitals.attach(); trainvitals.attach()
    assert [facts(getattr(o, n)) for o, n in names] == described
    assert torch.Tensor.backward is not before[0][0]["backward"]
    for o_, n in names: assert pickle.loads(pickle.dumps(getattr(o_, n))) is getattr(o_, n)
    assert threading.active_count() == before[5]
    model(torch.ones(2)).backward(); o.step()
    trainvitals.detach(); trainvitals.detach()
    assert patched() == before
assert signal.set_wakeup_fd(-1) == -1
""")))  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    assert {state_of(file) for file in result.ranks} == {"finished"}


@pytest.mark.parametrize("trouble", ["the run directory vanishes", "no file descriptors", "disk full"])
def test_trouble_with_the_run_directory_is_not_the_training_s(launcher: Launcher, trouble: str) -> None:
    prelude = {
        "the run directory vanishes": "import os, shutil; shutil.rmtree(os.environ['TRAINVITALS_RUN_DIR'])\n"
        "open(os.environ['TRAINVITALS_RUN_DIR'], 'w').close()\n",
        # the limit itself would keep torch from importing
        "no file descriptors": "import os\nopen_ = os.open\ndef full(path, *rest, **kw):\n"
        "    if str(path).endswith('.new'): raise OSError(24, 'Too many open files')\n"
        "    return open_(path, *rest, **kw)\nos.open = full\n",
        "disk full": "import os\ndef full(*_): raise OSError(28, 'No space left on device')\nos.posix_fallocate = full\n",
    }[trouble]
    result = launcher.run(PYTHON, str(launcher.script(prelude + SCRIPT)), "amp")
    assert result.code == 0, result.stderr
    assert result.stderr.startswith("trainvitals: this process is not being recorded: ")
    assert result.stderr.count("trainvitals: this process") == 1
    assert json.loads(result.stdout) == json.loads(bare("amp"))
