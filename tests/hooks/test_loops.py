"""Training loops as people write them, unmodified: what is recorded of each is what the loop itself computes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Launcher, run_files, state_of
from tests.hooks.together import PRELUDE, Recorded, loop, recorded_fixture

recorded = recorded_fixture()


@loop("""
o = torch.optim.AdamW(model.parameters(), lr=0.01)
for x, y in loader():
    o.zero_grad()
    with torch.autocast("cpu", torch.bfloat16): loss = loss_of(x, y)
    loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_bf16_autocast(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps=8, lr=0.01, epoch=1, accumulation=1, samples=64)


@loop("""
o = torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)
p = torch.optim.SGD((other := copy.deepcopy(model)).parameters(), lr=0.01, momentum=0.9, fused=True)
for x, y in loader():
    for i, (optimizer, m) in enumerate(((o, model), (p, other))):
        optimizer.zero_grad(); loss = loss_of(x, y, m); loss.backward()
        true(**{f"loss{i}": loss, f"norm{i}": norm(m.parameters())}); optimizer.step()
""")
def test_foreach_and_fused_optimizers(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps={"0": 8, "1": 8}, lr=0.01, epoch=1, accumulation=1)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for i, (x, y) in enumerate(loader()):
    o.zero_grad(); loss = loss_of(x, y) * (float("inf") if i == 3 else 1.0)
    scaler.scale(loss).backward(); scaler.unscale_(o); true(loss=loss, norm=norm(model.parameters()))
    clip_grad_norm_(model.parameters(), 1e-4); true(clipped=norm(model.parameters())); scaler.step(o); scaler.update()
""")
def test_scaler_unscale_and_clip(recorded: Recorded) -> None:
    assert recorded.true["clipped"] < recorded.true["norm"] / 2
    recorded.check(iterations=8, steps=7, lr=0.01, epoch=1, accumulation=1)
    assert recorded.value("amp_skipped_steps_total", optimizer="0") == 1
    assert recorded.value("amp_scale") == 512


@loop("""
def clip_grad_value_(parameters, clip_value, norm_type=2):  # as voice trainers have it
    parameters = list(filter(lambda p: p.grad is not None, parameters)); total = 0
    for p in parameters:
        total += p.grad.data.norm(norm_type).item() ** norm_type
        if clip_value is not None: p.grad.data.clamp_(min=-clip_value, max=clip_value)
    return total ** (1.0 / norm_type)
d, g = nn.Linear(1, 1), model
od, og = torch.optim.AdamW(d.parameters(), lr=0.01), torch.optim.AdamW(g.parameters(), lr=0.01)
scaler = torch.cuda.amp.GradScaler(enabled=False)
for x, y in loader():
    fake = g(x)
    loss = (d(fake.detach()) - d(y)).mean(); od.zero_grad(); scaler.scale(loss).backward(); scaler.unscale_(od)
    true(loss0=loss, norm0=clip_grad_value_(d.parameters(), None)); scaler.step(od)
    loss = -d(fake).mean() * 5; og.zero_grad(); scaler.scale(loss).backward(); scaler.unscale_(og)
    true(loss1=loss, norm1=clip_grad_value_(g.parameters(), None)); scaler.step(og); scaler.update()
""")
def test_the_script_s_own_function_that_measures(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps={"0": 8, "1": 8}, lr=0.01, epoch=1, accumulation=1)


@loop("""
def shrink(parameters, limit):
    whole = norm(parameters)
    for p in parameters: p.grad.mul_(min(1.0, limit / whole))
    return whole
o = torch.optim.SGD(model.parameters(), lr=0.01)
for x, y in loader():
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(before=shrink(list(model.parameters()), 0.01), loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_the_script_s_own_function_that_clips_is_not_told_from_the_gradients(recorded: Recorded) -> None:
    """A limit: averaging gradients by hand looks the same from outside, and there the later norm is the right one."""
    assert recorded.true["norm"] == pytest.approx(0.01) != recorded.true["before"]
    recorded.check(iterations=8, steps=8, epoch=1, accumulation=1)


@loop("""
class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(20): yield torch.randn(4), torch.randn(1)
o = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(2):
    for x, y in DataLoader(Stream(), batch_size=4, num_workers=epoch):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_iterable_dataset(recorded: Recorded) -> None:
    recorded.check(iterations=10, steps=10, epoch=2, accumulation=1)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
data = loader(); it = iter(data)
for step in range(27):
    try: x, y = next(it)
    except StopIteration:
        it = iter(data); x, y = next(it)
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_endless_loop_that_makes_its_iterator_anew(recorded: Recorded) -> None:
    recorded.check(iterations=27, steps=27, epoch=3, accumulation=1, samples=216)


@loop("""
class Endless(IterableDataset):
    def __iter__(self):
        while True: yield torch.randn(4), torch.randn(1)
o = torch.optim.SGD(model.parameters(), lr=0.01)
it = iter(DataLoader(Endless(), batch_size=4))
for step in range(27):
    x, y = next(it)
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_endless_dataset(recorded: Recorded) -> None:
    recorded.check(iterations=27, steps=27, epoch=0, accumulation=1)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
for step, (x, y) in enumerate(itertools.cycle(loader())):
    if step == 100: break
    loss = loss_of(x, y); loss.backward()
    if step % 4 == 3: true(loss=loss, norm=norm(model.parameters())); o.step(); o.zero_grad()
""")
def test_cycle_keeps_the_batches_of_its_first_pass(recorded: Recorded) -> None:
    recorded.check(iterations=100, steps=25, accumulation=4)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
critic = nn.Linear(1, 1); p = torch.optim.SGD(critic.parameters(), lr=0.01)
batches = list(loader())
for epoch in range(4):
    for x, y in batches:
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_batches_fetched_beforehand(recorded: Recorded) -> None:
    recorded.check(iterations=32, steps=32)


@loop("""
def ahead(loader):
    it = iter(loader); batch = next(it)
    for upcoming in it: yield batch; batch = upcoming
    yield batch
critic = nn.Linear(1, 1)
d, g = torch.optim.SGD(critic.parameters(), lr=0.01), torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(3):
    for x, y in ahead(loader()):
        d.zero_grad(); loss = (critic(model(x).detach()) - critic(y)).mean(); loss.backward()
        true(loss0=loss, norm0=norm(critic.parameters())); d.step()
        g.zero_grad(); loss = -critic(model(x)).mean(); loss.backward()
        true(loss1=loss, norm1=norm(model.parameters())); g.step()
""")
def test_loader_that_is_one_batch_ahead(recorded: Recorded) -> None:
    recorded.check(iterations=24, steps={"0": 24, "1": 24}, epoch=3, accumulation=1, samples=192)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(2):
    it = iter(loader(72))
    while group := list(itertools.islice(it, 4)):
        o.zero_grad()
        for x, y in group: loss = loss_of(x, y) / len(group); loss.backward()
        true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_batches_of_a_step_fetched_together(recorded: Recorded) -> None:
    recorded.check(iterations=18, steps=6, epoch=2, accumulation=1, samples=144)


@loop("""
class Slow(Dataset):
    def __len__(self): return 24
    def __getitem__(self, i): time.sleep(0.02); return torch.randn(4), torch.randn(1)
o = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(2):
    it = iter(DataLoader(Slow()))
    while group := list(itertools.islice(it, 4)):
        for x, y in group: loss = loss_of(x, y); loss.backward()
        true(loss=loss, norm=norm(model.parameters())); o.step(); o.zero_grad()
    time.sleep(0.1)
    with torch.no_grad():
        for x, y in DataLoader(Slow()): loss_of(x, y)
""")
def test_waits_for_batches_that_are_fetched_together(recorded: Recorded) -> None:
    recorded.check(iterations=48, steps=12, epoch=2, accumulation=4, samples=48)
    phases = recorded.family("phase_seconds_total", "phase")
    # as long for training as for evaluation, but for the first three batches: then nobody knows yet
    assert phases["data_wait"] / (phases["data_wait"] + phases["other"]) == pytest.approx(0.45, abs=0.08)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
def evaluate():
    with torch.no_grad(): true(held_out=sum(loss_of(x, y) for x, y in loader(40)))
evaluate()
for epoch in range(2):
    for i, (x, y) in enumerate(loader()):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
        if i % 3 == 2: evaluate()
    evaluate()
""")
def test_evaluation_before_between_and_inside_epochs(recorded: Recorded) -> None:
    recorded.check(iterations=16, steps=16, epoch=2, accumulation=1, samples=128)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
data, held_out = loader(), iter(loader(800))
for i, (x, y) in enumerate(data):
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
    with torch.no_grad():
        for _ in range(1 + i % 3): loss_of(*next(held_out))
""")
def test_a_few_evaluation_batches_after_each_step(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps=8, epoch=1, accumulation=1, samples=64)


@loop("""
o = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
for x, y in loader():
    def closure():
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); return loss
    o.step(closure)
""")
def test_lbfgs(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps=8, lr=0.1, epoch=1, accumulation=1)


@loop("""
class ScaledAdamLike(torch.optim.Optimizer):  # clips by itself, as icefall's does
    def __init__(self, parameters, lr): super().__init__(parameters, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad(): closure()
        for group in self.param_groups:
            scale = min(1.0, 1e-3 / norm(group["params"]))
            for p in group["params"]: p.grad.mul_(scale); p.add_(p.grad, alpha=-group["lr"])
class Rates:  # no LRScheduler at all
    def __init__(self, optimizer): self.optimizer, self.steps = optimizer, 0
    def step(self): self.steps += 1; self.optimizer.param_groups[0]["lr"] = 0.002
class Silent(torch.optim.lr_scheduler.LRScheduler):  # overrides step and calls no base class
    def get_lr(self): return [0.01]
    def step(self, epoch=None):
        for group in self.optimizer.param_groups: group["lr"] = 0.003
o = ScaledAdamLike(model.parameters(), lr=0.01); rates = Rates(o)
for i, (x, y) in enumerate(loader()):
    loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters()))
    if i % 2: o.step(closure=None)
    else: o.step(closure=lambda: None)
    rates.step(); o.zero_grad()
    if i == 0: true(first_rate=o.param_groups[0]["lr"])
silent = Silent(o)
for x, y in loader():
    o.step(closure=lambda: (o.zero_grad(), (loss := loss_of(x, y)).backward(), true(loss=loss, norm=norm(model.parameters()))))
    silent.step()
""")
def test_optimizer_of_the_script_s_own(recorded: Recorded) -> None:
    recorded.check(iterations=16, steps=16, lr=0.003, epoch=2, accumulation=1)


@loop("""
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
parts = [copy.deepcopy(model) for _ in range(3)]
a, b, c = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in parts]
schedulers = [OneCycleLR(a, 0.3, total_steps=20), ReduceLROnPlateau(b, patience=0, threshold=10.0), LambdaLR(c, lambda i: 1 / (1 + i))]
for x, y in loader():
    for i, (o, m, s) in enumerate(zip((a, b, c), parts, schedulers)):
        o.zero_grad(); loss = loss_of(x, y, m); loss.backward()
        true(**{f"loss{i}": loss, f"norm{i}": norm(m.parameters()), f"lr{i}": o.param_groups[0]["lr"]})
        o.step(); s.step(1.0) if i == 1 else s.step()
""")
def test_learning_rate_schedulers(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps={"0": 8, "1": 8, "2": 8}, epoch=1, accumulation=1)
    rates = [recorded.true[f"lr{i}"] for i in range(3)]
    assert [recorded.value("learning_rate", optimizer=str(i), group="0") for i in range(3)] == pytest.approx(rates)
    assert len({0.1, *rates}) == 4


@loop("""
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
class Block(nn.Module):
    def __init__(self): super().__init__(); self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh()); self.calls = 0
    def forward(self, x): self.calls += 1; time.sleep(0.02); return self.inner(x)
a, b, c = Block(), Block(), Block()
m = lambda x: model(c(checkpoint(b, checkpoint(a, x, use_reentrant=True), use_reentrant=False)))
parameters = [p for part in (a, b, c, model) for p in part.parameters()]
o = torch.optim.SGD(parameters, lr=0.01)
for x, y in loader():
    x.requires_grad_()
    o.zero_grad(); loss = loss_of(x, y, m); loss.backward(); true(loss=loss, norm=norm(parameters)); o.step()
true(calls=[a.calls, b.calls, c.calls])
""")
def test_activation_checkpointing(recorded: Recorded) -> None:
    assert recorded.true["calls"] == [16, 16, 8]
    recorded.check(iterations=8, steps=8, epoch=1, accumulation=1)
    phases = recorded.family("phase_seconds_total", "phase")
    # three sleeps forward, and the two of the recompute in the backward
    assert 0.4 < phases["backward"] / phases["forward"] < 1.2


@loop("""
from torch.utils.data import RandomSampler
class Sampler(RandomSampler):
    def set_epoch(self, epoch): self.epoch = epoch
o = torch.optim.Adam(model.parameters(), lr=0.01)
for x, y in loader(): loss_of(x, y).backward(); o.step(); o.zero_grad()
torch.save({"model": model.state_dict(), "optimizer": o.state_dict(), "epoch": 5}, "last.pt")
del o
gc.collect()
saved = torch.load("last.pt")
model.load_state_dict(saved["model"]); o = torch.optim.Adam(model.parameters(), lr=0.5); o.load_state_dict(saved["optimizer"])
data = pairs(64); sampler = Sampler(data)
for epoch in range(saved["epoch"], 7):
    sampler.set_epoch(epoch)
    for x, y in DataLoader(data, batch_size=8, sampler=sampler):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_resumed_from_a_checkpoint(recorded: Recorded) -> None:
    recorded.check(iterations=24, steps=24, lr=0.01, epoch=6, accumulation=1)


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.01)
for i, (x, y) in enumerate(loader(200)):
    if i < 17: continue  # trained before the checkpoint
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_resumed_by_skipping_batches(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps=8, epoch=1, accumulation=1, samples=64)


@loop("""
class Classifier:
    def fit(self, data):
        self.model = nn.Linear(4, 1); o = torch.optim.Adam(self.model.parameters(), lr=0.01)
        for x, y in data:
            o.zero_grad(); loss = loss_of(x, y, self.model); loss.backward(); n = norm(self.model.parameters()); o.step()
        true(loss=loss, norm=n); return self
    def predict(self, data):
        with torch.no_grad(): return [self.model(x) for x, _ in data]
for fold in range(4):
    estimator = Classifier().fit(loader()); estimator.predict(loader(16)); del estimator; gc.collect()
""")
def test_several_trainings_one_after_another(recorded: Recorded) -> None:
    recorded.check(iterations=32, steps=32, lr=0.01, epoch=4, accumulation=1, samples=256)


@loop("""
class Job:
    def __init__(self, i):
        self.i, self.m = i, nn.Linear(4, 1); self.o = torch.optim.SGD(self.m.parameters(), lr=0.1 ** i)
    def epochs(self):
        for x, y in loader(batch=8 * (self.i + 1)):
            self.o.zero_grad(); loss = loss_of(x, y, self.m); loss.backward()
            true(**{f"loss{self.i}": loss, f"norm{self.i}": norm(self.m.parameters())}); self.o.step(); yield
for _ in itertools.zip_longest(*[Job(i).epochs() for i in range(3)]): pass
""")
def test_trainings_that_take_turns(recorded: Recorded) -> None:
    recorded.check(iterations=8 + 4 + 3, steps={"0": 8, "1": 4, "2": 3}, lr=1.0, accumulation=1)


def test_notebook(launcher: Launcher) -> None:
    """Cells of one process that lives on after an exception."""
    cells = [
        PRELUDE + "import trainvitals",
        "trainvitals.attach('first'); trainvitals.attach('first')",
        "def train(epochs, fails):\n"
        "    m = nn.Linear(4, 1); o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "    for epoch in range(epochs):\n"
        "        for i, (x, y) in enumerate(loader()):\n"
        "            o.zero_grad(); loss_of(x, y, m).backward(); o.step()\n"
        "            if fails and i == 4: raise RuntimeError('in the middle')",
        "train(1, True)",
        "train(2, False)",
        "trainvitals.detach(); train(1, False)",
        "trainvitals.attach('second'); trainvitals.attach('third')",
        "train(1, False)",
        "trainvitals.detach(); trainvitals.detach(); assert 'TRAINVITALS_RUN_ID' not in os.environ; print('done')",
    ]
    script = launcher.script(
        f"import code\nshell = code.InteractiveInterpreter()\nfor cell in {cells!r}: shell.runsource(cell, symbol='exec')"
    )
    result = subprocess.run(
        [sys.executable, script], env=launcher.environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert result.stdout == "done\n"
    assert result.stderr.count("Traceback") == result.stderr.count("in the middle") == 1, result.stderr
    files = {file.identity.run: file for file in run_files(launcher.run_dir)}
    assert {run: file.value("trainvitals_iterations_total") for run, file in files.items()} == {
        "first": 21,
        "second": 8,
    }
    assert {run: file.value("trainvitals_epoch") for run, file in files.items()} == {"first": 2, "second": 1}
    assert state_of(files["second"]) == "finished"
    assert all(not any(s.name == "trainvitals_hook_errors_total" for s in file.samples) for file in files.values())


@loop("""
import queue, threading
def ahead(batches):  # as background prefetchers do
    arrived = queue.Queue(1)
    def fetch():
        for batch in batches: arrived.put(batch)
        arrived.put(None)
    threading.Thread(target=fetch, daemon=True).start()
    while (batch := arrived.get()) is not None: yield batch
o = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for x, y in ahead(loader()):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss); o.step()
    torch.save(model.state_dict(), f"{epoch}.pt")
""")
def test_batches_that_another_thread_fetches(recorded: Recorded) -> None:
    recorded.check(iterations=16, steps=16, lr=0.1)
    assert recorded.value("checkpoint_saves_total") == 2


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.1)
labelled, unlabelled = loader(), loader(24)
more = iter(unlabelled)
for epoch in range(2):
    for x, y in labelled:
        try: z, _ = next(more)
        except StopIteration: more = iter(unlabelled); z, _ = next(more)
        o.zero_grad(); loss = loss_of(x, y) + model(z).mean(); loss.backward(); true(loss=loss); o.step()
""")
def test_a_second_loader_that_begins_anew_within_an_iteration(recorded: Recorded) -> None:
    recorded.check(iterations=16, steps=16, lr=0.1, epoch=2, samples=128)


@loop("""
first = torch.optim.SGD(model.parameters(), lr=0.1)
def closure(): raise RuntimeError("in a notebook's cell")
try: first.step(closure)
except RuntimeError: pass
o = torch.optim.SGD(model.parameters(), lr=0.2)
for x, y in loader():
    o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); o.step()
""")
def test_another_optimizer_after_one_whose_step_raised(recorded: Recorded) -> None:
    recorded.check(iterations=8, steps=8, lr=0.2, epoch=1)


@loop("""
class Slow(Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): time.sleep(0.06); return torch.randn(4), torch.randn(1)
o = torch.optim.SGD(model.parameters(), lr=0.1)
batches = iter(DataLoader(Slow()))
batch = next(batches)
while batch is not None:
    o.zero_grad(); loss_of(*batch).backward(); batch = next(batches, None); o.step()
""")
def test_waits_for_batches_fetched_ahead_by_hand(recorded: Recorded) -> None:
    waits = recorded.family("batch_wait_seconds_bucket", "le")
    assert sum(waits.values()) == 10
    assert sum(count for bound, count in waits.items() if float(bound) <= 0.05) == 0
    assert (recorded.value("batch_wait_seconds_sum") or 0) > 0.6


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.1)
data, held_out = loader(40, 4), loader(64, 32)
for epoch in range(3):
    for x, y in data:
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss); o.step()
    with torch.no_grad(): loss_of(*next(iter(held_out))); time.sleep(0.3)
""")
def test_one_batch_of_evaluation_between_epochs(recorded: Recorded) -> None:
    recorded.check(iterations=30, steps=30, lr=0.1, epoch=3, samples=120)
    longest = {bound: count for bound, count in recorded.family("iteration_seconds_bucket", "le").items() if count}
    assert max(map(float, longest)) <= 0.25


@loop("""
from trainvitals.attachment import _attachment
def other():
    found = [s.value for s in _attachment.session.writer.samples() if dict(s.labels) == {"phase": "other"}]
    return found[0]
o = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader(): o.zero_grad(); loss_of(x, y).backward(); o.step()
with torch.no_grad():
    before = other()
    for i, (x, y) in enumerate(loader()): loss_of(x, y); time.sleep(0.06)
    true(seen=other() - before)
""")
def test_time_in_an_evaluation_is_told_while_it_lasts(recorded: Recorded) -> None:
    assert recorded.true["seen"] > 0.3


@loop("""
layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(100)])
each = {p: torch.optim.SGD([p], lr=1e-3) for p in layers.parameters()}
def step(p): each[p].step(); each[p].zero_grad()
for p in layers.parameters(): p.register_post_accumulate_grad_hook(step)
for epoch in range(2):
    for x, y in loader(): layers(x).square().mean().backward()
""")
def test_an_optimizer_for_each_parameter(recorded: Recorded) -> None:
    """More than there is room for: the first ones are told of, and the rest costs nothing."""
    assert recorded.value("iterations_total") == 16
    assert recorded.family("optimizer_steps_total", "optimizer") == {str(label): 16 for label in range(32)}
    assert recorded.value("series_dropped_total", reason="too_many_optimizers") == 200 - 32
    assert recorded.value("series_dropped_total", reason="run_file_full") == 0
    assert recorded.family("hook_errors_total", "hook") == {}
    assert recorded.value("epoch") == 2


@loop("""
o = torch.optim.SGD(model.parameters(), lr=0.1)
parameters = list(model.parameters())
for _ in range(12):
    loss = loss_of(torch.randn(8, 4), torch.randn(8, 1))
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)): p.grad = g
    true(norm=norm(parameters)); o.step()
""")
def test_gradients_assigned_by_hand(recorded: Recorded) -> None:
    recorded.check(iterations=12, steps=12, lr=0.1)
    assert recorded.value("loss", optimizer="0") is None
