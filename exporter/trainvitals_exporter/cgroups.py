"""What the cgroup of a process tells about who started it: container, Kubernetes pod, Slurm job.

The spellings are those of cgroup v1 and v2, with the cgroups made by systemd (slices and scopes) or directly:

- containers: Docker, containerd, CRI-O, Podman (also rootless) and nerdctl name the innermost cgroup after the id;
- pods: https://kubernetes.io/docs/concepts/architecture/cgroups/, where a systemd slice has "_" in place of "-";
- Slurm: https://slurm.schedmd.com/cgroups.html and https://slurm.schedmd.com/cgroup_v2.html. From version 26.05 on, a
  path may hold a SLUID, which is not the job's number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# A monitor (conmon) is beside its container, not in it.
_CONTAINER: Final = re.compile(r"(?:^|(?<!conmon)[-:/])([0-9a-f]{64})(?=$|[./:])")
_POD: Final = re.compile(
    r"kubepods(?:.*?[-/])?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=$|[./:])"
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
        pod = _POD.search(path)
        job = _SLURM_V1.search(path) or _SLURM_V2.search(path)
        container = container or (ids[-1] if ids else "")
        pod_uid = pod_uid or (pod[1].replace("_", "-") if pod else "")
        slurm_job = slurm_job or (job[1] if job else "")
    return CgroupOwner(container, pod_uid, slurm_job)
