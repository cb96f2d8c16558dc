"""Stage s2: the VAE and its discriminator, trained against each other in ranks of their own."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.amp import GradScaler, autocast
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from .data import SpectrogramBatch, SpectrogramDataset, TrainingBatches, evaluation_loader, split, training_loader
from .faults import make_fault
from .log import Log, describe, save_checkpoint
from .models import Discriminator, Gaussian, Generator, Judgement
from .settings import Settings
from .speech import open_corpus

MEL_WEIGHT, FEATURE_WEIGHT, KL_WEIGHT = 45.0, 2.0, 1.0


def train(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.spawn(train_rank, args=(settings, address), nprocs=settings.world_size)  # type: ignore[attr-defined,no-untyped-call]


def train_rank(rank: int, settings: Settings, address: str) -> None:
    torch.set_num_threads(settings.threads)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=settings.world_size)
    Trainer(settings, rank).run()
    dist.destroy_process_group()


class Trainer:
    def __init__(self, settings: Settings, rank: int) -> None:
        self.settings, self.rank = settings, rank
        self.device = rank_device(settings.device, rank)
        self.fault = make_fault(settings)
        self._open_data()
        self._make_networks()
        self.log = Log(settings.output / "s2" / "tensorboard", settings.log_every, rank)
        self.iteration = 0
        self.values: dict[str, Tensor | float] = {}

    def _open_data(self) -> None:
        spoken, held_out = split(open_corpus(self.settings.output / "data"))
        seed, batch_size = self.settings.seed, self.settings.batch_size
        self.batches = TrainingBatches(len(spoken), batch_size, seed, self.rank, self.settings.world_size)
        dataset = SpectrogramDataset(spoken, seed, self.fault)
        self.loader = training_loader(dataset, self.batches, self.settings, self.fault)
        held_out_set = SpectrogramDataset(held_out, seed, self.fault)
        self.evaluation = evaluation_loader(held_out_set, len(held_out), self.settings)

    def _make_networks(self) -> None:
        torch.manual_seed(self.settings.seed)
        self.generator, self.discriminator = Generator().to(self.device), Discriminator().to(self.device)
        self.forward_g: nn.Module = self.generator
        self.forward_d: nn.Module = self.discriminator
        if self.settings.world_size > 1:
            self.forward_g = DistributedDataParallel(self.generator)
            self.forward_d = DistributedDataParallel(self.discriminator)
        # Every rank starts from the same weights and then draws its own noise.
        torch.manual_seed(self.settings.seed + self.rank)
        self.optim_g = AdamW(self.generator.parameters(), lr=3e-4, betas=(0.8, 0.99), eps=1e-9)
        self.optim_d = AdamW(self.discriminator.parameters(), lr=2e-4, betas=(0.8, 0.99), eps=1e-9)
        self.schedulers = [ExponentialLR(optim, gamma=0.995) for optim in (self.optim_g, self.optim_d)]
        self.mixed = self.device.type == "cuda"
        self.scaler = GradScaler(self.device.type, enabled=self.mixed)

    def run(self) -> None:
        for epoch in range(self.settings.epochs):
            stopped = self._train_epoch(epoch)
            if self.rank == 0:
                self._evaluate()
                self._save(epoch)
            for scheduler in self.schedulers:
                scheduler.step()
            if stopped:
                break
        if self.rank == 0:
            print(f"finished after {self.iteration} iterations: {describe(self.values)}", flush=True)
        self.log.close()

    def _train_epoch(self, epoch: int) -> bool:
        """Whether the limit of iterations was reached."""
        self.batches.epoch = epoch
        for batch in self.loader:
            self.iteration += 1
            self._train_batch(SpectrogramBatch(*(field.to(self.device, non_blocking=True) for field in batch)))
            if self.log.due(self.iteration):
                self.log.scalars(self.iteration, self.values)
                shown = {tag: value for tag, value in self.values.items() if tag != "learning_rate"}
                self.log.progress(epoch + 1, self.iteration, shown)
            if self.iteration == self.settings.steps:
                return True
        return False

    def _train_batch(self, batch: SpectrogramBatch) -> None:
        with autocast(self.device.type, torch.float16, enabled=self.mixed):
            made = self.forward_g(batch.mel, batch.units, batch.speaker)
            real, fake = self.forward_d(batch.mel, made.mel.detach())
        loss_d = discriminator_loss(real, fake)
        self.optim_d.zero_grad()
        self.scaler.scale(loss_d).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optim_d)
        grad_norm_d = clip_gradients(self.discriminator, None)
        self.scaler.step(self.optim_d)

        with autocast(self.device.type, torch.float16, enabled=self.mixed):
            real, fake = self.forward_d(batch.mel, made.mel)
        posterior, prior = self.fault.distributions(self.iteration, made.posterior, made.prior)
        losses = {
            "loss/g/fm": FEATURE_WEIGHT * feature_loss(real, fake),
            "loss/g/mel": MEL_WEIGHT * F.l1_loss(made.mel.float(), batch.mel),
            "loss/g/kl": KL_WEIGHT * kl_loss(made.latent, posterior, prior),
        }
        loss_g = self.fault.loss(self.iteration, adversarial_loss(fake) + sum(losses.values()))
        self.optim_g.zero_grad()
        self.scaler.scale(loss_g).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optim_g)
        grad_norm_g = clip_gradients(self.generator, None)
        self.scaler.step(self.optim_g)
        self.scaler.update()

        self.fault.after_iteration(self.iteration, fake.features[1:3])
        self.values = {
            "loss/g/total": loss_g,
            "loss/d/total": loss_d,
            **losses,
            "learning_rate": self.optim_g.param_groups[0]["lr"],
            "grad_norm_d": grad_norm_d,
            "grad_norm_g": grad_norm_g,
        }

    @torch.no_grad()
    def _evaluate(self) -> None:
        """How far the held-out utterances, spoken from their tokens alone, are from the real ones."""
        self.generator.eval()
        distances = []
        for batch in self.evaluation:
            mel, units, speaker = (field.to(self.device) for field in batch)
            distances.append(F.l1_loss(self.generator.speak(units, speaker), mel))
        self.log.scalars(self.iteration, {"eval/mel": torch.stack(distances).mean()})
        self.generator.train()

    def _save(self, epoch: int) -> None:
        state = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "iteration": self.iteration,
        }
        save_checkpoint(self.settings.output / "s2" / "checkpoints", epoch + 1, state)


def rank_device(name: str, rank: int) -> torch.device:
    if name == "cuda":
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def discriminator_loss(real: Judgement, fake: Judgement) -> Tensor:
    """Least squares: real spectrograms should score 1, made ones 0."""
    scales = zip(real.scores, fake.scores, strict=True)
    return torch.stack([(1 - r.float()).square().mean() + f.float().square().mean() for r, f in scales]).sum()


def adversarial_loss(fake: Judgement) -> Tensor:
    return torch.stack([(1 - score.float()).square().mean() for score in fake.scores]).sum()


def feature_loss(real: Judgement, fake: Judgement) -> Tensor:
    maps = zip(real.features, fake.features, strict=True)
    return torch.stack([F.l1_loss(f.float(), r.detach().float()) for r, f in maps]).sum()


def kl_loss(sample: Tensor, posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(posterior || prior) a frame, in nats; `sample` comes from the posterior."""
    # The posterior's entropy is exact; only its cross entropy with the prior is estimated from the sample.
    from_prior = (sample.float() - prior.mean) * (-prior.log_std).exp()
    nats = prior.log_std - posterior.log_std - 0.5 + 0.5 * from_prior.square()
    return nats.sum(dim=1).mean()


def clip_gradients(network: nn.Module, limit: float | None) -> Tensor:
    """The gradients' norm before clipping each value to +-limit; None clips nothing."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if limit is not None:
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    return norm
