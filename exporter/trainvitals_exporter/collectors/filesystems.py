"""Size and free space of the filesystems on block devices."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from trainvitals_exporter.families import Families, Family
from trainvitals_exporter.runner import Incomplete, NothingToReport
from trainvitals_exporter.settings import Settings

_STUCK_SECONDS: Final = 2.0


class Filesystems:
    """Each filesystem once, at its shortest mount point, however often it is mounted."""

    name = "filesystems"
    interval = 15.0

    def __init__(self, procfs: Path, rootfs: Path) -> None:
        self._procfs = procfs
        self._rootfs = rootfs
        self._stuck: dict[str, threading.Thread] = {}

    def collect(self) -> Iterable[Family]:
        """Ask each filesystem. One that does not answer is left alone until it does, and missed."""
        out = Families()
        mounts = list(self._mounts())
        if not mounts:
            raise NothingToReport("no filesystem on a block device is mounted")
        missed = []
        for mountpoint in mounts:
            space = self._space(mountpoint)
            if space is None:
                missed.append(mountpoint)
            else:
                out.add("trainvitals_host_filesystem_size_bytes", space.f_blocks * space.f_frsize, mountpoint)
                out.add("trainvitals_host_filesystem_avail_bytes", space.f_bavail * space.f_frsize, mountpoint)
        if missed:
            raise Incomplete(f"no answer from {', '.join(missed)}", out)
        return out

    def _mounts(self) -> Iterator[str]:
        """Mount points as the host sees them: those of process 1, which also a container's exporter may read."""
        try:
            text = (self._procfs / "1" / "mounts").read_text(errors="surrogateescape")
        except OSError:
            text = (self._procfs / "self" / "mounts").read_text(errors="surrogateescape")
        seen = set()
        mounts = [line.split()[:3] for line in text.splitlines()]
        for source, mountpoint, kind in sorted(mounts, key=lambda mount: len(mount[1])):
            if (source.startswith("/dev/") or kind == "zfs") and source not in seen:
                seen.add(source)
                yield _unescaped(mountpoint)

    def _space(self, mountpoint: str) -> os.statvfs_result | None:
        """The answer of statvfs, or None. A dead disk or server can block that call for ever, hence the thread."""
        if mountpoint in self._stuck and self._stuck[mountpoint].is_alive():
            return None
        answers: list[os.statvfs_result] = []
        path = self._rootfs / mountpoint.lstrip("/")
        thread = threading.Thread(target=_ask, args=(path, answers), name=f"statvfs-{mountpoint}", daemon=True)
        thread.start()
        thread.join(_STUCK_SECONDS)
        self._stuck[mountpoint] = thread
        return answers[0] if answers else None


def create(settings: Settings) -> Filesystems:
    """The collector."""
    return Filesystems(settings.procfs, settings.rootfs)


def _ask(path: Path, answers: list[os.statvfs_result]) -> None:
    try:
        answers.append(os.statvfs(path))
    except OSError:
        return


def _unescaped(mountpoint: str) -> str:
    """The kernel writes blanks and backslashes in /proc/mounts as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mountpoint)
