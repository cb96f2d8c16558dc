"""What a training saves: how often, how much, how long, and what is left of the disk it went to."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher

PRELUDE = """
import hashlib, io, json, os, shutil, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0); torch.set_num_threads(1)
def seen():
    from trainvitals import rundir  # as the exporter sees it
    (rank,) = [f for f in rundir.read_all([Path(os.environ["TRAINVITALS_RUN_DIR"])]) if f.identity.kind == "rank"]
    start = "trainvitals_checkpoint_"
    return {s.name.removeprefix(start): s.value for s in rank.samples if s.name.startswith(start)}
def size(*paths): return sum(os.path.getsize(p) for p in paths)
def avail(folder): return int.from_bytes(hashlib.sha256(os.path.realpath(folder).encode()).digest()[:4], "big")
class Slow:
    def __getstate__(self): time.sleep(0.02); return {"slow": True}
model = nn.Linear(40, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batches = DataLoader(TensorDataset(torch.randn(400, 40)), batch_size=1)
def train(x): model(x).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
def endless():
    while True:
        for x, in batches: yield x
stream = endless()
def go(n):
    for _ in range(n): train(next(stream))
"""
# Each folder has as much space left as its name says, so that one disk is enough to tell where a save went.
DISKS = """
import collections
shutil.disk_usage = lambda folder: collections.namedtuple("usage", "free")(avail(folder))
"""
Seen = dict[str, float]


def train(launcher: Launcher, text: str) -> tuple[RunFile, Any]:
    result = launcher.python(PRELUDE + DISKS + text)
    assert result.rank.value("trainvitals_hook_errors_total", hook="checkpoint") is None, result.stderr
    return result.rank, json.loads(result.stdout.splitlines()[-1])


def checkpoints(rank: RunFile) -> Seen:
    start = "trainvitals_checkpoint_"
    return {s.name.removeprefix(start): s.value for s in rank.samples if s.name.startswith(start)}


def test_saves_without_a_batch_in_between_are_one_checkpoint(launcher: Launcher) -> None:
    _, true = train(
        launcher,
        """
state, seconds = model.state_dict(), time.time
out = {}
torch.save(state, "before.pt")
go(5); out["none"] = seen()
began = seconds(); torch.save(state, "G.pt"); torch.save([state, 1], Path("D.pt"))
out["two files"] = seen(); out["two sizes"] = size("G.pt", "D.pt"); out["between"] = [began, seconds()]
go(7); torch.save(obj=state, f="G.pt", _use_new_zipfile_serialization=False)
out["later"] = seen(); out["later size"] = size("G.pt")
# evaluation ends the iteration, yet it is no training batch
with torch.no_grad():
    for x, in DataLoader(TensorDataset(torch.randn(4, 40)), batch_size=1): model(x)
os.mkdir("best"); torch.save(state, "best/G.pt")
out["after evaluation"] = seen(); out["after evaluation size"] = size("G.pt", "best/G.pt")
out["avail"] = [avail("."), avail("best")]
print(json.dumps(out))
""",
    )
    assert true["none"] == {"saves_total": 0, "seconds_total": 0}
    two = true["two files"]
    assert two["saves_total"] == 1
    assert two["last_bytes"] == true["two sizes"]
    assert two["filesystem_avail_bytes"] == true["avail"][0]
    assert true["between"][0] <= two["last_timestamp_seconds"] <= true["between"][1]
    assert 0 < two["seconds_total"] <= true["between"][1] - true["between"][0]
    assert "last_interval_iterations" not in two
    later = true["later"]
    assert (later["saves_total"], later["last_interval_iterations"]) == (2, 7)
    assert later["last_bytes"] == true["later size"]
    best = true["after evaluation"]
    assert (best["saves_total"], best["last_interval_iterations"]) == (2, 7)
    assert best["last_bytes"] == true["after evaluation size"]
    assert best["filesystem_avail_bytes"] == true["avail"][1]


def test_where_the_newest_checkpoint_lies(launcher: Launcher) -> None:
    rank, true = train(
        launcher,
        """
import tempfile
def places():
    from trainvitals import rundir
    (rank,) = [f for f in rundir.read_all([Path(os.environ["TRAINVITALS_RUN_DIR"])]) if f.identity.kind == "rank"]
    return [dict(s.labels) for s in rank.samples if s.name == "trainvitals_checkpoint_filesystem_info"]
memory, out = tempfile.mkdtemp(dir="/dev/shm"), {}
go(1); torch.save(model.state_dict(), "G.pt"); out["disk"] = places()
go(1); torch.save(model.state_dict(), io.BytesIO()); out["no folder"] = places()
os.symlink(memory, "link"); go(1); torch.save(model.state_dict(), "link/G.pt"); out["memory"] = places()
shutil.rmtree(memory)
out["folder"] = os.getcwd()
print(json.dumps(out))
""",
    )
    told = subprocess.run(["df", "--output=target", true["folder"]], capture_output=True, text=True, check=True)
    assert {place["mountpoint"] for place in true["disk"]} == {told.stdout.splitlines()[1]}
    assert true["no folder"] == []
    assert true["memory"] == [{"mountpoint": "/dev/shm", "device": "tmpfs"}]  # noqa: S108
    assert rank.labels("trainvitals_checkpoint_filesystem_info") == true["memory"]


def test_what_is_saved_where(launcher: Launcher) -> None:
    _, true = train(
        launcher,
        """
state, out = model.state_dict(), {}
class Pipe:  # can be written to and no more
    def __init__(self): self.data = b""
    def write(self, data): self.data += bytes(data); return len(data)
    def flush(self): pass
os.mkdir("open"); os.mkdir("final")
go(1); torch.save(state, "first.pt")
go(2)
with open("open/G.pt", "wb") as f: f.write(b"xy"); torch.save(state, f)
out["open file"] = seen(), size("open/G.pt") - 2, avail("open")
go(2); buffer = io.BytesIO(); torch.save(state, buffer)
out["buffer"] = seen(), buffer.tell()
go(2); torch.save(state, Pipe())
out["unknown"] = seen(), None
go(2); torch.save(state, "temporary.pth"); n = size("temporary.pth"); shutil.move("temporary.pth", "final/G.pth")
out["moved"] = seen(), n, avail("final")
out["moves"] = Path("final/G.pth").exists() and not Path("temporary.pth").exists()
Path("other").write_text("x"); shutil.move("other", "open")
out["moved something else"] = seen(), n, avail("final")
go(2); before = seen()
thread = threading.Thread(target=lambda: torch.save([state, Slow()], "open/thread.pt")); thread.start(); thread.join()
out["thread"] = seen(), size("open/thread.pt"), avail("open")
out["seconds"] = [seen()["seconds_total"], before["seconds_total"]]
print(json.dumps(out))
""",
    )
    assert true["moves"]
    for number, name in enumerate(["open file", "buffer", "unknown", "moved", "thread"], start=2):
        values, size, *avail = true[name]
        assert values["saves_total"] == number, name
        assert values["last_interval_iterations"] == 2, name
        assert values.get("last_bytes") == size, name
        assert values.get("filesystem_avail_bytes") == (avail[0] if avail else None), name
    assert true["moved something else"] == true["moved"]
    assert true["seconds"][0] == true["seconds"][1], "another thread's time is none of the training's"


def test_what_is_no_checkpoint(launcher: Launcher) -> None:
    _, true = train(
        launcher,
        """
class Caching(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i):
        x = torch.randn(40); torch.save([x, model.state_dict()], f"cache{i}.pt"); return x
class Unpicklable:
    def __reduce__(self): raise RuntimeError("not this one")
go(3); torch.save([model.state_dict(), [0.0] * 100000], "large.pt"); torch.save(1, "small.pt")
out = {"large": seen(), "size": size("large.pt", "small.pt")}
go(2)
for epoch in range(2):
    for x in DataLoader(Caching(), num_workers=epoch): pass
out["datasets"] = seen()
torch.save([1, 2, 3], "history.pt"); out["history"] = seen()
errors = []
for obj, f in [(Unpicklable(), "a.pt"), (1, "missing/a.pt"), (1, None)]:
    try: torch.save(obj, f)
    except Exception as error: errors.append([type(error).__name__, str(error)])
out["failed"] = seen(); out["errors"] = errors
print(json.dumps(out))
""",
    )
    assert true["large"]["last_bytes"] == true["size"]
    assert true["datasets"] == true["large"]
    values = ["saves_total", "last_bytes", "last_timestamp_seconds", "filesystem_avail_bytes"]
    assert [true["history"][name] for name in values] == [true["large"][name] for name in values]
    assert true["history"]["seconds_total"] > true["large"]["seconds_total"]
    assert [true["failed"][name] for name in values] == [true["large"][name] for name in values]
    assert true["failed"]["seconds_total"] > true["history"]["seconds_total"]
    assert true["errors"][0] == ["RuntimeError", "not this one"]
    assert true["errors"][1] == ["RuntimeError", "Parent directory missing does not exist."]
    assert true["errors"][2][0] == "AttributeError"


def test_saving_is_a_phase_wherever_it_happens(launcher: Launcher) -> None:
    rank, true = train(
        launcher,
        """
def save(): torch.save([Slow(), Slow()], "G.pt")
for x, in DataLoader(TensorDataset(torch.randn(1, 40))): start = time.perf_counter(); train(x)
for epoch in range(2):
    for n, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(6, 40)))):
        if n == 1: save()
        loss = model(x).square().mean()
        if n == 2: save()
        loss.backward()
        if n == 3: save()
        optimizer.step(); time.sleep(0.002)
        if n == 4: save()
    save()
    for n, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(3, 40)))):
        with torch.no_grad(): model(x)
        if n == 1: save()
    save()
print(json.dumps({"wall": time.perf_counter() - start}))
""",
    )
    phases = {dict(s.labels)["phase"]: s.value for s in rank.samples if s.name == "trainvitals_phase_seconds_total"}
    assert sum(phases.values()) == pytest.approx(true["wall"], rel=0.1)
    assert phases["checkpoint"] == pytest.approx(checkpoints(rank)["seconds_total"])
    assert 14 * 0.04 <= phases["checkpoint"] <= true["wall"]
    assert max(phases, key=phases.__getitem__) == "checkpoint"
    # 1 before a training batch that had none before it, four in a row in the middle, and what follows the last batch
    assert checkpoints(rank)["saves_total"] == 10


SAVES = """
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch import save as bound_save
go(3)
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
torch.save(state, "zip.pt"); torch.save(model, "model.pt")
# this format holds addresses in memory, so it is compared within one process
for save, name in ((torch.save, "legacy"), (getattr(torch.save, "__wrapped__", torch.save), "bare-legacy")):
    save(state, name, _use_new_zipfile_serialization=False)
assert Path("legacy").read_bytes() == Path("bare-legacy").read_bytes()
bound_save([torch.save, shutil.move, dcp.save, save_file, bound_save], "functions.pt")
buffer = io.BytesIO(); torch.save([optimizer, batches], buffer); Path("buffer.pt").write_bytes(buffer.getvalue())
with open("open.pt", "wb") as f: torch.save(state, f)
save_file({k: v.clone() for k, v in state["model"].items()}, "file.safetensors"); save_model(model, "model.safetensors")
torch.save(state, "moved.pt"); shutil.move("moved.pt", "final.pt")
dcp.save({"model": model.state_dict(), "n": 3}, checkpoint_id="sharded")
files = sorted(p for p in Path(".").rglob("*") if p.is_file() and p.suffix in (".pt", ".safetensors", ".distcp"))
print(json.dumps({str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}))
"""


@functools.cache
def bare(text: str, directory: Path) -> str:
    command = [sys.executable, "-c", PRELUDE + text]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory).stdout


def test_files_are_the_same_bytes_with_and_without(
    launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    attached = launcher.python(PRELUDE + SAVES)
    files = json.loads(attached.stdout)
    assert len(files) == 9
    assert files == json.loads(bare(SAVES, tmp_path_factory.mktemp("bare")))
    assert attached.rank.value("trainvitals_checkpoint_saves_total") == 1
    assert b"trainvitals" not in (launcher.directory / "functions.pt").read_bytes()
    assert b"trainvitals" not in (launcher.directory / "buffer.pt").read_bytes()


def test_detach_puts_every_function_back(launcher: Launcher) -> None:
    result = launcher.python(
        PRELUDE
        + """
import pickle, trainvitals, torch.distributed.checkpoint as dcp, safetensors.torch
from torch.distributed.checkpoint import state_dict_saver
where = [(torch, "save"), (torch.serialization, "save"), (shutil, "move"), (safetensors.torch, "save_file"),
         (safetensors.torch, "save_model"), (safetensors.torch, "serialize_file"), *[(m, n) for m in (dcp, state_dict_saver) for n in ("save", "async_save")]]
trainvitals.detach()  # from what the launcher attached
plain = [getattr(*w) for w in where]
for _ in range(2):
    trainvitals.attach("again")
    go(2); torch.save(1, "a.pt"); shutil.move("a.pt", "b.pt")
    watched = [getattr(*w) for w in where]
    assert all(w is not p for w, p in zip(watched, plain)), watched
    assert [(w.__name__, w.__doc__) for w in watched] == [(p.__name__, p.__doc__) for p in plain]
    # of one written in C, the module is the one in which pickles find it
    assert all(w.__module__ == p.__module__ for w, p in zip(watched, plain) if hasattr(p, "__code__"))
    assert all(pickle.loads(pickle.dumps(w)) is w for w in watched)
    assert torch.save is torch.serialization.save and dcp.save is state_dict_saver.save
    trainvitals.detach()
    assert all(getattr(*w) is p for w, p in zip(where, plain))
from safetensors.torch import save_file  # as libraries do that were imported before
trainvitals.attach("late"); go(1)
save_file({"a": torch.zeros(9)}, "late.safetensors"); print(size("late.safetensors"))
"""
    )
    late = max(result.ranks, key=lambda file: file.created)
    assert late.value("trainvitals_checkpoint_last_bytes") == float(result.stdout)


def test_distributed_checkpoints(launcher: Launcher) -> None:
    _, true = train(
        launcher,
        """
import torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
def shards(folder): return size(*Path(folder).glob("*.distcp"))
def main():
    dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=0, world_size=1)
    state, out = {"model": {**model.state_dict(), "wide": torch.randn(1000)}, "n": 7}, {}
    go(1); dcp.save(state, checkpoint_id="first")
    go(3); dcp.save(state, storage_writer=dcp.FileSystemWriter("second", thread_count=3))
    out["sync"] = seen(), shards("second"), avail("second")
    go(4); staged = seen()
    future = dcp.async_save({**state, "slow": Slow()}, checkpoint_id="third")
    out["staged"] = seen()["saves_total"] == staged["saves_total"], seen()["seconds_total"] > staged["seconds_total"]
    go(2); future.result(); time.sleep(0.1)
    out["async"] = seen(), shards("third"), avail("third")
    go(5); future = dcp.async_save(state, checkpoint_id="missing/\\0")
    out["failed"] = type(future.exception()).__name__; time.sleep(0.1)
    out["after failure"] = seen()
    go(5); dcp.async_save(state, checkpoint_id="fourth", async_checkpointer_type=AsyncCheckpointerType.PROCESS).result()
    time.sleep(0.1); out["process"] = seen(), shards("fourth"), avail("fourth")
    print(json.dumps(out)); dist.destroy_process_group()
if __name__ == "__main__": main()
""",
    )
    for name, number, interval in (("sync", 2, 3), ("async", 3, 4), ("process", 4, 12)):
        values, size, avail = true[name]
        assert (values["saves_total"], values["last_interval_iterations"]) == (number, interval), name
        assert (values["last_bytes"], values["filesystem_avail_bytes"]) == (size, avail), name
    assert true["staged"] == [True, True]
    assert true["after failure"]["saves_total"] == 3


RANKS = """
import torch.distributed as dist, torch.distributed.checkpoint as dcp, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
def work(rank):
    dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank, world_size=2)
    ddp = DistributedDataParallel(nn.Linear(40, 10)); optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for n, (x,) in enumerate(DataLoader(TensorDataset(torch.randn(12, 40)))):
        ddp(x).square().mean().backward(); optimizer.step()
        if n == 3 and rank == 0: torch.save(ddp.state_dict(), "G.pt")
        if n == 8: dcp.save({"model": ddp.state_dict(), str(rank): torch.zeros(1000 + 1000 * rank)}, checkpoint_id="shards")
    # gloo's thread needs the GIL to let go of the last backward's reduction; DDP's end would wait for it with the GIL held
    dist.barrier(); time.sleep(0.2)
    dist.destroy_process_group()
if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
    print(json.dumps([size(*Path("shards").glob(f"__{rank}_*")) for rank in range(2)]))
"""


def test_each_rank_counts_what_it_saves_itself(launcher: Launcher) -> None:
    result = launcher.python(PRELUDE.replace("stream =", "#") + RANKS)
    sizes = json.loads(result.stdout.splitlines()[-1])
    zero, one = map(checkpoints, result.ranks)
    assert (zero["saves_total"], zero["last_interval_iterations"], zero["last_bytes"]) == (2, 5, sizes[0])
    assert (one["saves_total"], one["last_bytes"]) == (1, sizes[1])
    assert "last_interval_iterations" not in one
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize("package", [pytest.param("lightning.pytorch", marks=pytest.mark.slow), "pytorch_lightning"])
def test_lightning(launcher: Launcher, package: str) -> None:
    rank, true = train(
        launcher,
        f"""
import {package} as L
from {package}.callbacks import ModelCheckpoint
class Module(L.LightningModule):
    def __init__(self): super().__init__(); self.model = nn.Linear(40, 10); self.slow = Slow()
    def training_step(self, batch, n): return self.model(batch[0]).square().mean()
    def configure_optimizers(self): return torch.optim.Adam(self.parameters())
    def on_save_checkpoint(self, checkpoint): checkpoint["slow"] = self.slow
saving = ModelCheckpoint(dirpath="saved", every_n_train_steps=7, save_top_k=-1)
trainer = L.Trainer(max_steps=21, accelerator="cpu", logger=False, callbacks=[saving], enable_progress_bar=False,
                    enable_model_summary=False, barebones=False)
trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(10, 40)), batch_size=1))
files = list(Path("saved").iterdir())
print(json.dumps({{"sizes": [size(f) for f in files], "avail": avail("saved")}}))
""",
    )
    values = checkpoints(rank)
    assert len(true["sizes"]) == 3
    assert (values["saves_total"], values["last_interval_iterations"]) == (3, 7)
    assert values["last_bytes"] in true["sizes"]
    assert values["filesystem_avail_bytes"] == true["avail"]
    assert values["seconds_total"] >= 3 * 0.02


def test_transformers_and_accelerate(launcher: Launcher) -> None:
    _, true = train(
        launcher,
        """
from accelerate import Accelerator
from transformers import Trainer, TrainingArguments
class Model(nn.Module):
    def __init__(self): super().__init__(); self.linear = nn.Linear(40, 10)
    def forward(self, x): return {"loss": self.linear(x).square().mean()}
def written(folder): return size(*[p for p in Path(folder).rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".bin", ".safetensors")])
data = [{"x": torch.randn(40)} for _ in range(40)]
arguments = TrainingArguments("hf", max_steps=10, save_steps=4, per_device_train_batch_size=2, use_cpu=True, report_to=[],
                              disable_tqdm=True, dataloader_num_workers=0)
Trainer(Model(), arguments, train_dataset=data).train()
out = {"trainer": (seen(), written("hf/checkpoint-10"), avail("hf/checkpoint-10"))}
accelerator = Accelerator(cpu=True)
model, optimizer, loader = accelerator.prepare(Model(), torch.optim.AdamW(Model().parameters()), DataLoader(data, batch_size=4))
for n, batch in enumerate(loader):
    accelerator.backward(model(**batch)["loss"]); optimizer.step(); optimizer.zero_grad()
    if n in (2, 8): accelerator.save_state(f"state{n}")
out["accelerator"] = seen(), written("state8"), avail("state8")
print(json.dumps(out))
""",
    )
    for name, number, interval in (("trainer", 3, 2), ("accelerator", 5, 6)):
        values, size, avail = true[name]
        assert (values["saves_total"], values["last_interval_iterations"]) == (number, interval), name
        assert (values["last_bytes"], values["filesystem_avail_bytes"]) == (size, avail), name
