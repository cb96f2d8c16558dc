"""The /dev/shm that a rank sees, on this machine and on made-up ones."""

from __future__ import annotations

import os
from pathlib import Path

from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.frozen_proc import FrozenProc

SHARED_MEMORY = "/dev/shm"  # noqa: S108
ROOT = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
SHM = "30 20 0:{} / {} rw,nosuid shared:5 - {} shm rw,size=65536k\n"
# What is mounted, and whether it is looked at.
MOUNTS = {
    "container": (ROOT + SHM.format(50, SHARED_MEMORY, "tmpfs"), True),
    "nothing-there": (ROOT, False),
    "elsewhere": (ROOT + SHM.format(50, "/run/shm", "tmpfs"), False),
    "could-block": (ROOT + SHM.format(50, SHARED_MEMORY, "fuse.sshfs"), False),
    "hidden-by-what-could-block": (
        ROOT + SHM.format(50, SHARED_MEMORY, "tmpfs") + SHM.format(51, SHARED_MEMORY, "nfs4"), False,
    ),
    "damaged": ("1 2\n - \n", False),
}  # fmt: skip


def test_this_machine_s(start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path) -> None:
    start_run_file("train", "rank", rank=3)
    scrape = start_exporter("--collectors", "shm", "--run-dir", str(run_dir)).scrape()
    space = os.statvfs(SHARED_MEMORY)
    size = scrape.value("trainvitals_shm_size_bytes", run="train", rank="3")
    assert size == space.f_blocks * space.f_frsize
    avail = scrape.value("trainvitals_shm_avail_bytes", run="train", rank="3")
    assert avail is not None
    assert 0 < avail <= size


def test_only_what_cannot_block_is_looked_at(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, tmp_path: Path
) -> None:
    proc = FrozenProc(tmp_path / "proc")
    for name, (mounts, _) in MOUNTS.items():
        pid = start_run_file(name, "rank").pid
        proc.write(pid, "mountinfo", mounts).write(pid, "root/dev/shm/batch", "")
    start_run_file("not-permitted", "rank")
    exporter = start_exporter("--collectors", "shm", "--run-dir", str(run_dir), "--procfs", str(proc.path))
    seen = {labels["run"] for labels, _ in exporter.scrape().series("trainvitals_shm_size_bytes")}
    assert seen == {name for name, (_, looked_at) in MOUNTS.items() if looked_at}
