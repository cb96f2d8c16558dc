"""A training on one GPU, which the tests' fakes play: torch's allocator here, NVIDIA's driver in the exporter."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from benchmarks.faultbench.shapes.cnn import BATCH, Images, network
from benchmarks.faultbench.shapes.course import GPU_FILE, Course, factor, parse
from tests.hooks.fake_cuda import fake

GIB: Final = 1 << 30
CARD: Final = 24 * GIB
USUAL: Final = 14 * GIB  # in use after an iteration
EPOCH: Final = 450  # iterations: a quarter of an hour at the usual pace and factor


class Gpu:
    """What the driver reports of this run's GPU."""

    def __init__(self) -> None:
        self._path = Path(os.environ[GPU_FILE])
        self._said: dict[str, str] = {}
        self.say(utilization="92", power_milliwatts="310000")

    def say(self, **readings: str | None) -> None:
        """Change readings, by the fake driver's names; None takes one away."""
        said = {key: value for key, value in {**self._said, **readings}.items() if value is not None}
        if said != self._said:
            self._said = said
            new = self._path.with_suffix(".new")
            new.write_text("".join(f"{key}={value}\n" for key, value in said.items()))
            new.rename(self._path)


class Fault:
    """Nothing is wrong."""

    def __init__(self, course: Course, gpu: Gpu) -> None:
        self.course, self.gpu = course, gpu

    def allocated(self) -> int:
        """Bytes in use after an iteration: what comes and goes with the length of sequences."""
        return USUAL + (self.course.iteration * 7919 % 13) * GIB // 8

    def reserved(self) -> int:
        """Bytes that the allocator holds."""
        return USUAL + 2 * GIB

    def inactive_split(self) -> int:
        """Bytes of those that are free but in pieces."""
        return GIB // 4

    def transfer(self, images: Tensor) -> None:
        """A batch goes to the GPU."""

    def after_step(self) -> None:
        """The end of an iteration."""


# ---- healthy, though it may look odd


class Evaluation(Fault):
    """Four minutes of each thirty the GPU is little used, and its memory is less."""

    def after_step(self) -> None:
        pause = self.course.age % (1800 / factor()) > 1560 / factor()
        self.gpu.say(utilization="15" if pause else "92")


class LongerSequences(Fault):
    """A curriculum: every twenty minutes sequences are longer, and memory rises by a step; in the end it stays."""

    def allocated(self) -> int:
        return super().allocated() + min(3, int(self.course.age * factor() // 1200)) * GIB // 2


class WarmUp(Fault):
    """Caches fill for ten minutes, ever more slowly."""

    def allocated(self) -> int:
        filled = 1 - 0.5 ** (self.course.age * factor() / 120)
        return int(super().allocated() - 2 * GIB * (1 - filled))


class EpochSawtooth(Fault):
    """Memory grows during an epoch of fifteen minutes and is freed at its end."""

    def allocated(self) -> int:
        return super().allocated() + int(3 * GIB * (self.course.iteration % EPOCH) / EPOCH)


class Bystander(Fault):
    """Shares its GPU with another healthy run: each has half of it."""

    def after_step(self) -> None:
        self.gpu.say(utilization="97")


# ---- memory


class Leak(Fault):
    """Two GiB an hour stay behind."""

    per_hour = 2 * GIB

    def allocated(self) -> int:
        return super().allocated() + self.leaked()

    def leaked(self) -> int:
        """Bytes that stayed behind; it ends before the card does."""
        return min(int(self.per_hour * self.course.sick_for / 3600), CARD - USUAL - 2 * GIB)

    def reserved(self) -> int:
        return max(super().reserved(), self.allocated() + GIB // 2)


class LeakSlow(Leak):
    """Ninety MiB an hour, on a card that is nearly full: it lasts for less than a day.

    All sequences have one length: in the second that is a minute here, the hook reads too seldom to see the shortest.
    """

    per_hour = 90 << 20

    def allocated(self) -> int:
        return USUAL + 15 * GIB // 2 + self.leaked()


class LeakToTheEnd(Leak):
    """Twelve GiB an hour: the card is full within the hour."""

    per_hour = 12 * GIB


class LeakInAShortRun(Leak):
    """Eight GiB an hour, in a run that is over before windows of time have seen enough."""

    per_hour = 8 * GIB


class Fragmentation(Fault):
    """Ever more of what the allocator holds is free in pieces that fit nothing."""

    def _lost(self) -> int:
        return int(min(7 * GIB, 12 * GIB * self.course.sick_for / 3600))

    def reserved(self) -> int:
        return USUAL + 2 * GIB + self._lost()

    def inactive_split(self) -> int:
        return GIB // 4 + self._lost()


class AllocationFailed(Fault):
    """A batch that does not fit; the script catches the error and goes on without it."""

    def after_step(self) -> None:
        if self.course.sick and self.course.iteration % 100 == 0:
            try:
                fake.run_out(4 * GIB)
            except torch.OutOfMemoryError:
                torch.ones(1)


class OutOfMemory(Fault):
    """A batch that does not fit ends the training."""

    def after_step(self) -> None:
        if self.course.sick:
            fake.run_out(4 * GIB)


# ---- use


class Underused(Fault):
    """Too little work for the GPU: it is busy one tenth of the time, and nothing is seen to hold it up."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(utilization="10", power_milliwatts="90000")


class Starved(Fault):
    """No workers and slow items: the GPU waits for data."""

    def __init__(self, course: Course, gpu: Gpu) -> None:
        super().__init__(course, gpu)
        self.slow = False

    def after_step(self) -> None:
        if self.course.sick:
            self.slow = True
            self.gpu.say(utilization="12", power_milliwatts="95000")


class SlowDown(Fault):
    """Each iteration takes three times as long as before, and the GPU does less: something else holds it up."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(utilization="40", power_milliwatts="150000")
            time.sleep(2 * self.course.pace)


class Spinning(Fault):
    """The other rank is gone: this one waits in a collective, with the GPU at 100 % and little power."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(utilization="100", power_milliwatts="120000")
            lock = threading.Lock()
            with lock, lock:
                pass


class Throttled(Fault):
    """The GPU is too hot and slows down."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(event_reasons="0x40", temperature="93", clock_sm="600", clock_graphics="600")


class HeldIdle(Fault):
    """The training is over, and a process holds the GPU's memory all the same."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(utilization="0", power_milliwatts="30000", processes=f"{os.getpid()}:{10 * GIB}")
            while True:
                time.sleep(1)


# ---- hardware


class Xid(Fault):
    """The driver reports an XID that points at the program: a memory page fault."""

    xid = "31"

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(xid=self.xid)


class XidFatal(Xid):
    """The driver reports that the GPU has fallen off the bus."""

    xid = "79"


class Lost(Fault):
    """The driver answers no more for this GPU, and the training waits for ever."""

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(lost="1")
            while True:
                time.sleep(1)


class EccErrors(Fault):
    """Memory errors that could not be corrected."""

    def after_step(self) -> None:
        self.gpu.say(ecc_uncorrected="2" if self.course.sick else "0")


class RowsRemapped(Fault):
    """Rows of memory had to be replaced by spare ones."""

    def after_step(self) -> None:
        self.gpu.say(remapped_uncorrectable="1" if self.course.sick else "0")


# ---- advice


class MemoryTight(Fault):
    """The card is nearly full, without AMP and without checkpointing of activations."""

    def allocated(self) -> int:
        return CARD - 2 * GIB

    def reserved(self) -> int:
        return CARD - GIB

    def after_step(self) -> None:
        if self.course.sick:
            return


class NotPinned(Fault):
    """A third of the time goes into copies from memory that is not pinned: without a real CUDA no DataLoader pins."""

    def transfer(self, images: Tensor) -> None:
        if self.course.sick:
            fake.copy_seconds = self.course.pace / 3
            images.to("cuda", non_blocking=True)


class SmallBatch(Fault):
    """A batch that leaves nine tenths of the memory empty and half of the GPU idle."""

    def allocated(self) -> int:
        return GIB

    def reserved(self) -> int:
        return 2 * GIB

    def after_step(self) -> None:
        if self.course.sick:
            self.gpu.say(utilization="45")


FAULTS: dict[str, type[Fault]] = {
    "none": Fault,
    "evaluation": Evaluation,
    "longer-sequences": LongerSequences,
    "warm-up": WarmUp,
    "epoch-sawtooth": EpochSawtooth,
    "bystander": Bystander,
    "leak": Leak,
    "leak-slow": LeakSlow,
    "leak-to-the-end": LeakToTheEnd,
    "leak-short-run": LeakInAShortRun,
    "fragmentation": Fragmentation,
    "allocation-failed": AllocationFailed,
    "out-of-memory": OutOfMemory,
    "underused": Underused,
    "starved": Starved,
    "slow-down": SlowDown,
    "spinning": Spinning,
    "throttled": Throttled,
    "held-idle": HeldIdle,
    "xid": Xid,
    "xid-fatal": XidFatal,
    "lost": Lost,
    "ecc-errors": EccErrors,
    "rows-remapped": RowsRemapped,
    "memory-tight": MemoryTight,
    "not-pinned": NotPinned,
    "small-batch": SmallBatch,
}


def main() -> None:
    course = parse(FAULTS, __doc__)
    torch.manual_seed(course.seed)
    torch.set_num_threads(1)
    fake.init()
    fault = FAULTS[course.fault](course, Gpu())
    allocate(fault)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dataset = Images(course.seed)
    epoch = DataLoader(Subset(dataset, range(EPOCH * BATCH)), batch_size=BATCH, num_workers=0)
    for images, labels in course.paced(itertools.chain.from_iterable(itertools.repeat(epoch))):
        if isinstance(fault, Starved) and fault.slow:
            dataset.slow_from = 0.0
        fault.transfer(images)
        loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fault.after_step()
        allocate(fault)


def allocate(fault: Fault) -> None:
    """The allocator holds what the fault says, and the driver sees it."""
    reserved = max(fault.reserved(), fault.allocated())
    fake.use(0, fault.allocated(), reserved)
    fault.gpu.say(memory_used=str(reserved // (GIB // 8) * (GIB // 8)))
    fake.memory[0]["inactive_split_bytes"]["all"]["current"] = fault.inactive_split()


if __name__ == "__main__":
    main()
