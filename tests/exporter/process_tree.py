"""A training run as a tree of processes: launcher and rank, each with a helper, and two workers, forked and spawned.

Each worker writes 4 MiB to a disk; the forked one shares 16 MiB of memory with the rank. Says "ready" when all are
there and the workers have worked, kills the workers at the next line of its standard input, and ends with that input.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from trainvitals.runfile import Identity, RunFileWriter

DISK = "/var/tmp"  # noqa: S108 (a /tmp in memory is no disk)
HELPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def burn_and_sleep(told: Connection) -> None:
    """Use some CPU time, write something, tell, and live on."""
    with tempfile.TemporaryFile(dir=DISK) as file:
        file.write(bytes(2**22))
        os.fsync(file.fileno())
    while time.process_time() < 0.3:
        pass
    told.send("burnt")
    time.sleep(600)


def rank(directory: str) -> None:
    """The process that trains."""
    writer = RunFileWriter(Path(directory), Identity("tree", "tree", "rank"), rank=0)
    memory = bytearray(os.urandom(2**24))
    ear, mouth = multiprocessing.Pipe(duplex=False)
    workers = [
        multiprocessing.get_context("fork").Process(target=burn_and_sleep, args=[mouth]),
        multiprocessing.get_context("spawn").Process(target=burn_and_sleep, args=[mouth]),
    ]
    for worker in workers:
        worker.start()
        ear.recv()
    helper = subprocess.Popen(HELPER)
    print("ready", flush=True)
    sys.stdin.readline()
    for worker in workers:
        worker.kill()
        worker.join()
    print("done", flush=True)
    sys.stdin.readline()
    helper.kill()
    del writer, memory


def launcher(directory: str) -> None:
    """The parent, as `trainvitals run`."""
    writer = RunFileWriter(Path(directory), Identity("tree", "tree", "launcher"))
    helper = subprocess.Popen(HELPER)
    subprocess.run([sys.executable, __file__, "rank", directory], check=True)
    helper.kill()
    del writer


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    {"rank": rank, "launcher": launcher}[sys.argv[1]](sys.argv[2])
