"""Whose each rank is: its user, its container, its Kubernetes pod, its Slurm job.

Of a process's environment only the variables named here are ever looked at, and of those only what Slurm and
Kubernetes can have put there is passed on. Arguments are never read.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from trainvitals_exporter import cgroups
from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.process_tree import read_bytes
from trainvitals_exporter.run_table import RunTable
from trainvitals_exporter.settings import Settings

_NUMBER: Final = re.compile(r"[0-9]{1,20}")
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_KUBERNETES_NAME: Final = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")
_VARIABLES: Final = {
    "SLURM_JOB_ID": _NUMBER,
    "SLURM_ARRAY_JOB_ID": _NUMBER,
    "SLURM_ARRAY_TASK_ID": _NUMBER,
    "POD_NAME": _KUBERNETES_NAME,
    "POD_NAMESPACE": _KUBERNETES_NAME,
}
_MOST_OF_ENVIRONMENT: Final = 2 * 2**20  # what Linux allows with the usual stack size
_LONGEST_USER: Final = 64

_Labels = tuple[str, ...]


class Owners:
    """Each rank is looked at once; what was found stays for as long as the run is served, for people ask afterwards."""

    name = "owners"
    interval = 5.0

    def __init__(self, table: RunTable, procfs: Path, rootfs: Path) -> None:
        self._table = table
        self._procfs = procfs
        self._rootfs = rootfs
        self._known: dict[tuple[str, int], tuple[int, _Labels]] = {}

    def collect(self) -> Iterable[Family]:
        """Look at the ranks that are new."""
        before = self._living(max_age=1.0)
        found = {key: (pid, self._owner(pid)) for key, pid in before.items() if self._pid(key) != pid}
        if found:
            # Who held its run file's lock before and after was not replaced by another process meanwhile.
            after = self._living(max_age=0.0)
            self._known |= {key: about for key, about in found.items() if after.get(key) == about[0]}
        out = Families()
        runs = self._table.runs(max_age=1.0)
        served = {(run.run_id, rank): (name, str(rank)) for name, run in runs.items() for rank in run.ranks}
        self._known = {key: about for key, about in self._known.items() if key in served}
        for key, (_, labels) in self._known.items():
            if any(labels):
                out.add("trainvitals_run_owner_info", 1, *served[key], *labels)
        return out

    def _living(self, max_age: float) -> dict[tuple[str, int], int]:
        runs = self._table.runs(max_age).values()
        return {(r.run_id, rank): file.alive_pid for r in runs for rank, file in r.ranks.items() if file.alive_pid}

    def _pid(self, key: tuple[str, int]) -> int | None:
        return self._known[key][0] if key in self._known else None

    def _owner(self, pid: int) -> _Labels:
        """The labels in the order of the catalogue, empty for what is not known, or the kernel does not permit."""
        cgroup = cgroups.parse(self._read(pid, "cgroup").decode(errors="replace"))
        environment = told_by_environment(self._read(pid, "environ", _MOST_OF_ENVIRONMENT))
        namespace, pod = self._pod(cgroup.pod_uid)
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return (
            self._user(pid),
            cgroup.container,
            namespace or environment.get("POD_NAMESPACE", ""),
            pod or environment.get("POD_NAME", ""),
            cgroup.pod_uid,
            cgroup.slurm_job or environment.get("SLURM_JOB_ID", ""),
            f"{array}_{task}" if array and task else "",
        )

    def _user(self, pid: int) -> str:
        """The name of the process's user on the host, else its number."""
        found = re.search(rb"^Uid:\s*(\d{1,10})\s", self._read(pid, "status"), re.MULTILINE)
        if found is None:
            return ""
        uid = int(found[1])
        try:
            # The system's own way knows directories of users as well; the host's, from a container, is not to be had.
            name = pwd.getpwuid(uid).pw_name if self._rootfs == Path("/") else self._user_in_file(uid)
        except (KeyError, OSError, OverflowError):
            name = ""
        return "".join(filter(str.isprintable, name))[:_LONGEST_USER] or str(uid)

    def _user_in_file(self, uid: int) -> str:
        """Raises OSError, and KeyError for a user who is not there."""
        lines = (self._rootfs / "etc" / "passwd").read_text(errors="replace").splitlines()
        accounts = [line.split(":") for line in lines]
        return {account[2]: account[0] for account in reversed(accounts) if len(account) > 2}[str(uid)]

    def _pod(self, uid: str) -> tuple[str, str]:
        """Namespace and name of a pod: the kubelet calls the folder of its logs NAMESPACE_NAME_UID."""
        try:
            names = [path.name.split("_") for path in (self._rootfs / "var" / "log" / "pods").iterdir()] if uid else []
        except OSError:
            return "", ""
        found = [(name[0], name[1]) for name in names if len(name) == 3 and name[2] == uid]
        return found[0] if found and all(map(_KUBERNETES_NAME.fullmatch, found[0])) else ("", "")

    def _read(self, pid: int, name: str, most: int = 2**16) -> bytes:
        try:
            return read_bytes(f"{self._procfs}/{pid}/{name}", most)
        except OSError:
            return b""


def create(settings: Settings) -> Owners:
    """The collector."""
    return Owners(settings.runs, settings.procfs, settings.rootfs)


def told_by_environment(environ: bytes) -> Mapping[str, str]:
    """Those variables that may be looked at, as far as their values are what Slurm or Kubernetes put there."""
    told = {}
    for entry in environ.split(b"\0"):
        name, _, value = entry.partition(b"=")
        pattern = _VARIABLES.get(name.decode(errors="replace"))
        text = value.decode(errors="replace")
        if pattern is not None and pattern.fullmatch(text):
            told[name.decode()] = text
    return told
