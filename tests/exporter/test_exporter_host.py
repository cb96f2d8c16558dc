"""The host's own metrics, on this machine and on made-up ones."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from trainvitals_exporter.collectors.cpu import Cpu
from trainvitals_exporter.collectors.filesystems import Filesystems
from trainvitals_exporter.collectors.network import Network
from trainvitals_exporter.runner import Collector, Incomplete, NothingToReport

from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import Scrape

MOUNTS = """\
20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
21 20 0:22 / /proc rw - proc proc rw
22 20 8:1 /etc/host /etc/resolv.conf rw - ext4 /dev/sda1 rw
23 20 8:17 / /data\\040sets rw - xfs /dev/sdb1 rw
24 20 0:50 / /share rw - nfs4 server:/share rw
25 20 0:51 / /broken rw - nfs4 dead:/share rw
26 20 0:52 / /dev/shm rw - tmpfs tmpfs rw
27 20 7:0 / /snap/core rw - squashfs /dev/loop0 ro
28 20 0:53 / /run/user/1000/gvfs rw - fuse.gvfsd-fuse gvfsd-fuse rw
"""

# A statvfs() that blocks for what a dead server has, as the kernel's does.
PRELOADED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void hang(void) {
    FILE *calls = fopen(getenv("CALLS_THAT_HANG"), "a");
    fputs("call\\n", calls);
    fclose(calls);
    for (;;) pause();
}
#define WRAP(NAME)                                                        \\
    int NAME(const char *path, void *buffer) {                            \\
        if (strstr(path, "/broken")) hang();                              \\
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
    (folder / "1" / "mountinfo").write_text(MOUNTS)
    return folder


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for mountpoint in ("data sets", "share", "broken"):
        (folder / mountpoint).mkdir(parents=True)
    return folder


def test_each_filesystem_with_space_once(start_exporter: StartExporter, procfs: Path, rootfs: Path) -> None:
    exporter = start_exporter("--collectors", "filesystems", "--procfs", str(procfs), "--rootfs", str(rootfs))
    scrape = exporter.scrape()
    for name in ("trainvitals_host_filesystem_size_bytes", "trainvitals_host_filesystem_avail_bytes"):
        assert {labels["mountpoint"] for labels, _ in scrape.series(name)} == {"/", "/data sets", "/share", "/broken"}
    assert scrape.value("trainvitals_collector_success", collector="filesystems") == 1


@pytest.fixture
def dead_server(tmp_path: Path) -> dict[str, str]:
    """The environment in which what lies on /broken never answers."""
    source, library = tmp_path / "statvfs.c", tmp_path / "statvfs.so"
    source.write_text(PRELOADED)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "CALLS_THAT_HANG": str(tmp_path / "calls")}


@pytest.mark.slow  # filesystems are asked every 15 seconds
def test_dead_filesystem_is_not_asked_again(
    start_exporter: StartExporter, procfs: Path, rootfs: Path, dead_server: dict[str, str]
) -> None:
    arguments = ("--collectors", "filesystems", "--rootfs", str(rootfs), "--procfs", str(procfs))
    exporter = start_exporter(*arguments, env=dead_server)

    def seconds(scrape: Scrape) -> float:
        ((_, value),) = scrape.series("trainvitals_collector_duration_seconds", collector="filesystems")
        return value

    first = seconds(exporter.scrape())
    scrape = exporter.scrape_until(lambda s: seconds(s) < first / 10, "a collection that waits for nothing")
    assert Path(dead_server["CALLS_THAT_HANG"]).read_text() == "call\n"
    assert len(scrape.series("trainvitals_host_filesystem_size_bytes")) == 3


def test_dead_filesystem(
    start_exporter: StartExporter, procfs: Path, rootfs: Path, dead_server: dict[str, str]
) -> None:
    arguments = ("--collectors", "filesystems,memory", "--rootfs", str(rootfs))
    (procfs / "meminfo").symlink_to("/proc/meminfo")
    exporter = start_exporter(*arguments, "--procfs", str(procfs), env=dead_server)
    scrape = exporter.scrape()
    mounts = {labels["mountpoint"] for labels, _ in scrape.series("trainvitals_host_filesystem_size_bytes")}
    assert mounts == {"/", "/data sets", "/share"}
    assert scrape.value("trainvitals_collector_success", collector="filesystems") == 0
    assert scrape.value("trainvitals_host_memory_total_bytes")
    assert any("filesystems is incomplete: no answer from /broken" in line for line in exporter.log)
    assert exporter.stop() == 0


class Servers:
    """What statvfs() says of mounts: those on a dead server do not answer before it comes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead: set[str] = set()
        self.back = threading.Event()
        self.asked: list[str] = []
        self._really = os.statvfs
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def _statvfs(self, path: Path) -> os.statvfs_result:
        name = path.name
        self.asked.append(name)
        if name in self.dead:
            self.back.wait()
        if name == "private":
            raise PermissionError(13, "Permission denied")
        return self._really("/")

    def calls(self) -> int:
        return sum(thread.name.startswith("statvfs-") for thread in threading.enumerate())


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterable[Servers]:
    servers = Servers(monkeypatch)
    yield servers
    servers.back.set()


def filesystems(procfs: Path, rootfs: Path) -> Filesystems:
    return Filesystems(procfs, rootfs / "sys", rootfs)


def mount(procfs: Path, *mounts: tuple[str, str, str]) -> None:
    """Have these mounted, each at its own name: name, device, type."""
    lines = [
        f"{i} 1 {device} / /{name} rw - {kind} server:/{name} rw\n" for i, (name, device, kind) in enumerate(mounts)
    ]
    (procfs / "1" / "mountinfo").write_text("".join(lines))


def collected(collector: Collector) -> tuple[dict[str, float], str]:
    """Values by series, and what failed."""
    try:
        families, trouble = collector.collect(), ""
    except Incomplete as incomplete:
        families, trouble = incomplete.families, str(incomplete)
    return {series: value for family in families for series, value in family.lines}, trouble


def sizes(values: dict[str, float]) -> set[str]:
    return {series.split('"')[1] for series in values if "_size_bytes" in series}


def test_dead_server_is_asked_once_until_it_is_back(procfs: Path, rootfs: Path, servers: Servers) -> None:
    collector = filesystems(procfs, rootfs)
    mount(procfs, ("good", "0:50", "nfs4"), ("bad", "0:51", "nfs4"))
    servers.dead = {"bad"}
    for _ in range(5):
        values, trouble = collected(collector)
        assert (sizes(values), trouble) == ({"/good"}, "no answer from /bad")
    assert servers.calls() == 1
    assert (servers.asked.count("good"), servers.asked.count("bad")) == (5, 1)
    # Gone, and then there again from another server.
    mount(procfs, ("good", "0:50", "nfs4"))
    assert collected(collector)[1] == ""
    servers.dead = set()
    mount(procfs, ("good", "0:50", "nfs4"), ("bad", "0:52", "nfs4"))
    assert sizes(collected(collector)[0]) == {"/good", "/bad"}
    servers.back.set()
    for thread in threading.enumerate():
        if thread.name.startswith("statvfs-"):
            thread.join()
    mount(procfs, ("bad", "0:51", "nfs4"))
    assert sizes(collected(collector)[0]) == {"/bad"}
    assert servers.calls() == 0


def test_many_dead_servers_take_few_threads(procfs: Path, rootfs: Path, servers: Servers) -> None:
    collector = filesystems(procfs, rootfs)
    healthy = [(f"good{i}", f"0:{i + 50}", "nfs4") for i in range(50)]
    mount(procfs, *healthy)
    assert len(sizes(collected(collector)[0])) == 50
    dead = [(f"x{i}", f"1:{i}", "fuse.sshfs") for i in range(50)]
    servers.dead = {name for name, _, _ in dead}
    mount(procfs, *dead, ("disk", "0:40", "btrfs"))
    for _ in range(3):
        values, trouble = collected(collector)
        assert sizes(values) == {"/disk"}
        assert trouble.count("no answer") == 50
        assert servers.calls() == 32


def test_filesystem_of_one_user_is_no_failure(procfs: Path, rootfs: Path, servers: Servers) -> None:
    for kind in ("fuse.sshfs", "fuse"):
        mount(procfs, ("private", "0:50", kind), ("good", "0:51", "nfs"))
        values, trouble = collected(filesystems(procfs, rootfs))
        assert (sizes(values), trouble) == ({"/good"}, "")
    mount(procfs, ("private", "0:50", "nfs"), ("good", "0:51", "nfs"))
    values, trouble = collected(filesystems(procfs, rootfs))
    assert (sizes(values), trouble) == ({"/good"}, "/private: Permission denied")


def stat(procfs: Path, **cores: tuple[int, ...]) -> None:
    """What the kernel counted, in 10 ms: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice."""
    lines = [f"{name} {' '.join(map(str, ticks))}\n" for name, ticks in cores.items()]
    (procfs / "stat").write_text(f"cpu  1 2 3 4\n{''.join(lines)}intr 5 6\n")


def cores(values: dict[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for series, value in values.items():
        if "_cpu_" in series:
            _, core, _, mode, _ = series.split('"')
            found.setdefault(core, {})[mode] = value
    return found


def test_cores_keep_their_numbers_and_counters_do_not_fall(procfs: Path) -> None:
    (procfs / "loadavg").write_text("1.25 1.00 0.50 1/100 4711\n")
    collector = Cpu(procfs)
    busy, calm = (9000, 10, 500, 70000, 800, 0, 30, 40, 6000, 5), (100, 0, 50, 90000, 10, 0, 5, 0, 0, 0)
    stat(procfs, cpu0=busy, cpu1=calm, cpu2=calm)
    first = cores(collected(collector)[0])
    assert sum(first["0"].values()) == pytest.approx(sum(busy[:8]) / 100)  # guest is in user already
    assert (first["0"]["user"], first["0"]["steal"]) == (90, 0.4)
    # The kernel takes back iowait; core 1 goes offline.
    stat(procfs, cpu0=(9100, 10, 500, 70050, 790, 0, 30, 40, 6000, 5), cpu2=calm)
    second = cores(collected(collector)[0])
    assert set(second) == {"0", "2"}
    assert (second["0"]["user"], second["0"]["iowait"]) == (91, 8)
    # Core 1 is back and counts from 0.
    stat(procfs, cpu0=busy, cpu1=(1, 0, 1, 20, 0, 0, 0, 0, 0, 0), cpu2=calm)
    third = cores(collected(collector)[0])
    assert (third["0"]["user"], third["1"]["idle"], third["1"]["iowait"]) == (91, 0.2, 0)
    stat(procfs)
    with pytest.raises(ValueError, match="no core"):
        collector.collect()


def test_network_of_a_container_that_sees_no_other(procfs: Path, rootfs: Path) -> None:
    """Without the host's process 1 it is the container's own, and has no card."""
    (procfs / "net").mkdir()
    (procfs / "net" / "dev").write_text("head\nhead\n    lo: 1 0 0 0 0 0 0 0 2 0\n  eth0:3 0 0 0 0 0 0 0 4 0\n")
    cards = rootfs / "sys" / "class" / "net"
    for folder in (cards / "lo", cards / "eth0"):
        folder.mkdir(parents=True)
    collector = Network(procfs, rootfs / "sys")
    with pytest.raises(NothingToReport, match="no network card"):
        collector.collect()
    (cards / "eth0" / "device").mkdir()
    assert collected(collector) == (
        {
            'trainvitals_host_network_receive_bytes_total{interface="eth0"}': 3,
            'trainvitals_host_network_transmit_bytes_total{interface="eth0"}': 4,
        },
        "",
    )


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
