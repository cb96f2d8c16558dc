"""What the operator chose, for those collectors that need to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainvitals_exporter.process_tree import ProcessTrees
from trainvitals_exporter.run_table import RunTable


@dataclass(frozen=True)
class Settings:
    """`procfs` and `rootfs` are where the host's /proc and / are found; runs and trees are shared by their collectors.

    While `gpu_release_file` exists, the NVIDIA driver is let go of.
    """

    procfs: Path
    rootfs: Path
    runs: RunTable
    gpu_release_file: Path
    trees: ProcessTrees

    @property
    def sysfs(self) -> Path:
        """Where the host's /sys is: below `rootfs`, else our own, in which a container sees the host's disks, too."""
        below = self.rootfs / "sys"
        return below if (below / "block").is_dir() else Path("/sys")
