"""The hooks on a real GPU: `make test-gpu`, where there is one. Elsewhere `test_devices.py` shows the same on a fake."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from trainvitals.runfile import RunFile

from tests.conftest import Launcher

pytestmark = pytest.mark.gpu

# The loop itself waits for nothing: batches lie in pinned memory, and no value is asked for before its end.
SCRIPT = """
import json, sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
assert torch.cuda.is_available(), "this test needs a GPU"
torch.manual_seed(0)
width = int(sys.argv[1])
model = nn.Sequential(nn.Linear(64, width), *[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)], nn.Linear(width, 1)).cuda()
o = torch.optim.AdamW(model.parameters(), lr=1e-3, fused="fused" in sys.argv)
scaler = torch.amp.GradScaler("cuda", enabled="amp" in sys.argv)
data = DataLoader(TensorDataset(torch.randn(4096, 64), torch.randn(4096, 1)), batch_size=128, pin_memory=True)
losses, norms = [], []
def epoch():
    for x, y in data:
        x, y = x.to("cuda", non_blocking=True), y.cuda(non_blocking=True)
        with torch.autocast("cuda", torch.float16, enabled="amp" in sys.argv):
            loss = (model(x) - y).square().mean()
        scaler.scale(loss).backward()
        if "amp" in sys.argv: scaler.unscale_(o)
        losses.append(loss.detach())
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
        scaler.step(o); scaler.update(); o.zero_grad()
        if "slow" in sys.argv: time.sleep(0.02)
for _ in range(2): epoch()
torch.cuda.synchronize()
"""

END = """
def digest(): return [float(p.double().sum()) for p in model.parameters()]
torch.cuda.synchronize()
for _ in range(3): epoch(); torch.cuda.synchronize(); time.sleep(0.2)
print(json.dumps({"losses": [float(l) for l in losses], "norms": [float(n) for n in norms], "weights": digest(),
                  "uuid": str(torch.cuda.get_device_properties(0).uuid), "peak": torch.cuda.max_memory_allocated(),
                  "reserved": torch.cuda.memory_reserved(), **globals().get("more", {})}))
"""

# Everything that waits, as the CUDA runtime and torch name it.
PROFILED = """
from torch.profiler import ProfilerActivity, profile
torch.cuda.set_sync_debug_mode("error" if "amp" not in sys.argv else "default")  # a scaler waits by itself
with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace: epoch()
torch.cuda.set_sync_debug_mode("default")
waits = {event.key: event.count for event in trace.key_averages()
         if "Synchronize" in event.key or event.key in ("aten::_local_scalar_dense", "aten::item", "cudaMemcpy")}
more = {"waits": waits}
"""


def bare(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def watched(launcher: Launcher, script: str, *arguments: str) -> tuple[RunFile, dict[str, Any]]:
    result = launcher.python(script, *arguments)
    assert [s.labels for s in result.rank.samples if s.name == "trainvitals_hook_errors_total"] == []
    return result.rank, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("options", [(), ("fused",), ("amp",), ("amp", "fused")], ids=" ".join)
def test_nothing_waits_and_nothing_changes(launcher: Launcher, options: tuple[str, ...]) -> None:
    script = SCRIPT + PROFILED + END
    without = bare(script, "256", *options)
    rank, true = watched(launcher, script, "256", *options)
    assert true["waits"] == without["waits"]
    assert (true["losses"], true["weights"]) == (without["losses"], without["weights"])
    loss, norm = rank.value("trainvitals_loss", optimizer="0"), rank.value("trainvitals_gradient_norm", optimizer="0")
    assert any(loss == pytest.approx(each, rel=1e-3) for each in true["losses"][-32:])
    assert any(norm == pytest.approx(each, rel=1e-2) for each in true["norms"][-64:])
    assert rank.value("trainvitals_iterations_total") == len(true["losses"])


def test_memory_phases_and_the_gpu_itself(launcher: Launcher) -> None:
    rank, true = watched(launcher, SCRIPT + END, "4096", "slow")
    names = ("reserved", "allocated_floor", "epoch_peak")
    memory = {name: rank.value(f"trainvitals_cuda_memory_{name}_bytes", device="0") or 0 for name in names}
    assert memory["reserved"] == true["reserved"]
    assert 0 < memory["allocated_floor"] < memory["epoch_peak"] <= true["peak"]
    assert rank.value("trainvitals_run_gpu_info", uuid=f"GPU-{true['uuid']}") == 1
    by_gpu = {dict(s.labels)["phase"]: s.value for s in rank.samples if s.name == "trainvitals_gpu_phase_seconds_total"}
    assert by_gpu["backward"] > by_gpu["forward"] > by_gpu["transfer"] >= 0
    assert (rank.value("trainvitals_phase_seconds_total", phase="transfer") or 0) > 0


def test_running_out_of_memory(launcher: Launcher) -> None:
    rank, _ = watched(
        launcher,
        SCRIPT
        + """
for exponent in (48, 49):
    try: torch.empty(2**exponent, device="cuda", dtype=torch.uint8)
    except torch.OutOfMemoryError: pass
"""
        + END,
        "256",
    )
    assert rank.value("trainvitals_cuda_ooms_total", device="0") == 2
    assert rank.value("trainvitals_cuda_oom_requested_bytes", device="0") == 2**49
    (path,) = launcher.run_dir.glob("*.rank.*.oom.json")
    newest = json.loads(path.read_text())["events"][0]
    assert newest["largest_blocks"] or len(json.loads(path.read_text())["events"]) > 1
    assert newest["allocator"]["allocated_bytes"]["current"] > 0


def test_a_captured_graph(launcher: Launcher) -> None:
    script = (
        SCRIPT
        + """
model = torch.cuda.make_graphed_callables(model, (torch.randn(128, 64, device="cuda"),))
epoch()
static, plain = torch.randn(128, 64, device="cuda"), nn.Linear(64, 1).cuda()
stream = torch.cuda.Stream(); stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):
    for _ in range(3): plain(static).square().mean().backward(); plain.zero_grad(set_to_none=True)
torch.cuda.current_stream().wait_stream(stream)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph): plain(static).square().mean().backward()
for _ in range(5): graph.replay()
"""
        + END
    )
    without = bare(script, "256")
    _, true = watched(launcher, script, "256")
    assert true["losses"] == without["losses"]
