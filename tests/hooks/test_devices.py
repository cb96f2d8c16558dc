"""What is recorded of a training on a GPU, shown on a fake one: right values, and nothing that waits for the device."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launched, Launcher
from tests.hooks import fake_cuda
from tests.hooks.warm import Warm

PRELUDE = """
import json, sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from fake_cuda import fake
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Linear(4, 1)
o = torch.optim.SGD(model.parameters(), lr=0.1)
def loader(batches=8): return DataLoader(TensorDataset(torch.randn(batches * 8, 4), torch.randn(batches * 8, 1)), batch_size=8)
def loss_of(x, y, on=0): return fake.put(((model(x) - y) ** 2).mean(), on)
def step(x, y):
    o.zero_grad(); loss = loss_of(x, y); loss.backward()
    for p in model.parameters(): fake.put(p.grad)
    o.step()
    return loss
"""


def with_fake(launcher: Launcher) -> Launcher:
    """Let torch show fake devices in what is launched."""
    folder = launcher.directory / "fake"
    folder.mkdir()
    shutil.copy(fake_cuda.__file__, folder)
    (folder / "sitecustomize.py").write_text("import fake_cuda\nfake_cuda.prepare()\n")
    launcher.environment["PYTHONPATH"] = str(folder)
    launcher.environment["TRAINVITALS_OVERHEAD"] = "1"  # the norm of each step, however busy the machine
    return launcher


class OnFake:
    """Runs scripts under ``trainvitals run`` where torch shows fake devices."""

    def __init__(self, launcher: Launcher, process: Warm) -> None:
        self.launcher = launcher
        self._process = process

    def run(self, text: str, code: int = 0) -> tuple[Launched, dict[str, Any]]:
        """Run a script in a command of its own."""
        result = self.launcher.run(sys.executable, str(self.launcher.script(PRELUDE + text)))
        assert result.code == code, result.stderr
        return result, self._about(result.stdout)

    def train(self, text: str) -> tuple[RunFile, dict[str, Any]]:
        """Run a script in a process of its own."""
        result = self._process.python(PRELUDE + text)
        assert errors(result.rank) == []
        return result.rank, self._about(result.stdout)

    def _about(self, stdout: str) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        assert about["refused"] == []
        return about


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    process = Warm(with_fake(Launcher(tmp_path_factory.mktemp("devices"))))
    yield process
    process.close()


@pytest.fixture
def on_fake(launcher: Launcher, process: Warm) -> OnFake:
    return OnFake(with_fake(launcher), process)


def errors(rank: RunFile) -> list[str]:
    return [str(s.labels) for s in rank.samples if s.name == "trainvitals_hook_errors_total"]


def by_label(rank: RunFile, name: str) -> dict[str, float]:
    return {dict(s.labels).popitem()[1]: s.value for s in rank.samples if s.name == f"trainvitals_{name}"}


def reports(launcher: Launcher) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(launcher.run_dir.glob("*.oom.json"))]


def test_values_arrive_without_waiting(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
fake.init()
losses, norms = [], []
rate = fake.put(torch.tensor(0.1)); o.param_groups[0]["lr"] = 0.1
for x, y in loader(40):
    fake.work(0.02)
    loss = step(x, y)
    losses.append(torch._C.TensorBase.item(loss.detach()))
    norms.append(sum(float(torch._C.TensorBase.item((p.grad ** 2).sum())) for p in model.parameters()) ** 0.5)
    time.sleep(0.02)
fake.report(losses=losses, norms=norms)
""")
    loss, norm = rank.value("trainvitals_loss", optimizer="0"), rank.value("trainvitals_gradient_norm", optimizer="0")
    assert any(loss == pytest.approx(true) for true in about["losses"][-5:])
    assert any(norm == pytest.approx(true) for true in about["norms"][-5:])
    assert about["events_made"] < 40  # they are used again


def test_a_device_that_is_far_behind_costs_values_and_no_memory(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
fake.init(); fake.held = True
for x, y in loader(400): step(x, y)
fake.report()
""")
    assert rank.value("trainvitals_iterations_total") == 400
    assert (rank.value("trainvitals_series_dropped_total", reason="device_behind") or 0) > 400
    assert about["events_made"] <= 256


def test_nothing_is_asked_of_a_device_that_is_not_used(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
for x, y in loader(): o.zero_grad(); ((model(x) - y) ** 2).mean().backward(); o.step()
untouched = not {"to", "cuda"} & {name for name, method in vars(torch.Tensor).items() if "trainvitals" in type(method).__module__}
fake.report(untouched=untouched)
""")
    assert about["calls"] == {}
    assert about["untouched"]
    assert by_label(rank, "cuda_memory_allocated_bytes") == {}


def test_a_cpu_build_of_torch_loads_none_of_it(launcher: Launcher) -> None:
    result = launcher.python("""
import json, sys, torch
model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3): model(torch.ones(2)).backward(); o.step()
print(json.dumps([name for name in sys.modules if name.startswith("trainvitals.instruments.")]))
""")
    loaded = {name.rpartition(".")[2] for name in json.loads(result.stdout)}
    assert "device_values" in loaded
    assert not loaded & {"cuda_memory", "gpu_phases", "out_of_memory", "transfer"}


def test_memory_of_each_device_in_use(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
fake.init()
fake.use(0, 100, 400); fake.use(2, 50, 60)
fake.memory[0]["inactive_split_bytes"]["all"]["current"] = 30
fake.memory[0]["num_alloc_retries"] = 5
start = time.perf_counter()
for i, (x, y) in enumerate(loader(12)):
    step(x, y); time.sleep(0.12)
    if i == 3: fake.use(0, 80, 400)
    if i == 5: fake.use(0, 120, 400); fake.memory[0]["num_alloc_retries"] = 1  # reset by the script
    if i == 7: fake.memory[0]["num_alloc_retries"] = 3
fake.report(wall=time.perf_counter() - start)
""")
    assert by_label(rank, "cuda_memory_allocated_bytes") == {"0": 120, "2": 50}
    assert by_label(rank, "cuda_memory_reserved_bytes") == {"0": 400, "2": 60}
    assert by_label(rank, "cuda_memory_inactive_split_bytes") == {"0": 30, "2": 0}
    assert by_label(rank, "cuda_memory_allocated_floor_bytes") == {"0": 80, "2": 50}
    assert by_label(rank, "cuda_alloc_retries_total") == {"0": 8, "2": 0}
    assert by_label(rank, "run_gpu_info").keys() == {
        f"GPU-{index}1234567-89ab-cdef-0123-456789abcdef" for index in (0, 2)
    }
    looking_for_devices = 4
    assert len(about["statistics_times"]) <= about["wall"] / 0.1 + 2 + looking_for_devices


def test_how_much_memory_grows_with_each_iteration(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
import trainvitals.attachment as attachment, trainvitals.instruments.cuda_memory as cuda_memory
cuda_memory._EVERY_SECONDS = 0.0  # as if each iteration took a tenth of a second
fake.init()
def train(iterations):
    for i, (x, y) in zip(iterations, loader(len(iterations))):
        fake.use(0, 1000 + 10 * i + 300 * (i % 5)); fake.use(2, 500 + 300 * (i > 40))
        step(x, y)
train(range(60))
early = [sample.name for sample in attachment._attachment.session.writer.samples()]
train(range(60, 200))
fake.report(early=early)
""")
    assert "trainvitals_cuda_memory_floor_growth_bytes" not in about["early"]
    assert "trainvitals_cuda_memory_epoch_peak_bytes" in about["early"]  # though no epoch has ended
    assert by_label(rank, "cuda_memory_floor_growth_bytes") == {"0": pytest.approx(10, rel=0.1), "2": 0}


def test_the_peak_of_an_epoch(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
import trainvitals.attachment as attachment
fake.init(); fake.use(0, 100)
def epoch(*moments):
    "One iteration for each: (in use before and after, in use for a moment, when)."
    for (x, y), (low, high, at) in zip(loader(len(moments)), moments):
        fake.use(0, low)
        o.zero_grad(); loss = loss_of(x, y)
        if at == "forward": fake.use(0, high)
        time.sleep(0.25); loss.backward()
        if at == "reset": fake.memory[0]["allocated_bytes"]["all"]["peak"] = low
        if at in ("backward", "reset"): fake.use(0, high)
        fake.use(0, low); o.step(); time.sleep(0.25)
    return recorded()
def recorded():
    writer = attachment._attachment.session.writer
    return writer.values[writer.slot("trainvitals_cuda_memory_epoch_peak_bytes", device="0")]
peaks = [
    # the allocator's peak rises within the epoch: any moment is seen
    epoch((100, 500, "backward"), (100, 100, "")),
    epoch((100, 300, ""), (100, 900, "backward"), (90, 90, "")),
    # an earlier epoch's hides this one's: the end of the forward is looked at
    epoch((100, 100, ""), (100, 700, "forward"), (100, 100, "")),
    # the script resets it, and it then shows less
    epoch((100, 100, ""), (100, 600, "reset"), (100, 100, "")),
]
fake.report(peaks=peaks)
""")
    assert about["peaks"] == [500, 900, 700, 600]
    assert by_label(rank, "cuda_memory_peak_bytes") == {"0": 900}
    assert by_label(rank, "cuda_memory_total_bytes") == {"0": 1000}


def test_an_allocator_without_statistics(on_fake: OnFake) -> None:
    rank, _ = on_fake.train("""
fake.statistics_allowed = fake.observers_allowed = False; fake.init(); fake.current = 3
for x, y in loader(4): step(x, y)
fake.report()
""")
    assert by_label(rank, "cuda_memory_allocated_bytes") == {}
    # an instance of a partitioned GPU goes by its own uuid
    assert by_label(rank, "run_gpu_info").keys() == {"MIG-31234567-89ab-cdef-0123-456789abcdef"}


def test_a_device_that_does_not_tell_what_it_is_at_first(on_fake: OnFake) -> None:
    result, _ = on_fake.run("""
from trainvitals.instruments import cuda_memory
cuda_memory._LOOK_FOR_DEVICES_SECONDS = 0.2
asked, properties = [], torch.cuda.get_device_properties
def at_third(index):
    asked.append(index)
    if len(asked) < 3: raise RuntimeError("busy")
    return properties(index)
torch.cuda.get_device_properties = at_third
fake.init(); fake.use(0, 1000, 2000)
for x, y in loader(10): step(x, y); time.sleep(0.12)
fake.report()
""")
    rank = result.rank
    assert rank.value("trainvitals_hook_errors_total", hook="cuda_memory") == 2
    assert by_label(rank, "run_gpu_info").keys() == {"GPU-01234567-89ab-cdef-0123-456789abcdef"}
    assert by_label(rank, "cuda_memory_allocated_bytes") == {"0": 1000}


def test_running_out_of_memory_and_going_on(on_fake: OnFake) -> None:
    result, about = on_fake.run("""
import trainvitals
fake.init(); fake.use(0, 1000, 2000)
def fails(gib):
    try: fake.run_out(int(gib * 2**30))
    except torch.OutOfMemoryError: pass
fails(3)  # before the first backward
for i, (x, y) in enumerate(loader(6)):
    step(x, y)
    if i in (2, 3, 4): fails(i / 2)
    time.sleep(0.12)
fake.report(observers=len(fake.observers))
""")
    rank = result.rank
    assert errors(rank) == []
    assert by_label(rank, "cuda_ooms_total") == {"0": 4}
    assert by_label(rank, "cuda_oom_requested_bytes") == {"0": 2 * 2**30}
    assert about["observers"] == 1
    assert about["snapshots"] == 1  # the next came too soon after
    before, report = reports(on_fake.launcher)
    assert "process" in next(on_fake.launcher.run_dir.glob("*.process.*.oom.json")).name
    assert [event["requested_bytes"] for event in before["events"]] == [3 * 2**30]
    assert [event["requested_bytes"] / 2**30 for event in report["events"]] == [2, 1.5, 1]
    newest = report["events"][0]
    assert newest["allocator"]["allocated_bytes"]["current"] == 1000
    assert newest["vital_signs"]["trainvitals_iterations_total{}"] == 4
    assert before["events"][0]["bytes_by_segment_type_and_state"] == {
        "large": {"active_allocated": 1 << 20, "inactive": 7 << 20}
    }
    assert before["events"][0]["largest_blocks"][0]["bytes"] == 7 << 20
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in on_fake.launcher.run_dir.glob("*.oom.*"))


def test_running_out_in_the_first_forward(on_fake: OnFake) -> None:
    result, _ = on_fake.run(
        """
fake.init(); fake.history = True
fake.report()
for x, y in loader(): fake.run_out(2**30)
""",
        code=1,
    )
    assert result.state == "out_of_memory"
    (report,) = reports(on_fake.launcher)
    (event,) = report["events"]
    assert event["requested_bytes"] == 2**30
    assert "vital_signs" not in event
    assert (on_fake.launcher.run_dir / event["snapshot"]).stat().st_size > 0


def test_running_out_where_the_allocator_does_not_tell(on_fake: OnFake) -> None:
    result, _ = on_fake.run(
        """
fake.observers_allowed = False
fake.init(); fake.use(1, 10)
class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): fake.run_out(int(1.5 * 2**30), 1)
for i, (x, y) in enumerate(loader(6)):
    loss = loss_of(x, y)
    if i == 5: fake.report()
    (Fails.apply(loss) if i in (3, 5) else loss).backward() if i == 5 else step(x, y)
    if i == 3:
        try: Fails.apply(loss).backward()
        except torch.OutOfMemoryError: time.sleep(0.2); step(x, y)
""",
        code=1,
    )
    assert by_label(result.rank, "cuda_ooms_total") == {"1": 2}
    assert by_label(result.rank, "cuda_oom_requested_bytes") == {"1": 1.5 * 2**30}
    (report,) = reports(on_fake.launcher)
    assert report["events"][0]["exception"].startswith("CUDA out of memory")
    assert errors(result.rank) == []


def test_the_observer_outlives_a_detach_silently(on_fake: OnFake) -> None:
    result, about = on_fake.run("""
import trainvitals
fake.init()
def fails():
    try: fake.run_out(2**30)
    except torch.OutOfMemoryError: pass
for turn in range(3):
    for x, y in loader(2): step(x, y)
    fails()
    trainvitals.detach()
    assert sys.excepthook is sys.__excepthook__
    fails()
    for x, y in loader(2): step(x, y)
    trainvitals.attach("again")
trainvitals.detach()
fake.report(observers=len(fake.observers), queued=len(torch.cuda._queued_calls) - fake.queued)
""")
    assert (about["observers"], about["queued"]) == (1, 0)
    assert [by_label(rank, "cuda_ooms_total") for rank in result.ranks] == [{"0": 1}] * 3


SABOTAGE = """
import trainvitals.session as session
guarded = session.Session.guarded
calls = {{}}
def sabotaged(self, name, function, **options):
    def function_(*args):
        calls[name] = calls.get(name, 0) + 1
        if name in {hooks!r} and calls[name] >= {first}: raise RuntimeError("sabotage")
        return function(*args)
    return guarded(self, name, function_, **options)
session.Session.guarded = sabotaged
"""
HOOKS = ("accelerator", "cuda_memory", "gpu_phases", "out_of_memory", "transfer")


@pytest.mark.parametrize("first", [1, 12])
def test_a_failing_hook_never_reaches_the_script(on_fake: OnFake, first: int) -> None:
    script = """
fake.init(); fake.use(0, 10)
losses = []
for i, (x, y) in enumerate(loader(60)):
    if i % 4 == 3:
        try: fake.run_out(2**30)
        except torch.OutOfMemoryError: pass
    losses.append(torch._C.TensorBase.item(step(x.to("cuda"), y).detach())); time.sleep(0.02)
fake.report(losses=losses, observers=len(fake.observers))
"""
    _, before = on_fake.train(script)
    sitecustomize = on_fake.launcher.directory / "fake" / "sitecustomize.py"
    sitecustomize.write_text(sitecustomize.read_text() + SABOTAGE.format(hooks=HOOKS, first=first))
    result, after = on_fake.run(script)
    assert after["losses"] == before["losses"]
    (rank,) = [rank for rank in result.ranks if errors(rank)]
    failed = by_label(rank, "hook_errors_total")
    assert set(failed) == ({"accelerator"} if first == 1 else set(HOOKS) - {"accelerator"})
    assert max(failed.values()) <= 10


def test_phases_by_the_gpu_s_clock(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
fake.init(); fake.use(1, 10)  # the current device is 0, but the model is not there
class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): fake.work(0.04, 1); return g
start, before = time.perf_counter(), 0.0
for x, y in loader(40):
    x = x.to("cuda:1"); fake.work(0.01, 1)
    fake.work(0.02, 1); loss = fake.put(Backward.apply(loss_of(x, y, 1)), 1); loss.backward()
    o.step(); o.zero_grad()
    while time.perf_counter() < before: time.sleep(0.001)  # one iteration ahead of the device, which never waits
    before = fake.free_at[1]
fake.report(wall=time.perf_counter() - start)
""")
    by_gpu, by_host = by_label(rank, "gpu_phase_seconds_total"), by_label(rank, "phase_seconds_total")
    assert set(by_gpu) == {"transfer", "forward", "backward", "optimizer", "other"}
    assert by_gpu["backward"] == pytest.approx(4 / 3 * by_gpu["forward"], rel=0.2)
    assert by_gpu["backward"] > 5 * by_host["backward"]  # which the host only begins
    assert by_gpu["backward"] > 5 * (by_gpu["optimizer"] + by_gpu["other"] + by_gpu["transfer"])
    assert 0.4 * about["wall"] < sum(by_gpu.values()) <= about["wall"]


def test_short_iterations_and_captures_are_left_alone(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
fake.init(); fake.use(0, 10)
for x, y in loader(30): o.zero_grad(); ((model(x) - y) ** 2).mean().backward(); o.step()
short = fake.events_made
for x, y in loader(40): step(x, y); time.sleep(0.02)
recorded = fake.calls["record"]
fake.capturing = True
for x, y in loader(20): step(x, y); time.sleep(0.02)
captured = fake.calls["record"] - recorded
fake.capturing = False; fake.held = True
for x, y in loader(100): step(x, y); time.sleep(0.015)
fake.report(short=short, recorded=recorded, captured=captured)
""")
    assert about["short"] == 0
    assert about["recorded"] > 40
    assert about["captured"] == 0
    assert about["events_made"] <= 2 * 256
    assert by_label(rank, "gpu_phase_seconds_total")["other"] > 0
    assert rank.value("trainvitals_iterations_total") == 190


def test_copies_to_the_device_are_a_phase(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
import copy, pickle, trainvitals
fake.init(); fake.use(0, 10)
to, cuda = torch.Tensor.to, torch.Tensor.cuda
for x, y in loader(2): step(x, y)  # it is only watched once it trains
assert torch.Tensor.to is to and torch.Tensor.cuda is cuda
class Image(torch.Tensor):
    seen = []
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})
image = torch.ones(3).as_subclass(Image)
def transferred():
    import trainvitals.attachment as a
    v = a._attachment._vitals
    return v.phases._spent[1] + (v._values[v.phases._slots[1]] if v.phases._slots else 0)
fake.copy_seconds = 0.02
spent = []
for x, y in loader(10):
    before, start = transferred(), time.perf_counter()
    x = x.to("cuda", non_blocking=True); y = y.cuda()
    took = time.perf_counter() - start
    x.to(torch.float16); torch.ones(2).to(torch.float64)
    spent.append((transferred() - before) / took)
    step(x, y)
    before = transferred()
    torch.ones(2).to("cuda")  # after the first backward: a logger's, say
    assert transferred() == before
assert copy.deepcopy(model).weight.equal(model.weight)
assert [n.to(torch.float64).dtype for n in (torch.ones(1), image)] == [torch.float64] * 2
trainvitals.detach()
assert torch.Tensor.to is to and vars(torch.Tensor)["to"] is to and vars(torch.Tensor)["cuda"] is cuda
fake.report(spent=spent)
""")
    assert all(0.8 < share < 1.2 for share in about["spent"])
    assert (by_label(rank, "phase_seconds_total"))["transfer"] > 0


# On a real CPU build of torch, where the methods are torch's own.
WATCHED = """
import json, pickle, sys, torch
import torch._dynamo.utils as utils
import trainvitals, trainvitals.attachment as attachment, trainvitals.instruments as instruments
from trainvitals.instruments import transfer
original = torch.Tensor.to
model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2)).backward(); o.step()
attached = attachment._attachment
class Image(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is not transfer._Method and "trainvitals" not in getattr(function, "__module__", "")
        return super().__torch_function__(function, types, args, kwargs or {})
class Plain(torch.Tensor): pass
x = torch.ones(2)
tensors = [x, x.clone().as_subclass(Image), x.clone().as_subclass(Plain)]
def half(x): return (x.to(torch.float16) * 2).to(dtype=torch.float32) + 1
def counted(): return dict(utils.counters["stats"]), dict(utils.counters["graph_break"])
def compiled():
    torch._dynamo.reset(); utils.counters.clear()
    fetched(); function = torch.compile(half, backend="eager")
    for t in tensors: function(t)
    return function, counted()
fetched = lambda: None
_, bare = compiled()
context = instruments.Context(attached.session, attached._vitals, instruments.Patches())
ended = transfer.install(context)
fetched = lambda: ended(0)
function, watched = compiled()
assert bare == watched and not bare[1] and bare[0]["unique_graphs"] == 3, (bare, watched)
for phase in (0, 5):  # neither the window nor putting the methods back compiles anything again
    ended(phase)
    for t in tensors: function(t)
assert counted() == watched
ended(0)
assert torch.Tensor.to is original and pickle.loads(pickle.dumps(torch.Tensor.to)) is original
assert "Method" in type(vars(torch.Tensor)["to"]).__name__
assert [type(t.to(torch.float16)) for t in tensors] == [torch.Tensor, Image, Plain]
assert torch.func.vmap(lambda t: t.to(torch.float64))(torch.ones(2, 2)).dtype is torch.float64
assert torch.jit.trace(half, (x,))(x).equal(half(x)) and torch.fx.symbolic_trace(half)(x).equal(half(x))
assert torch.nn.Linear(1, 1).to(torch.float64).weight.dtype is torch.float64
context.patches.undo()
for t in tensors: function(t)
assert counted() == watched and "to" not in vars(torch.Tensor) and torch.Tensor.to is original
"""


def test_watching_copies_is_invisible_to_the_rest_of_torch(launcher: Launcher) -> None:
    result = launcher.python(WATCHED)
    assert errors(result.rank) == []


ODD = """
import warnings; warnings.simplefilter("error")
import trainvitals
from torch._subclasses import FakeTensorMode
def logs(name, tensor): trainvitals.log(**{name: tensor, "after_" + name: 1.0})
step_ = lambda loss: (loss.backward(), o.step(), o.zero_grad())
x, y = torch.randn(8, 4), torch.randn(8, 1)
def plain(): return ((model(x) - y) ** 2).mean()
step_(plain())
quantized = torch.quantize_per_tensor if hasattr(torch, "quantize_per_tensor") else None
for on in (False, True):
    here = (lambda t: fake.put(t)) if on else (lambda t: t)
    suffix = "_device" if on else "_host"
    logs("double" + suffix, here(torch.tensor(2.5, dtype=torch.float64)))
    logs("integer" + suffix, here(torch.tensor(7)))
    logs("boolean" + suffix, here(torch.tensor(True)))
    logs("grad" + suffix, here(torch.tensor(3.5, requires_grad=True)))
    logs("one_of_three_dimensions" + suffix, here(torch.full((1, 1, 1), 4.5)))
    logs("parameter" + suffix, here(nn.Parameter(torch.tensor(5.5))))
    logs("complex" + suffix, here(torch.tensor(1 + 2j)))
    logs("many" + suffix, here(torch.ones(3)))
    logs("none" + suffix, here(torch.ones(0)))
    with torch.inference_mode(): logs("inference" + suffix, here(torch.tensor(6.5)))
    if quantized is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logs("quantized" + suffix, here(quantized(torch.ones(1), 0.1, 0, torch.qint8)))
    torch.func.vmap(lambda t: (logs("batched" + suffix, t), t)[1])(here(torch.ones(3)))
    torch.func.grad(lambda t: (logs("differentiated" + suffix, t), t)[1])(here(torch.tensor(8.5)))
logs("sparse", torch.ones(3).to_sparse())
logs("meta", torch.ones((), device="meta"))
with FakeTensorMode(): logs("fake", torch.ones(()))
with FakeTensorMode(allow_non_fake_inputs=True): logs("fake_cuda", torch.ones((), device="meta"))
# as losses
m = nn.Linear(4, 1, device="meta"); p = torch.optim.SGD(m.parameters(), lr=0.1)
for _ in range(12): m(torch.randn(8, 4, device="meta")).sum().backward(); p.step()
for _ in range(12): out = model(x); out.backward(torch.ones_like(out)); o.step()
for _ in range(12): torch.view_as_complex(torch.cat([model(x), model(x)], 1)).abs().mean().backward(); o.step()
fake.init(); fake.use(0, 10)
for _ in range(4): time.sleep(0.01); step_(plain())
fake.report()
"""


def test_tensors_that_are_no_numbers_are_left_out(on_fake: OnFake) -> None:
    rank, _ = on_fake.train(ODD)
    known = {"double": 2.5, "integer": 7, "boolean": 1, "grad": 3.5, "one_of_three_dimensions": 4.5}
    known |= {"parameter": 5.5, "inference": 6.5}
    scalars = by_label(rank, "scalar")
    assert {tag: value for tag, value in scalars.items() if not tag.startswith("after_")} == {
        **{f"{tag}_{where}": value for tag, value in known.items() for where in ("host", "device")},
        "differentiated_host": 8.5,
        "quantized_host": 1,
    }
    assert sum(tag.startswith("after_") for tag in scalars) >= 28
    assert (rank.value("trainvitals_series_dropped_total", reason="no_value") or 0) >= 10
    assert (rank.value("trainvitals_series_dropped_total", reason="device_not_supported") or 0) >= 1


def test_a_distributed_tensor_is_not_gathered(launcher: Launcher) -> None:
    result = launcher.python("""
import os, torch, torch.distributed as dist, trainvitals
from torch.distributed.tensor import DTensor, Replicate, Partial, distribute_tensor, init_device_mesh
model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2)).backward(); o.step()
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
def gathers(*args, **kwargs): raise AssertionError("a collective")
loss = DTensor.from_local(torch.tensor(3.0, requires_grad=True), mesh, [Partial()])
dist.all_reduce = torch.distributed._functional_collectives.all_reduce = gathers
trainvitals.log(partial=loss)
loss.to_local().backward(); o.step()
""")
    assert by_label(result.rank, "scalar") == {}
    assert errors(result.rank) == []


def test_another_accelerator(on_fake: OnFake) -> None:
    rank, about = on_fake.train("""
import trainvitals
trainvitals.detach()
import fake_cuda
torch.backends.cuda.is_built = lambda: False
torch.accelerator.current_accelerator = lambda *_: torch.device("xpu")
torch.accelerator.current_stream = lambda device: fake_cuda.Stream(device.index)
torch.Event = lambda kind: fake_cuda.Event()
trainvitals.attach("xpu")
fake.copy_seconds = 0.005
losses = []
for x, y in loader(20):
    x = x.to("xpu:1")
    o.zero_grad(); loss = fake.put(((model(x) - y) ** 2).mean(), 1, "xpu"); fake.work(0.001, 1); loss.backward(); o.step()
    losses.append(torch._C.TensorBase.item(loss.detach()))
trainvitals.log(mps=fake.put(torch.ones(()), 0, "mps"))
torch.Event = None
trainvitals.log(unknown=fake.put(torch.ones(()), 0, "hpu"))
trainvitals.detach()
fake.report(losses=losses)
""")
    assert any(rank.value("trainvitals_loss", optimizer="0") == pytest.approx(loss) for loss in about["losses"][-4:])
    assert by_label(rank, "phase_seconds_total")["transfer"] > 0
    assert rank.value("trainvitals_series_dropped_total", reason="device_not_supported") == 2


def test_facts_about_the_rank(launcher: Launcher) -> None:
    result = launcher.python("""
import os, time, torch, torch.distributed as dist
import accelerate, transformers
model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters(), lr=0.1)
def step(): model(torch.ones(2)).backward(); o.step()
step(); step(); time.sleep(1.1)
def reached(): return 3
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.get_rank, dist.get_world_size = (lambda: 3), (lambda: 4)
step()
""")
    assert result.rank.rank == 3
    assert result.rank.value("trainvitals_world_size") == 4
    (info,) = [dict(s.labels) for s in result.rank.samples if s.name == "trainvitals_run_info"]
    assert info["framework"] == "accelerate"  # of transformers it has no trainer


def test_the_batches_of_accelerate_are_copied_ahead(on_fake: OnFake) -> None:
    rank, _ = on_fake.train("""
import accelerate.data_loader as data_loader
fake.init(); fake.use(0, 10); fake.copy_seconds = 0.02
class Ahead:  # what its loaders do
    def __iter__(self):
        batches = iter(loader(10)); current = next(batches)
        while True:
            current = data_loader.send_to_device(current, torch.device("cuda", 0), non_blocking=True)
            try: following = next(batches)
            except StopIteration: yield current; return
            yield current
            current = following
for x, y in Ahead(): step(x, y)
fake.report()
""")
    phases = by_label(rank, "phase_seconds_total")
    assert phases["transfer"] > phases["other"] + phases["forward"] + phases["data_wait"]


def test_reports_are_removed_with_time(launcher: Launcher) -> None:
    launcher.run_dir.mkdir()
    old, new = launcher.run_dir / "x.process.1.oom.json", launcher.run_dir / "y.process.1.oom.json"
    for path in (old, new):
        path.write_text("{}")
    subprocess.run(["touch", "-d", "2 days ago", str(old)], check=True)
    launcher.python("pass")
    assert not old.exists()
    assert Path(new).exists()
