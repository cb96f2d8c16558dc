"""Training runs that begin and end all the time: `run_churn.py DIRECTORY`, until its standard input ends.

Some runs have two ranks, and some the name of another one; their workers come and go; they end well, are killed, or
vanish together with their file. None trains.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from trainvitals.runfile import Identity, RunFileWriter

RUNS = 3  # at a time
KEEP_FILES = 2.0  # seconds
NAMES = ("tts", "tts", "vc", "größe")


def fork() -> int:
    """The child's pid in the parent, 0 in the child, where chance goes its own way."""
    pid = os.fork()
    if not pid:
        random.seed(os.getpid())
    return pid


def worker() -> None:
    time.sleep(600)


def rank(folder: Path, identity: Identity, number: int) -> None:
    """A process that says it trains, for a moment."""
    writer = RunFileWriter(folder, identity, number)
    writer.set("trainvitals_run_start_timestamp_seconds", time.time())
    workers: list[int] = []
    ends = time.monotonic() + random.uniform(0.2, 2.5)
    step = 0.0
    while time.monotonic() < ends:
        step += 1
        writer.set("trainvitals_iterations_total", step)
        writer.set("trainvitals_heartbeat_timestamp_seconds", time.time())
        for optimizer in "01":
            writer.set("trainvitals_loss", random.choice([0.5, float("nan")]), optimizer=optimizer)
        writer.set("trainvitals_scalar", step, tag=f"tag/{random.randrange(40)}")
        writer.set("trainvitals_iteration_seconds_bucket", step, le="0.1")
        writer.set("trainvitals_iteration_seconds_sum", step / 10)
        if len(workers) < 2 and not (pid := fork()):
            worker()
        elif len(workers) < 2:
            workers.append(pid)
        elif random.random() < 0.1:
            end(workers.pop())
        time.sleep(0.05)
    for pid in workers:
        end(pid)
    if random.random() < 0.3:
        os.kill(os.getpid(), signal.SIGKILL)
    if random.random() < 0.2:
        writer.path.unlink()
    writer.set("trainvitals_run_state", 1, state=random.choice(["finished", "failed", "out_of_memory"]))
    writer.close()


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(folder: Path) -> None:
    os.setpgid(0, 0)
    ranks: dict[int, str] = {}
    old: list[tuple[float, int]] = []
    number = 0
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        while len(set(ranks.values())) < RUNS:
            number += 1
            identity = Identity(f"run-{number}", random.choice(NAMES), "rank", "train.py")
            for place in range(random.choice([1, 2])):
                pid = fork()
                if not pid:
                    rank(folder, identity, place)
                    os._exit(0)
                ranks[pid] = identity.run_id
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                del ranks[pid]
                old.append((time.monotonic(), pid))
        while old and old[0][0] < time.monotonic() - KEEP_FILES:
            for path in folder.glob(f"*.{old.pop(0)[1]}.vitals"):
                path.unlink()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    random.seed(1)
    main(Path(sys.argv[1]))
