"""Several ranks on one host (gloo): each has its own run file with its own numbers, however it was started."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launched, Launcher
from tests.hooks.together import PRELUDE, Recorded

RANK = (
    PRELUDE
    + """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler
def train(rank, epochs=2):
    torch.manual_seed(rank)
    net = DistributedDataParallel(copy.deepcopy(model)); o = torch.optim.SGD(net.parameters(), lr=0.1)
    data = TensorDataset(*[torch.arange(n).reshape(-1, k) / n for n, k in ((256, 4), (64, 1))]); sampler = DistributedSampler(data)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(DataLoader(data, batch_size=4, sampler=sampler)):
            with contextlib.nullcontext() if i % 2 else net.no_sync(): loss = loss_of(x, y, net); loss.backward()
            if i % 2: true(loss=loss, norm=norm(net.parameters())); o.step(); o.zero_grad()
def begin(rank, world):
    dist.init_process_group("gloo", init_method="file://" + __file__ + ".init", rank=rank, world_size=world)
def tell(rank, begun):
    with open(f"true{rank}.json", "w") as file: json.dump({"pid": os.getpid(), "seconds": time.perf_counter() - begun, **facts}, file)
"""
)


@pytest.fixture(autouse=True)
def each_step_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINVITALS_OVERHEAD", "1")


def truths(launcher: Launcher) -> list[dict[str, Any]]:
    return [json.loads((launcher.directory / f"true{rank}.json").read_text()) for rank in (0, 1)]


def pid(file: RunFile) -> int:
    (about,) = [dict(s.labels) for s in file.samples if s.name == "trainvitals_run_info"]
    return int(about["pid"])


def check_both(launcher: Launcher, result: Launched, iterations: int, steps: int | dict[str, int], **rest: Any) -> None:
    assert [file.rank for file in result.ranks] == [0, 1]
    assert len({file.identity.run_id for file in result.files}) == 1
    for file, true in zip(result.ranks, truths(launcher), strict=True):
        assert file.value("trainvitals_world_size") == 2
        assert pid(file) == true["pid"]
        Recorded(file, true).check(iterations, steps, **rest)


def test_ddp_by_mp_spawn(launcher: Launcher) -> None:
    result = launcher.python(
        RANK
        + """
import torch.multiprocessing as mp
def main(rank, world): begun = time.perf_counter(); begin(rank, world); train(rank); tell(rank, begun)
if __name__ == "__main__": mp.spawn(main, args=(2,), nprocs=2)
"""
    )
    check_both(launcher, result, iterations=16, steps=8, lr=0.1)


def torchrun(launcher: Launcher, text: str) -> Launched:
    script = launcher.script(RANK + text)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    result = launcher.run(*command)
    assert result.code == 0, result.stderr
    return result


def test_ddp_by_torchrun(launcher: Launcher) -> None:
    """The first half of the ranks' training has no process group: then torchrun's environment tells who is who."""
    result = torchrun(
        launcher,
        """
begun = time.perf_counter()
rank = int(os.environ["RANK"])
o = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader(): loss_of(x, y).backward(); o.step(); o.zero_grad()
del o; gc.collect()
dist.init_process_group("gloo"); train(rank); tell(rank, begun); dist.destroy_process_group()
""",
    )
    check_both(launcher, result, iterations=24, steps=16, lr=0.1)


def test_rank_without_a_process_group(launcher: Launcher) -> None:
    result = launcher.run(
        "env", "RANK=3", "WORLD_SIZE=8", sys.executable,
        str(launcher.script(PRELUDE + "loss_of(*next(iter(loader()))).backward()")),
    )  # fmt: skip
    assert (result.code, result.rank.rank, result.rank.value("trainvitals_world_size")) == (0, 3, 8)


def test_lightning_s_own_launcher(launcher: Launcher) -> None:
    result = launcher.python(
        RANK
        + """
import logging, warnings
import lightning.pytorch as L
warnings.filterwarnings("ignore"); logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
class Module(L.LightningModule):
    def __init__(self): super().__init__(); self.net = model
    def training_step(self, batch, i): loss = loss_of(*batch, self.net); true(loss=loss); return loss
    def on_before_optimizer_step(self, optimizer): true(norm=norm(self.parameters()))
    def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=0.01)
begun = time.perf_counter()
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_progress_bar=False,
                    enable_model_summary=False, enable_checkpointing=False)
trainer.fit(Module(), loader(64, 4))
tell(trainer.global_rank, begun)
"""
    )
    check_both(launcher, result, iterations=16, steps=16, lr=0.01)


def test_zero_redundancy_and_sharded_parameters(launcher: Launcher) -> None:
    """ZeroRedundancyOptimizer steps an optimizer inside of its own step; FSDP's gradients are shards of one norm."""
    result = torchrun(
        launcher,
        """
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
dist.init_process_group("gloo"); rank = dist.get_rank()
begun = time.perf_counter()
net = DistributedDataParallel(copy.deepcopy(model)); z = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)
for x, y in loader():
    z.zero_grad(); loss = loss_of(x, y, net); loss.backward(); true(loss0=loss, norm0=norm(net.parameters())); z.step()
sharded = fully_shard(copy.deepcopy(model), mesh=dist.device_mesh.init_device_mesh("cpu", (2,))); f = torch.optim.AdamW(sharded.parameters(), lr=0.02)
for x, y in loader():
    f.zero_grad(); loss = loss_of(x, y, sharded); loss.backward()
    own = math.sqrt(sum(float((p.grad.to_local() ** 2).sum()) for p in sharded.parameters()))
    true(loss1=loss, norm1=own, whole=torch.nn.utils.get_total_norm([p.grad for p in sharded.parameters()]).full_tensor()); f.step()
tell(rank, begun); dist.destroy_process_group()
""",
    )
    check_both(launcher, result, iterations=16, steps={"0": 8, "1": 8})
    first, second = truths(launcher)
    # which is what the rules add up again
    assert (first["norm1"] ** 2 + second["norm1"] ** 2) ** 0.5 == pytest.approx(first["whole"])
    for file in result.ranks:
        abouts = [dict(s.labels) for s in file.samples if s.name == "trainvitals_optimizer_info"]
        assert [about["class"] for about in abouts] == ["ZeroRedundancyOptimizer", "AdamW"]
