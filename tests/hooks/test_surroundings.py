"""What the hooks tell of the process around the training: pauses, precision, checkpointed activations, DDP, compiling."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher, run_files
from tests.hooks.test_values import PRELUDE, errors, train


def amp(rank: RunFile) -> dict[str, float | None]:
    return {dtype: rank.value("trainvitals_amp_enabled", dtype=dtype) for dtype in ("float16", "bfloat16")}


def test_collections_are_timed_in_any_thread_until_detach(launcher: Launcher) -> None:
    rank, true = train(
        launcher,
        """
import gc, threading, trainvitals
gc.collect(); gc.disable()  # only these collections
o = torch.optim.SGD(model.parameters(), lr=0.1)
batches = iter(loader())
def batch():
    x, y = next(batches); o.zero_grad(); loss_of(x, y).backward(); o.step()
before = len(gc.callbacks)
batch()
during = len(gc.callbacks)
cycles = [[[]] for _ in range(300_000)]
start = time.perf_counter(); gc.collect(); taken = time.perf_counter() - start
thread = threading.Thread(target=gc.collect); thread.start(); thread.join()
batch(); batch()
trainvitals.detach()
print(json.dumps({"one": taken, "during": during - before, "after": len(gc.callbacks) - before}))
""",
    )
    paused = rank.value("trainvitals_gc_pause_seconds_total")
    assert paused is not None
    assert 1.2 * true["one"] < paused < 10 * true["one"]
    assert (true["during"], true["after"]) == (1, 0)
    assert errors(rank) == []


def test_what_is_watched_is_put_back(launcher: Launcher) -> None:
    text = """
import gc, torch, torch._dynamo, trainvitals
from torch.amp.autocast_mode import autocast
from torch.nn.parallel import DistributedDataParallel
from torch.utils import checkpoint
def watched():
    return autocast.__enter__, checkpoint._get_autocast_kwargs, DistributedDataParallel.__init__, *gc.callbacks
before = watched()
for _ in range(3):
    trainvitals.attach()
    assert all(mine is not theirs and mine.__wrapped__ is theirs for mine, theirs in zip(watched(), before))
    trainvitals.detach()
    assert watched() == before
"""
    subprocess.run([sys.executable, str(launcher.script(text))], env=launcher.environment, check=True)


# Each is a training of its own in one process: the value that the newest one left.
AUTOCAST = """
from trainvitals import attachment
o = torch.optim.SGD(model.parameters(), lr=0.1)
def now():
    writer = attachment._attachment.session.writer
    return {d: writer.values[writer.slot("trainvitals_amp_enabled", dtype=d)] for d in ("float16", "bfloat16")}
def step(x, y, dtype=None, device="cpu"):
    o.zero_grad()
    if dtype is None: loss = loss_of(x, y)
    else:
        with torch.autocast(device, dtype=dtype): loss = loss_of(x, y)
    loss.backward(); o.step()
    time.sleep(1.1 / 8)  # values are told once a second
seen = {}
for x, y in loader(): step(x, y)
seen["without"] = now()
for x, y in loader(): step(x, y, torch.bfloat16)
seen["bfloat16"] = now()
for x, y in loader(): step(x, y, torch.float16)
seen["float16"] = now()
with torch.autocast("cpu", dtype=torch.bfloat16):
    for x, y in loader(): step(x, y)
seen["around the loop"] = now()
decorated = torch.autocast("cpu", dtype=torch.bfloat16)(loss_of)
plain, loss_of = loss_of, decorated
for x, y in loader(): step(x, y)
seen["decorated"] = now()
loss_of = plain
of_old = torch.cpu.amp.autocast(dtype=torch.bfloat16)
for x, y in loader():
    o.zero_grad()
    with of_old: loss = loss_of(x, y)
    loss.backward(); o.step(); time.sleep(1.1 / 8)
seen["the older class"] = now()
for x, y in loader(): step(x, y, torch.float16, "cuda")  # there is none: entered, but off
seen["no such device"] = now()
for x, y in loader():
    step(x, y)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16): model(x)
seen["evaluation inside"] = now()
for x, y in loader(): step(x, y)
with torch.autocast("cpu", dtype=torch.bfloat16):  # with gradients, although nobody needs them
    for x, y in loader(): model(x)
for x, y in loader(): step(x, y)
seen["evaluation between"] = now()
for i in range(8): step(torch.randn(8, 4), torch.randn(8, 1), torch.bfloat16)
print(json.dumps(seen))
"""


def test_the_newest_iteration_tells_the_precision(launcher: Launcher) -> None:
    result = launcher.python("import warnings; warnings.simplefilter('ignore')\n" + PRELUDE + AUTOCAST)
    seen = json.loads(result.stdout.splitlines()[-1])
    off = {"float16": 0.0, "bfloat16": 0.0}
    bfloat16, float16 = {**off, "bfloat16": 1.0}, {**off, "float16": 1.0}
    assert seen == {
        "without": off,
        "bfloat16": bfloat16,
        "float16": float16,
        "around the loop": bfloat16,
        "decorated": bfloat16,
        "the older class": bfloat16,
        "no such device": off,
        "evaluation inside": off,
        "evaluation between": off,
    }
    assert errors(result.rank) == []


CHECKPOINTED = """
import trainvitals
from trainvitals import attachment
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
wrapped = checkpoint_wrapper(copy.deepcopy(model))
forwards = {
    "without": lambda x: model(x),
    "reentrant": lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=True),
    "not reentrant": lambda x: checkpoint(model, x, use_reentrant=False),
    "sequential": lambda x: checkpoint_sequential([model, nn.ReLU()], 2, x, use_reentrant=False),
    "wrapper": lambda x: wrapped(x),
}
seen = {}
for name, forward in forwards.items():
    trainvitals.detach(); trainvitals.attach()
    o = torch.optim.SGD(wrapped.parameters() if name == "wrapper" else model.parameters(), lr=0.1)
    for x, y in loader():
        o.zero_grad(); loss_of(x, y, forward).backward(); o.step()
    writer = attachment._attachment.session.writer
    seen[name] = writer.values[writer.slot("trainvitals_gradient_checkpointing_enabled", -1.0)]
print(json.dumps(seen))
"""


def test_activation_checkpointing_is_seen(launcher: Launcher) -> None:
    result = launcher.python(PRELUDE + CHECKPOINTED)
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen == {"without": 0, "reentrant": 1, "not reentrant": 1, "sequential": 1, "wrapper": 1}
    assert not any(errors(rank) for rank in result.ranks)


def test_ddp_tells_what_it_measured(launcher: Launcher) -> None:
    result = launcher.python(
        """
import os, time, torch
import torch.distributed as dist, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP
class Sleepy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): time.sleep(0.02); return x.clone()
    @staticmethod
    def backward(ctx, g): time.sleep(0.06); return g
class Model(torch.nn.Module):
    def __init__(self): super().__init__(); self.first = torch.nn.Linear(4, 4); self.last = torch.nn.Linear(4, 1)
    def forward(self, x): return Sleepy.apply(self.last(self.first(x)))
def rank(number, world):
    dist.init_process_group("gloo", init_method="file://" + __file__ + ".init", rank=number, world_size=world)
    model = DDP(Model()); o = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(15):
        o.zero_grad(); model(torch.randn(8, 4)).mean().backward(); o.step()
    dist.destroy_process_group()
if __name__ == "__main__":
    mp.spawn(rank, args=(2,), nprocs=2)
"""
    )
    assert [rank.rank for rank in result.ranks] == [0, 1]
    for rank in result.ranks:
        parts = {dict(s.labels)["part"]: s.value for s in rank.samples if s.name == "trainvitals_ddp_seconds"}
        assert parts.keys() == {"forward_compute", "backward_compute", "backward_communication", "overlap"}
        # What sleeps longest is largest; nanoseconds taken for seconds would not stay below a minute.
        assert 0.02 <= parts["forward_compute"] < parts["backward_compute"] < 60
        assert 0 < parts["overlap"] <= parts["backward_communication"]
        assert errors(rank) == []


def test_ddp_tells_what_it_found_unused(launcher: Launcher) -> None:
    """Four trainings: what is unused at most iterations, never, not looked for, looked for once."""
    script = launcher.script("""
import time, torch, trainvitals
import torch.distributed as dist, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel as DDP
class Model(torch.nn.Module):
    def __init__(self): super().__init__(); self.first = torch.nn.Linear(4, 4); self.last = torch.nn.Linear(4, 1)
    def forward(self, x, whole): return self.last(self.first(x)) if whole else self.first(x)
def train(every, **arguments):
    model = DDP(Model(), **arguments); o = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(4):
        o.zero_grad(); model(torch.randn(8, 4), i % every == 0).mean().backward(); o.step(); time.sleep(0.4)
def rank(number, world):
    dist.init_process_group("gloo", init_method="file://" + __file__ + ".init", rank=number, world_size=world)
    for name, every, arguments in (("some", 100, {"find_unused_parameters": True}), ("none", 1, {"find_unused_parameters": True}),
                                   ("off", 1, {}), ("once", 1, {"find_unused_parameters": True, "static_graph": True})):
        trainvitals.attach(f"{name}-{number}"); train(every, **arguments); trainvitals.detach()
    dist.destroy_process_group()
if __name__ == "__main__":
    mp.spawn(rank, args=(2,), nprocs=2)
""")
    done = subprocess.run(
        [sys.executable, script], env=launcher.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {
        file.identity.run: [
            file.value(f"trainvitals_ddp_{name}") for name in ("find_unused_parameters", "unused_parameter_bytes")
        ]
        for file in run_files(launcher.run_dir)
        if file.identity.kind == "rank"
    }
    # of the last layer, the weight of 4 and the bias have 4 bytes each
    expected = {"some": [1, 20], "none": [1, 0], "off": [0, None], "once": [0, None]}
    assert found == {f"{name}-{number}": values for name, values in expected.items() for number in (0, 1)}


COMPILED = """
from torch.utils.checkpoint import checkpoint
from torch._dynamo.utils import counters
deep = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
state = copy.deepcopy(deep.state_dict())
context = torch.autocast("cpu", dtype=torch.bfloat16)
def inside(x):
    with torch.autocast("cpu", dtype=torch.bfloat16): return deep(x)
def made_outside(x):
    with context: return deep(x)
def broken(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = deep[0](x); torch._dynamo.graph_break(); return deep[2](deep[1](y))
def checkpointed(x): return checkpoint(deep, x, use_reentrant=False)
def reentrant(x): return checkpoint(deep, x, use_reentrant=True)
seen = {}
o = torch.optim.SGD(deep.parameters(), lr=0.1)
for function in (deep, inside, made_outside, broken, checkpointed, reentrant):
    torch._dynamo.reset(); counters.clear()
    compiled = torch.compile(function, backend="aot_eager")
    for batch in (8, 16):
        for x, y in loader(n=batch, batch=batch):
            o.zero_grad(); ((compiled(x).float() - y) ** 2).mean().backward(); o.step()
    for x, y in loader(n=16):  # around what is compiled
        o.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16): loss = ((compiled(x).float() - y) ** 2).mean()
        loss.backward(); o.step()
    name = getattr(function, "__name__", "deep")
    seen[name] = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
                  "frames": counters["frames"]["total"]}
print(json.dumps(seen))
"""


@pytest.mark.slow  # compiles again and again
def test_autocast_and_checkpointing_inside_compiled_code_cost_no_graph(launcher: Launcher) -> None:
    """As many graphs, breaks and compiled frames as without trainvitals, and they are seen nevertheless."""
    rank, watched = train(launcher, COMPILED)
    script = [sys.executable, str(launcher.script(PRELUDE + COMPILED))]
    bare = json.loads(subprocess.run(script, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
    assert watched == bare
    assert bare["broken"]["breaks"] > bare["inside"]["breaks"] == 0
    assert rank.value("trainvitals_gradient_checkpointing_enabled") == 1
    assert errors(rank) == []


@pytest.mark.slow
def test_compiled_code_under_autocast_is_known_as_such_when_it_runs(launcher: Launcher) -> None:
    rank, _ = train(
        launcher,
        """
o = torch.optim.SGD(model.parameters(), lr=0.1)
@torch.compile(backend="aot_eager")
def forward(x, y):
    with torch.autocast("cpu", dtype=torch.bfloat16): return loss_of(x, y)
for x, y in loader():
    o.zero_grad(); forward(x, y).backward(); o.step(); time.sleep(0.2)
print("{}")
""",
    )
    assert amp(rank) == {"float16": 0.0, "bfloat16": 1.0}


def test_graphs_and_breaks_are_counted(launcher: Launcher) -> None:
    rank, true = train(
        launcher,
        """
from torch._dynamo.utils import counters
o = torch.optim.SGD(model.parameters(), lr=0.1)
@torch.compile(backend="eager")
def forward(x, y):
    z = model(x); torch._dynamo.graph_break(); return ((z - y) ** 2).mean()
for batch in (8, 4, 2):  # recompiled for the second
    for x, y in loader(n=16, batch=batch):
        o.zero_grad(); forward(x, y).backward(); o.step()
time.sleep(1)
for x, y in loader(): o.zero_grad(); forward(x, y).backward(); o.step()
print(json.dumps({"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}))
""",
    )
    assert true["graphs"] > 2
    assert true["breaks"] > 0
    assert rank.value("trainvitals_compile_graphs_total") == true["graphs"]
    assert rank.value("trainvitals_compile_graph_breaks_total") == true["breaks"]


def test_without_compiling_nothing_is_told_of_it(launcher: Launcher) -> None:
    rank, _ = train(
        launcher,
        """
import torch._dynamo
o = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader(): o.zero_grad(); loss_of(x, y).backward(); o.step()
print("{}")
""",
    )
    assert rank.value("trainvitals_compile_graphs_total") is None
    assert rank.value("trainvitals_gc_pause_seconds_total") is not None
