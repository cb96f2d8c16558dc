"""The quota of CPU time that a rank's cgroup has, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporter.conftest import StartExporter, StartRunFile
from tests.exporter.frozen_proc import FrozenProc

V1_POD = "/kubepods/burstable/pod1"
# The cgroup of a rank, and the cores, periods and throttled periods that it then has; None where nothing is told.
CASES: dict[str, tuple[str, tuple[float, int, int] | None]] = {
    "v2": ("0::/job.slice", (2.5, 100, 30)),
    "v2-below-a-quota": ("0::/job.slice/step/task", (2.5, 100, 30)),
    "v2-tighter-below": ("0::/job.slice/tight", (0.5, 40, 39)),
    "v2-looser-below": ("0::/job.slice/loose", (2.5, 100, 30)),
    "v2-without": ("0::/free.slice", None),
    "v2-no-controller": ("0::/bare", None),
    "v2-damaged": ("0::/damaged", None),
    "v1": (f"5:memory:/other\n4:cpu,cpuacct:{V1_POD}/main\n0::/free.slice", (1.5, 7, 3)),
    "v1-without": ("4:cpuacct,cpu:/\n0::/", None),
    "another-namespace": ("0::/../job.slice", None),
    "not-to-be-seen": ("0::/elsewhere/job.slice", None),
    "odd": ("0::\n::\nx\n0::job.slice", None),
}


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sys" / "block").mkdir(parents=True)
    groups = root / "sys" / "fs" / "cgroup"
    for name, limit, stat in (
        ("job.slice", "250000 100000", "usage_usec 1\nnr_periods 100\nnr_throttled 30\nthrottled_usec 5\n"),
        ("job.slice/step/task", "max 100000", "usage_usec 1\nnr_periods 0\nnr_throttled 0\n"),
        ("job.slice/tight", "50000 100000", "nr_periods 40\nnr_throttled 39\n"),
        ("job.slice/loose", "400000 100000", "nr_periods 1\nnr_throttled 0\n"),
        ("free.slice", "max 100000", "nr_periods 0\nnr_throttled 0\n"),
        ("damaged", "100000", "nr_periods\n"),
    ):
        write(groups / name, {"cpu.max": limit + "\n", "cpu.stat": stat})
    write(groups / "bare", {"cpu.stat": "usage_usec 1\n"})
    for name, quota, stat in (
        ("", "-1", "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n"),
        (V1_POD, "150000", "nr_periods 7\nnr_throttled 3\nthrottled_time 9\n"),
        (f"{V1_POD}/main", "-1", "nr_periods 0\nnr_throttled 0\n"),
    ):
        files = {"cpu.cfs_quota_us": quota + "\n", "cpu.cfs_period_us": "100000\n", "cpu.stat": stat}
        write(groups / "cpu" / name.lstrip("/"), files)
    return root


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_tightest_quota_of_a_rank_s_cgroup(
    start_exporter: StartExporter, start_run_file: StartRunFile, run_dir: Path, tmp_path: Path, rootfs: Path
) -> None:
    proc = FrozenProc(tmp_path / "proc")
    for name, (cgroup, _) in CASES.items():
        proc.write(start_run_file(name, "rank").pid, "cgroup", cgroup + "\n")
    start_run_file("nothing-known", "rank")
    places = ("--procfs", str(proc.path), "--rootfs", str(rootfs), "--run-dir", str(run_dir))
    scrape = start_exporter("--collectors", "cpu_quota", *places).scrape()

    def told(run: str) -> tuple[float | None, ...] | None:
        names = ("quota_cores", "periods_total", "throttled_periods_total")
        values = tuple(scrape.value(f"trainvitals_cgroup_cpu_{name}", run=run, rank="0") for name in names)
        return None if values == (None, None, None) else values

    assert {name: told(name) for name in CASES} == {name: quota for name, (_, quota) in CASES.items()}
    assert told("nothing-known") is None
    assert scrape.value("trainvitals_collector_success", collector="cpu_quota") == 1
