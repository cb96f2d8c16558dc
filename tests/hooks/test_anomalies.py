"""When something is not normal, the run's log file and an info metric name the parameter, the batch and its samples."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from trainvitals import rundir
from trainvitals.runfile import Identity, RunFile, RunFileWriter

from tests.conftest import Launcher
from tests.hooks.test_devices import OnFake, with_fake
from tests.hooks.together import Recorded, loop, recorded_fixture
from tests.hooks.warm import Warm

recorded = recorded_fixture()

# In one sample, a factor of `scale.gain` is not 0. Nothing but the gradient of that parameter shows it.
PRELUDE = """
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, Sampler, SequentialSampler
BAD = 37
class Spoiled(Dataset):
    def __init__(self, factor=1e6):
        self.x = torch.randn(96, 5); self.x[:, 4] = 0.0; self.x[BAD, 4] = factor; self.y = torch.randn(96, 1)
    def __len__(self): return 96
    def __getitem__(self, i): return self.x[i], self.y[i], int(i)
class Scale(nn.Module):
    def __init__(self): super().__init__(); self.gain = nn.Parameter(torch.zeros(()))
class Net(nn.Module):
    def __init__(self): super().__init__(); self.body = nn.Linear(4, 1); self.scale = Scale()
    def forward(self, x): return self.body(x[:, :4]) + self.scale.gain * x[:, 4:]
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
facts["bad"] = []
def saw(number, *batches):  # what the script itself knows about where it is
    if any(BAD in indices for _, _, indices in batches):
        facts["bad"].append([{"number": number + i, "samples": b[2].tolist()} for i, b in enumerate(batches)])
def step(x, y, *_, net=net, o=optimizer):
    o.zero_grad(); loss_of(x, y, net).backward(); o.step()
def learn_what_is_usual(net=net, o=optimizer):
    for x, y, _ in DataLoader(Spoiled(factor=0.0), batch_size=1): step(x, y, net=net, o=o)
def train(batches):
    for number, batch in enumerate(batches): saw(number, batch); step(*batch)
"""


@pytest.fixture(autouse=True)
def every_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINVITALS_OVERHEAD", "1")


def log_of(recorded: Recorded) -> list[dict[str, Any]]:
    return log_beside(recorded.rank)


def log_beside(file: RunFile) -> list[dict[str, Any]]:
    path = file.path.with_suffix(rundir.LOG_SUFFIX)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def infos(recorded: Recorded) -> list[dict[str, str]]:
    return [dict(s.labels) for s in recorded.rank.samples if s.name == "trainvitals_anomaly_info"]


def check_explosions(recorded: Recorded, parameter: str = "scale.gain") -> None:
    """Each explosion that the script saw coming is told, and nothing else is."""
    log = log_of(recorded)
    assert [entry["batches"] for entry in log] == recorded.true["bad"] != []
    assert {(entry["of"], entry["kind"], entry["optimizer"]) for entry in log} == {("gradient", "explosion", "0")}
    for entry in log:
        assert entry["value"] > 10 * entry["usual"] > 0
        assert entry["parameters"][0]["name"] == parameter
        assert entry["parameters"][0]["norm"] == pytest.approx(entry["value"], rel=1e-3)
        assert entry["parameters_in_all"] == 3
        assert entry["parameters_not_finite"] == 0
    shown = infos(recorded)
    for entry, info in zip(log, shown, strict=True):
        samples = [sample for batch in entry["batches"] for sample in batch["samples"]]
        assert info["samples"] == ", ".join(map(str, samples[:16]))
        assert info["parameters"].split(", ")[0] == parameter
        assert (info["kind"], info["optimizer"]) == ("explosion", "0")
        assert info["iteration"] == str(entry["iteration"])
    assert recorded.family("hook_errors_total", "hook") == {}


@loop("learn_what_is_usual(); train(DataLoader(Spoiled(), batch_size=8, shuffle=True))", PRELUDE)
def test_no_workers(recorded: Recorded) -> None:
    check_explosions(recorded)
    (entry,) = log_of(recorded)
    assert entry["iteration"] == 96 + entry["batches"][0]["number"]
    assert entry["epoch"] == 1
    assert entry["run"] == recorded.rank.identity.run
    assert entry["rank"] == 0
    path = recorded.rank.path.with_suffix(rundir.LOG_SUFFIX)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@loop("learn_what_is_usual(); train(DataLoader(Spoiled(), batch_size=8, shuffle=True, num_workers=2))", PRELUDE)
def test_workers_that_prefetch(recorded: Recorded) -> None:
    check_explosions(recorded)


@loop("""
learn_what_is_usual()
batches = DataLoader(Spoiled(), batch_size=4, shuffle=True, num_workers=2, prefetch_factor=4, persistent_workers=True)
for x in batches: break  # the next pass begins anew
for epoch in range(2): train(batches)
""", PRELUDE)  # fmt: skip
def test_persistent_workers(recorded: Recorded) -> None:
    check_explosions(recorded)
    assert [entry["epoch"] for entry in log_of(recorded)] == [1, 2]


@loop("""
learn_what_is_usual()
order = torch.randperm(96)
train(DataLoader(Spoiled(), batch_sampler=[order[:10], *order[10:94].split(7), order[94:]], num_workers=1))
""", PRELUDE)  # fmt: skip
def test_batch_sampler_of_tensors_of_odd_sizes(recorded: Recorded) -> None:
    check_explosions(recorded)


@loop("""
learn_what_is_usual()
class Batched(Spoiled):
    def __getitem__(self, indices): return self.x[indices], self.y[indices], torch.tensor(indices)
train(DataLoader(Batched(), sampler=BatchSampler(RandomSampler(Spoiled()), 6, False), batch_size=None))
""", PRELUDE)  # fmt: skip
def test_a_dataset_that_is_asked_for_whole_batches(recorded: Recorded) -> None:
    check_explosions(recorded)
    assert recorded.value("samples_total") == 96 * 2


@loop("""
learn_what_is_usual()
batches = iter(DataLoader(Spoiled(), batch_size=3, shuffle=True))
for number in range(0, 32, 4):
    four = []
    optimizer.zero_grad()
    for _ in range(4): batch = next(batches); four.append(batch); loss_of(*batch[:2], net).backward()
    optimizer.step(); saw(number, *four)
""", PRELUDE)  # fmt: skip
def test_accumulation_names_all_batches_of_the_step(recorded: Recorded) -> None:
    check_explosions(recorded)
    assert len(log_of(recorded)[0]["batches"]) == 4


@loop("""
def one_ahead(loader):  # so does Accelerate, to know the last batch early
    batches = iter(loader); batch = next(batches)
    for following in batches: yield batch; batch = following
    yield batch
learn_what_is_usual()
train(one_ahead(DataLoader(Spoiled(), batch_size=8, shuffle=True, num_workers=1)))
spoiled = Spoiled(); spoiled.x[BAD, 4] = 0.0; spoiled.x[(BAD := 95), 4] = 1e6
train(one_ahead(DataLoader(spoiled, batch_size=8)))  # the last one
""", PRELUDE)  # fmt: skip
def test_batches_fetched_one_ahead(recorded: Recorded) -> None:
    check_explosions(recorded)
    assert recorded.value("samples_total") == 96 * 3


@loop("""
learn_what_is_usual()
for number, batch in enumerate(DataLoader(Spoiled(), batch_size=4)):
    if number == 3: continue  # as a script does with a batch that it does not like
    saw(number, batch); step(*batch)
""", PRELUDE)  # fmt: skip
def test_a_skipped_batch(recorded: Recorded) -> None:
    check_explosions(recorded)


@loop("""
learn_what_is_usual()
held_out = DataLoader(Spoiled(), batch_size=16)
for number, batch in enumerate(DataLoader(Spoiled(), batch_size=8, shuffle=True)):
    saw(number, batch); step(*batch)
    with torch.no_grad():
        for x, y, _ in held_out: loss_of(x, y, net)
""", PRELUDE)  # fmt: skip
def test_evaluation_within_the_epoch(recorded: Recorded) -> None:
    check_explosions(recorded)


@loop("""
import torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + os.path.abspath("store"), rank=0, world_size=1)
whole = torch.compile(nn.parallel.DistributedDataParallel(net), backend="eager")
learn_what_is_usual(whole)
sampler = DistributedSampler(Spoiled(), num_replicas=2, rank=0)
for epoch in range(4):
    sampler.set_epoch(epoch)
    for number, batch in enumerate(DataLoader(Spoiled(), batch_size=8, sampler=sampler)):
        saw(number, batch); step(*batch, net=whole)
dist.destroy_process_group()
""", PRELUDE)  # fmt: skip
def test_distributed_sampler_under_wrappers(recorded: Recorded) -> None:
    check_explosions(recorded)
    assert recorded.value("epoch") == 5


@loop("""
class Stream(IterableDataset):
    def __iter__(self): return iter([Spoiled()[i] for i in range(96)])
learn_what_is_usual()
train(DataLoader(Stream(), batch_size=8))
train(DataLoader(Spoiled(), batch_size=8, num_workers=2, in_order=False))
""", PRELUDE)  # fmt: skip
def test_samples_that_cannot_be_known_are_not_named(recorded: Recorded) -> None:
    log = log_of(recorded)
    assert log[0]["batches"] == [{"number": 37 // 8, "samples": None}]
    assert [entry["batches"][0]["samples"] for entry in log] == [None, None]
    assert {entry["parameters"][0]["name"] for entry in log} == {"scale.gain"}
    assert {info["samples"] for info in infos(recorded)} == {""}
    assert recorded.value("samples_total") == 96


@loop("""
rivals = [(m := Net(), torch.optim.SGD(m.parameters(), lr=0.0)) for _ in range(2)]
data = Spoiled(float("nan"))
for rival in rivals: learn_what_is_usual(*rival)
for number, batch in enumerate(DataLoader(data, batch_size=8)):
    x, y, _ = batch
    saw(number, batch); step(x.nan_to_num(), y, net=rivals[0][0], o=rivals[0][1])
    for p in (m := rivals[1][0]).parameters(): p.grad = torch.ones_like(p)
    m.scale.gain.grad = x[:, 4].sum(); clip_grad_norm_(m.body.parameters(), 1e-3); rivals[1][1].step()
""", PRELUDE)  # fmt: skip
def test_what_is_not_finite_comes_first(recorded: Recorded) -> None:
    (entry,) = [entry for entry in log_of(recorded) if entry["of"] == "gradient"]
    assert (entry["kind"], entry["optimizer"], entry["value"]) == ("nonfinite", "1", "NaN")
    assert [entry["batches"]] == recorded.true["bad"]
    assert entry["parameters"][0] == {"name": "scale.gain", "norm": "NaN"}
    assert entry["parameters_not_finite"] == 1


@loop("""
learn_what_is_usual()
batches = DataLoader(Spoiled(), batch_size=8)
for number, batch in enumerate(batches):
    optimizer.zero_grad(); loss_of(*batch[:2], net).backward(); saw(number, batch)
    clip_grad_norm_(net.parameters(), 1e-3); optimizer.step()
""", PRELUDE)  # fmt: skip
def test_norms_are_those_before_clipping(recorded: Recorded) -> None:
    check_explosions(recorded)


@loop("""
learn_what_is_usual()
for number, batch in enumerate(DataLoader(Spoiled(), batch_size=8)):
    optimizer.zero_grad(); loss_of(*batch[:2], net).backward(); saw(number, batch)
    if BAD in batch[2]: net.scale.gain.grad.fill_(math.nan)
    clip_grad_norm_(net.parameters(), 1.0)
    after = [math.isnan(norm([p])) for p in net.parameters()]; optimizer.step()
    if BAD in batch[2]: break
true(after=after)
""", PRELUDE)  # fmt: skip
def test_what_was_not_finite_before_clipping(recorded: Recorded) -> None:
    assert recorded.true["after"] == [True] * 3
    (entry,) = log_of(recorded)
    assert [entry["batches"]] == recorded.true["bad"]
    assert (entry["kind"], entry["parameters_not_finite"]) == ("nonfinite", 1)
    assert entry["parameters"][0] == {"name": "scale.gain", "norm": "NaN"}


@loop("""
learn_what_is_usual()
for number, (x, y, _) in enumerate(DataLoader(Spoiled(), batch_size=1)):
    optimizer.zero_grad(); (loss_of(x, y, net) * (1e-6 if number > 90 else 1.0)).backward(); optimizer.step()
""", PRELUDE)  # fmt: skip
def test_of_vanishing_gradients_the_smallest_are_named(recorded: Recorded) -> None:
    log = [entry for entry in log_of(recorded) if entry["kind"] == "vanishing"]
    assert log
    for entry in log:
        norms = [parameter["norm"] for parameter in entry["parameters"]]
        assert norms == sorted(norms)


@loop("""
for x, y, _ in itertools.chain(*[DataLoader(Spoiled(0.0), batch_size=1)] * 20):
    optimizer.zero_grad(); (loss_of(x, y, net) * float("nan")).backward(); optimizer.step()
""", PRELUDE)  # fmt: skip
def test_a_storm_is_told_by_its_first_steps(recorded: Recorded) -> None:
    assert recorded.value("gradient_anomalies_total", optimizer="0", kind="nonfinite") == 20 * 96
    log = log_of(recorded)
    for name in ("loss", "gradient"):
        entries = [entry for entry in log if entry["of"] == name]
        assert [entry["iteration"] for entry in entries[:4]] == [0, 1, 2, 3]
        assert len(entries) < 12
        later = [entry["left_out_before"] for entry in entries[4:]]
        assert all(left_out > 0 for left_out in later)
    shown = [int(info["iteration"]) for info in infos(recorded)]
    assert shown == [0, 0, *sorted(entry["iteration"] for entry in log)[2:][-6:]]
    assert {info["parameters"] for info in infos(recorded) if info["parameters"]} <= {
        "body.weight, body.bias, scale.gain"
    }


@loop("""
many = [nn.Linear(4, 4) for _ in range(20)]
optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in many]
for _ in range(6):
    for m, o in zip(many, optimizers): o.zero_grad(); (m(torch.randn(2, 4)).sum() * math.inf).backward(); o.step()
""", PRELUDE)  # fmt: skip
def test_a_hundred_are_recorded_and_the_last_one_says_so(recorded: Recorded) -> None:
    log = log_of(recorded)
    assert len(log) == 100
    assert ["note" in entry for entry in log] == [False] * 99 + [True]
    assert len(infos(recorded)) == 8
    assert recorded.value("series_dropped_total", reason="run_file_full") == 0


@loop("""
import glob
learn_what_is_usual()
(file,) = glob.glob(f"{os.environ['TRAINVITALS_RUN_DIR']}/*.rank.{os.getpid()}.vitals")
os.mkdir(file.replace(".vitals", ".log"))
train(DataLoader(Spoiled(), batch_size=8))
""", PRELUDE)  # fmt: skip
def test_a_log_that_cannot_be_written(recorded: Recorded) -> None:
    assert recorded.family("hook_errors_total", "hook") == {"anomaly_log": 1}
    (info,) = infos(recorded)
    assert str(37) in info["samples"].split(", ")
    assert recorded.value("iterations_total") == 96 + 12


@loop("""
odd = [nn.Linear.__new__(nn.Linear), torch.jit.script(nn.Linear(2, 2))]; odd.append(nn.Sequential()); odd[2].me = odd[2]
weight = torch.zeros(3, 2, requires_grad=True); named = nn.Parameter(torch.zeros(2))
try: o = torch.optim.SGD([("mine", named), ("other", weight)], lr=0.0)
except TypeError: o = torch.optim.SGD([named, weight], lr=0.0)
(weight.sum() + named.sum() * math.nan).backward(); o.step()
p = torch.optim.SGD([weight], lr=0.0); (weight.sum() * math.inf).backward(); p.step()
""", PRELUDE)  # fmt: skip
def test_parameters_of_no_model(recorded: Recorded) -> None:
    names = [entry["parameters"][0]["name"] for entry in log_of(recorded) if entry["of"] == "gradient"]
    assert names == ["mine", "other"]


ON_DEVICE = """
o.param_groups[0]["lr"] = 0.0
for number, (x, y) in enumerate(loader(70)):
    if number == 60:
        o.zero_grad(); loss_of(x, y).backward(); model.bias.grad *= 1e9
        for p in model.parameters(): fake.put(p.grad)
        fake.work(0.05); o.step()
    else: step(x, y)
    if number == 61: fake.work({then})
    if number > 60: time.sleep(0.03)
fake.report()
"""


@pytest.mark.parametrize(("busy", "names"), [(0.0, ["bias", "weight"]), (100.0, None)])
def test_norms_on_a_device_are_not_waited_for(launcher: Launcher, busy: float, names: list[str] | None) -> None:
    """What has arrived at the end of the training is told, and the batch in any case."""
    process = Warm(with_fake(launcher))
    rank, _ = OnFake(launcher, process).train(ON_DEVICE.format(then=busy))
    process.close()
    (entry,) = log_beside(rank)
    assert entry["batches"] == [{"number": 60, "samples": list(range(480, 488))}]
    assert entry["iteration"] == 60
    found = [parameter["name"] for parameter in entry["parameters"]] if "parameters" in entry else None
    assert found == names


@loop("learn_what_is_usual(); train(DataLoader(Spoiled(0.0), batch_size=8)); facts['bad'] = []", PRELUDE)
def test_a_healthy_run_has_no_log(recorded: Recorded) -> None:
    assert recorded.value("iterations_total") == 96 + 12
    assert not recorded.rank.path.with_suffix(rundir.LOG_SUFFIX).exists()
    assert infos(recorded) == []


def test_an_old_log_goes_with_its_run_file(tmp_path: Path) -> None:
    logs = {}
    for name, age in (("old", 48), ("young", 1)):
        writer = RunFileWriter(tmp_path, Identity(name, name, "rank"))
        writer.close()
        logs[name] = writer.path.with_suffix(rundir.LOG_SUFFIX)
        logs[name].write_text("{}\n")
        os.utime(writer.path, (time.time() - age * 3600,) * 2)
    rundir.prepare(tmp_path)
    assert not logs["old"].exists()
    assert logs["young"].exists()
