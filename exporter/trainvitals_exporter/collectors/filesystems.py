"""Size and free space of the filesystems on disks and of those on the network, and which disks they lie on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from trainvitals.mounts import Mount, MountTable

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import Incomplete, NothingToReport
from trainvitals_exporter.settings import Settings

_PATIENCE_SECONDS: Final = 2.0
_MAX_CALLS: Final = 32  # at once, those that hang included
_ON_DISKS: Final = ("zfs", "btrfs", "bcachefs")  # besides those whose source is a device
_IMAGES: Final = ("squashfs", "iso9660", "udf", "erofs")  # always full
_ON_NETWORKS: Final = (
    "nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "beegfs_nodev", "ceph", "glusterfs", "gpfs", "wekafs", "panfs",
    "pvfs2", "afs", "9p", "virtiofs",
)  # fmt: skip
_DESKTOP: Final = ("fuse.gvfsd-fuse", "fuse.portal", "fuse.lxcfs", "fuse.snapfuse", "fuse.squashfuse")

_Answer = os.statvfs_result | OSError


class Filesystems:
    """Each filesystem once, at its shortest mount point, however often it is mounted."""

    name = "filesystems"
    interval = 15.0

    def __init__(self, procfs: Path, sysfs: Path, rootfs: Path) -> None:
        self._procfs = procfs
        self._sysfs = sysfs
        self._rootfs = rootfs
        self._calls: list[_Call] = []

    def collect(self) -> Iterable[Family]:
        """Ask each filesystem. One that does not answer is left alone until it does, and missed."""
        out = Families()
        table = self._table()
        mounts = _each_once(table)
        if not mounts:
            raise NothingToReport("no filesystem on a disk or on the network is mounted")
        missed = []
        answers = self._ask(mounts)
        for mount in mounts:
            answer = answers.get(mount)
            if answer is None:
                missed.append(f"no answer from {mount.mountpoint}")
            elif isinstance(answer, os.statvfs_result):
                _add_space(out, mount.mountpoint, answer)
            elif not (isinstance(answer, PermissionError) and mount.is_fuse):  # its user's alone
                missed.append(f"{mount.mountpoint}: {answer.strerror}")
            for disk in table.disks(mount) if mount.is_local else ():
                out.add("trainvitals_host_filesystem_disk_info", 1, mount.mountpoint, disk)
        if missed:
            raise Incomplete(", ".join(missed), out)
        return out

    def _table(self) -> MountTable:
        """The mounts as the host sees them: those of process 1, which also a container's exporter may read."""
        try:
            return MountTable(self._procfs / "1" / "mountinfo", self._sysfs)
        except OSError:
            return MountTable(self._procfs / "self" / "mountinfo", self._sysfs)

    def _ask(self, mounts: Sequence[Mount]) -> dict[Mount, _Answer]:
        """What statvfs says of each. A dead disk or server can block that call for ever, hence a thread for each call.

        A filesystem whose call has not returned is not asked again, however often it is mounted anew: the call holds
        it, so that its device number is no other's. One that is gone is forgotten when its call returns.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        self._calls = [call for call in self._calls if call.is_alive()]
        stuck = {(call.mount.mountpoint, call.mount.device) for call in self._calls}
        asked: list[_Call] = []
        for mount in mounts:
            if (mount.mountpoint, mount.device) in stuck:
                continue
            if len(self._calls) >= _MAX_CALLS and not mount.is_local:
                self._wait(asked, deadline)
                if len(self._calls) >= _MAX_CALLS:
                    continue
            asked.append(_Call(mount, self._rootfs / mount.mountpoint.lstrip("/")))
            self._calls.append(asked[-1])
            asked[-1].start()
        self._wait(asked, deadline)
        return {call.mount: call.answer for call in asked if call.answer is not None}

    def _wait(self, calls: Iterable[_Call], deadline: float) -> None:
        for call in calls:
            call.join(max(deadline - time.monotonic(), 0))
        self._calls = [call for call in self._calls if call.is_alive()]


class _Call(threading.Thread):
    """One question to one filesystem."""

    def __init__(self, mount: Mount, path: Path) -> None:
        super().__init__(name=f"statvfs-{mount.mountpoint}", daemon=True)
        self.mount = mount
        self.answer: _Answer | None = None
        self._path = path

    def run(self) -> None:
        try:
            self.answer = os.statvfs(self._path)
        except OSError as error:
            self.answer = error


def create(settings: Settings) -> Filesystems:
    """The collector."""
    return Filesystems(settings.procfs, settings.sysfs, settings.rootfs)


def _each_once(table: MountTable) -> list[Mount]:
    """By device; the local ones first."""
    found: dict[str, Mount] = {}
    for mount in sorted(table, key=lambda mount: (not mount.is_local, len(mount.mountpoint), mount.mountpoint)):
        if _on_disk(mount) or _on_network(mount):
            found.setdefault(mount.device, mount)
    return list(found.values())


def _on_disk(mount: Mount) -> bool:
    has_disk = mount.source.startswith("/dev/") or mount.kind in _ON_DISKS
    return mount.is_local and has_disk and mount.kind not in _IMAGES


def _on_network(mount: Mount) -> bool:
    return mount.kind in _ON_NETWORKS or (mount.is_fuse and mount.kind not in _DESKTOP)


def _add_space(out: Families, mountpoint: str, space: os.statvfs_result) -> None:
    if space.f_blocks:  # those without a size have no space to run out of
        out.add("trainvitals_host_filesystem_size_bytes", space.f_blocks * space.f_frsize, mountpoint)
        out.add("trainvitals_host_filesystem_avail_bytes", space.f_bavail * space.f_frsize, mountpoint)
