"""Which filesystem a path lies on, and on which disks, as Linux tells it.

Nothing here touches a filesystem that may not answer: a call on a dead network mount blocks for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
        return self.kind in _KERNELS_OWN or (self.source.startswith("/dev/") and not self.is_fuse)

    @property
    def is_fuse(self) -> bool:
        """Whether some program answers for it. Of those on block devices, such as ntfs-3g, the type is "fuseblk"."""
        return self.kind == "fuse" or self.kind.startswith("fuse.")


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

    def __iter__(self) -> Iterator[Mount]:
        return iter(self._mounts.values())

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
        return sorted({disk for block in self._blocks(mount) for disk in physical_disks(block)})

    def _blocks(self, mount: Mount) -> list[Path]:
        block = self._sys / "dev" / "block" / mount.device
        if block.exists():
            return [block]
        if not mount.source.startswith("/dev/"):
            return []
        # btrfs has a device number of its own, and may lie on several devices.
        block = self._named(mount.source)
        for devices in self._sys.glob("fs/btrfs/*/devices"):
            if (devices / block.name).exists():
                return list(devices.iterdir())
        return [block] if block.exists() else []

    def _named(self, source: str) -> Path:
        """The device that /dev knows as `source`; also where that is the /dev of another container."""
        blocks, device = self._sys / "class" / "block", Path(source)
        volumes = (name.parents[1] for name in blocks.glob("dm-*/dm/name") if name.read_text().strip() == device.name)
        return next(volumes, blocks / device.resolve().name)

    def _link_at(self, path: Path) -> Path | None:
        mount = self.of(path)
        if mount is None or not mount.is_local:
            return None
        try:
            return path.readlink()
        except OSError:
            return None


def physical_disks(block: Path) -> set[str]:
    """The disks below a block device of /sys: itself, that of a partition, those of a volume or an array."""
    device = block.resolve()
    if (device / "partition").exists():
        device = device.parent
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    if below:
        return set().union(*map(physical_disks, below))
    return {device.name} if _is_hardware(device) else set()


def _is_hardware(device: Path) -> bool:
    # One path of several to an NVMe disk is hidden: the disk has a name of its own.
    hidden = device / "hidden"
    if hidden.exists() and hidden.read_text().strip() != "0":
        return False
    return (device / "device").exists() or "/devices/virtual/" not in str(device)


def _unescaped(field: str) -> str:
    """The kernel writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
