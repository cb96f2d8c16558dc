"""Which filesystem a path lies on, and on which disks, as Linux tells it.

Nothing here touches a filesystem that may not answer: a call on a dead network mount blocks for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Without a disk of their own, but not behind a network either.
_KERNELS_OWN: Final = ("overlay", "tmpfs", "zfs", "btrfs", "bcachefs")
_MAX_LINKS: Final = 40


@dataclass(frozen=True)
class Mount:
    """One line of the mount table. `device` is "major:minor", `kind` the type of the filesystem, such as "ext4"."""

    mountpoint: str
    device: str
    kind: str
    source: str

    @property
    def is_local(self) -> bool:
        """Whether a call on this filesystem is answered by this machine alone."""
        return self.kind in _KERNELS_OWN or (self.source.startswith("/dev/") and not self.kind.startswith("fuse."))


class MountTable:
    """The mounts that this process sees. Raises OSError where the system has no /proc/self/mountinfo."""

    def __init__(self, mountinfo: Path = Path("/proc/self/mountinfo"), sys: Path = Path("/sys")) -> None:
        self._sys = sys
        self._mounts: dict[str, Mount] = {}
        for line in mountinfo.read_text(errors="surrogateescape").splitlines():
            about, _, filesystem = line.partition(" - ")
            fields, (kind, source, *_) = about.split(" "), filesystem.split(" ")
            mountpoint = _unescaped(fields[4])
            self._mounts[mountpoint] = Mount(mountpoint, fields[2], kind, _unescaped(source))  # a later one hides it

    def of(self, path: Path) -> Mount | None:
        """The mount that an absolute path without symbolic links lies on."""
        return next((self._mounts[str(at)] for at in (path, *path.parents) if str(at) in self._mounts), None)

    def resolve(self, path: Path) -> Path:
        """`path` made absolute, with the symbolic links on local filesystems followed.

        Raises OSError where it is relative and the working directory is gone.
        """
        root, *rest = path.absolute().parts
        done, links = Path(root), 0
        rest.reverse()
        while rest:
            part = rest.pop()
            step = done.parent if part == ".." else done / part
            target = self._link_at(step) if links < _MAX_LINKS and part != ".." else None
            if target is None:
                done = step
            else:
                links += 1
                done = done / target.anchor  # back to the root where the target is absolute
                rest.extend(reversed(target.parts[bool(target.anchor) :]))
        return done

    def disks(self, mount: Mount) -> list[str]:
        """The physical disks under a mount, by the names that the kernel gives them; empty where none is known."""
        block = self._sys / "dev" / "block" / mount.device
        if not block.exists() and mount.source.startswith("/dev/"):  # btrfs has a device number of its own
            block = self._sys / "class" / "block" / Path(mount.source).resolve().name
        return sorted(_physical(block)) if block.exists() else []

    def _link_at(self, path: Path) -> Path | None:
        mount = self.of(path)
        if mount is None or not mount.is_local:
            return None
        try:
            return path.readlink()
        except OSError:
            return None


def _physical(block: Path) -> set[str]:
    """The disks below a block device: that of a partition, those of a volume or an array."""
    device = block.resolve()
    if (device / "partition").exists():
        device = device.parent
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    if below:
        return set().union(*map(_physical, below))
    return {device.name} if (device / "device").exists() else set()


def _unescaped(field: str) -> str:
    """The kernel writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
