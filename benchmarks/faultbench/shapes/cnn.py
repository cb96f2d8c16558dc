"""A plain training loop: a small CNN, a DataLoader, one optimizer; and what can be wrong with such a one."""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import torch
import trainvitals
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, Dataset

from benchmarks.faultbench.shapes.course import HOST_BYTES, Course, factor, parse

BATCH = 8


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Noise with a pattern that depends on the label. With `slow_from`, it comes slowly from that moment on."""

    def __init__(self, seed: int, slow_from: float = math.inf) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(10, (256,), generator=generator)
        self.images = torch.randn(256, 1, 12, 12, generator=generator) + self.labels[:, None, None, None] / 5
        self.slow_from = slow_from

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if time.monotonic() > self.slow_from:
            time.sleep(0.04)
        return self.images[index % 256], self.labels[index % 256]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


def machine_bytes() -> int:
    """Memory of the machine, or of the one that is played."""
    return int(os.environ.get(HOST_BYTES) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def overflow(model: nn.Module) -> None:
    """What half precision makes of a gradient that is too large for it."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad[:] = math.inf


class Fault:
    """Nothing is wrong. The methods are where a fault comes in; most faults need one of them."""

    workers = 0
    amp = False
    amp_growth_steps = 50
    slow_loader = False
    checkpoint_seconds = 600.0  # at real scale

    def __init__(self, course: Course) -> None:
        self.course = course

    def loss(self, loss: Tensor) -> Tensor:
        """The loss, before its backward."""
        return loss

    def gradients(self, model: nn.Module) -> None:
        """After the backward; under AMP they are still scaled."""

    def after_step(self, model: nn.Module) -> None:
        """The end of an iteration."""

    def scalars(self) -> dict[str, float]:
        """What the script logs: a KL term such as a healthy VAE has."""
        return {"loss/kl": 1.0 + 0.1 * math.sin(self.course.iteration)}

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        """Save the model; the newest three stay."""
        torch.save(model.state_dict(), folder / f"{self.course.iteration}.pt")
        for old in sorted(folder.glob("*.pt"), key=lambda path: path.stat().st_mtime)[:-3]:
            old.unlink()


# ---- healthy runs that look odd


class Evaluation(Fault):
    """Pauses in which only the evaluation set is read: three minutes of each twenty."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.age % (1200 / factor()) > 180 / factor():
            return
        loader = DataLoader(Images(99), batch_size=BATCH)
        with torch.no_grad():
            for batch, _ in loader:
                model(batch)
                time.sleep(self.course.pace)
                if self.course.age % (1200 / factor()) > 180 / factor():
                    break


class SingleSpikes(Fault):
    """A loss of twenty times the usual at one step of 150, and all is well again."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * 20 if self.course.iteration % 150 == 149 else loss


class AmpOverflows(Fault):
    """The loss scale grows until it overflows once, and is halved: its ordinary way."""

    amp = True

    def gradients(self, model: nn.Module) -> None:
        if self.course.iteration % 100 == 60:
            overflow(model)


class Restarts(Fault):
    """The learning rate warms up, falls as a cosine does, and starts again."""


class Checkpoints(Fault):
    """A checkpoint every ten minutes that takes five seconds of real scale or more to write."""

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        super().checkpoint(folder, nn.Sequential(model, nn.Linear(2048, 1024)))


class Resumed(Fault):
    """Goes on from a checkpoint of an earlier run."""

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        (course.output / "checkpoints").mkdir(parents=True)
        torch.save(network().state_dict(), course.output / "checkpoints" / "1.pt")


# ---- faults of the process


class Crash(Fault):
    """A shape that does not fit."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            torch.zeros(3) @ torch.zeros(4)


class HostOutOfMemory(Fault):
    """An allocation that no machine can serve."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            raise MemoryError(f"cannot allocate {1 << 50} bytes for a cache of features")


class Killed(Fault):
    """Somebody, or the kernel short of memory, kills the training with SIGKILL."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            os.kill(os.getpid(), signal.SIGKILL)


class AllKilled(Fault):
    """The whole process group is gone at once, the launcher with it: a job scheduler's last means."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            os.killpg(os.getpgid(0), signal.SIGKILL)


class Vanish(AllKilled):
    """The same, and what the run has written of itself is gone as well: a logout that empties the user's folder."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            for path in Path(os.environ["TRAINVITALS_RUN_DIR"]).glob(f"{os.environ['TRAINVITALS_RUN_ID']}.*"):
                path.unlink()
        super().after_step(model)


class Hang(Fault):
    """A lock is taken twice."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            lock = threading.Lock()
            with lock, lock:
                pass


class HostLeak(Fault):
    """Outputs are kept in a list: 8 % of the machine's memory in an hour."""

    per_hour = 0.08

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        self._kept: list[bytearray] = []
        self._per_second = self.per_hour * machine_bytes() / 3600

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            kept = bytearray(int(self._per_second * factor() * self.course.pace))
            kept[:: resource.getpagesize()] = b"x" * len(kept[:: resource.getpagesize()])
            self._kept.append(kept)


class HostLeakFast(HostLeak):
    """The same, so fast that the machine lasts for little more than an hour."""

    per_hour = 0.6


class OpenFiles(Fault):
    """A file is opened at each iteration and never closed, where 256 may be open."""

    def __init__(self, course: Course) -> None:
        super().__init__(course)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        self._open: list[int] = []

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick and len(self._open) < 225:
            self._open += [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]


class ShmFull(Fault):
    """Tensors in shared memory that nobody frees, where /dev/shm has 64 MiB (the bench mounts such a one)."""

    workers = 1

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            path = Path("/dev/shm/kept")  # noqa: S108 (a mount of this run's own)
            have = path.stat().st_size if path.exists() else 0
            if have < 62 << 20:
                with path.open("ab") as file:
                    file.write(bytes(2 << 20))


# ---- faults of speed and input


class SlowLoader(Fault):
    """No workers, and items that take 40 ms each."""

    slow_loader = True


class LongerBatches(Fault):
    """After half an hour each iteration takes three times as long, because there is as much more to do."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.age > 1800 / factor():
            time.sleep(2 * self.course.pace)


class CheckpointsTooFrequent(Fault):
    """A checkpoint every tenth iteration, a third of the run's time."""

    def after_step(self, model: nn.Module) -> None:
        if self.course.sick:
            self.checkpoint_seconds = 10 * self.course.pace * factor()

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        if self.course.sick:
            model = nn.Sequential(model, SlowToSave(5 * self.course.pace))
        super().checkpoint(folder, model)


class CheckpointsSlow(Fault):
    """Where checkpoints go, writing one takes ten times as long as it did: two minutes of each ten."""

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        seconds = 120 if self.course.sick else 6
        super().checkpoint(folder, nn.Sequential(model, SlowToSave(seconds / factor())))


class CheckpointsNone(Fault):
    """The first hours are not saved at all."""

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        if not self.course.sick:
            super().checkpoint(folder, model)


class DiskFilling(Fault):
    """Checkpoints are kept until there is room for hardly more than one, on a disk of 128 MiB (the bench mounts it)."""

    checkpoint_seconds = 60.0
    room = 1.5

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        model = nn.Sequential(model, nn.Linear(1024, 1024))
        if not self.course.sick:
            super().checkpoint(folder, model)
            return
        torch.save(model.state_dict(), folder / f"{self.course.iteration}.pt")
        newest = folder / f"{self.course.iteration}.pt"
        if shutil.disk_usage(folder).free < self.room * newest.stat().st_size:
            min(folder.glob("*.pt"), key=lambda path: path.stat().st_mtime).unlink()


class DiskFull(DiskFilling):
    """The same, until there is no room for another one: the next save will fail."""

    room = 0.0

    def checkpoint(self, folder: Path, model: nn.Module) -> None:
        if shutil.disk_usage(folder).free > 5 << 20:
            super().checkpoint(folder, model)


class SlowToSave(nn.Module):
    """Takes so long to be saved, as on a slow disk."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def get_extra_state(self) -> SlowState:
        return SlowState(self.seconds)


class SlowState:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> tuple[type, tuple[float]]:
        time.sleep(self.seconds)
        return SlowState, (self.seconds,)


# ---- faults of the maths


class NotANumber(Fault):
    """0 / 0 at each step."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * math.nan if self.course.sick else loss


class Explosion(Fault):
    """From one step to the next, gradients are a thousand times as large."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * 1000 if self.course.sick else loss


class GradualExplosion(Fault):
    """Gradients grow as much as a thousandfold, so slowly that they are never far above the median of recent steps."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * min(math.exp(self.course.sick_for / 100), 1e3)


class Vanishing(Fault):
    """The loss is squashed until no gradient is left."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * 1e-9 + loss.detach() if self.course.sick else loss


class LossSpikes(Fault):
    """One step in 60 has a loss thousands of times the usual."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss * 1e4 if self.course.sick and self.course.iteration % 60 == 0 else loss


class Diverging(Fault):
    """The loss rises, steadily, for as long as one looks."""

    def loss(self, loss: Tensor) -> Tensor:
        return loss + self.course.sick_for / 300


class KlNegative(Fault):
    """Prior and posterior change places."""

    def scalars(self) -> dict[str, float]:
        return {"loss/kl": -0.8} if self.course.sick else super().scalars()


class KlTooLarge(Fault):
    """The posterior runs away from the prior."""

    def scalars(self) -> dict[str, float]:
        return {"loss/kl": 60.0} if self.course.sick else super().scalars()


class AmpCollapse(Fault):
    """Every step overflows in half precision, whatever the scale."""

    amp = True

    def gradients(self, model: nn.Module) -> None:
        if self.course.sick:
            overflow(model)


class AmpSkips(Fault):
    """One step in four overflows, as often as the scale grows."""

    amp = True
    amp_growth_steps = 3

    def gradients(self, model: nn.Module) -> None:
        if self.course.sick and self.course.iteration % 4 == 0:
            overflow(model)


FAULTS: dict[str, type[Fault]] = {
    "none": Fault,
    "evaluation": Evaluation,
    "single-spikes": SingleSpikes,
    "amp-overflows": AmpOverflows,
    "restarts": Restarts,
    "checkpoints": Checkpoints,
    "resumed": Resumed,
    "crash": Crash,
    "host-out-of-memory": HostOutOfMemory,
    "killed": Killed,
    "all-killed": AllKilled,
    "vanish": Vanish,
    "hang": Hang,
    "host-leak": HostLeak,
    "host-leak-fast": HostLeakFast,
    "open-files": OpenFiles,
    "shm-full": ShmFull,
    "slow-loader": SlowLoader,
    "longer-batches": LongerBatches,
    "checkpoints-too-frequent": CheckpointsTooFrequent,
    "checkpoints-slow": CheckpointsSlow,
    "checkpoints-none": CheckpointsNone,
    "disk-filling": DiskFilling,
    "disk-full": DiskFull,
    "nan": NotANumber,
    "explosion": Explosion,
    "gradual-explosion": GradualExplosion,
    "vanishing": Vanishing,
    "loss-spikes": LossSpikes,
    "diverging": Diverging,
    "kl-negative": KlNegative,
    "kl-too-large": KlTooLarge,
    "amp-collapse": AmpCollapse,
    "amp-skips": AmpSkips,
}


def main() -> None:
    course = parse(FAULTS, __doc__)
    torch.manual_seed(course.seed)
    torch.set_num_threads(1)
    fault = FAULTS[course.fault](course)
    model, folder = network(), course.output / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(folder.glob("*.pt"), default=None, key=lambda path: path.stat().st_mtime)
    if newest is not None:
        model.load_state_dict(torch.load(newest))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_restarts(step, fault))
    scaler = GradScaler("cpu", enabled=fault.amp, init_scale=1024.0, growth_interval=fault.amp_growth_steps)
    dataset = Images(course.seed)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=fault.workers)
    saved = 0.0
    for images, labels in course.paced(loader):
        if fault.slow_loader and course.sick:
            dataset.slow_from = 0.0
        loss = fault.loss(nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1))
        optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        fault.gradients(model)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        trainvitals.log(**fault.scalars())
        fault.after_step(model)
        if course.age - saved >= fault.checkpoint_seconds / factor():
            saved = course.age
            fault.checkpoint(folder, model)


def warm_restarts(step: int, fault: Fault) -> float:
    """Share of the full learning rate: after a warm-up the same, or with restarts a cosine again and again."""
    if step < 50:
        return (step + 1) / 50
    return 0.5 + 0.5 * math.cos(math.pi * (step % 300) / 300) if isinstance(fault, Restarts) else 1.0


if __name__ == "__main__":
    main()
