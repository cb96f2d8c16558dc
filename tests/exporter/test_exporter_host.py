"""The host's own metrics, on this machine and on made-up ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
proc /proc proc rw 0 0
/dev/sda1 /etc/resolv.conf ext4 rw 0 0
/dev/sdb1 /data\\040sets xfs rw 0 0
/dev/sdc1 /broken ext4 rw 0 0
server:/share /share nfs4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
"""

# A statvfs() that blocks for what lies on the broken disk, as the kernel's does.
PRELOADED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>
#define WRAP(NAME)                                                        \\
    int NAME(const char *path, void *buffer) {                            \\
        if (strstr(path, "/broken")) for (;;) pause();                    \\
        int (*next)(const char *, void *) = dlsym(RTLD_NEXT, #NAME);      \\
        return next(path, buffer);                                        \\
    }
WRAP(statvfs)
WRAP(statvfs64)
"""


@pytest.fixture
def procfs(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "mounts").write_text(MOUNTS)
    return folder


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for mountpoint in ("data sets", "broken"):
        (folder / mountpoint).mkdir(parents=True)
    return folder


def test_each_filesystem_on_a_block_device_once(start_exporter: StartExporter, procfs: Path, rootfs: Path) -> None:
    exporter = start_exporter("--collectors", "filesystems", "--procfs", str(procfs), "--rootfs", str(rootfs))
    scrape = exporter.scrape()
    for name in ("trainvitals_host_filesystem_size_bytes", "trainvitals_host_filesystem_avail_bytes"):
        assert {labels["mountpoint"] for labels, _ in scrape.series(name)} == {"/", "/data sets", "/broken"}
    assert scrape.value("trainvitals_collector_success", collector="filesystems") == 1


def test_dead_filesystem(start_exporter: StartExporter, procfs: Path, rootfs: Path, tmp_path: Path) -> None:
    source, library = tmp_path / "statvfs.c", tmp_path / "statvfs.so"
    source.write_text(PRELOADED)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    arguments = ("--collectors", "filesystems,memory", "--rootfs", str(rootfs))
    (procfs / "meminfo").symlink_to("/proc/meminfo")
    exporter = start_exporter(*arguments, "--procfs", str(procfs), env={"LD_PRELOAD": str(library)})
    scrape = exporter.scrape()
    mounts = {labels["mountpoint"] for labels, _ in scrape.series("trainvitals_host_filesystem_size_bytes")}
    assert mounts == {"/", "/data sets"}
    assert scrape.value("trainvitals_collector_success", collector="filesystems") == 0
    assert scrape.value("trainvitals_host_memory_total_bytes")
    assert exporter.stop() == 0


def test_pressure(start_exporter: StartExporter, procfs: Path) -> None:
    (procfs / "pressure").mkdir()
    for number, resource in enumerate(("cpu", "memory", "io")):
        averages = "avg10=0.00 avg60=0.00 avg300=0.00"
        text = f"some {averages} total={number}500000\nfull {averages} total={number}250000\n"
        (procfs / "pressure" / resource).write_text(text)
    scrape = start_exporter("--collectors", "pressure", "--procfs", str(procfs)).scrape()
    found = {
        (labels["resource"], labels["kind"]): value
        for labels, value in scrape.series("trainvitals_host_pressure_seconds_total")
    }
    assert found == {
        ("cpu", "some"): 0.5,
        ("memory", "some"): 1.5,
        ("memory", "full"): 1.25,
        ("io", "some"): 2.5,
        ("io", "full"): 2.25,
    }


def test_kernel_without_pressure(start_exporter: StartExporter, procfs: Path) -> None:
    exporter = start_exporter("--collectors", "pressure", "--procfs", str(procfs))
    scrape = exporter.scrape()
    assert scrape.series("trainvitals_host_pressure_seconds_total") == []
    assert scrape.value("trainvitals_collector_success", collector="pressure") == 0
    assert any("pressure has nothing to report" in line for line in exporter.log)


def test_collector_that_fails_leaves_no_data(start_exporter: StartExporter, procfs: Path) -> None:
    exporter = start_exporter("--collectors", "cpu,memory", "--procfs", str(procfs))
    scrape = exporter.scrape()
    assert {labels["collector"] for labels, value in scrape.series("trainvitals_collector_success") if value == 0} == {
        "cpu", "memory",
    }  # fmt: skip
    assert not [sample for sample in scrape.samples if sample.name.startswith("trainvitals_host_")]
    assert scrape.series("trainvitals_collector_last_success_timestamp_seconds") == []
    (procfs / "meminfo").symlink_to("/proc/meminfo")
    scrape = exporter.scrape_until(lambda s: s.value("trainvitals_host_memory_total_bytes"), "memory can be read again")
    assert scrape.value("trainvitals_collector_success", collector="memory") == 1
    assert scrape.value("trainvitals_collector_success", collector="cpu") == 0
