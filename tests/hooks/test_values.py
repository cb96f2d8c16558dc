"""The values that the hooks record are those that the script itself computes, in loops of many shapes.

Each script prints, as JSON, what it knows to be true; what is recorded has to agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher
from tests.hooks.warm import Warm, warm

PRELUDE = """
import copy, json, math, time, torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
def norm(parameters):
    return math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in parameters if p.grad is not None))
def loader(n=64, batch=8, **kw):
    return DataLoader(TensorDataset(torch.randn(n, 4), torch.randn(n, 1)), batch_size=batch, **kw)
model = nn.Linear(4, 1)
def loss_of(x, y, m=model):
    return ((m(x) - y) ** 2).mean()
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    # the norm of each step, however short
    with warm(tmp_path_factory.mktemp("values"), TRAINVITALS_OVERHEAD="1") as process:
        yield process


def train(process: Warm | Launcher, text: str) -> tuple[RunFile, dict[str, float]]:
    result = process.python(PRELUDE + text)
    return result.rank, json.loads(result.stdout.splitlines()[-1])


def phases(rank: RunFile) -> dict[str, float]:
    return {dict(s.labels)["phase"]: s.value for s in rank.samples if s.name == "trainvitals_phase_seconds_total"}


def errors(rank: RunFile) -> list[str]:
    return [str(s.labels) for s in rank.samples if s.name == "trainvitals_hook_errors_total"]


def test_plain_loop_with_evaluation(process: Warm) -> None:
    rank, true = train(
        process,
        """
o = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}])
data, held_out = loader(shuffle=True, num_workers=1), loader(n=32)
start = time.perf_counter()
for epoch in range(3):
    for x, y in data:
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); g = norm(model.parameters()); o.step()
    with torch.no_grad():
        for x, y in held_out: loss_of(x, y)
print(json.dumps({"loss": loss.item(), "norm": g, "wall": time.perf_counter() - start}))
""",
    )
    assert rank.value("trainvitals_iterations_total") == 24
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 24
    assert rank.value("trainvitals_loss", optimizer="0") == pytest.approx(true["loss"])
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)
    assert rank.value("trainvitals_learning_rate", optimizer="0", group="0") == 0.1
    assert rank.value("trainvitals_learning_rate", optimizer="0", group="1") == 0.01
    assert rank.value("trainvitals_dataloader_workers") == 1
    assert rank.value("trainvitals_dataloader_batch_size") == 8
    assert rank.value("trainvitals_dataloader_prefetch_factor") == 2
    assert rank.value("trainvitals_optimizer_info", **{"optimizer": "0", "class": "SGD", "parameters": "5"}) == 1
    assert sum(s.value for s in rank.samples if s.name == "trainvitals_iteration_seconds_bucket") == 24
    assert errors(rank) == []


def test_phases_add_up_to_the_wall_time(process: Warm) -> None:
    rank, true = train(
        process,
        """
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): time.sleep(0.03); return torch.randn(4), torch.randn(1)
class Sleepy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): time.sleep(0.02); return x.clone()
    @staticmethod
    def backward(ctx, g): time.sleep(0.05); return g
o = torch.optim.SGD(model.parameters(), lr=0.1)
start = None
for x, y in DataLoader(Slow(), batch_size=1):
    start = start or time.perf_counter() - 0.03
    o.zero_grad(); Sleepy.apply(loss_of(x, y)).backward(); o.step(); time.sleep(0.01)
print(json.dumps({"wall": time.perf_counter() - start}))
""",
    )
    recorded = phases(rank)
    assert sum(recorded.values()) == pytest.approx(true["wall"], rel=0.1)
    # what sleeps longest is largest: order, not seconds
    assert sorted(recorded, key=recorded.__getitem__)[3:] == ["other", "forward", "data_wait", "backward"]


def test_gan_updates_on_one_batch_are_one_iteration(process: Warm) -> None:
    rank, true = train(
        process,
        """
critic = nn.Linear(1, 1)
d, g = torch.optim.Adam(critic.parameters()), torch.optim.Adam(model.parameters())
for x, y in loader():
    fake = model(x)
    d.zero_grad(); ld = critic(fake.detach()).mean() - critic(y).mean(); ld.backward(); nd = norm(critic.parameters()); d.step()
    g.zero_grad(); lg = -critic(fake).mean() * 3; lg.backward(); ng = norm(model.parameters()); g.step()
print(json.dumps({"ld": ld.item(), "lg": lg.item(), "nd": nd, "ng": ng}))
""",
    )
    assert rank.value("trainvitals_iterations_total") == 8
    for label, loss, gradient in (("0", "ld", "nd"), ("1", "lg", "ng")):
        assert rank.value("trainvitals_optimizer_steps_total", optimizer=label) == 8
        assert rank.value("trainvitals_loss", optimizer=label) == pytest.approx(true[loss])
        assert rank.value("trainvitals_gradient_norm", optimizer=label) == pytest.approx(true[gradient], rel=1e-5)


@pytest.mark.parametrize(
    "clip",
    [
        "clip_grad_norm_(model.parameters(), 1e-3)",
        "torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1e-3, norm_type=1.0)",
        "clip_grad_norm_([model.weight], 1e-3)",
        "clip_grad_norm_(model.weight, 1e-3); clip_grad_norm_(model.bias, 1e-3)",
        "clip_grad_value_(model.parameters(), 1e-4)",
    ],
)
def test_gradient_norm_is_taken_before_clipping(process: Warm, clip: str) -> None:
    rank, true = train(
        process,
        f"""
o = torch.optim.SGD(model.parameters(), lr=0.1)
norms = []
for x, y in loader():
    o.zero_grad(); loss_of(x, y).backward(); norms.append(norm(model.parameters())); {clip}; after = norm(model.parameters()); o.step()
print(json.dumps({{"norm": norms[-1], "after": after, "largest": max(norms)}}))
""",
    )
    assert true["after"] < true["norm"] * 0.9
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)
    assert rank.value("trainvitals_gradient_norm_max", optimizer="0") == pytest.approx(true["largest"], rel=1e-5)
    assert rank.value("trainvitals_gradient_norm_measured_steps_total", optimizer="0") == 8


def test_the_very_first_gradients_are_clipped(process: Warm) -> None:
    rank, true = train(
        process,
        """
o = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = next(iter(loader()))
loss_of(x, y).backward()
first = norm(model.parameters())
clip_grad_value_(model.parameters(), 1e-4); clip_grad_norm_(model.parameters(), 1e-4); o.step()
other = nn.Linear(4, 1); p = torch.optim.SGD(other.parameters(), lr=0.1)
(loss_of(x, y, other) * math.nan).backward()
clip_grad_norm_(other.parameters(), 1e-4); p.step()
print(json.dumps({"norm": first}))
""",
    )
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="nonfinite") == 0
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="1", kind="nonfinite") == 1


def test_accumulation(process: Warm) -> None:
    rank, true = train(
        process,
        """
o = torch.optim.SGD(model.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader()):
    loss = loss_of(x, y) / 4; loss.backward()
    if i % 4 == 3: g = norm(model.parameters()); o.step(); o.zero_grad()
print(json.dumps({"loss": loss.item(), "norm": g}))
""",
    )
    assert rank.value("trainvitals_iterations_total") == 8
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 2
    assert rank.value("trainvitals_loss", optimizer="0") == pytest.approx(true["loss"])
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD(model.parameters(), lr=0.1)",
                                       "torch.optim.AdamW(model.parameters(), fused=True)"])  # fmt: skip
def test_grad_scaler(process: Warm, optimizer: str) -> None:
    rank, true = train(
        process,
        f"""
o = {optimizer}
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
for i, (x, y) in enumerate(loader()):
    o.zero_grad(); loss = loss_of(x, y) * (float("inf") if i == 4 else 1.0); scaler.scale(loss).backward()
    scale = scaler.get_scale(); g = norm(model.parameters()) / scale; scaler.step(o); scaler.update()
print(json.dumps({{"loss": loss.item(), "norm": g, "scale": scaler.get_scale()}}))
""",
    )
    assert rank.value("trainvitals_loss", optimizer="0") == pytest.approx(true["loss"])
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)
    assert rank.value("trainvitals_amp_scale") == true["scale"] == 512
    assert rank.value("trainvitals_amp_skipped_steps_total", optimizer="0") == 1
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 7
    assert rank.value("trainvitals_loss_anomalies_total", optimizer="0", kind="nonfinite") == 1
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="nonfinite") == 0
    assert errors(rank) == []


@pytest.mark.parametrize("call", ["o.step(closure)", "o.step(closure=closure)"])
def test_gradients_made_inside_the_step(process: Warm, call: str) -> None:
    """As Lightning's automatic optimisation does: the gradients of before the step are the previous ones."""
    rank, true = train(
        process,
        f"""
o = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader():
    def closure():
        global g, loss
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); g = norm(model.parameters()); return loss
    {call}
print(json.dumps({{"loss": loss.item(), "norm": g}}))
""",
    )
    assert rank.value("trainvitals_gradient_norm", optimizer="0") == pytest.approx(true["norm"], rel=1e-5)
    assert rank.value("trainvitals_loss", optimizer="0") == pytest.approx(true["loss"])
    assert rank.value("trainvitals_iterations_total") == 8


def test_without_a_dataloader_an_iteration_is_a_step_of_the_first_optimizer(process: Warm) -> None:
    rank, _ = train(
        process,
        """
other = nn.Linear(4, 1)
a, b = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
for i in range(12):
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    loss_of(x, y).backward(); a.step(); loss_of(x, y, other).backward(); b.step()
print("{}")
""",
    )
    assert rank.value("trainvitals_iterations_total") == 12
    assert rank.value("trainvitals_dataloader_workers") is None


def test_anomalies_of_single_steps_are_counted(process: Warm) -> None:
    rank, _ = train(
        process,
        """
p = nn.Parameter(torch.ones(3)); o = torch.optim.SGD([p], lr=0.0)
factors = [1.0] * 200
factors[100] = 5000.0; factors[120] = 1e-6; factors[160] = 20.0; factors[199] = float("nan")
for f in factors:
    o.zero_grad(); (p.sum() * f).backward(); o.step()
print("{}")
""",
    )
    gradient = {k: rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind=k)
                for k in ("explosion", "vanishing", "nonfinite")}  # fmt: skip
    loss = {k: rank.value("trainvitals_loss_anomalies_total", optimizer="0", kind=k) for k in ("spike", "nonfinite")}
    assert gradient == {"explosion": 2, "vanishing": 1, "nonfinite": 1}
    assert loss == {"spike": 1, "nonfinite": 1}
    assert rank.value("trainvitals_gradient_norm_max", optimizer="0") == pytest.approx(5000 * math.sqrt(3))
    assert rank.value("trainvitals_gradient_norm_baseline", optimizer="0") == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("paused", [None, 30])
def test_fifty_steps_teach_and_no_more(process: Warm, paused: int | None) -> None:
    """However long they take: what is put off for some time is not put off until later than that."""
    rank, _ = train(
        process,
        f"""
p = nn.Parameter(torch.ones(3)); o = torch.optim.SGD([p], lr=0.0)
for i in range(51):
    if i == {paused}: time.sleep(0.12)
    o.zero_grad(); (p.sum() * (5000.0 if i in (49, 50) else 1.0)).backward(); o.step()
print("{{}}")
""",
    )
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="explosion") == 1
    assert rank.value("trainvitals_loss_anomalies_total", optimizer="0", kind="spike") == 1


def test_a_lasting_nan_is_shown_as_nan(process: Warm) -> None:
    rank, _ = train(
        process,
        """
o = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader():
    o.zero_grad(); (loss_of(x, y) * float("nan")).backward(); o.step()
print("{}")
""",
    )
    loss = rank.value("trainvitals_loss", optimizer="0")
    assert loss is not None
    assert math.isnan(loss)
    assert rank.value("trainvitals_loss_anomalies_total", optimizer="0", kind="nonfinite") == 8


def test_scalars_of_tensorboard_and_log(process: Warm) -> None:
    rank, _ = train(
        process,
        """
from torch.utils.tensorboard import SummaryWriter
import trainvitals
o = torch.optim.SGD(model.parameters(), lr=0.1)
with SummaryWriter("tb") as writer, SummaryWriter("tb2") as second:
    for step, (x, y) in enumerate(loader()):
        o.zero_grad(); loss_of(x, y).backward(); o.step()
        writer.add_scalar("loss/g/kl", torch.tensor(step + 0.5), step)
        second.add_scalar("new", step, step, new_style=True)
        writer.add_image("picture", torch.zeros(3, 4, 4), step)
        trainvitals.log(kl=torch.tensor(2.0, requires_grad=True), weight=3)
    for i in range(300): writer.add_scalar(f"many/{i}", 1.0, 0)
print("{}")
""",
    )
    assert rank.value("trainvitals_scalar", tag="loss/g/kl") == 7.5
    assert rank.value("trainvitals_scalar", tag="new") == 7
    assert rank.value("trainvitals_scalar", tag="kl") == 2
    assert rank.value("trainvitals_scalar", tag="weight") == 3
    assert sum(s.name == "trainvitals_scalar" for s in rank.samples) == 200
    assert rank.value("trainvitals_series_dropped_total", reason="too_many_scalars") == 104
    assert errors(rank) == []


def test_a_second_training_continues_the_series(process: Warm) -> None:
    rank, _ = train(
        process,
        """
import gc
for fold in range(3):
    m = nn.Linear(4, 1); o = torch.optim.SGD(m.parameters(), lr=0.1)
    for x, y in loader():
        o.zero_grad(); loss_of(x, y, m).backward(); o.step()
    del m, o; gc.collect()
print("{}")
""",
    )
    assert rank.value("trainvitals_iterations_total") == 24
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 24
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="1") is None


def test_backward_in_another_thread_is_left_alone(process: Warm) -> None:
    rank, _ = train(
        process,
        """
import threading
o = torch.optim.SGD(model.parameters(), lr=0.1)
def background():
    m = nn.Linear(4, 1); p = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(50): loss_of(torch.randn(2, 4), torch.randn(2, 1), m).backward(); p.step()
for i, (x, y) in enumerate(loader()):
    o.zero_grad(); loss_of(x, y).backward(); o.step()
    if i == 2: t = threading.Thread(target=background); t.start(); t.join()
print("{}")
""",
    )
    assert rank.value("trainvitals_iterations_total") == 8
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="1") is None


def test_two_loaders_feed_one_iteration(process: Warm) -> None:
    rank, true = train(
        process,
        """
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 12
    def __getitem__(self, i): time.sleep(0.05); return torch.randn(4)
o = torch.optim.SGD(model.parameters(), lr=0.1)
start = time.perf_counter()
for x, (_, y) in zip(DataLoader(Slow()), loader(12, 1)):
    o.zero_grad(); loss_of(x, y).backward(); o.step()
wall = time.perf_counter() - start
with torch.no_grad():
    for x, (_, y) in zip(DataLoader(Slow()), loader(12, 1)): loss_of(x, y)
print(json.dumps({"wall": wall}))
""",
    )
    assert rank.value("trainvitals_iterations_total") == 12
    recorded = phases(rank)
    assert recorded["data_wait"] > true["wall"] / 2
    assert recorded["other"] > recorded["data_wait"] / 2  # the evaluation's waits are not training's


def test_a_step_that_raises_and_is_caught(process: Warm) -> None:
    rank, _ = train(
        process,
        """
class Flaky(torch.optim.SGD):
    calls = 0
    def step(self, closure=None):
        Flaky.calls += 1
        if Flaky.calls == 3: raise RuntimeError("out of memory, say")
        return super().step(closure)
o = Flaky(model.parameters(), lr=0.1)
for i in range(20):
    loss_of(torch.randn(8, 4), torch.randn(8, 1)).backward()
    try: o.step()
    except RuntimeError: pass
print("{}")
""",
    )
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 19
    assert rank.value("trainvitals_iterations_total") == 19


def test_a_loss_that_is_not_known_is_absent(process: Warm) -> None:
    rank, true = train(
        process,
        """
critic = nn.Linear(4, 1)
a, b, c = [torch.optim.SGD(nn.Linear(4, 1).parameters() if i == 2 else m.parameters(), lr=0.1) for i, m in enumerate((model, critic, model))]
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for x, y in loader():
    loss = loss_of(x, y); loss.backward(); a.step()
    out = critic(x); out.backward(torch.ones_like(out)); b.step()
    l1, l2 = loss_of(x, y), loss_of(x, y, critic)
    (scaler.scale(l1) + scaler.scale(l2)).backward(); scaler.unscale_(a); scaler.step(a); scaler.update(); a.zero_grad(); b.zero_grad()
    l1, l2 = scaler.scale(loss_of(x, y)), scaler.scale(last := loss_of(x, y, critic) * 3)
    l1.backward(); l2.backward(); scaler.step(b); scaler.update(); a.zero_grad(); b.zero_grad()
print(json.dumps({"b": last.item()}))
""",
    )
    assert rank.value("trainvitals_loss", optimizer="1") == pytest.approx(true["b"])
    lost = rank.value("trainvitals_loss", optimizer="0")
    assert lost is not None
    assert lost < 100  # and not 1024 times as much
    assert errors(rank) == []


def test_zero_gradients_at_first_are_no_reason_for_explosions(process: Warm) -> None:
    rank, _ = train(
        process,
        """
p = nn.Parameter(torch.ones(3)); o = torch.optim.SGD([p], lr=0.0)
for i in range(120):
    o.zero_grad(); (p.sum() * (0.0 if i < 60 else 1.0)).backward(); o.step()
print("{}")
""",
    )
    assert rank.value("trainvitals_gradient_anomalies_total", optimizer="0", kind="explosion") == 0


def test_odd_scalars(process: Warm) -> None:
    rank, _ = train(
        process,
        """
import numpy as np, trainvitals
from torch.utils.tensorboard import SummaryWriter
o = torch.optim.SGD(model.parameters(), lr=0.1)
with SummaryWriter("tb") as writer:
    for step, (x, y) in enumerate(loader()):
        o.zero_grad(); loss_of(x, y).backward(); o.step()
        writer.add_scalar("double", step, step, new_style=True, double_precision=True)
        trainvitals.log(numpy=np.float32(3), plain=2.0, tensor=torch.tensor(5))
print("{}")
""",
    )
    for tag, value in (("double", 7), ("numpy", 3), ("plain", 2), ("tensor", 5)):
        assert rank.value("trainvitals_scalar", tag=tag) == value
    assert errors(rank) == []


def test_more_parameter_groups_than_there_is_room_for(process: Warm) -> None:
    rank, _ = train(
        process,
        """
o = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2000)], lr=0.1)
for _ in range(10):
    sum(g["params"][0].sum() for g in o.param_groups).backward(); o.step()
print("{}")
""",
    )
    assert rank.value("trainvitals_optimizer_steps_total", optimizer="0") == 10
    assert rank.value("trainvitals_learning_rate", optimizer="0", group="63") == 0.1
    assert rank.value("trainvitals_learning_rate", optimizer="0", group="64") is None


def test_time_after_the_last_step_is_not_part_of_its_iteration(process: Warm) -> None:
    rank, _ = train(
        process,
        """
o = torch.optim.SGD(model.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader()):
    o.zero_grad(); loss_of(x, y).backward(); o.step()
    if i == 4: break
time.sleep(3)
print("{}")
""",
    )
    assert rank.value("trainvitals_iterations_total") == 5
    assert (rank.value("trainvitals_iteration_seconds_sum") or 9) < 3 < sum(phases(rank).values())
