"""What the cgroup of a process tells: who started it (container, Kubernetes pod, Slurm job), and its quota of CPU time.

The spellings are those of cgroup v1 and v2, with the cgroups made by systemd (slices and scopes) or directly:

- containers: Docker, containerd, CRI-O, Podman (also rootless) and nerdctl name the innermost cgroup after the id;
- pods: https://kubernetes.io/docs/concepts/architecture/cgroups/, where a systemd slice has "_" in place of "-";
- Slurm: https://slurm.schedmd.com/cgroups.html and https://slurm.schedmd.com/cgroup_v2.html. From version 26.05 on, a
  path may hold a SLUID, which is not the job's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

# A monitor (conmon) is beside its container, not in it.
_CONTAINER: Final = re.compile(r"(?:^|(?<!conmon)[-:/])([0-9a-f]{64})(?=$|[./:])")
_POD: Final = re.compile(
    r"kubepods(?:.*?[-/])?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=$|[./:])"
)
# As seen from another pod's cgroup namespace, where no systemd slice repeats the whole path.
_POD_BESIDE: Final = re.compile(
    r"^/(?:\.\./)+(?:(?:burstable|besteffort)/)?pod([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})(?=$|/)"
)
_SLURM_V1: Final = re.compile(r"^/slurm(?:_[^/]+)?/uid_\d+/job_(\d+)(?=$|/)")
_SLURM_V2: Final = re.compile(r"(?:^|/)(?:[^/]+_)?slurmstepd\.scope/job_(\d+)(?=$|/)")


@dataclass(frozen=True)
class CgroupOwner:
    """The id of the innermost container, the uid of the pod, the number of the Slurm job; empty where there is none."""

    container: str = ""
    pod_uid: str = ""
    slurm_job: str = ""


def parse(text: str) -> CgroupOwner:
    """What /proc/PID/cgroup (cgroups(7)) tells; anything that is no such text tells nothing."""
    container = pod_uid = slurm_job = ""
    for line in text.split("\n"):
        path = line.split(":", 2)[-1]
        ids = _CONTAINER.findall(path)
        pod = _POD.search(path) or _POD_BESIDE.search(path)
        job = _SLURM_V1.search(path) or _SLURM_V2.search(path)
        container = container or (ids[-1] if ids else "")
        pod_uid = pod_uid or (pod[1].replace("_", "-") if pod else "")
        slurm_job = slurm_job or (job[1] if job else "")
    return CgroupOwner(container, pod_uid, slurm_job)


@dataclass(frozen=True)
class CpuQuota:
    """CPU time that a cgroup may use, in cores; how many of its periods there were, and in how many it was used up."""

    cores: float
    periods: int
    throttled: int


def cpu_quota(text: str, hierarchies: Path) -> CpuQuota | None:
    """The tightest quota that holds for a process with this /proc/PID/cgroup, its own or that of a cgroup around it.

    `hierarchies` is /sys/fs/cgroup. None without a quota, and where the cgroup is not to be seen from here.

    Sources: cpu.max and cpu.stat of https://docs.kernel.org/admin-guide/cgroup-v2.html, and cpu.cfs_quota_us,
    cpu.cfs_period_us and cpu.stat of https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    found = [quota for folder in _cpu_cgroups(text, hierarchies) if (quota := _quota_of(folder)) is not None]
    return min(found, key=lambda quota: quota.cores, default=None)


def _cpu_cgroups(text: str, hierarchies: Path) -> Iterator[Path]:
    """The folders of a process's cgroup and of those around it, the innermost first, where CPU time is shared out."""
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = PurePosixPath(path)
        if ".." in inner.parts or not inner.is_absolute():
            continue  # of another cgroup namespace, whose root cannot be told from here
        if number == "0" and not controllers:
            root = hierarchies
        elif "cpu" in controllers.split(","):
            root = hierarchies / "cpu"  # systemd's link where several share one
        else:
            continue
        if (root / inner.relative_to("/")).is_dir():  # else the root here is not that of the path
            for cgroup in (inner, *inner.parents):
                yield root / cgroup.relative_to("/")


def _quota_of(folder: Path) -> CpuQuota | None:
    try:
        quota, period = _quota_and_period(folder)
        lines = (line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        counts = {name: int(value) for name, value in lines}
        return CpuQuota(quota / period, counts["nr_periods"], counts["nr_throttled"]) if quota > 0 < period else None
    except (OSError, ValueError, KeyError):
        return None


def _quota_and_period(folder: Path) -> tuple[int, int]:
    """In microseconds. Raises OSError, and ValueError for what is no number: "max" in v2."""
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text()  # -1 for none
        period = (folder / "cpu.cfs_period_us").read_text()
    return int(quota), int(period)
