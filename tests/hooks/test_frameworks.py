"""Lightning, Hugging Face's Trainer, Accelerate and torch.compile, with scripts that do not know of trainvitals."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

from tests.conftest import Launcher, run_files, state_of
from tests.hooks.together import PRELUDE, Recorded, loop, recorded_fixture

recorded = recorded_fixture()

LIGHTNING = """
import logging, warnings
import lightning.pytorch as L
import pytorch_lightning
warnings.filterwarnings("ignore"); logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
def module(base):
    class Module(base.LightningModule):
        def __init__(self): super().__init__(); self.net = copy.deepcopy(model)
        def forward(self, x): return self.net(x)
        def training_step(self, batch, i):
            loss = loss_of(*batch, self.net); self.log("train_loss", loss); true(loss=loss); return loss
        def validation_step(self, batch, i): self.log("val_loss", loss_of(*batch, self.net))
        def on_before_optimizer_step(self, optimizer): true(norm=norm(self.parameters()))  # before clipping
        def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=0.01)
    return Module
"""

lightning = functools.partial(loop, prelude=LIGHTNING)


@lightning("""
L.Trainer(max_epochs=3, val_check_interval=0.5, **QUIET).fit(module(L)(), loader(), loader(24))
""")
def test_lightning_automatic_optimisation_with_validation(recorded: Recorded) -> None:
    recorded.check(iterations=24, steps=24, lr=0.01, epoch=3, accumulation=1, samples=192)


@lightning("""
class Clipped(module(L)):
    def backward(self, loss): true(loss=loss); super().backward(loss)  # a third of training_step's: Lightning's way to average
    def configure_gradient_clipping(self, *args, **kwargs):
        super().configure_gradient_clipping(*args, **kwargs); true(clipped=norm(self.parameters()))
    def configure_optimizers(self):
        o = torch.optim.SGD(self.parameters(), lr=0.1)
        return [o], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.5 ** i), "interval": "epoch"}]
L.Trainer(max_epochs=2, accumulate_grad_batches=3, gradient_clip_val=1e-3, **QUIET).fit(Clipped(), loader(), loader(24))
""")
def test_lightning_accumulation_and_clipping(recorded: Recorded) -> None:
    assert recorded.true["clipped"] < recorded.true["norm"] / 2
    recorded.check(iterations=16, steps=6, lr=0.05, epoch=2)


@lightning("""
class Gan(L.LightningModule):
    automatic_optimization = False
    def __init__(self): super().__init__(); self.g, self.d = copy.deepcopy(model), nn.Linear(1, 1)
    def configure_optimizers(self): return [torch.optim.Adam(self.g.parameters(), lr=0.01), torch.optim.Adam(self.d.parameters(), lr=0.02)]
    def training_step(self, batch, i):
        x, y = batch; g, d = self.optimizers()
        loss = -self.d(self.g(x)).mean(); g.zero_grad(); self.manual_backward(loss); true(loss0=loss, norm0=norm(self.g.parameters())); g.step()
        loss = (self.d(self.g(x).detach()) - self.d(y)).mean(); d.zero_grad(); self.manual_backward(loss)
        true(loss1=loss, norm1=norm(self.d.parameters())); self.clip_gradients(d, gradient_clip_val=1e-3); d.step()
L.Trainer(max_epochs=2, **QUIET).fit(Gan(), loader())
""")
def test_lightning_manual_optimisation_of_two(recorded: Recorded) -> None:
    recorded.check(iterations=16, steps={"0": 16, "1": 16}, lr=0.01, epoch=2, accumulation=1)


@lightning("""
class Manual(module(pytorch_lightning)):  # as GPT-SoVITS's first stage: a step every fourth batch, none at the first
    automatic_optimization = False
    def training_step(self, batch, i):
        loss = loss_of(*batch, self.net); self.manual_backward(loss); true(loss=loss)
        if i > 0 and i % 4 == 0:
            o = self.optimizers(); true(norm=norm(self.parameters())); o.step(); o.zero_grad()
            true(loss0=loss)
pytorch_lightning.Trainer(max_epochs=2, **QUIET).fit(Manual(), loader(72), loader(16))
""")
def test_pytorch_lightning_manual_accumulation(recorded: Recorded) -> None:
    recorded.check(iterations=18, steps=4, lr=0.01, epoch=2, accumulation=4)


@lightning("""
pytorch_lightning.Trainer(max_epochs=2, limit_train_batches=5, precision="bf16-mixed", **QUIET).fit(module(pytorch_lightning)(), loader(), loader(24))
""")
def test_pytorch_lightning_bf16_and_limited_epochs(recorded: Recorded) -> None:
    recorded.check(iterations=10, steps=10, lr=0.01, epoch=2, accumulation=1)


@lightning("""
from trainvitals.lightning import TrainVitalsCallback
L.Trainer(max_epochs=3, callbacks=[TrainVitalsCallback("mine")], **QUIET).fit(module(L)(), loader(), loader(24)); gc.collect()
trainer = pytorch_lightning.Trainer(max_epochs=7, callbacks=[TrainVitalsCallback()], **QUIET)
trainer.fit(module(pytorch_lightning)(), loader(), loader(24)); true(val_loss=trainer.callback_metrics["val_loss"])
""")
def test_lightning_callback_in_a_run_that_is_recorded_already(recorded: Recorded) -> None:
    assert recorded.rank.identity.run == "loops"
    recorded.check(iterations=80, steps=80, lr=0.01, epoch=10, accumulation=1)
    scalars = recorded.family("scalar", "tag")
    assert scalars["train_loss"] == pytest.approx(recorded.true["loss"])
    assert scalars["val_loss"] == pytest.approx(recorded.true["val_loss"])
    assert recorded.value("epoch") == 10


HUGGING_FACE = """
import logging
os.environ["HF_HUB_OFFLINE"] = "1"
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
class Text(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): ids = torch.arange(i, i + 8) % 32; return {"input_ids": ids, "labels": ids}
def tiny(): return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16))
def arguments(**kw): return TrainingArguments("out", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **kw)
class Norms(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kw): true(after=norm(model.parameters()))
    def on_log(self, args, state, control, logs=None, **kw): true(**({"norm": logs["grad_norm"], "lr": logs["learning_rate"]} if "grad_norm" in logs else {}))
"""

hugging_face = functools.partial(loop, prelude=HUGGING_FACE)


@hugging_face("""
class Told(Trainer):
    def training_step(self, *args, **kw): true(loss=(loss := super().training_step(*args, **kw))); return loss
a = arguments(num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_grad_norm=0.01, logging_steps=1,
              learning_rate=0.1, eval_strategy="steps", eval_steps=2)
Told(tiny(), a, train_dataset=Text(), eval_dataset=Text(), callbacks=[Norms()]).train()
""")
def test_hugging_face_trainer(recorded: Recorded) -> None:
    # ten batches an epoch: steps of four, four and two
    assert recorded.true["after"] < recorded.true["norm"] / 2
    recorded.check(iterations=20, steps=6, lr=recorded.true["lr"], epoch=2, accumulation=2, samples=80)


@hugging_face("""
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
o = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.9 ** i)
net, o, data, scheduler = accelerator.prepare(model, o, loader(72, shuffle=True), scheduler)
for epoch in range(2):
    for x, y in data:
        with accelerator.accumulate(net):
            loss = loss_of(x, y, net); accelerator.backward(loss)
            if accelerator.sync_gradients:
                true(loss=loss / accelerator.gradient_accumulation_steps, norm=norm(net.parameters()), lr=o.param_groups[0]["lr"])
                accelerator.clip_grad_norm_(net.parameters(), 1e-3)
            o.step(); scheduler.step(); o.zero_grad()
""")
def test_accelerate(recorded: Recorded) -> None:
    recorded.check(iterations=18, steps=10, lr=recorded.true["lr"], epoch=2, accumulation=1, samples=144)


@hugging_face("""
from accelerate.utils import set_seed
set_seed(0)
accelerator = Accelerator(cpu=True)
critic = nn.Linear(1, 1)
net, critic, g, d, data = accelerator.prepare(model, critic, torch.optim.Adam(model.parameters(), lr=0.01), torch.optim.Adam(critic.parameters(), lr=0.01), loader())
for epoch in range(3):
    for x, y in data:
        d.zero_grad(); loss = (critic(net(x).detach()) - critic(y)).mean(); accelerator.backward(loss); true(loss0=loss, norm0=norm(critic.parameters())); d.step()
        g.zero_grad(); loss = -critic(net(x)).mean(); accelerator.backward(loss); true(loss1=loss, norm1=norm(net.parameters())); g.step()
""")
def test_accelerate_with_two_optimizers(recorded: Recorded) -> None:
    recorded.check(iterations=24, steps={"0": 24, "1": 24}, lr=0.01, epoch=3, accumulation=1, samples=192)


def test_callbacks_record_by_themselves(launcher: Launcher) -> None:
    """One line in the script, and no launcher; nothing is left of it after the training."""
    script = launcher.script(
        PRELUDE
        + LIGHTNING
        + HUGGING_FACE
        + """
import trainvitals
assert not {"trainvitals.lightning", "trainvitals.transformers"} & set(sys.modules)
from trainvitals import attachment, lightning, transformers
backward = torch.Tensor.backward
trainer = Trainer(tiny(), arguments(num_train_epochs=3, per_device_train_batch_size=4, logging_steps=1), train_dataset=Text(),
                  callbacks=[transformers.TrainVitalsCallback("face")])
trainer.train(); assert torch.Tensor.backward is backward and not attachment.attached()
L.Trainer(max_epochs=4, callbacks=[lightning.TrainVitalsCallback("flash")], **QUIET).fit(module(L)(), loader(), loader(24))
assert torch.Tensor.backward is backward and not attachment.attached()
class Broken(module(L)):
    def on_train_epoch_end(self): raise ValueError("odd")
true(hugging_face=trainer.state.log_history[-2]["loss"]); print(json.dumps(facts), flush=True)
L.Trainer(max_epochs=4, callbacks=[lightning.TrainVitalsCallback("broken")], **QUIET).fit(Broken(), loader())
"""
    )
    result = subprocess.run(
        [sys.executable, script], env=launcher.environment, cwd=launcher.directory, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    true = json.loads(result.stdout.splitlines()[-1])
    files = {file.identity.run: file for file in run_files(launcher.run_dir)}
    states = {run: state_of(file) for run, file in files.items()}
    assert states == {"face": "finished", "flash": "finished", "broken": "failed"}
    assert {run: file.value("trainvitals_epoch") for run, file in files.items()} == {"face": 3, "flash": 4, "broken": 1}
    assert files["face"].value("trainvitals_scalar", tag="loss") == pytest.approx(true["hugging_face"], abs=1e-3)
    assert files["flash"].value("trainvitals_scalar", tag="train_loss") == pytest.approx(true["loss"])


COMPILE = """
import re
import trainvitals
def counters(): return re.sub("0x[0-9a-f]+", "", json.dumps(torch._dynamo.utils.counters))  # addresses
def counted(train):
    # What Dynamo counts without trainvitals, in a process of its own, and with it.
    read, write = os.pipe()
    if os.fork() == 0:
        trainvitals.detach(); train(); os.write(write, counters().encode()); os._exit(0)
    os.close(write); bare = json.loads(os.fdopen(read).read()); os.wait()
    train(); true(bare=bare, attached=json.loads(counters()))
"""

WANDB = """
os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
import wandb
import numpy as np
def train(log):
    o = torch.optim.SGD(model.parameters(), lr=0.01)
    for i, (x, y) in enumerate(loader()):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss); o.step()
        log({"loss": loss, "step": i, "kl": {"prior": np.float32(0.5), "deep": {"er": torch.ones(1, 1)}}, "array": np.ones((1, 1)) * 3,
             "text": "no", "image": wandb.Histogram([1, 2, 3]), "vector": torch.ones(3), "nothing": None, "five": 5})
"""

compiled = functools.partial(loop, prelude=COMPILE + WANDB)  # one process for both


def the_compiler_sees_no_difference(recorded: Recorded) -> None:
    attached, bare = recorded.true["attached"], recorded.true["bare"]
    # A traced hook spares Dynamo a look at a frame, so that there may be fewer of these.
    frames, frames_of_bare = (counted.pop("frames", {"total": 0, "ok": 0}) for counted in (attached, bare))
    assert attached == bare
    assert bare["stats"]["unique_graphs"] > 0
    assert frames["total"] == frames["ok"] <= frames_of_bare["total"]


@compiled("""
def train():
    o = torch.optim.AdamW(model.parameters(), lr=0.01)
    net, loss_fn = torch.compile(model, backend="aot_eager"), torch.compile(lambda a, b: ((a - b) ** 2).mean(), backend="eager")
    for batch in (8, 4):
        for x, y in loader(batch=batch):
            o.zero_grad(); loss = loss_fn(net(x), y); loss.backward(); true(loss=loss, norm=norm(model.parameters()))
            clip_grad_norm_(model.parameters(), 1e-3); o.step()
counted(train)
""")
def test_compiled_model(recorded: Recorded) -> None:
    the_compiler_sees_no_difference(recorded)
    recorded.check(iterations=24, steps=24, lr=0.01, epoch=2, accumulation=1)


@compiled("""
def train():
    o = torch.optim.Adam(model.parameters(), lr=0.01)
    step = torch.compile(o.step, backend="eager"); scheduler = torch.optim.lr_scheduler.StepLR(o, 8)
    @torch.compile(backend="eager")
    def forward(x, y): return loss_of(x, y)
    for x, y in loader(128):
        loss = forward(x, y); loss.backward(); true(loss=loss, norm=norm(model.parameters())); step(); o.zero_grad(); scheduler.step()
counted(train)
""")
def test_compiled_optimizer_step(recorded: Recorded) -> None:
    the_compiler_sees_no_difference(recorded)
    recorded.check(iterations=16, steps=16, lr=0.001)


@compiled("""
class Plain(torch.optim.Optimizer):
    def __init__(self, parameters, lr): super().__init__(parameters, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]: p.add_(p.grad, alpha=-self.param_groups[0]["lr"])
def train():
    parameters = list(model.parameters()); o = Plain(parameters, lr=0.01)
    step = torch.compile(o.step, backend="eager", fullgraph=True)
    @torch.compile(backend="eager", fullgraph=True)
    def clip(): clip_grad_norm_(parameters, 1e-3); clip_grad_value_(parameters, 1e-4)
    for x, y in loader():
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); true(loss=loss, norm=norm(parameters)); clip(); step()
counted(train)
""")
def test_compiled_with_no_graph_break_allowed(recorded: Recorded) -> None:
    the_compiler_sees_no_difference(recorded)
    recorded.check(iterations=8, steps=8, lr=0.01)


@compiled("""
def train():
    o = torch.optim.SGD(model.parameters(), lr=0.01)
    look = torch.compiler.disable(lambda: true(norm=norm(model.parameters())))
    @torch.compile(backend="eager")
    def iteration(x, y):
        o.zero_grad(); loss = loss_of(x, y); loss.backward(); look(); clip_grad_norm_(model.parameters(), 1e-3); o.step(); return loss
    for x, y in loader(): true(loss=iteration(x, y))
counted(train)
""")
def test_compiled_whole_iteration(recorded: Recorded) -> None:
    the_compiler_sees_no_difference(recorded)
    recorded.check(iterations=8, steps=8, lr=0.01)


to_wandb = functools.partial(loop, prelude=COMPILE + WANDB)


def everything_is_mirrored(recorded: Recorded) -> None:
    scalars = recorded.family("scalar", "tag")
    assert scalars.pop("loss") == pytest.approx(recorded.true["loss"])
    assert scalars == {"step": 7, "kl.prior": 0.5, "kl.deep.er": 1, "array": 3, "five": 5}
    recorded.check(iterations=8, steps=8)


@to_wandb("""
wandb.init(mode="disabled", project="p"); train(wandb.log)
""")
def test_wandb_disabled(recorded: Recorded) -> None:
    everything_is_mirrored(recorded)


@to_wandb("""
run = wandb.init(mode="offline", project="p"); train(run.log); run.finish()
""")
def test_wandb_offline(recorded: Recorded) -> None:
    everything_is_mirrored(recorded)


@to_wandb("""
import trainvitals
trainvitals.detach()
with wandb.init(mode="offline", project="p"):
    trainvitals.attach(); train(wandb.log)
""")
def test_wandb_begun_before(recorded: Recorded) -> None:
    everything_is_mirrored(recorded)
