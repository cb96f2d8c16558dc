"""Puts what `trainvitals stack` writes into the wheel; a development install finds it in the checkout."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LIST = "exporter/trainvitals_exporter/stack/packaged.py"


class PackagedFiles(BuildHookInterface[Any]):
    """Adds the files that packaged.py lists to the package of `trainvitals stack`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises FileNotFoundError where one is missing, but not in the exporter's image: its source has none."""
        root = Path(self.root)
        if version == "editable" or not (root / "compose.yaml").exists():
            return
        packaged = runpy.run_path(str(root / _LIST))
        for name in packaged["CONTENTS"]:
            if not (root / name).exists():
                raise FileNotFoundError(f"{name}, which {_LIST} lists, is missing")
            build_data["force_include"][str(root / name)] = f"trainvitals_exporter/stack/files/{name}"
