"""Which filesystems a rank and its workers read from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trainvitals.mounts import MountTable

from tests.exporter.conftest import StartExporter

RANK = """
import multiprocessing, os, sys, tempfile, time
from pathlib import Path
from trainvitals.runfile import Identity, RunFileWriter

run, data = sys.argv[2:]
writer = RunFileWriter(Path(sys.argv[1]), Identity(run, run, "rank"), rank=0)

def work():
    file = open(data)
    print("ready", flush=True)
    time.sleep(600)

if run == "worker-reads":
    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
elif run == "reads":
    file = open(data)
    print("ready", flush=True)
else:
    no_data = open(data, "a"), open("/usr/lib/os-release"), open("/dev/zero"), tempfile.TemporaryFile(), os.pipe()
    deleted = Path(data + ".deleted")
    deleted.write_text("x")
    file = deleted.open()
    deleted.unlink()
    print("ready", flush=True)
sys.stdin.read()
"""
RUNS = ("reads", "worker-reads", "reads-no-data")


@contextmanager
def rank(run_dir: Path, run: str, data: Path) -> Iterator[None]:
    """A rank of that run while it has its files open."""
    command = [sys.executable, "-c", RANK, str(run_dir), run, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        assert process.stdin is not None
        process.stdin.close()


def test_open_files_tell_the_filesystem(start_exporter: StartExporter, run_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.tar"
    data.write_text("x")
    mount = MountTable().of(data.resolve())
    assert mount is not None
    with ExitStack() as ranks:
        for run in RUNS:
            ranks.enter_context(rank(run_dir, run, data))
        scrape = start_exporter("--run-dir", str(run_dir), "--collectors", "data_mounts").scrape()
    found = scrape.series("trainvitals_reads_from_info", rank="0")
    expected = {(mount.mountpoint, device) for device in MountTable().disks(mount) or [mount.kind]}
    for run in ("reads", "worker-reads"):
        assert {(of["mountpoint"], of["device"]) for of, _ in found if of["run"] == run} == expected
    assert not [of for of, _ in found if of["run"] == "reads-no-data"]
    assert scrape.value("trainvitals_collector_success", collector="data_mounts") == 1
