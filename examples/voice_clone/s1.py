"""Stage s1: the token model, in one process and with accumulated gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from .data import (
    IGNORED,
    TEXT_LENGTH,
    UNIT_LENGTH,
    TokenBatch,
    TokenDataset,
    TrainingBatches,
    evaluation_loader,
    split,
    training_loader,
)
from .faults import make_fault
from .log import Log, describe, save_checkpoint
from .models import TokenModel
from .settings import Settings
from .speech import open_corpus

ACCUMULATED = 4  # batches to an optimizer step
CLIP_NORM = 1.0
WARM_UP, DECAY = 20, 2000  # in optimizer steps


def train(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    Trainer(settings).run()


class Trainer:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.fault = make_fault(settings)
        spoken, held_out = split(open_corpus(settings.output / "data"))
        self.batches = TrainingBatches(len(spoken), settings.batch_size, settings.seed)
        self.loader = training_loader(TokenDataset(spoken, self.fault), self.batches, settings, self.fault)
        self.evaluation = evaluation_loader(TokenDataset(held_out, self.fault), len(held_out), settings)
        self.model = TokenModel(TEXT_LENGTH, UNIT_LENGTH).to(self.device)
        self.optimizer = AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.98))
        self.scheduler = LambdaLR(self.optimizer, warm_up_then_cosine)
        self.log = Log(settings.output / "s1" / "tensorboard", settings.log_every)
        self.iteration = 0
        self.last_step: dict[str, Tensor | float] = {}
        self.values: dict[str, Tensor | float] = {}

    def run(self) -> None:
        for epoch in range(self.settings.epochs):
            stopped = self._train_epoch(epoch)
            self._evaluate()
            self._save(epoch)
            if stopped:
                break
        print(f"finished after {self.iteration} iterations: {describe(self.values)}", flush=True)
        self.log.close()

    def _train_epoch(self, epoch: int) -> bool:
        """Whether the limit of iterations was reached."""
        self.batches.epoch = epoch
        for batch in self.loader:
            self.iteration += 1
            self._train_batch(TokenBatch(*(field.to(self.device, non_blocking=True) for field in batch)))
            if self.log.due(self.iteration):
                self.log.scalars(self.iteration, self.values)
                self.log.progress(epoch + 1, self.iteration, self.values)
            if self.iteration == self.settings.steps:
                return True
        return False

    def _train_batch(self, batch: TokenBatch) -> None:
        predicted = self.model(batch.text, batch.units, batch.voice)
        loss = self.fault.loss(self.iteration, token_loss(predicted.logits, batch.targets))
        (loss / ACCUMULATED).backward()  # type: ignore[no-untyped-call]
        if self.iteration % ACCUMULATED == 0:
            grad_norm = clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.last_step = {"grad_norm": grad_norm, "lr_step": self.scheduler.get_last_lr()[0]}
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        self.fault.after_iteration(self.iteration, predicted.hidden)
        self.values = {
            "total_loss_step": loss,
            "top_3_acc_step": top_3_accuracy(predicted.logits, batch.targets),
            **self.last_step,
        }

    @torch.no_grad()
    def _evaluate(self) -> None:
        self.model.eval()
        losses = []
        for batch in self.evaluation:
            text, units, targets, voice = (field.to(self.device) for field in batch)
            losses.append(token_loss(self.model(text, units, voice).logits, targets))
        self.log.scalars(self.iteration, {"eval/loss": torch.stack(losses).mean()})
        self.model.train()

    def _save(self, epoch: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "iteration": self.iteration,
        }
        save_checkpoint(self.settings.output / "s1" / "checkpoints", epoch + 1, state)


def warm_up_then_cosine(step: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARM_UP) / DECAY)))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    # Smoothed, because a corpus this small is soon known by heart and its loss would go to nothing.
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, label_smoothing=0.1)


def top_3_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    counted = targets != IGNORED
    hits = (logits.topk(3, dim=-1).indices == targets[..., None]).any(dim=-1)
    return hits[counted].float().mean()
