"""Two ranks with DistributedDataParallel over gloo, and what can be wrong between them."""

from __future__ import annotations

import socket
import threading
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from benchmarks.faultbench.shapes.cnn import BATCH, Images, network
from benchmarks.faultbench.shapes.course import Course, parse

RANKS = 2


class Fault:
    """Nothing is wrong."""

    find_unused_parameters = False

    def __init__(self, course: Course, rank: int) -> None:
        self.course, self.rank = course, rank

    def forward(self) -> None:
        """Within the forward of an iteration."""


class Straggler(Fault):
    """The second rank computes for longer than the others, which wait for it."""

    def forward(self) -> None:
        if self.rank == 1 and self.course.sick:
            time.sleep(2 * self.course.pace)


class RankHang(Fault):
    """The second rank never reaches the collective in which the first waits."""

    def forward(self) -> None:
        if self.rank == 1 and self.course.sick:
            lock = threading.Lock()
            with lock, lock:
                pass


class RankCrash(Fault):
    """The second rank fails, and takes the first with it."""

    def forward(self) -> None:
        if self.rank == 1 and self.course.sick:
            raise ValueError("a sample without a label")


class FindUnused(Fault):
    """Parameters that get no gradient are searched for at each step, and there are none."""

    find_unused_parameters = True

    def forward(self) -> None:
        if self.course.sick:
            return


FAULTS: dict[str, type[Fault]] = {
    "none": Fault,
    "straggler": Straggler,
    "rank-hang": RankHang,
    "rank-crash": RankCrash,
    "find-unused": FindUnused,
}


def main() -> None:
    course = parse(FAULTS, __doc__)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.spawn(train, args=(course, address), nprocs=RANKS)  # type: ignore[attr-defined,no-untyped-call]


def train(rank: int, course: Course, address: str) -> None:
    torch.manual_seed(course.seed)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    fault = FAULTS[course.fault](course, rank)
    model = DistributedDataParallel(network(), find_unused_parameters=fault.find_unused_parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for images, labels in course.paced(DataLoader(Images(course.seed + rank), batch_size=BATCH)):
        fault.forward()
        loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
